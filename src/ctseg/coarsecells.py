"""The rule of the coarse look, on arrays: which pieces count, how wide the box round them is, where it cuts.

NumPy alone, since the light way (`ctseg.light.slicing`) and the way with PyTorch (`ctseg.coarseregion`) share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CELL = 4  # pixels along a side of the cells in which the coarse masks are compared
RIM = 2  # pixels from an inner edge of the box within which a mask counts as cut


def pieces_that_count(cells: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Return (I, J, K) bool: the pieces that are no smaller than a share of the largest one of their class.

    Args:
        cells: (L, I, J, K), one for each class.
        share: of the largest piece, in cells; 0 lets every piece count.
    """
    from scipy.ndimage import label

    counted = np.zeros(cells.shape[1:], dtype=bool)
    for organ in cells:
        pieces, count = label(organ, np.ones((3, 3, 3)))
        if count:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            counted |= (sizes >= share * sizes.max())[pieces] & organ
    return counted


def places_along(counted: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return for each of the three axes where along it anything is."""
    return [np.flatnonzero(counted.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]


def side(first: int, stop: int, whole: int, margin: int, divisor: int) -> slice:
    """Return a side of the box: pixels `first` to `stop` and a margin, grown to a multiple of `divisor` if it fits."""
    start, stop = max(0, first - margin), min(whole, stop + margin)
    wanted = min(whole, -(-(stop - start) // divisor) * divisor)
    start = max(0, min(start - (wanted - (stop - start)) // 2, whole - wanted))
    return slice(start, start + wanted)


def inner_edges(
    shape: Sequence[int], box: tuple[slice, slice], size: Sequence[int], rim: int = RIM
) -> NDArray[np.bool_]:
    """Return (I', J') bool: what of a box lies within `rim` pixels of an edge of it that is not the slice's own."""
    edges = np.zeros(tuple(shape), dtype=bool)
    if box[0].start > 0:
        edges[:rim] = True
    if box[0].stop < size[0]:
        edges[-rim:] = True
    if box[1].start > 0:
        edges[:, :rim] = True
    if box[1].stop < size[1]:
        edges[:, -rim:] = True
    return edges
