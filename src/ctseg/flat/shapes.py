"""Outlines of annotation services drawn as label maps: polygons, rectangles, circles, and COCO's run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError, InputError

KINDS = ("polygon", "rectangle", "circle", "runs")


@dataclass(frozen=True)
class Shape:
    """One outlined thing.

    Attributes:
        structure: its name.
        kind: "polygon": points (x, y) in pixels of the picture, whose first pixel lies between 0 and 1; "rectangle":
            two opposite corners; "circle": centre and a point of its rim; "runs": a list of run lengths, of outside and
            inside by turns, down the columns (COCO's RLE).
        points: of the first three.
        runs: of "runs".
    """

    structure: str
    kind: str
    points: tuple[tuple[float, float], ...] = ()
    runs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outlines:
    """What was drawn on one picture.

    Attributes:
        shapes: in the order of the file.
        size: rows and columns of the picture that it was drawn on; None where the file does not say it.
        relative: points are shares of the picture's width and height (YOLO).
    """

    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    relative: bool = False

    def draw(self, size: tuple[int, int], codes: Mapping[str, int], resize: bool = False) -> NDArray[np.uint8]:
        """Return the label map; of two structures that claim a pixel the first in order of `codes` has it.

        Args:
            size: rows and columns of the picture.
            codes: structure -> value; shapes of other structures are left out.
            resize: bring what was drawn on a picture of another size to this one.

        Raises:
            GeometryError: drawn on another size, and it may not be resized.
            InputError: a shape that cannot be drawn.
        """
        drawn_on = size if self.size is None else self.size
        if drawn_on != size and not resize:
            raise GeometryError(
                f"it was outlined on {drawn_on[0]} rows and {drawn_on[1]} columns, the image has {size[0]} and "
                f"{size[1]}: give the image that was outlined, or pass --sizes resize"
            )
        labels = np.zeros(size, dtype=np.uint8)
        for name, code in codes.items():
            for shape in self.shapes:
                if shape.structure == name:
                    labels[self._inside(shape, drawn_on, size) & (labels == 0)] = code
        return labels

    def _inside(self, shape: Shape, drawn_on: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        if shape.kind == "runs":
            return resized(decoded(shape.runs, drawn_on), size)
        from skimage.draw import polygon2mask

        points = np.asarray(shape.points, dtype=np.float64)
        least = {"polygon": 3, "rectangle": 2, "circle": 2}.get(shape.kind)
        if least is None or points.ndim != 2 or len(points) < least or not np.isfinite(points).all():
            raise InputError(
                f"an outline of {shape.structure} is a {shape.kind} of {len(points)} points: expected a polygon of 3 "
                "or more, a rectangle or a circle of 2"
            )
        if shape.kind == "rectangle":
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if shape.kind == "circle":
            angles = np.linspace(0, 2 * np.pi, 361)[:-1]
            radius = np.linalg.norm(points[1] - points[0])
            points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        whole = (1.0, 1.0) if self.relative else (float(drawn_on[0]), float(drawn_on[1]))
        rows, columns = points[:, 1] * size[0] / whole[0], points[:, 0] * size[1] / whole[1]
        # The centre of the first pixel lies at 0.5.
        inside: NDArray[np.bool_] = polygon2mask(size, np.stack([rows, columns], axis=1) - 0.5)
        return inside


def decoded(runs: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (rows, columns) of run lengths.

    Raises:
        InputError: they do not fill the picture.
    """
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise InputError(
            f"the run lengths of an outline sum up to {sum(runs)}, its picture has {size[0] * size[1]} pixels"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, np.asarray(runs, dtype=np.int64)).reshape(size, order="F")


def runs_of_text(text: str) -> tuple[int, ...]:
    """Return the run lengths of COCO's compressed text.

    Five bits a character, the sixth says that more follow; from the fourth number on it is the difference to the one
    two before (`rleFrString` of COCO's maskApi.c).

    Raises:
        InputError: it is no such text.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise InputError(f"the run lengths of an outline hold {character!r}, which COCO's text never does")
        value |= (bits & 0x1F) << (5 * shift)
        shift += 1
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << (5 * shift)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise InputError("the run lengths of an outline end in the middle of a number")
    return tuple(runs)


def resized(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return a label map or mask of another size, each pixel that of the nearest place."""
    if labels.shape == tuple(size):
        return labels
    picked = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    ]
    return labels[np.ix_(*picked)]
