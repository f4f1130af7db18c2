"""Label maps onto a large grid, a slab of planes at a time: what is resampled between two grids never grows large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.budget.reckoning import slab_planes
from ctseg.grids.labels import Affine, resample_labels

LARGE = 1 << 26  # voxels of the target; below it all is done at once


def resample_labels_lean(
    labels: NDArray[Any],
    from_affine: Affine,
    to_affine: Affine,
    to_shape: Sequence[int],
    certainty: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """Do what `ctseg.grids.labels.resample_labels` does, voxel for voxel; a large target in slabs along its last axis.

    Returns:
        (I', J', K') uint8. Of a large target, planes along K lie one after the other, and those without a label take
        no memory until they are written to.
    """
    i, j, k = (int(size) for size in to_shape)
    if math.prod((i, j, k)) < LARGE:
        return resample_labels(labels, from_affine, to_affine, to_shape, certainty=certainty)
    result = np.zeros((i, j, k), dtype=np.uint8, order="F")
    thickness = slab_planes(to_shape)
    for start in range(0, k, thickness):
        stop, place = min(k, start + thickness), np.array(to_affine, dtype=np.float64)
        place[:3, 3] += place[:3, 2] * start
        slab = resample_labels(labels, from_affine, place, (i, j, stop - start), certainty=certainty)
        if slab.any():
            result[:, :, start:stop] = slab
    return result
