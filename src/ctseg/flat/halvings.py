"""How the small 2D networks halve a map and double it again.

Their forward methods, and those of `ctseg.flat.networks`, keep to what TorchScript compiles, for MONAI's `ckpt_export`:
modules are gone through by `zip` without `strict`, never by index.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Maxima(nn.Module):
    """Halving by maxima."""

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smaller map and where its values were."""
        return functional.max_pool2d_with_indices(values, [2, 2])


class Strided(nn.Sequential):
    """Halving by a 2x2 convolution with batch norm."""

    def __init__(self, size: int) -> None:
        super().__init__(nn.Conv2d(size, size, 2, stride=2), nn.BatchNorm2d(size))

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smaller map, twice: there are no places of maxima."""
        for layer in self:
            values = layer(values)
        return values, values


class Unpool(nn.Module):
    """Doubling that puts values back where the maxima were, zeros elsewhere."""

    def forward(self, values: torch.Tensor, place: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Return a map of a size."""
        return functional.max_unpool2d(values, place, [2, 2], output_size=size)


class Nearest(nn.Module):
    """Doubling by repeating."""

    def forward(self, values: torch.Tensor, place: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Return a map of a size."""
        return functional.interpolate(values, size=size, mode="nearest")


class Transposed(nn.Module):
    """Doubling by a transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, values: torch.Tensor, place: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Return a map of a size."""
        return self.convolution(values, output_size=size)
