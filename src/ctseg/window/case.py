"""One image in the window: its planes as pictures with the organs drawn in, and what can be measured on them.

Nothing here knows of a web page, so everything a doctor reads off it is tested as plain functions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.organs import Organ, measure_organs
from ctseg.preview import organ_colors
from ctseg.views import EDGES, PLANES, to_lpi
from ctseg.volume import Volume

if TYPE_CHECKING:
    from PIL.Image import Image

    from ctseg.prediction import Prediction

PLANE_NAMES = tuple(name for name, *_ in PLANES)
WINDOWS = {"Soft tissue": (400.0, 40.0), "Liver": (160.0, 90.0), "Lung": (1500.0, -500.0), "Bone": (1800.0, 400.0)}
_LONGEST_PIXELS = 768


@dataclass(frozen=True)
class Case:
    """An image, and what was found in it once it was.

    Attributes:
        volume: the image.
        prediction: the organs found in it; None before.
    """

    volume: Volume
    prediction: Prediction | None = None
    _orientation: NDArray[Any] = field(init=False, repr=False)

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

    @cached_property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """Red, green, blue 0..255 of each organ, light enough for grey tissue."""
        if self.prediction is None:
            return {}
        return organ_colors(self.prediction.labels, self.prediction.bundle.colors)

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

    def picture(
        self,
        plane: str,
        index: int,
        *,
        window: tuple[float, float] = WINDOWS["Soft tissue"],
        opacity: float = 0.4,
        shown: Collection[str] | None = None,
    ) -> Image:
        """Draw a slice in radiological convention, true to the spacing.

        Args:
            plane: "Axial", "Coronal" or "Sagittal".
            index: from the head (axial), the front (coronal) or the right (sagittal), from 0.
            window: width and level in HU.
            opacity: of the organs' colours, 0..1.
            shown: the organs to draw; None draws all.

        Returns:
            RGB; pixels are squares of `pixel_mm`.
        """
        from PIL import Image as Images

        values = self._slice(self.image, plane, index).astype(np.float32)
        width, level = window
        grey = np.clip((values - (level - width / 2)) / width * 255, 0, 255).astype(np.uint8)
        size = self.picture_size(plane)
        drawn = Images.fromarray(grey).resize(size, Images.Resampling.BILINEAR).convert("RGB")
        if self.mask is None or self.prediction is None or opacity <= 0:
            return drawn
        codes = Images.fromarray(self._slice(self.mask, plane, index).astype(np.uint8))
        found = np.asarray(codes.resize(size, Images.Resampling.NEAREST))
        colored = np.array(drawn)
        for name, code in self.prediction.labels.items():
            if shown is None or name in shown:
                here = found == code
                mixed = colored[here] * (1 - opacity) + np.array(self.colors[name]) * opacity
                colored[here] = np.rint(mixed).astype(np.uint8)
        return Images.fromarray(colored)

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

    def diameters_mm(self) -> Mapping[str, float]:
        """The longest straight line within one axial slice of each organ that was found, edge to edge, in mm."""
        if self.mask is None or self.prediction is None:
            return {}
        spacing = self.spacing[:2]
        return {
            organ.name: max(_longest(layer, spacing) for layer in np.moveaxis(self.mask == organ.code, 2, 0))
            for organ in self.organs.values()
            if organ.voxels
        }

    def _slice(self, array: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
        """Rows (down) by columns (across) of one slice."""
        along = _axes(plane)[0]
        return np.asarray(np.take(array, index, axis=along)).T


def _axes(plane: str) -> tuple[int, int, int]:
    """The axis that a plane looks along, and those that run across and down its picture."""
    return next((along, across, down) for name, along, across, down in PLANES if name == plane)


def _longest(found: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Longest line between corners of the pixels of a slice, in mm; only the convex hull can hold its ends."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    hits = np.argwhere(found)
    if not hits.size:
        return 0.0
    # Of each row of pixels only the two ends can be on the hull.
    firsts = np.r_[True, hits[1:, 0] != hits[:-1, 0]]
    ends = hits[firsts | np.r_[firsts[1:], True]]
    corners = (ends[:, None] + np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])).reshape(-1, 2)
    corners = np.unique(corners, axis=0) * np.asarray(spacing)
    return float(pdist(corners[ConvexHull(corners).vertices]).max())
