"""An image onto a network's grid while its planes are read: what never holds the image.

The grid and the arithmetic are those of `ctseg.transforms.ToGridd`; for slices stored along the body's long axis the
result is the same bit for bit, for others axes are interpolated in another order and the last bits differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.transforms import Compose
from numpy.typing import NDArray

from ctseg.grids.spacing import Affine, in_plane, new_shape, place_along, to_old, turn_of, whole
from ctseg.transforms import LoadVolumed, OpenStudyd, ToGridd


@dataclass(frozen=True)
class Grid:
    """Where a network's voxels lie.

    Attributes:
        shape: (I, J, K), along left, back and head for axial slices (`ctseg.grids.spacing.PLANES`).
        affine: (4, 4), voxel index to RAS mm.
        step: the transform that leads there.
    """

    shape: tuple[int, int, int]
    affine: Affine
    step: ToGridd


def network_grid(preprocessing: Compose, shape: Sequence[int], affine: Affine) -> Grid | None:
    """Return the grid that a bundle's preprocessing resamples an image onto, before it looks at values or pads.

    Args:
        preprocessing: of the bundle.
        shape: the image's (I, J, K).
        affine: the image's, cleaned, voxel index to RAS mm.

    Returns:
        None where the preprocessing does anything else first than opening, turning and resampling all of the image.
    """
    for step in preprocessing.transforms:
        if isinstance(step, OpenStudyd | LoadVolumed):
            continue
        if not (isinstance(step, ToGridd) and step.crop_air is None and step.shared):
            return None
        axes, _, place = turn_of(shape, affine, plane=step.plane)
        turned = [int(shape[axis]) for axis in axes]
        sizes = new_shape(turned, place, step.spacing, step.thick_slices, step.thickest)
        return Grid(sizes, place @ to_old(turned, sizes, whole(sizes)), step)
    return None


def nothing(shape: Sequence[int]) -> NDArray[np.int16]:
    """Return an array of 0 that has a shape and takes no memory; what is written to it is lost."""
    i, j, k = (int(size) for size in shape)
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype=np.int16), (i, j, k), (0, 0, 0))


def onto_grid(planes: Iterable[NDArray[Any]], shape: Sequence[int], affine: Affine, grid: Grid) -> NDArray[np.float32]:
    """Resample an image whose planes come one after the other, as `ctseg.grids.spacing.regridded` does.

    Args:
        planes: (I, J) each, along K.
        shape: the image's (I, J, K).
        affine: the image's, voxel index to mm.
        grid: of `network_grid`, for this image.

    Returns:
        (I', J', K') float32.
    """
    axes, flipped, _ = turn_of(shape, affine, plane=grid.step.plane)
    along = axes.index(2)
    sizes = [int(shape[axis]) for axis in axes]
    mode = grid.step.mode[0]
    places = [place_along(old, new, (0, new), mode) for old, new in zip(sizes, grid.shape, strict=True)]
    first, share = places[along].first, places[along].weight
    second = np.where(share > 0, places[along].second, first)
    rows, columns = (place for axis, place in enumerate(places) if axis != along)
    result = np.empty(grid.shape, dtype=np.float32)
    target = np.moveaxis(result, along, 0)
    before: dict[int, NDArray[np.float32]] = {}
    for number, plane in enumerate(planes):
        here = sizes[along] - 1 - number if flipped[along] else number
        wanted = np.flatnonzero((first == here) | (second == here))
        if not wanted.size:
            before = {}
            continue
        view = plane[:, :, None].transpose(axes)[tuple(slice(None, None, -1 if flip else None) for flip in flipped)]
        kept = {**before, here: in_plane(np.moveaxis(view, along, 0)[0], rows, columns)}
        for index in wanted:
            low, high = kept.get(int(first[index])), kept.get(int(second[index]))
            if low is not None and high is not None:
                target[index] = low + share[index] * (high - low) if share[index] else low
        before = {here: kept[here]}
    return result
