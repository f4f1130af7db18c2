"""One 2D network along several turned planes of a volume, as MultiPlanarUNet: every view cuts the head another way.

After Perslev et al., One Network To Segment Them All, MICCAI 2019: the volume is turned so that a view's axis runs
across the slices, the slices are segmented, the probabilities turned back, and the views fused, by their mean or with
a learned weight for each view and class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ctseg.errors import ConfigError
from ctseg.planes.networks import slice_by_slice
from ctseg.sentences import said_plainly

if TYPE_CHECKING:
    from typing_extensions import Self

_GOLDEN = (1 + math.sqrt(5)) / 2
# The body's axes; and those through the corners of an icosahedron, each 63.4 degrees from every other.
VIEWS: dict[int, list[list[float]]] = {
    3: [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    6: [[0, 1, _GOLDEN], [0, 1, -_GOLDEN], [1, _GOLDEN, 0], [1, -_GOLDEN, 0], [_GOLDEN, 0, 1], [-_GOLDEN, 0, 1]],
}
_LEAST_SHARE = 1e-7


class TurnedPlanes(nn.Module):
    """A 2D network that sees a volume along several axes. Voxels should be as long as wide.

    Args:
        network: 2D, (B, C, rows, columns) to logits (B, classes, rows, columns).
        classes: with the background.
        views: 3 (the body's axes), 6 (an icosahedron's), or a list of axes in the volume's order, of any length.
        fusion: "mean", or "learned": a weight for each view and class.
        divisor: of which the slices' sizes must be multiples; they are padded with zeros and cropped again.
        slices: in one forward pass.
        drawn: views of a step while training, drawn at random; null for all.
        freeze_network: let only the fusion learn.

    Raises:
        ConfigError: views that are none, an unknown fusion, sizes below 1.
    """

    @said_plainly
    def __init__(
        self,
        network: nn.Module,
        classes: int,
        views: int | Sequence[Sequence[float]] = 6,
        fusion: str = "mean",
        divisor: int = 16,
        slices: int = 16,
        drawn: int | None = None,
        freeze_network: bool = False,
    ) -> None:
        super().__init__()
        axes = VIEWS.get(views, []) if isinstance(views, int) else [list(axis) for axis in views]
        if not axes or any(len(axis) != 3 or not any(axis) for axis in axes):
            raise ConfigError(f"TurnedPlanes got views {views!r}: expected 3, 6, or a list of axes such as [0, 1, 1]")
        drawn = len(axes) if drawn is None else drawn
        if fusion not in ("mean", "learned") or min(classes - 1, divisor, slices, drawn) < 1 or drawn > len(axes):
            raise ConfigError(
                f"TurnedPlanes got fusion {fusion!r}, {classes} classes, divisor {divisor}, {slices} slices, {drawn} "
                f"drawn views: expected mean or learned, 2 classes or more, sizes of 1 or more, at most {len(axes)} "
                "views"
            )
        self.network = network
        self.network.requires_grad_(not freeze_network)
        self.classes, self.divisor, self.slices, self.drawn = classes, divisor, slices, drawn
        self.turns = [_turn(axis) for axis in axes]
        self.weights = nn.Parameter(torch.zeros(len(axes), classes)) if fusion == "learned" else None

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move as any module; a memory format of volumes is taken as that of slices, which the weights have."""
        if kwargs.get("memory_format") == torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        return super().to(*args, **kwargs)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the fused shares, (B, classes, I, J, K), of an image (B, C, I, J, K)."""
        chosen = list(range(len(self.turns)))
        if self.training and self.drawn < len(chosen):
            chosen = sorted(torch.randperm(len(chosen))[: self.drawn].tolist())
        shares = torch.stack([self._view(image, self.turns[number]) for number in chosen])
        if self.weights is None:
            return shares.mean(dim=0).clamp_min(_LEAST_SHARE).log()
        weights = self.weights[chosen].softmax(dim=0)[:, None, :, None, None, None]
        return (shares * weights).sum(dim=0).clamp_min(_LEAST_SHARE).log()

    def _view(self, image: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        """The shares of one view on the image's grid."""
        shape = image.shape[2:]
        # the whole image lies in the turned one
        size = [math.ceil(float(row.abs() @ torch.tensor(shape, dtype=row.dtype)) - 1e-4) for row in turn]
        turned = _turned(image.float(), turn, size)
        shares = slice_by_slice(self.network, turned, self.divisor, self.slices).softmax(dim=1)
        return _turned(shares, turn.T, list(shape))


def _turn(axis: Sequence[float]) -> torch.Tensor:
    """(3, 3) rotation whose rows are the turned image's axes in the volume's; the last is the view's axis."""
    across = torch.tensor(axis, dtype=torch.float64)
    across = across / across.norm()
    # the volume's axis that lies best in the plane becomes the rows, as upright as can be
    first = torch.eye(3, dtype=torch.float64)[int(across.abs().argmin())]
    rows = first - (first @ across) * across
    rows = rows / rows.norm()
    return torch.stack([rows, torch.linalg.cross(across, rows), across])


def _turned(volume: torch.Tensor, turn: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Sample (B, C, I, J, K) on a grid of `size` voxels turned about the middle; linear, zeros outside."""
    steps = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    places = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1) @ turn  # in voxels from the volume's middle
    extent = torch.tensor(volume.shape[2:], dtype=torch.float64)
    grid = (2 * places / extent).flip(-1).to(volume)[None].expand(len(volume), -1, -1, -1, -1)
    return functional.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
