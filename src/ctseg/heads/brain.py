"""Where the brain of a head CT lies, without any trained weights: thresholds, components and a hull.

Air, soft tissue and bone differ by hundreds of HU, so no learning is needed: the brain is the largest piece of soft
tissue that thin bridges (the optic canals, the great foramen) do not hold together with the rest, and its convex hull
takes in what thresholds miss inside of it (calcified plexus, fresh blood, clips).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import AIR_HU
from ctseg.errors import InputError
from ctseg.grids.labels import resample_labels
from ctseg.turning.resampling import resample_image

Affine = NDArray[np.float64]
Box = tuple[slice, slice, slice]

WORKING_MM = 3.0
WINDOW = (-124, 130)  # HU; Reference system B kept what lies between
AIR_BELOW = -300.0  # HU: halfway between air and fat, so that a partial volume at the skin decides by half
BONE_ABOVE = 180.0  # HU: above clotted blood (90) and most of partial volume with brain
_SOFT = (-30.0, 110.0)  # HU: CSF to fresh blood, with the noise of thin slices
_BRIDGE_MM = 18.0  # half the width of a bridge that is cut: the open base of a skull is one, a brain is three times it
_SMALLEST_ML = 200.0  # of a brain's core in view; a scan of a part of the head is taken too


@dataclass(frozen=True)
class Brain:
    """What was found.

    Attributes:
        mask: (I, J, K) bool on the image's grid: the hull of the brain, without bone and air.
        box: the smallest box of indices that holds it.
        volume_ml: of the mask.
    """

    mask: NDArray[np.bool_]
    box: Box
    volume_ml: float


def coarse(array: NDArray[Any], affine: Affine, mm: float = WORKING_MM) -> tuple[NDArray[np.float32], Affine]:
    """Return the image on a grid of cubes along the patient's axes (RAS), a little smoothed; outside is air.

    Args:
        array: (I, J, K) HU.
        affine: (4, 4), index to RAS mm, oblique or not.
        mm: edge of a cube.
    """
    from scipy import ndimage

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = np.maximum(1, np.floor(mm / spacing)).astype(int)
    thinned = ndimage.uniform_filter(array.astype(np.float32), tuple(int(s) for s in steps))
    corners = np.array(np.meshgrid(*[[-0.5, n - 0.5] for n in array.shape], indexing="ij")).reshape(3, -1)
    places = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = places.min(axis=1), places.max(axis=1)
    shape = np.maximum(4, np.ceil((high - low) / mm)).astype(int)
    target = np.diag([mm, mm, mm, 1.0])
    target[:3, 3] = low + mm / 2
    result = resample_image(thinned, affine, np.eye(4), target, [int(n) for n in shape], "linear", AIR_HU)
    return result.astype(np.float32, copy=False), target


def head_region(array: NDArray[Any], mm: float = WORKING_MM) -> NDArray[np.bool_]:
    """Return what is head on a coarse grid of cubes: the largest piece that is no air, headrest and table cut off."""
    from scipy import ndimage

    solid = array > AIR_BELOW
    # A headrest is a shell of a few mm: opening takes it away, and growing back within what was there keeps the nose.
    core = _largest(_opened(solid, 2 * mm, mm))
    grown = _grown(core, 4 * mm, mm)
    found: NDArray[np.bool_] = ndimage.binary_fill_holes(grown & solid)
    return found


def find_brain(array: NDArray[Any], affine: Affine) -> Brain:
    """Find the brain in a head CT.

    Args:
        array: (I, J, K) HU.
        affine: (4, 4), index to RAS mm.

    Raises:
        InputError: there is no piece of soft tissue as large as a brain that bone goes round.
    """
    small, place = coarse(array, affine)
    hull = _hull(_core(small, WORKING_MM))
    if hull is None:
        raise InputError(
            "no brain was found in the image (no soft tissue of 200 ml or more with bone round it), but a head CT in "
            "HU is needed; check the image, or leave out the brain crop"
        )
    hull = _grown(hull, WORKING_MM, WORKING_MM)  # the outermost voxel of brain is half bone on the coarse grid
    on_grid = resample_labels(hull.astype(np.uint8), place, affine, array.shape).astype(bool)
    on_grid &= (array > AIR_BELOW) & (array < BONE_ABOVE)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return Brain(on_grid, box_of(on_grid), float(on_grid.sum()) * voxel_ml)


def box_of(mask: NDArray[np.bool_], margin: Sequence[int] = (0, 0, 0)) -> Box:
    """Return the smallest box of indices that holds a mask of at least one voxel, widened within the grid."""
    parts = []
    for axis, more in enumerate(margin):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        parts.append(slice(max(0, int(hits[0]) - more), min(mask.shape[axis], int(hits[-1]) + 1 + more)))
    return (parts[0], parts[1], parts[2])


def window_to_background(array: NDArray[Any], window: Sequence[float] = WINDOW) -> NDArray[Any]:
    """Keep the values of a window; everything below **and above** it becomes its lower bound.

    So bone, metal, air and what a turn filled all end as one background, as reference system B had it.
    """
    low, high = window
    return np.where((array < low) | (array > high), np.asarray(low, array.dtype), array)


def _core(array: NDArray[np.float32], mm: float) -> NDArray[np.bool_]:
    """The largest piece of soft tissue that bone goes round, after thin bridges were cut."""
    from scipy import ndimage

    bone = array > BONE_ABOVE
    soft = (array > _SOFT[0]) & (array < _SOFT[1])
    core = _deep(soft & ~bone, _BRIDGE_MM, mm)
    pieces, number = ndimage.label(core)
    if not number:
        return np.zeros(array.shape, dtype=bool)
    inside = _between(bone)
    sizes = ndimage.sum_labels(core & inside, pieces, np.arange(1, number + 1))
    best = pieces == int(np.argmax(sizes)) + 1
    if float(sizes.max()) * mm**3 / 1000 < _SMALLEST_ML:
        return np.zeros(array.shape, dtype=bool)
    return _grown(best, _BRIDGE_MM, mm) & ~bone


def _between(bone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with bone on both sides along each of the two horizontal axes: within a ring of skull."""
    inside = np.ones(bone.shape, dtype=bool)
    for axis in (0, 1):
        before = np.maximum.accumulate(bone, axis=axis)
        behind = np.flip(np.maximum.accumulate(np.flip(bone, axis), axis=axis), axis)
        inside &= before & behind
    return inside


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """The convex hull of a mask on its own grid; None where there is nothing solid."""
    from scipy.spatial import ConvexHull, QhullError

    edge = np.argwhere(mask & ~_shrunk(mask))
    if len(edge) < 10:
        return None
    try:
        equations = ConvexHull(edge).equations
    except QhullError:
        return None
    found = np.zeros(mask.shape, dtype=bool)
    box = box_of(mask)
    index = np.array(np.meshgrid(*[np.arange(part.start, part.stop) for part in box], indexing="ij")).reshape(3, -1)
    inside = np.ones(index.shape[1], dtype=bool)
    for equation in equations:  # a face at a time: all faces at once would take a gigabyte
        inside[inside] = equation[:3] @ index[:, inside] <= -equation[3] + 1e-6
    found[box] = inside.reshape([part.stop - part.start for part in box])
    return found


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    shrunk: NDArray[np.bool_] = ndimage.binary_erosion(mask)
    return shrunk


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    pieces, number = ndimage.label(mask)
    if number < 2:
        return mask
    return np.asarray(pieces == int(np.argmax(np.bincount(pieces.ravel())[1:])) + 1)


def _opened(mask: NDArray[np.bool_], radius_mm: float, mm: float) -> NDArray[np.bool_]:
    return _grown(_deep(mask, radius_mm, mm), radius_mm, mm)


def _deep(mask: NDArray[np.bool_], radius_mm: float, mm: float) -> NDArray[np.bool_]:
    """What lies deeper than a radius. The border of the image is no border of the head: the scan just ends there."""
    from scipy import ndimage

    more = int(radius_mm / mm) + 2
    inner = (slice(more, -more),) * 3
    padded = np.pad(mask, more, mode="edge")
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=mm)[inner] > radius_mm)


def _grown(mask: NDArray[np.bool_], radius_mm: float, mm: float) -> NDArray[np.bool_]:
    from scipy import ndimage

    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=mm) <= radius_mm)
