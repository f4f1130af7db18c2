"""Losses that are measured beside the one that is trained on: how categorical cross-entropy fares under Tversky."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ctseg.errors import ConfigError
from ctseg.losses import LOSSES, make_loss
from ctseg.partial import PartialLoss
from ctseg.sentences import look_up, said_plainly


class OtherLosses:
    """Losses by name, without a gradient; made when the first prediction says how many channels there are.

    Args:
        wanted: of each loss its name, or {name, options}, as `ctseg.losses.make_loss` takes them.

    Raises:
        ConfigError: an unknown name, an option that the loss has not, or a name twice.
    """

    @said_plainly
    def __init__(self, wanted: Sequence[str | Mapping[str, Any]]) -> None:
        self.wanted: dict[str, dict[str, Any]] = {}
        for entry in [wanted] if isinstance(wanted, (str, Mapping)) else wanted:
            options = {"name": entry} if isinstance(entry, str) else dict(entry)
            name = str(options.get("name", "")).lower().replace("-", "_")
            look_up("loss", name, {**LOSSES, "weighted_sum": None})
            if name in self.wanted:
                raise ConfigError(f"log_losses names the loss {name} twice: expected each once; take one out.")
            self.wanted[name] = options
        self._made: dict[int, dict[str, PartialLoss]] = {}

    @said_plainly
    def of(self, prediction: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        """Return name -> mean loss of logits (B, C, ...) and class indices (B, 1, ...).

        Raises:
            ConfigError: a loss that cannot be taken of so many channels, or shapes that do not fit.
        """
        channels = prediction.shape[1]
        if channels not in self._made:
            self._made[channels] = {
                name: PartialLoss(make_loss(**{"channels": channels, **options})).to(prediction.device)
                for name, options in self.wanted.items()
            }
        with torch.no_grad():
            return {name: float(loss(prediction, label).mean()) for name, loss in self._made[channels].items()}


class MeanLosses:
    """Running means of `OtherLosses` over an epoch; each batch counts by its weight."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weight = 0.0

    def add(self, values: Mapping[str, float], weight: float = 1.0) -> None:
        """Add what one batch gave."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
        self._weight += weight

    def row(self, part: str) -> dict[str, float]:
        """Return `PART_NAME_loss` -> mean; empty when nothing was added."""
        return {f"{part}_{name}_loss": total / self._weight for name, total in self._sums.items()}
