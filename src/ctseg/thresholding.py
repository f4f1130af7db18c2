"""Segmentation without a network: what is denser than a threshold, declared in a bundle in the network's place."""

from __future__ import annotations

import math

import torch

from ctseg.errors import ConfigError


class Threshold(torch.nn.Module):
    """Tell the voxels from `lower` to `upper`, both included, from the rest; there is nothing to learn and no weights.

    Args:
        lower: in the image's own units, for CT Hounsfield units (HU).
        upper: None for no upper limit.

    Raises:
        ConfigError: when the limits are no numbers or leave nothing between them.
    """

    def __init__(self, lower: float, upper: float | None = None) -> None:
        super().__init__()
        self.lower = float(lower)
        self.upper = math.inf if upper is None else float(upper)
        if not self.lower <= self.upper:
            raise ConfigError(f"The threshold goes from {lower} to {upper}: expected two numbers, the lower one first.")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits as a network of one class does, float32: 1 inside, -1 outside; shape as the image's."""
        inside = (image >= self.lower) & (image <= self.upper)
        return inside.to(torch.float32).mul_(2.0).sub_(1.0)
