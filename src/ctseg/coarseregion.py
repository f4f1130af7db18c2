"""Where an organ is, from a coarse look at every n-th slice: which slices are worth running, and which part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ctseg.coarsecells import CELL, RIM, inner_edges, pieces_that_count, places_along, side
from ctseg.errors import ConfigError


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
        indices = sorted(masks)
        cells = torch.stack([_cells(masks[index]) for index in indices], dim=-1).cpu().numpy()
        counted = pieces_that_count(cells, self.share)
        if not counted.any():
            return Found()
        size = next(iter(masks.values())).shape[1:]
        rows, columns, slices = places_along(counted)
        return Found(
            tuple(indices[number] for number in slices),
            (int(rows[0]) * CELL, min(int(rows[-1] + 1) * CELL, size[0])),
            (int(columns[0]) * CELL, min(int(columns[-1] + 1) * CELL, size[1])),
        )

    def box(self, found: Found, size: Sequence[int]) -> tuple[slice, slice]:
        """Return the part of a slice (I, J) that is run, the margin included."""
        if self.margin_px is None:
            return (slice(0, size[0]), slice(0, size[1]))
        rows, columns = (
            side(first, stop, whole, self.margin_px, self.divisor)
            for (first, stop), whole in zip((found.rows, found.columns), size, strict=True)
        )
        return rows, columns


def touches_edge(mask: torch.Tensor, box: tuple[slice, slice], size: Sequence[int], rim: int = RIM) -> torch.Tensor:
    """Return (B,): which masks (B, I', J') of a box come within `rim` pixels of an edge that is not the slice's own."""
    edges = torch.from_numpy(inner_edges(mask.shape[1:], box, size, rim)).to(mask.device)
    return (mask & edges).flatten(1).any(dim=1)


def _cells(masks: torch.Tensor) -> torch.Tensor:
    """Return (L, I / 4, J / 4): in which cells of (L, I, J) anything is."""
    pooled = torch.nn.functional.max_pool2d(masks[None].float(), CELL, ceil_mode=True)
    return pooled[0] > 0
