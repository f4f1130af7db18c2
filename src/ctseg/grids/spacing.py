"""An image on the grid of a network: turned along the body's axes, cut to what is needed, resampled axis by axis.

The grid keeps the field of view: an axis of n voxels of s mm becomes round(n s / p) voxels, whose outer edges are the
old ones, so that the spacing p is met to within half a voxel over the field. As axes are only exchanged and flipped,
linear interpolation is done along one after the other, slice by slice and in several threads: no float copy of the
source ever exists, and slices that no new slice lies next to are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError

Affine = NDArray[np.float64]
Mode = Literal["bilinear", "nearest"]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
# Plane -> the axes of a volume in LPS order, the last one across the plane's slices.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_LOOK_MM = 4.0  # how far apart voxels are looked at to find the body


@dataclass(frozen=True)
class Place:
    """Where the voxels of a new grid lie along one axis of an old one.

    Attributes:
        first: (n,) the old voxel below each new centre.
        second: (n,) the one above.
        weight: (n,) float32, the share of `second`.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]


def oriented(
    array: NDArray[Any], affine: Affine, axcodes: str = "LPS", plane: str = "axial"
) -> tuple[NDArray[Any], Affine]:
    """Return a view of a volume with its axes along the body's, and that view's affine.

    Args:
        array: (I, J, K), not changed.
        affine: (4, 4), index to RAS mm.
        axcodes: where the new axes run to.
        plane: of `PLANES`; the axis across it comes last.
    """
    axes, flipped, turned = turn_of(array.shape, affine, axcodes, plane)
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else None) for flip in flipped)], turned


def turn_of(
    shape: Sequence[int], affine: Affine, axcodes: str = "LPS", plane: str = "axial"
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], Affine]:
    """Return how a volume's axes are exchanged and flipped by `oriented`, without the volume.

    Args:
        shape: (I, J, K).
        affine: as for `oriented`, as the next two.
        axcodes: see there.
        plane: see there.

    Returns:
        For each new axis the old one, and whether it runs backwards; and the new affine.
    """
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axcodes)))
    order = PLANES[plane]
    old = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in order]
    flipped = [bool(turn[axis, 1] < 0) for axis in old]
    turned = (affine @ inv_ornt_aff(turn, tuple(shape)))[:, [*order, 3]]
    return (old[0], old[1], old[2]), (flipped[0], flipped[1], flipped[2]), turned


def new_shape(
    shape: Sequence[int],
    affine: Affine,
    spacing: Sequence[float],
    thick_slices: float | None = None,
    thickest: float | None = None,
) -> tuple[int, int, int]:
    """Return the size of the grid of a spacing over the same field of view.

    Args:
        shape: (I, J, K) of the old grid.
        affine: of the old grid.
        spacing: mm along the three axes.
        thick_slices: from this distance in mm on slices along K are taken as they are.
        thickest: up to this distance in mm they are; None sets no end.

    Raises:
        ConfigError: for a spacing that is none.
    """
    if len(spacing) != 3 or not all(float(step) > 0 for step in spacing):
        raise ConfigError(f"the spacing is {list(spacing)}: expected three lengths in mm above 0; correct the task's")
    old = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    sizes = [max(1, int(np.rint(n * s / float(p)))) for n, s, p in zip(shape, old, spacing, strict=True)]
    thick = thick_slices is not None and old[2] >= thick_slices - 1e-6
    if thick and (thickest is None or old[2] <= thickest + 1e-6):
        sizes[2] = int(shape[2])
    return (sizes[0], sizes[1], sizes[2])


def body_box(
    array: NDArray[Any], affine: Affine, shape: Sequence[int], above_hu: float = -500.0, margin_mm: float = 10.0
) -> Box:
    """Return the box of a new grid, whole along K, in which a CT is more than air.

    Only every 4 mm are looked at, and `margin_mm` is added beyond; the table of the scanner counts as body. Where
    nothing is above the value, the box is the whole grid.

    Args:
        array: (I, J, K) in HU.
        affine: of the array.
        shape: of the new grid, which has the array's field of view.
        above_hu: what is more than air.
        margin_mm: how far beyond the outermost such voxel seen the box goes.
    """
    mm = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    steps = np.maximum(1, (_LOOK_MM / mm).astype(int))
    body = array[:: steps[0], :: steps[1], :: steps[2]] > above_hu
    box = []
    for axis in (0, 1):
        hits = np.flatnonzero(body.any(axis=(1 - axis, 2))) * steps[axis]
        if not hits.size:
            return whole(shape)
        # What was not looked at reaches to the next voxel that was.
        beyond = steps[axis] + margin_mm / mm[axis]
        ratio = shape[axis] / array.shape[axis]
        low, high = (hits[0] - beyond) * ratio, (hits[-1] + 1 + beyond) * ratio
        box.append((max(0, int(np.floor(low))), min(int(shape[axis]), int(np.ceil(high)))))
    return (box[0], box[1], (0, int(shape[2])))


