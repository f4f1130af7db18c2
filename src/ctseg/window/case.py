"""A volume in the window: its planes as pictures with the organs drawn in, and what can be measured on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.organs import Organ, measure_organs
from ctseg.views import EDGES, PLANES, to_lpi
from ctseg.volume import Volume
from ctseg.window.shown import WINDOWS, Column, Shown, longest_line, resized, sentences, windowed

if TYPE_CHECKING:
    from PIL.Image import Image

    from ctseg.prediction import Prediction

_LONGEST_PIXELS = 768
_COLUMNS = (
    Column("organ", "Organ", right=False),
    Column("volume", "Volume, ml"),
    Column("diameter", "Longest axial diameter, mm"),
    Column("area", "Area on this slice, cm²"),
    Column("note", "Remark", right=False),
)


@dataclass(frozen=True)
class Case(Shown):
    """A volume, and what was found in it once it was; pictures are in radiological convention.

    The slices of a plane go from the head (axial), the front (coronal) or the right (sagittal).

    Attributes:
        volume: the image.
        prediction: the organs found in it; None before.
    """

    volume: Volume
    prediction: Prediction | None = None
    _orientation: NDArray[Any] = field(init=False, repr=False)

    planes = tuple(name for name, *_ in PLANES)
    windows = WINDOWS
    turns = True
    columns = _COLUMNS

    def __post_init__(self) -> None:
        """Find out how the axes run.

        Raises:
            GeometryError: the prediction lies on another grid.
        """
        object.__setattr__(self, "_orientation", to_lpi(self.volume.source_affine))
        if self.prediction is not None and self.prediction.label_map.shape != self.volume.shape:
            raise GeometryError(
                f"the mask has the shape {self.prediction.label_map.shape} and the image {self.volume.shape}; "
                "expected the same grid"
            )

    @property
    def about(self) -> str:
        """Size, spacing and notes."""
        sizes = " x ".join(str(size) for size in self.volume.shape)
        spacing = " x ".join(f"{size:.2f}" for size in self.volume.spacing)
        return f"{sizes} voxels of {spacing} mm. {sentences(self.volume.notes)}".strip()

    @cached_property
    def image(self) -> NDArray[Any]:
        """The values with indices to the patient's left, back and feet: a view, not a copy."""
        return np.asarray(nib.orientations.apply_orientation(self.volume.array, self._orientation))

    @cached_property
    def mask(self) -> NDArray[Any] | None:
        """The organs' codes, turned like `image`."""
        if self.prediction is None:
            return None
        return np.asarray(nib.orientations.apply_orientation(self.prediction.label_map, self._orientation))

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the axes of `image`."""
        lengths = np.sqrt((np.asarray(self.volume.source_affine)[:3, :3] ** 2).sum(axis=0))
        x, y, z = (float(lengths[np.flatnonzero(self._orientation[:, 0] == axis)[0]]) for axis in range(3))
        return x, y, z

    @cached_property
    def organs(self) -> dict[str, Organ]:
        """Each organ that was looked for, measured on the image's own grid."""
        if self.prediction is None:
            return {}
        found = measure_organs(self.prediction.label_map, self.prediction.labels, self.volume.source_affine)
        return {organ.name: organ for organ in found}

    def count(self, plane: str) -> int:
        """How many slices a plane has."""
        return int(self.image.shape[_axes(plane)[0]])

    def number(self, plane: str, index: int) -> int:
        """The number of a slice in the file, from 1."""
        along = _axes(plane)[0]
        source = int(np.flatnonzero(self._orientation[:, 0] == along)[0])
        return index + 1 if self._orientation[source, 1] > 0 else self.count(plane) - index

    def best_slice(self, plane: str) -> int:
        """The slice with the most organ, the middle one when there is none."""
        along = _axes(plane)[0]
        if self.mask is None or not self.mask.any():
            return self.count(plane) // 2
        return int(np.argmax((self.mask > 0).sum(axis=tuple(axis for axis in range(3) if axis != along))))

    def pixel_mm(self, plane: str) -> float:
        """Edge of a pixel of `picture`, which are square, in mm."""
        _, across, down = _axes(plane)
        sizes = [self.spacing[axis] * self.image.shape[axis] for axis in (across, down)]
        return max(min(self.spacing[across], self.spacing[down]), max(sizes) / _LONGEST_PIXELS)

    def picture_size(self, plane: str) -> tuple[int, int]:
        """Width and height of `picture` in its pixels."""
        edge = self.pixel_mm(plane)
        _, *axes = _axes(plane)
        width, height = (max(1, round(self.image.shape[axis] * self.spacing[axis] / edge)) for axis in axes)
        return width, height

    def letters(self, plane: str) -> tuple[str, str, str, str]:
        """Patient directions at the left, right, top and bottom edge of a picture."""
        _, across, down = _axes(plane)
        return (*EDGES[across], *EDGES[down])

    def area_mm2(self, organ: str, plane: str, index: int) -> float:
        """Area of an organ on one slice, in square millimetres."""
        if self.mask is None or self.prediction is None:
            return 0.0
        _, across, down = _axes(plane)
        pixels = np.count_nonzero(self._slice(self.mask, plane, index) == self.prediction.labels[organ])
        return float(pixels * self.spacing[across] * self.spacing[down])

    def distance_mm(self, plane: str, one: tuple[float, float], other: tuple[float, float]) -> float:
        """Length in mm between two places of a picture, given as (x, y) in its pixels."""
        return math.dist(one, other) * self.pixel_mm(plane)

    def distance(self, plane: str, one: tuple[float, float], other: tuple[float, float]) -> str:
        """The length in mm, as text."""
        return f"{self.distance_mm(plane, one, other):.1f} mm"

    @cached_property
    def diameters_mm(self) -> Mapping[str, float]:
        """The longest straight line within one axial slice of each organ that was found, edge to edge, in mm."""
        if self.mask is None or self.prediction is None:
            return {}
        spacing = self.spacing[:2]
        return {
            organ.name: max(longest_line(layer, spacing) for layer in np.moveaxis(self.mask == organ.code, 2, 0))
            for organ in self.organs.values()
            if organ.voxels
        }

    def rows(self, plane: str, index: int) -> list[dict[str, str]]:
        """The measures of each organ that was looked for."""
        return [
            {
                "organ": name.replace("_", " "),
                "volume": f"{organ.volume_ml:.1f}" if organ.voxels else "-",
                "diameter": f"{self.diameters_mm[name]:.0f}" if organ.voxels else "-",
                "area": f"{self.area_mm2(name, plane, index) / 100:.1f}",
                "note": _note(organ),
            }
            for name, organ in self.organs.items()
        ]

    def _plain(self, plane: str, index: int, window: tuple[float, float] | None) -> Image:
        grey = windowed(self._slice(self.image, plane, index), window or WINDOWS["Soft tissue"])
        return resized(grey, self.picture_size(plane), smooth=True).convert("RGB")

    def _codes(self, plane: str, index: int) -> NDArray[np.uint8] | None:
        if self.mask is None:
            return None
        codes = self._slice(self.mask, plane, index).astype(np.uint8)
        return np.asarray(resized(codes, self.picture_size(plane), smooth=False))

    def _slice(self, array: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
        """Rows (down) by columns (across) of one slice."""
        along = _axes(plane)[0]
        return np.asarray(np.take(array, index, axis=along)).T


def _axes(plane: str) -> tuple[int, int, int]:
    """The axis that a plane looks along, and those that run across and down its picture."""
    return next((along, across, down) for name, along, across, down in PLANES if name == plane)


def _note(organ: Organ) -> str:
    if not organ.voxels:
        return "not found"
    return "reaches the edge of the scan: a lower bound" if organ.touches_edge else ""
