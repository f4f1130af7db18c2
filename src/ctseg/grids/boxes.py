"""The box around what is set in a mask, on whatever device the mask lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Box = tuple[slice, slice, slice]


def box_of(mask: torch.Tensor) -> Box | None:
    """Return the smallest box that holds all that is set in a mask; None where nothing is.

    Args:
        mask: (I, J, K), bool or uint8; what is not 0 is set.
    """
    bytes_ = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    plane = bytes_.amax(dim=0)  # (J, K): two looks at the voxels are enough for three axes
    along = (bytes_.amax(dim=2).amax(dim=1), plane.amax(dim=1), plane.amax(dim=0))
    ends = []
    for line in along:
        where = torch.nonzero(line)
        if not len(where):
            return None
        ends.append(slice(int(where[0]), int(where[-1]) + 1))
    return (ends[0], ends[1], ends[2])


def grown_box(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """Return a box with so many voxels more on each side of each axis, as far as the grid goes."""
    i, j, k = (
        slice(max(0, part.start - extra), min(int(size), part.stop + extra))
        for part, extra, size in zip(box, margin, shape, strict=True)
    )
    return (i, j, k)
