"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn.functional import log_softmax, logsigmoid

from ctseg.errors import ConfigError

ACTIVATIONS = ("sigmoid", "softmax", "none")


class MeanOfNetworks(nn.Module):
    """Runs copies of a network, each with weights of its own, and answers with the mean of their probabilities.

    The answer has the form of one network's: logits where the network gives logits, so that thresholds, clean-up and
    everything else of a bundle stay as they are. The mean is of probabilities, not of logits: p = mean(sigmoid(z_k)),
    answered as log p - log(1 - p); of a softmax log(mean(softmax(z_k))). Computed in float32 over logarithms, finite
    at every finite logit.

    Args:
        network: of one of them; its own weights do not matter.
        count: how many.
        activation: what makes probabilities of its answer: "sigmoid", "softmax", "none" (it gives probabilities);
            None takes sigmoid for one channel and softmax for several.

    Raises:
        ConfigError: for an unknown activation, or no network.
    """

    def __init__(self, network: nn.Module, count: int, activation: str | None = None) -> None:
        super().__init__()
        if activation is not None and activation not in ACTIVATIONS:
            raise ConfigError(f"The activation {activation!r} is not known: expected {', '.join(ACTIVATIONS)} or null.")
        if count < 1:
            raise ConfigError(f"An ensemble of {count} networks cannot be: expected 1 or more.")
        self.networks = nn.ModuleList([copy.deepcopy(network) for _ in range(count)])
        self.activation = activation

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mean for images (B, C, ...), of the shape (B, classes, ...) of one network's answer."""
        answers = torch.stack([network(image).float() for network in self.networks])
        activation = self.activation or ("sigmoid" if answers.shape[2] == 1 else "softmax")
        if activation == "none":
            return answers.mean(dim=0)
        return _log_mean(log_softmax(answers, dim=2)) if activation == "softmax" else mean_logits(answers)


def mean_logits(answers: torch.Tensor) -> torch.Tensor:
    """Return the logits of the mean probability (sigmoid) of answers (N, ...) over their first axis."""
    return _log_mean(logsigmoid(answers)) - _log_mean(logsigmoid(-answers))


def _log_mean(logarithms: torch.Tensor) -> torch.Tensor:
    """log(mean(exp(x))) over the first axis."""
    return torch.logsumexp(logarithms, dim=0) - math.log(len(logarithms))
