"""What the page asks of an image, whatever it is; `Case` (a volume) and `FlatCase` (one picture) answer.

Nothing here knows of a web page, so everything a doctor reads off it is tested as plain functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.outputs.preview import organ_colors

if TYPE_CHECKING:
    from PIL.Image import Image

    from ctseg.prediction import Prediction

# Width and level in HU.
WINDOWS = {
    "Soft tissue": (400.0, 40.0),
    "Liver": (160.0, 90.0),
    "Lung": (1500.0, -500.0),
    "Bone": (1800.0, 400.0),
    "Brain": (80.0, 40.0),
}


@dataclass(frozen=True)
class Column:
    """One column of the table of measures: the key of its values in `Shown.rows`, its heading, and its side."""

    name: str
    label: str
    right: bool = True


class Shown(ABC):
    """An image, and what was found in it once it was; a picture is what is drawn of one slice of one plane."""

    planes: tuple[str, ...]
    prediction: Prediction | None

    @property
    @abstractmethod
    def about(self) -> str:
        """Size, size of a pixel, and what was chosen on the way in, as sentences."""

    @property
    @abstractmethod
    def windows(self) -> Mapping[str, tuple[float, float]]:
        """Width and level in HU, by name, the usual one first; none where the values are no Hounsfield units."""

    @property
    @abstractmethod
    def turns(self) -> bool:
        """Whether what is found has a surface that turns."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """What is measured."""

    @abstractmethod
    def rows(self, plane: str, index: int) -> list[dict[str, str]]:
        """One row for each structure that was looked for, by the names of `columns`; none before."""

    @abstractmethod
    def count(self, plane: str) -> int:
        """How many slices a plane has."""

    @abstractmethod
    def number(self, plane: str, index: int) -> int:
        """The number of a slice in the file, from 1."""

    @abstractmethod
    def best_slice(self, plane: str) -> int:
        """The slice to begin with."""

    @abstractmethod
    def letters(self, plane: str) -> tuple[str, str, str, str]:
        """Patient directions at the left, right, top and bottom edge of a picture, each empty where it is not known."""

    @abstractmethod
    def picture_size(self, plane: str) -> tuple[int, int]:
        """Width and height of `picture` in its pixels, which are squares."""

    @abstractmethod
    def distance(self, plane: str, one: tuple[float, float], other: tuple[float, float]) -> str:
        """How far two places of a picture, (x, y) in its pixels, lie apart, with the unit."""

    @abstractmethod
    def _plain(self, plane: str, index: int, window: tuple[float, float] | None) -> Image:
        """The picture without what was found: RGB of `picture_size`."""

    @abstractmethod
    def _codes(self, plane: str, index: int) -> NDArray[np.uint8] | None:
        """What was found, as the codes of `prediction.labels`, (height, width) of `picture_size`."""

    @cached_property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """Red, green, blue 0..255 of each structure, light enough for grey tissue."""
        if self.prediction is None:
            return {}
        return organ_colors(self.prediction.labels, self.prediction.bundle.colors)

    def picture(
        self,
        plane: str,
        index: int = 0,
        *,
        window: tuple[float, float] | None = None,
        opacity: float = 0.4,
        shown: Collection[str] | None = None,
    ) -> Image:
        """Draw a slice, true to the spacing, with what was found in colour.

        Args:
            plane: one of `planes`.
            index: of the slice, from 0.
            window: width and level in HU; None takes the first of `windows`. Not used where there are none.
            opacity: of the colours, 0..1.
            shown: the structures to draw; None draws all.

        Returns:
            RGB of `picture_size`.
        """
        from PIL import Image as Images

        drawn = self._plain(plane, index, window or next(iter(self.windows.values()), None))
        found = self._codes(plane, index) if opacity > 0 else None
        if found is None or self.prediction is None:
            return drawn
        colored = np.array(drawn)
        for name, code in self.prediction.labels.items():
            if shown is None or name in shown:
                here = found == code
                mixed = colored[here] * (1 - opacity) + np.array(self.colors[name]) * opacity
                colored[here] = np.rint(mixed).astype(np.uint8)
        return Images.fromarray(colored)


def resized(array: NDArray[Any], size: tuple[int, int], *, smooth: bool) -> Image:
    """Bring (H, W) or (H, W, 3) uint8 to a width and height; a mask is not smoothed."""
    from PIL import Image as Images

    way = Images.Resampling.BILINEAR if smooth else Images.Resampling.NEAREST
    return Images.fromarray(array).resize(size, way)


def windowed(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Turn HU into grey 0..255 by a width and a level."""
    width, level = window
    low = np.float32(level - width / 2)
    return np.clip((values.astype(np.float32) - low) / np.float32(width) * 255, 0, 255).astype(np.uint8)


def sentences(notes: Iterable[str]) -> str:
    """Join notes, which begin small and end without a stop, to sentences."""
    return " ".join(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in notes)


def longest_line(found: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Longest straight line between pixels of a slice, from edge to edge, in the unit of the spacing."""
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    hits = np.argwhere(found)
    if not hits.size:
        return 0.0
    # Only the convex hull can hold the line's ends, and of each row of pixels only the two ends can be on it.
    firsts = np.r_[True, hits[1:, 0] != hits[:-1, 0]]
    ends = hits[firsts | np.r_[firsts[1:], True]]
    corners = (ends[:, None] + np.array([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])).reshape(-1, 2)
    corners = np.unique(corners, axis=0) * np.asarray(spacing)
    return float(pdist(corners[ConvexHull(corners).vertices]).max())
