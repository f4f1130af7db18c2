"""Where an organ is, from a coarse look at every n-th slice: which slices are worth running, and which part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ctseg.errors import ConfigError

_CELL = 4  # pixels along a side of the cells in which the coarse masks are compared


@dataclass(frozen=True)
class Found:
    """What the coarse look left.

    Attributes:
        slices: of those looked at, the ones that hold a piece that counts, ascending; none: nothing was found.
        rows: first and last + 1 row in which the pieces lie, over these slices.
        columns: the same of columns.
    """

    slices: tuple[int, ...] = ()
    rows: tuple[int, int] = (0, 0)
    columns: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Region:
    """How a coarse look becomes a region to run.

    A network errs on single spots far from the organ. Where the clean-up keeps the largest piece of each organ in any
    case, such spots need not be looked at: of each class only pieces count that are at least a share of its largest.

    Attributes:
        share: of the largest piece's size in the coarse look; 0 lets every piece count.
        margin_px: pixels around the pieces that are run with them, in the slice; None runs whole slices.
        divisor: sides of the box are multiples of it, as the network needs them.

    Raises:
        ConfigError: for a share outside of 0 to 1, a negative margin, or a divisor below 1.
    """

    share: float = 0.0
    margin_px: int | None = None
    divisor: int = 16

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and (self.margin_px is None or self.margin_px >= 0) and self.divisor >= 1):
            raise ConfigError(
                f"the region got share {self.share}, margin_px {self.margin_px}, divisor {self.divisor}: expected 0 to "
                "1, at least 0 or null, and at least 1; correct the inferer of the task's kind"
            )

    def find(self, masks: Mapping[int, torch.Tensor]) -> Found:
        """Return where the pieces that count are.

        Args:
            masks: slice index -> (L, I, J) bool, one for each class; neighbours in ascending order are taken for
                neighbours in space.
        """
        from scipy.ndimage import label

        indices = sorted(masks)
        stack = torch.stack([_cells(masks[index]) for index in indices], dim=-1).cpu().numpy()
        counted = np.zeros(stack.shape[1:], dtype=bool)
        for organ in stack:
            pieces, count = label(organ, np.ones((3, 3, 3)))
            if count:
                sizes = np.bincount(pieces.ravel())
                sizes[0] = 0
                counted |= (sizes >= self.share * sizes.max())[pieces] & organ
        if not counted.any():
            return Found()
        size = next(iter(masks.values())).shape[1:]
        rows, columns, slices = (
            np.flatnonzero(counted.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)
        )
        return Found(
            tuple(indices[number] for number in slices),
            (int(rows[0]) * _CELL, min(int(rows[-1] + 1) * _CELL, size[0])),
            (int(columns[0]) * _CELL, min(int(columns[-1] + 1) * _CELL, size[1])),
        )

    def box(self, found: Found, size: Sequence[int]) -> tuple[slice, slice]:
        """Return the part of a slice (I, J) that is run, the margin included."""
        if self.margin_px is None:
            return (slice(0, size[0]), slice(0, size[1]))
        sides = []
        for (first, last), whole in zip((found.rows, found.columns), size, strict=True):
            start, stop = max(0, first - self.margin_px), min(whole, last + self.margin_px)
            wanted = min(whole, -(-(stop - start) // self.divisor) * self.divisor)
            start = max(0, min(start - (wanted - (stop - start)) // 2, whole - wanted))
            sides.append(slice(start, start + wanted))
        return (sides[0], sides[1])


def touches_edge(mask: torch.Tensor, box: tuple[slice, slice], size: Sequence[int], rim: int = 2) -> torch.Tensor:
    """Return (B,): which masks (B, I', J') of a box come within `rim` pixels of an edge that is not the slice's own."""
    edges = torch.zeros(mask.shape[1:], dtype=torch.bool, device=mask.device)
    if box[0].start > 0:
        edges[:rim] = True
    if box[0].stop < size[0]:
        edges[-rim:] = True
    if box[1].start > 0:
        edges[:, :rim] = True
    if box[1].stop < size[1]:
        edges[:, -rim:] = True
    return (mask & edges).flatten(1).any(dim=1)


def _cells(masks: torch.Tensor) -> torch.Tensor:
    """Return (L, I / 4, J / 4): in which cells of (L, I, J) anything is."""
    pooled = torch.nn.functional.max_pool2d(masks[None].float(), _CELL, ceil_mode=True)
    return pooled[0] > 0
