"""Mean HU of the regions of a label map, and how the left ones differ from their right twins.

Which region is whose twin, and on which side it lies, is said by the labels' names ("M1 left", "M1 right"); that left
ones really lie left is checked by the affine (`ctseg.sides`), so the order in which voxels are stored never counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, GeometryError, InputError
from ctseg.sides import partners, side_of, without_side, wrong_sides


@dataclass(frozen=True)
class Region:
    """One region.

    Attributes:
        name: of the label.
        side: "left", "right", or "" where the name says none.
        value: in the label map.
        voxels: of the label map.
        measured: of these, within the range of HU that counts.
        ml: volume of all its voxels.
        mean: HU of the measured voxels; None, as the next two, where there is none.
        sd: their standard deviation (population).
        median: of them.
    """

    name: str
    side: str
    value: int
    voxels: int
    measured: int
    ml: float
    mean: float | None
    sd: float | None
    median: float | None


@dataclass(frozen=True)
class Twins:
    """A region on both sides.

    Attributes:
        name: without its side.
        left: of the left one.
        right: of the right one.
    """

    name: str
    left: Region
    right: Region

    @property
    def difference(self) -> float | None:
        """Mean HU left minus mean HU right; below 0 the left one is darker. None where a side is missing."""
        if self.left.mean is None or self.right.mean is None:
            return None
        return self.left.mean - self.right.mean

    @property
    def spread(self) -> float | None:
        """Standard deviation in HU of the difference of a voxel left and a voxel right: sqrt(sd² + sd²).

        It is not the (much smaller) standard error of the means: neighbouring voxels of a CT are not independent.
        """
        if self.left.sd is None or self.right.sd is None:
            return None
        return math.hypot(self.left.sd, self.right.sd)


@dataclass(frozen=True)
class Regions:
    """Every region of one head.

    Attributes:
        regions: in the order of the labels.
        twins: those that have a left and a right label.
        threshold: HU; None where none was stated.
        darker_by: HU; None where none was stated.
        hu_range: lowest and highest HU that counts, or None for all.
        notes: sentences for the reader.
    """

    regions: tuple[Region, ...]
    twins: tuple[Twins, ...]
    threshold: float | None
    darker_by: float | None
    hu_range: tuple[float, float] | None
    notes: tuple[str, ...]

    def below(self) -> list[str]:
        """Names of the regions whose mean lies below the threshold."""
        if self.threshold is None:
            return []
        return [one.name for one in self.regions if one.mean is not None and one.mean < self.threshold]

    def darker(self) -> list[str]:
        """Names of the regions whose mean lies below their twin's by at least `darker_by`."""
        if self.darker_by is None:
            return []
        found = []
        for pair in self.twins:
            difference = pair.difference
            if difference is not None and abs(difference) >= self.darker_by:
                found.append(pair.left.name if difference < 0 else pair.right.name)
        return found

    def over_twins(self) -> dict[str, float | int | None]:
        """Mean, standard deviation (population) and median of the differences over all pairs, and their number."""
        known = [pair.difference for pair in self.twins if pair.difference is not None]
        if not known:
            return {"pairs": 0, "mean": None, "sd": None, "median": None}
        return {
            "pairs": len(known),
            "mean": float(np.mean(known)),
            "sd": float(np.std(known)),
            "median": float(np.median(known)),
        }


def measure_regions(
    array: NDArray[Any],
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    values: Mapping[str, int],
    *,
    threshold: float | None = None,
    darker_by: float | None = None,
    hu_range: Sequence[float] | None = None,
) -> Regions:
    """Measure every region.

    Args:
        array: (I, J, K) HU.
        labels: (I, J, K) integers on the same grid.
        affine: (4, 4), index to RAS mm; oblique and sheared grids too.
        values: label name -> value.
        threshold: HU; regions with a lower mean are named.
        darker_by: HU above 0; regions darker than their twin by at least this are named.
        hu_range: lowest and highest HU of the voxels that count; None counts all.

    Raises:
        GeometryError: the two arrays have not the same shape.
        ConfigError: an empty range, or a `darker_by` that is not above 0.
        InputError: none of the regions is there, or most left regions lie right of their twins.
    """
    if array.shape != labels.shape:
        raise GeometryError(
            f"the label map has the shape {labels.shape} and its CT {array.shape}; give one on its grid"
        )
    kept = _checked(threshold, darker_by, hu_range)
    there = [name for name, value in values.items() if (labels == value).any()]
    if not there:
        raise InputError(
            f"the mask holds none of the {len(values)} regions ({', '.join(list(values)[:3])} ...); "
            "give the mask of this CT, or the task whose values it has with --task"
        )
    notes = _side_notes(labels, affine, values)
    if missing := [name for name in values if name not in there]:
        notes.append(f"not in the mask: {', '.join(missing)}")
    voxel_ml = abs(float(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000
    found = {name: _region(array, labels == value, name, value, voxel_ml, kept) for name, value in values.items()}
    twins = [Twins(without_side(left), found[left], found[right]) for left, right in partners(list(values))]
    return Regions(tuple(found.values()), tuple(twins), threshold, darker_by, kept, tuple(notes))


def _checked(
    threshold: float | None, darker_by: float | None, hu_range: Sequence[float] | None
) -> tuple[float, float] | None:
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"the threshold {threshold} cannot work; expected a number of HU")
    if darker_by is not None and not 0 < darker_by < math.inf:
        raise ConfigError(f"a difference of {darker_by:g} HU cannot work; expected a number above 0")
    if hu_range is None:
        return None
    low, high = (float(bound) for bound in hu_range)
    if not low < high:
        raise ConfigError(f"the range {low:g} to {high:g} HU is empty; expected the lower bound first")
    return (low, high)


def _side_notes(labels: NDArray[Any], affine: NDArray[np.float64], values: Mapping[str, int]) -> list[str]:
    """Refuse a mask that lies mirrored; name single regions that do."""
    wrong = wrong_sides(labels, affine, {value: name for name, value in values.items()})
    pairs = [(left, right) for left, right in partners(list(values)) if _both(labels, values[left], values[right])]
    if wrong and 2 * len(wrong) > max(1, len(pairs)):
        raise InputError(
            f"{len(wrong)} left regions lie right of their twins by the affine (first: {wrong[0]}), so the mask's "
            "values or the image's orientation are mirrored; correct them first"
        )
    return [f"on the wrong side by the affine: {one}" for one in wrong]


def _both(labels: NDArray[Any], left: int, right: int) -> bool:
    return bool((labels == left).any() and (labels == right).any())


def _region(
    array: NDArray[Any],
    mask: NDArray[np.bool_],
    name: str,
    value: int,
    voxel_ml: float,
    kept: tuple[float, float] | None,
) -> Region:
    own = array[mask].astype(np.float64)
    voxels = own.size
    if kept is not None:
        own = own[(own >= kept[0]) & (own <= kept[1])]
    numbers = (float(own.mean()), float(own.std()), float(np.median(own))) if own.size else (None, None, None)
    return Region(name, side_of(name), value, voxels, own.size, voxels * voxel_ml, *numbers)
