"""Three 2D networks, one for each plane, as one network of a volume: each sees all slices of its plane.

Fusions: "consensus", the class that two of three planes agree on, else background (reference system B); "mean", the
mean probability; "learned", a weight for each plane and class (after Perslev et al., MultiPlanarUNet, MICCAI 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ctseg.errors import ConfigError
from ctseg.grids.spacing import PLANES
from ctseg.sentences import said_plainly

if TYPE_CHECKING:
    from typing_extensions import Self

FUSIONS = ("consensus", "mean", "learned")
_CERTAIN = 20.0  # logit of what a vote decides


class ThreePlanes(nn.Module):
    """The planes' networks and their fusion.

    Args:
        axial: 2D network, (B, C, rows, columns) to (B, classes, rows, columns); as the next two.
        coronal: see there.
        sagittal: see there.
        classes: with the background.
        fusion: one of `FUSIONS`.
        divisor: of which the slices' sizes must be multiples; they are padded with zeros and cropped again.
        slices: in one forward pass.
        freeze_planes: let only the fusion learn.
        only: answer with this plane alone, to train it apart on whole volumes or to measure it; None takes all three.

    Raises:
        ConfigError: an unknown fusion or plane, or sizes below 1.
    """

    @said_plainly
    def __init__(
        self,
        axial: nn.Module,
        coronal: nn.Module,
        sagittal: nn.Module,
        classes: int,
        fusion: str = "consensus",
        divisor: int = 16,
        slices: int = 16,
        freeze_planes: bool = False,
        only: str | None = None,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS or min(classes - 1, divisor, slices) < 1 or only not in (None, *PLANES):
            raise ConfigError(
                f"ThreePlanes got fusion {fusion!r}, {classes} classes, divisor {divisor}, {slices} slices, only "
                f"{only!r}: expected one of {', '.join(FUSIONS)}, 2 classes or more, sizes of 1 or more, and a plane "
                f"of {', '.join(PLANES)} or none"
            )
        self.only = only
        self.planes = nn.ModuleDict({"axial": axial, "coronal": coronal, "sagittal": sagittal})
        self.planes.requires_grad_(not freeze_planes)
        self.classes, self.fusion, self.divisor, self.slices = classes, fusion, divisor, slices
        # softmax over the planes of each class: before any training every plane counts a third
        self.weights = nn.Parameter(torch.zeros(len(PLANES), classes)) if fusion == "learned" else None

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move as any module; a memory format of volumes is taken as that of slices, which the weights have."""
        if kwargs.get("memory_format") == torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        return super().to(*args, **kwargs)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, L, P, S) of an image (B, C, L, P, S) in LPS order."""
        if self.only is not None:
            return self._plane(image, self.only)
        shares = self.shares(image)
        if self.fusion == "consensus":
            return _vote(shares.argmax(dim=2), self.classes)
        if self.weights is not None:
            weights = self.weights.softmax(dim=0)[:, None, :, None, None, None]
            return (shares * weights).sum(dim=0).clamp_min(1e-7).log()
        return shares.mean(dim=0).clamp_min(1e-7).log()

    def shares(self, image: torch.Tensor) -> torch.Tensor:
        """Return each plane's probabilities (3, B, classes, L, P, S), in the order of `ctseg.grids.spacing.PLANES`."""
        return torch.stack([self._plane(image, name).softmax(dim=1) for name in PLANES])

    def _plane(self, image: torch.Tensor, name: str) -> torch.Tensor:
        """The logits of one plane's network, on the image's grid."""
        axes = PLANES[name]
        turned = image.permute(0, 1, *[2 + axis for axis in axes])
        logits = slice_by_slice(self.planes[name], turned, self.divisor, self.slices)
        return logits.permute(0, 1, *[2 + axes.index(axis) for axis in range(3)])


def slice_by_slice(network: nn.Module, volume: torch.Tensor, divisor: int, slices: int) -> torch.Tensor:
    """Logits of a volume (B, C, rows, columns, slices) from a 2D network.

    Args:
        network: (B, C, rows, columns) to logits (B, classes, rows, columns).
        volume: the slices run along the last axis.
        divisor: of which the slices' sizes must be multiples; they are padded with zeros and cropped again.
        slices: in one forward pass.
    """
    batch, _, rows, columns, count = volume.shape
    flat = volume.permute(0, 4, 1, 2, 3).flatten(0, 1)
    padded = functional.pad(flat, (0, -columns % divisor, 0, -rows % divisor))
    logits = torch.cat([network(part).float() for part in padded.split(slices)])
    return logits[..., :rows, :columns].unflatten(0, (batch, count)).permute(0, 2, 3, 4, 1)


def _vote(chosen: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits of the class that two of three hold, (3, B, ...) to (B, classes, ...); without one the background."""
    one, other, third = chosen
    agreed = torch.where((one == other) | (one == third), one, torch.where(other == third, other, 0))
    return functional.one_hot(agreed, classes).movedim(-1, 1).float() * _CERTAIN