def regridded(
    array: NDArray[Any],
    affine: Affine,
    shape: Sequence[int],
    mode: Mode = "bilinear",
    box: Box | None = None,
    threads: int = 1,
) -> tuple[NDArray[np.float32], Affine]:
    """Return a volume on a grid of another size over the same field of view, and where that grid lies.

    Args:
        array: (I, J, K), any real type and memory order.
        affine: (4, 4), its index to mm.
        shape: the new size.
        mode: "bilinear" interpolates along all three axes, "nearest" takes the voxel that holds the centre.
        box: first and last + 1 index of the part of the new grid that is wanted; None for all of it.
        threads: how many slices are worked on at once.
    """
    wanted = box or whole(shape)
    i, j, k = (place_along(old, new, ends, mode) for old, new, ends in zip(array.shape, shape, wanted, strict=True))
    result = np.empty(tuple(end - start for start, end in wanted), dtype=np.float32)

    def work(numbers: range) -> None:
        kept: dict[int, NDArray[np.float32]] = {}
        for number in numbers:
            for source in (int(k.first[number]), int(k.second[number])):
                if source not in kept:
                    kept[source] = in_plane(array[:, :, source], i, j)
            low, high, share = kept[int(k.first[number])], kept[int(k.second[number])], k.weight[number]
            result[:, :, number] = low if not share else low + share * (high - low)
            kept = {source: plane for source, plane in kept.items() if source >= k.first[number]}

    parts = list(_parts(result.shape[2], max(1, threads)))
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(work, part) for part in parts]:
            done.result()
    return result, np.asarray(affine, dtype=np.float64) @ to_old(array.shape, shape, wanted)


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole grid."""
    i, j, k = (int(size) for size in shape)
    return ((0, i), (0, j), (0, k))


def place_along(old: int, new: int, ends: tuple[int, int], mode: Mode) -> Place:
    """Return where the voxels of a new grid lie along one axis of an old one over the same field of view.

    Args:
        old: voxels of the old grid along the axis.
        new: those of the new one.
        ends: first and last + 1 of the new ones that are wanted.
        mode: as for `regridded`; for "nearest" the weights are 0.
    """
    centres = (np.arange(ends[0], ends[1]) + 0.5) * (old / new) - 0.5
    if mode == "nearest":
        # A centre on the border of two voxels belongs to the upper one, whatever the last bits say.
        first = np.clip(np.floor(centres + 0.5 + 1e-9), 0, old - 1).astype(np.intp)
        return Place(first, first, np.zeros(len(first), dtype=np.float32))
    centres = np.clip(centres, 0, old - 1)
    first = np.floor(centres + 1e-9).astype(np.intp)
    return Place(first, np.minimum(first + 1, old - 1), np.maximum(0, centres - first).astype(np.float32))


def in_plane(plane: NDArray[Any], i: Place, j: Place) -> NDArray[np.float32]:
    """Interpolate a slice (I, J) along both its axes, first along the one whose lines lie together in memory."""
    if abs(plane.strides[0]) < abs(plane.strides[1]):
        return in_plane(plane.T, j, i).T
    rows = plane[i.first].astype(np.float32)
    if i.weight.any():
        rows += i.weight[:, None] * (plane[i.second] - rows)
    result: NDArray[np.float32] = rows.take(j.first, axis=1)
    if j.weight.any():
        result += j.weight * (rows.take(j.second, axis=1) - result)
    return result


def _parts(count: int, parts: int) -> Iterator[range]:
    """Cut a range into so many runs of neighbours."""
    ends = np.linspace(0, count, min(parts, max(1, count)) + 1).astype(int)
    for start, end in pairwise(ends):
        yield range(start, end)


def to_old(old: Sequence[int], new: Sequence[int], box: Box) -> Affine:
    """Return the (4, 4) that takes an index of the new grid's box to one of the old grid.

    Args:
        old: (I, J, K) of the old grid.
        new: of the new one, over the same field of view.
        box: first and last + 1 index of the part of the new grid that is meant.
    """
    matrix = np.eye(4)
    for axis, (n, m, (start, _)) in enumerate(zip(old, new, box, strict=True)):
        matrix[axis, axis] = n / m
        matrix[axis, 3] = (start + 0.5) * n / m - 0.5
    return matrix
