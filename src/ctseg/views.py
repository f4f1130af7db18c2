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


def _largest_slice(found: NDArray[np.bool_], axis: int) -> int:
    """Index of the slice with the most voxels along an axis; the middle one when there are none."""
    area = found.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(np.argmax(area)) if area.any() else found.shape[axis] // 2


def _centre(found: NDArray[np.bool_], axis: int) -> float:
    """Middle of the organ along an axis, as an index; the middle of the grid when there is none."""
    hits = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
    return float(hits[0] + hits[-1]) / 2 if hits.size else found.shape[axis] / 2


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
    image = nib.orientations.apply_orientation(array, flips)
    mask = nib.orientations.apply_orientation(label_map, flips)
    source_axis = [int(np.flatnonzero(flips[:, 0] == axis)[0]) for axis in range(3)]
    flipped = [flips[source_axis[axis], 1] < 0 for axis in range(3)]
    lengths = np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
    spacing = [float(lengths[source_axis[axis]]) for axis in range(3)]
    found = np.isin(mask, list(codes))
    middles = [_largest_slice(found, axis) for axis in range(3)]
    crops = [_window_round(_centre(found, axis), mask.shape[axis], spacing[axis]) for axis in range(3)]
    views = []
    for name, along, across, down in PLANES:
        index: list[Any] = list(crops)
        index[along] = middles[along]
        # Both remaining axes keep their order, so rows (down) come after columns (across): transpose.
        picture, outline = (np.asarray(a[tuple(index)]).T for a in (image, mask))
        count = int(mask.shape[along])
        number = count - middles[along] if flipped[along] else middles[along] + 1
        letters = (*EDGES[across], *EDGES[down])
        views.append(View(name, picture, outline, (spacing[down], spacing[across]), letters, number, count))
    return views
