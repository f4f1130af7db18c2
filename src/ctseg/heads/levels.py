"""The two axial levels that show the regions of a head best, straightened by the regions' own sides.

A radiologist reads ASPECTS on two standard levels. Which slices these are follows from the label map: the pair of
levels on which the regions together are drawn largest. A head that is turned or tilted in the scanner shows its left
half at another height than its right half, so levels lie across the mean direction from the left regions to the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import AIR_HU
from ctseg.sides import partners

Array = NDArray[Any]

PIXEL_MM = 0.8
_MARGIN_MM = 36.0  # beyond the outermost region: the skull
_COARSE_MM = 2.0
_SMOOTHED_MM = 2.5
_MOST_TURN = 45.0  # degrees; beyond, the direction is no finding but a mask of few or stray regions
_GAIN = 0.02  # of a second level, in regions, to be worth a picture


@dataclass(frozen=True)
class Level:
    """One level in radiological convention: image left is the patient's right, up is the front.

    Attributes:
        image: (rows, columns) HU, pixels of `PIXEL_MM`.
        labels: (rows, columns) values of the label map.
        height_mm: of the level above the middle of the regions, along the straightened head's axis.
        shown: names of the regions that are drawn largest on this level rather than on the other.
    """

    image: Array
    labels: Array
    height_mm: float
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Levels:
    """One or two levels, the lower first, and by how many degrees the head was straightened for them."""

    levels: tuple[Level, ...]
    degrees: float


def find_levels(array: Array, labels: Array, affine: NDArray[np.float64], values: Mapping[str, int]) -> Levels:
    """Sample the levels.

    Args:
        array: (I, J, K) HU.
        labels: (I, J, K) integers on the same grid, holding at least one of the values.
        affine: (4, 4), index to RAS mm.
        values: label name -> value.
    """
    index = np.nonzero(np.isin(labels, list(values.values())))
    codes = labels[index]
    places = affine[:3, :3] @ np.array(index, dtype=np.float64) + affine[:3, 3:]
    axes, degrees = _axes(places, codes, values)
    middle = places.mean(axis=1)
    inside = axes @ (places - middle[:, None])  # right, front, head in mm
    low, high = inside.min(axis=1), inside.max(axis=1)
    names = [name for name, value in values.items() if (codes == value).any()]
    frame = (axes.T, middle, np.linalg.inv(affine))
    steps = [np.arange(low[axis], high[axis] + size, size) for axis, size in enumerate((_COARSE_MM, _COARSE_MM, 1.0))]
    coarse = _nearest(labels, frame, np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1))
    areas = np.stack([(coarse == values[name]).sum(axis=(0, 1)) for name in names]).astype(np.float64)
    chosen = _best_pair(areas)
    across = np.arange(high[0] + _MARGIN_MM, low[0] - _MARGIN_MM, -PIXEL_MM)  # from the patient's right to the left
    down = np.arange(high[1] + _MARGIN_MM, low[1] - _MARGIN_MM, -PIXEL_MM)
    best = areas[:, list(chosen)].argmax(axis=1)
    levels = []
    for number, step in enumerate(chosen):
        rows, columns = np.meshgrid(down, across, indexing="ij")
        points = np.stack([columns, rows, np.full_like(rows, steps[2][step])], axis=-1)
        shown = tuple(name for name, where in zip(names, best, strict=True) if where == number)
        levels.append(
            Level(_linear(array, frame, points), _nearest(labels, frame, points), float(steps[2][step]), shown)
        )
    return Levels(tuple(levels), degrees)


def short_names(names: list[str]) -> dict[str, str]:
    """Return a short name for each: initials in capitals, a name of up to three letters in capitals too; none twice."""
    found: dict[str, str] = {}
    for name in names:
        words = name.split()
        short = name.upper() if len(name) <= 3 else "".join(word[0] for word in words).upper()
        length = 1
        while short in found.values() and length < len(name):
            length += 1
            short = name[:length].capitalize()
        found[name] = short
    return found


def _axes(places: Array, codes: Array, values: Mapping[str, int]) -> tuple[Array, float]:
    """Unit vectors to the patient's right, front and head (rows, in RAS), and the angle of the first to RAS's x."""
    means = {name: places[:, codes == value].mean(axis=1) for name, value in values.items() if (codes == value).any()}
    found = [means[right] - means[left] for left, right in partners(list(values)) if left in means and right in means]
    right = np.sum(found, axis=0) if found else np.array([1.0, 0.0, 0.0])
    length = float(np.linalg.norm(right))
    degrees = float(np.degrees(np.arccos(min(1.0, max(-1.0, right[0] / length))))) if length else 180.0
    if degrees > _MOST_TURN:
        return np.eye(3), 0.0
    right = right / length
    head = np.array([0.0, 0.0, 1.0]) - right[2] * right
    head /= np.linalg.norm(head)
    return np.stack([right, np.cross(head, right), head]), degrees


def _best_pair(areas: Array) -> tuple[int, ...]:
    """The levels on which the regions together are largest; a second one only where it shows more.

    Args:
        areas: (regions, levels), each region with some area.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter1d(areas, _SMOOTHED_MM, axis=1, mode="constant")  # the middle of a plateau wins
    share = smooth / smooth.max(axis=1, keepdims=True)
    both = np.maximum(share[:, :, None], share[:, None, :]).sum(axis=0)
    lower, upper = np.unravel_index(int(both.argmax()), both.shape)
    single = share.sum(axis=0)
    if both.max() - single.max() < _GAIN:
        return (int(single.argmax()),)
    return (int(min(lower, upper)), int(max(lower, upper)))


def _index(frame: Any, points: Array) -> Array:
    """(3, ...) index of the source for points (..., 3) of the straightened frame."""
    to_world, middle, to_index = frame
    world = to_world @ points.reshape(-1, 3).T + middle[:, None]
    return np.asarray(to_index[:3, :3] @ world + to_index[:3, 3:]).reshape(3, *points.shape[:-1])


def _nearest(labels: Array, frame: Any, points: Array) -> Array:
    index = np.floor(_index(frame, points) + 0.5).astype(np.intp)
    size = np.array(labels.shape).reshape(3, *([1] * (index.ndim - 1)))
    within = ((index >= 0) & (index < size)).all(axis=0)
    return np.where(within, labels[tuple(np.clip(index, 0, size - 1))], 0)


def _linear(array: Array, frame: Any, points: Array) -> Array:
    from scipy import ndimage

    found: Array = ndimage.map_coordinates(
        array, _index(frame, points), output=np.float32, order=1, mode="constant", cval=AIR_HU
    )
    return found
