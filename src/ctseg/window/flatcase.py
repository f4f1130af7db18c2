"""A flat image in the window: a photograph, an ultrasound picture or a single slice, in its own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.flat.images import GREY, HU, RGB, FlatImage
from ctseg.flat.outputs import measure_flat
from ctseg.window.shown import WINDOWS, Column, Shown, longest_line, resized, sentences, windowed

if TYPE_CHECKING:
    from PIL.Image import Image

    from ctseg.prediction import Prediction

PLANE = "Image"
_LONGEST_PIXELS = 1024
_KINDS = {GREY: "grey", RGB: "in colours", HU: "a CT slice in HU"}
_NO_SIZE = "The file does not say how large a pixel is, so lengths and areas are in pixels."
# A single slice is mostly of a head.
_HU_WINDOWS = {name: WINDOWS[name] for name in sorted(WINDOWS, key=lambda name: name != "Brain")}
_IN_MM = (
    Column("organ", "Structure", right=False),
    Column("area", "Area, mm²"),
    Column("area_cm2", "Area, cm²"),
    Column("diameter", "Longest diameter, mm"),
    Column("share", "Share of the image, %"),
    Column("note", "Remark", right=False),
)
_IN_PIXELS = (
    Column("organ", "Structure", right=False),
    Column("area", "Area, pixels"),
    Column("diameter", "Longest diameter, pixels"),
    Column("share", "Share of the image, %"),
    Column("note", "Remark", right=False),
)
_OF_ANSWERS = (
    Column("organ", "Structure", right=False),
    Column("answer", "On this image", right=False),
    Column("probability", "Probability, %"),
)


@dataclass(frozen=True)
class Answer:
    """What a classifier says of one structure: its probability, 0..1, and whether that counts as present."""

    name: str
    probability: float
    present: bool


@dataclass(frozen=True)
class FlatCase(Shown):
    """A flat image, and what was found on it once it was.

    Attributes:
        image: the image, as a viewer shows it.
        prediction: the structures found on it; None before, and of a classifier.
        answers: what a classifier said of it.
    """

    image: FlatImage
    prediction: Prediction | None = None
    answers: tuple[Answer, ...] = ()

    planes = (PLANE,)
    turns = False

    def __post_init__(self) -> None:
        """Check that the mask is the image's.

        Raises:
            GeometryError: it has another size.
        """
        if self.prediction is not None and self.prediction.label_map.shape != (*self.image.size, 1):
            raise GeometryError(
                f"the mask has the shape {self.prediction.label_map.shape} and the image {self.image.size}; "
                "expected the image's rows and columns, and 1"
            )

    @property
    def about(self) -> str:
        """Size, colours, size of a pixel and notes."""
        height, width = self.image.size
        spacing = self.image.spacing
        size = _NO_SIZE if spacing is None else f"A pixel is {spacing[1]:.3g} mm wide and {spacing[0]:.3g} mm high."
        return f"{width} x {height} pixels, {_KINDS[self.image.kind]}. {size} {sentences(self.image.notes)}".strip()

    @property
    def windows(self) -> Mapping[str, tuple[float, float]]:
        """Those of a CT slice in HU; none of a picture."""
        return _HU_WINDOWS if self.image.kind == HU else {}

    @property
    def columns(self) -> tuple[Column, ...]:
        """In mm where the image says how large a pixel is, else in pixels."""
        if self.answers:
            return _OF_ANSWERS
        return _IN_PIXELS if self.image.spacing is None else _IN_MM

    @cached_property
    def measures(self) -> list[dict[str, Any]]:
        """What `ctseg.flat.outputs.measure_flat` says of each structure, with its `diameter` in mm, else in pixels."""
        if self.prediction is None:
            return []
        labels = self.prediction.label_map[:, :, 0]
        found = measure_flat(labels, self.prediction.labels, self.image.spacing)
        return [{**one, "diameter": longest_line(labels == one["code"], self._spacing)} for one in found]

    def rows(self, plane: str, index: int) -> list[dict[str, str]]:
        """The measures or answers of each structure that was looked for."""
        answers = [
            {
                "organ": one.name.replace("_", " "),
                "answer": "present" if one.present else "absent",
                "probability": f"{100 * one.probability:.1f}",
            }
            for one in self.answers
        ]
        return answers or [self._row(one) for one in self.measures]

    def count(self, plane: str) -> int:
        """There is one picture."""
        return 1

    def number(self, plane: str, index: int) -> int:
        """Which frame of its file it is, from 1."""
        return self.image.frame + 1

    def best_slice(self, plane: str) -> int:
        """The only one."""
        return 0

    def letters(self, plane: str) -> tuple[str, str, str, str]:
        """A flat image does not say where the patient's sides are."""
        return "", "", "", ""

    @property
    def pixel(self) -> float:
        """Edge of a pixel of `picture`, in mm, or in pixels of the image where no millimetres are known."""
        sizes = [count * edge for count, edge in zip(self.image.size, self._spacing, strict=True)]
        return max(min(self._spacing), max(sizes) / _LONGEST_PIXELS)

    def picture_size(self, plane: str) -> tuple[int, int]:
        """Width and height of `picture` in its pixels."""
        rows, columns = (
            max(1, round(count * edge / self.pixel)) for count, edge in zip(self.image.size, self._spacing, strict=True)
        )
        return columns, rows

    def distance(self, plane: str, one: tuple[float, float], other: tuple[float, float]) -> str:
        """The length in mm, or in pixels of the image."""
        unit = "mm" if self.image.spacing is not None else "pixels"
        return f"{math.dist(one, other) * self.pixel:.1f} {unit}"

    @property
    def _spacing(self) -> tuple[float, float]:
        return self.image.spacing or (1.0, 1.0)

    def _row(self, one: Mapping[str, Any]) -> dict[str, str]:
        millimetres = one["area_mm2"] is not None
        none = {"area": "-", "area_cm2": "-", "diameter": "-", "share": "-"}
        measured = {
            "area": f"{one['area_mm2']:.1f}" if millimetres else f"{one['pixels']:,}",
            "area_cm2": f"{one['area_mm2'] / 100:.2f}" if millimetres else "",
            "diameter": f"{one['diameter']:.1f}",
            "share": f"{100 * one['share']:.1f}",
        }
        return {"organ": one["name"].replace("_", " "), **(measured if one["found"] else none), "note": _note(one)}

    def _plain(self, plane: str, index: int, window: tuple[float, float] | None) -> Image:
        if window is None:
            return self._brightness
        grey = windowed(self.image.array[0], window)
        return resized(grey, self.picture_size(PLANE), smooth=True).convert("RGB")

    @cached_property
    def _brightness(self) -> Image:
        """Kept, since a photograph is large and every step of the slider of the colour asks for it."""
        values = np.rint(self.image.brightness() * 255).astype(np.uint8).transpose(1, 2, 0)
        values = values[..., 0] if values.shape[2] == 1 else values
        return resized(np.ascontiguousarray(values), self.picture_size(PLANE), smooth=True).convert("RGB")

    def _codes(self, plane: str, index: int) -> NDArray[np.uint8] | None:
        return self._small_codes

    @cached_property
    def _small_codes(self) -> NDArray[np.uint8] | None:
        if self.prediction is None:
            return None
        return np.asarray(resized(self.prediction.label_map[:, :, 0], self.picture_size(PLANE), smooth=False))


def _note(one: Mapping[str, Any]) -> str:
    if not one["found"]:
        return "not found"
    notes = [f"{one['pieces']} pieces"] if one["pieces"] > 1 else []
    return "; ".join([*notes, *(["reaches the edge of the image: a lower bound"] if one["touches_edge"] else [])])
