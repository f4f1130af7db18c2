"""Labels in which not every organ was drawn: what was not annotated is ignored in the loss, not learnt as background.

The marginal loss of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation",
Medical Image Analysis 70:101979 (2021): in a case without annotation of an organ, the organ's probability is added to
that of the background, since a voxel that is labelled background there may be either. The sum is taken on the logits,
so every loss on logits can be used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ctseg.datalist import NOT_ANNOTATED
from ctseg.errors import ConfigError

ANNOTATED = "annotated"  # an item's key: which organs its label shows, (organs,) of 0 and 1
_SURELY_NOT = -1e4  # a logit without probability in float32 and float16 alike; finite, so that 0 times its log is 0


def annotated_flags(labels: Sequence[str], missing: Sequence[str]) -> torch.Tensor:
    """Return 1 for each of `labels` that was annotated and 0 for those in `missing`, shape (organs,), float32.

    Raises:
        ConfigError: for a name in `missing` that is none of the labels.
    """
    if unknown := sorted(set(missing) - set(labels)):
        raise ConfigError(
            f"The datalist says that {', '.join(unknown)} was not annotated, but the task knows {', '.join(labels)}: "
            f"correct {NOT_ANNOTATED} in the datalist."
        )
    return torch.tensor([float(name not in missing) for name in labels])


def marginal_logits(logits: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """Return logits in which an organ that was not annotated is part of the background.

    Args:
        logits: (B, C, ...), background and organs, or the single organ (C = 1).
        annotated: (B, organs), 1 where the case's label shows the organ.

    Returns:
        Logits of the same shape. With a softmax over them, the background's probability is the sum of its own and of
        those of the organs not annotated, whose own is 0; the others' are as before. A single organ not annotated
        gets probability 0 and no gradient.

    Raises:
        ConfigError: when the two do not fit.
    """
    organs = max(logits.shape[1] - 1, 1)
    if tuple(annotated.shape) != (logits.shape[0], organs):
        raise ConfigError(
            f"The marginal loss got {tuple(annotated.shape)} flags for logits {tuple(logits.shape)}: expected a flag "
            f"for each of {logits.shape[0]} images and {organs} organs; correct the labels of the task or the network."
        )
    known = annotated.to(logits.device).bool()
    if known.all():
        return logits
    known = known.view(*known.shape, *[1] * (logits.ndim - 2))
    if logits.shape[1] == 1:
        return logits.masked_fill(~known, _SURELY_NOT)
    background, organ = logits[:, :1], logits[:, 1:]
    merged = torch.cat([background, organ.masked_fill(known, -torch.inf)], dim=1).logsumexp(dim=1, keepdim=True)
    return torch.cat([merged, organ.masked_fill(~known, _SURELY_NOT)], dim=1)


class PartialLoss(nn.Module):
    """A loss that knows which organs each image's label shows.

    Args:
        loss: takes logits (B, C, ...) and a label (B, 1, ...) of class indices.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the loss; a label without flags (`with_flags`) is taken as complete."""
        flags = getattr(label, ANNOTATED, None)
        if flags is not None:
            prediction = marginal_logits(prediction, flags)
        loss: torch.Tensor = self.loss(prediction, label)
        return loss


def with_flags(label: torch.Tensor, batch: Any) -> torch.Tensor:
    """Return the label of a batch with the batch's flags, if it has any, as an attribute for `PartialLoss`.

    MONAI's trainer hands prediction and label to the loss and nothing else, so the flags travel on the label.
    """
    flags = batch.get(ANNOTATED) if isinstance(batch, dict) else None
    if flags is not None:
        setattr(label, ANNOTATED, flags)
    return label
