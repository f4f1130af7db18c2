"""The three planes of a volume as a radiologist sees them: which slice, which way round, how many millimetres."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

# name, axis looked along, axes across and down, in the nearest axes (x to the left, y to the back, z to the feet)
PLANES = (("Axial", 2, 0, 1), ("Coronal", 1, 0, 2), ("Sagittal", 0, 1, 2))
EDGES = {0: ("R", "L"), 1: ("A", "P"), 2: ("S", "I")}  # letters at the first and last index
_LARGEST_VIEW_MM = 500.0


@dataclass(frozen=True)
class View:
    """One plane, ready to be shown with row 0 on top.

    Attributes:
        name: "Axial", "Coronal" or "Sagittal" (the nearest, when the volume is oblique).
        image: (rows, columns), the volume's values.
        mask: (rows, columns), the label map's values.
        pixel_mm: size of a pixel as (down, across).
        letters: patient directions at the left, right, top and bottom edge.
        number: number of the slice in the source, from 1, along the source's axis.
        count: how many slices the source has along that axis.
    """

    name: str
    image: NDArray[Any]
    mask: NDArray[Any]
    pixel_mm: tuple[float, float]
    letters: tuple[str, str, str, str]
    number: int
    count: int

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width in mm."""
        return self.image.shape[0] * self.pixel_mm[0], self.image.shape[1] * self.pixel_mm[1]


def to_lpi(affine: NDArray[Any]) -> NDArray[Any]:
    """How to flip and transpose (nibabel's orientation array) so that indices run to the left, back and feet."""
    here = nib.orientations.io_orientation(affine)
    there = nib.orientations.axcodes2ornt(("L", "P", "I"))
    return np.asarray(nib.orientations.ornt_transform(here, there))


def _areas(label_map: NDArray[Any], codes: Collection[int]) -> list[NDArray[np.int64]]:
    """How many voxels of the organs there are in each slice along each axis of the source, a plane at a time."""
    areas = [np.zeros(size, dtype=np.int64) for size in label_map.shape]
    slowest = int(np.argmax(np.abs(label_map.strides)))  # its planes lie together in memory
    first, second = (axis for axis in range(3) if axis != slowest)
    for index, plane in enumerate(np.moveaxis(label_map, slowest, 0)):
        if plane.any():
            found = np.isin(plane, list(codes))
            areas[slowest][index] = found.sum()
            areas[first] += found.sum(axis=1)
            areas[second] += found.sum(axis=0)
    return areas


def _largest(areas: NDArray[np.int64]) -> int:
    """Index of the slice with the most voxels; the middle one when there are none."""
    return int(np.argmax(areas)) if areas.any() else len(areas) // 2


def _centre(areas: NDArray[np.int64]) -> float:
    """Middle of the organ along an axis, as an index; the middle of the grid when there is none."""
    hits = np.flatnonzero(areas)
    return float(hits[0] + hits[-1]) / 2 if hits.size else len(areas) / 2


def _cuts(array: Any, places: list[tuple[int, int]]) -> list[NDArray[Any]]:
    """Planes of an image, each by its axis and index; of one that is streamed all in one reading."""
    if hasattr(array, "cuts"):
        return list(array.cuts(places))
    return [np.moveaxis(array, axis, 0)[index] for axis, index in places]  # np.take would copy all of it


def _window_round(middle: float, size: int, spacing: float) -> slice:
    """At most `_LARGEST_VIEW_MM` of an axis, round an index: an organ is not a speck in a whole-body scan."""
    length = min(size, round(_LARGEST_VIEW_MM / spacing))
    start = int(np.clip(round(middle - length / 2), 0, size - length))
    return slice(start, start + length)


def views_through(
    array: NDArray[Any], label_map: NDArray[Any], affine: NDArray[Any], codes: Collection[int]
) -> list[View]:
    """Return the axial, coronal and sagittal slice with the largest organ area, in radiological convention.

    Image left is the patient's right in the axial and coronal view and the front in the sagittal one; up is the front
    in the axial view and the head in the others. An oblique volume is shown along its nearest axes, not resampled.

    Args:
        array: (I, J, K) values.
        label_map: (I, J, K) integers.
        affine: (4, 4), voxel index to RAS millimetres.
        codes: the values of the label map that count as organ.
    """
    flips = to_lpi(affine)
    source_axis = [int(np.flatnonzero(flips[:, 0] == axis)[0]) for axis in range(3)]
    flipped = [flips[source_axis[axis], 1] < 0 for axis in range(3)]
    lengths = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    spacing = [float(lengths[source_axis[axis]]) for axis in range(3)]
    own = _areas(label_map, codes)
    areas = [own[source_axis[axis]][:: -1 if flipped[axis] else 1] for axis in range(3)]
    middles = [_largest(along) for along in areas]
    crops = [_window_round(_centre(along), len(along), step) for along, step in zip(areas, spacing, strict=True)]
    places = []
    for _, along, _, _ in PLANES:
        middle = len(areas[along]) - 1 - middles[along] if flipped[along] else middles[along]
        places.append((source_axis[along], middle))
    views: list[View] = []
    for plane, image, mask in zip(PLANES, _cuts(array, places), _cuts(label_map, places), strict=True):
        name, along, across, down = plane
        pictures = []
        for cut in (image, mask):
            # The axis looked along is gone; of the other two the one with the lower number in the source comes first.
            turned = cut if source_axis[across] > source_axis[down] else cut.T
            rows, columns = (slice(None, None, -1 if flipped[axis] else 1) for axis in (down, across))
            pictures.append(turned[rows, columns][crops[down], crops[across]])
        count = len(areas[along])
        letters = (*EDGES[across], *EDGES[down])
        number = places[len(views)][1] + 1
        views.append(View(name, pictures[0], pictures[1], (spacing[down], spacing[across]), letters, number, count))
    return views
