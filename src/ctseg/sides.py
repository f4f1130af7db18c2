"""Whether left labels lie left: told by the affine, so that no viewer's convention and no array order counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class WrongSide:
    """A left label that lies to the right of its right partner.

    Attributes:
        left: name of the label that is called left.
        right: the one that is called right.
        by_mm: how far the left one's middle lies to the patient's right of the right one's; above 0.
    """

    left: str
    right: str
    by_mm: float

    def __str__(self) -> str:
        return f"{self.left} lies {self.by_mm:.0f} mm to the right of {self.right}"


def side_of(name: str) -> str:
    """Return "left" or "right" where a label's name says one of the two as a word (`_` counts as a space), else ""."""
    found = {match.lower() for match in _SIDE.findall(name.replace("_", " "))}
    return found.pop() if len(found) == 1 else ""


def without_side(name: str) -> str:
    """Return a label's name without its side: "M1 left" and "M1_right" are both "M1"."""
    return " ".join(_SIDE.sub("", name.replace("_", " ")).split())


def partners(names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs (left, right) of names that differ in the side alone."""
    plain = {(side_of(name), without_side(name)): name for name in names}
    lefts = [(rest, name) for (side, rest), name in plain.items() if side == "left"]
    return [(name, plain["right", rest]) for rest, name in lefts if ("right", rest) in plain]


def middles(labels: NDArray[Any], affine: NDArray[np.float64], values: Mapping[int, str]) -> dict[str, float]:
    """Return name -> mean x in RAS mm (grows to the patient's right) of each label that is there.

    Args:
        labels: (I, J, K) integers.
        affine: (4, 4), index to RAS mm.
        values: value -> name; several values may have one name.
    """
    index = np.nonzero(labels)
    found = labels[index]
    x = affine[0, 3] + sum(affine[0, axis] * index[axis] for axis in range(3))
    means = {}
    for name in dict.fromkeys(values.values()):
        own = np.isin(found, [value for value, other in values.items() if other == name])
        if own.any():
            means[name] = float(np.asarray(x)[own].mean())
    return means


def wrong_sides(labels: NDArray[Any], affine: NDArray[np.float64], values: Mapping[int, str]) -> list[WrongSide]:
    """Return the pairs whose left label lies right of its right one; empty when all is well or nothing can be said.

    Where a label's partner is missing, it is compared with the mean of all labels of the other side.

    Args: as `middles`.
    """
    means = middles(labels, affine, values)
    names = list(dict.fromkeys(values.values()))
    pairs = [(left, right) for left, right in partners(names) if left in means and right in means]
    wrong = [WrongSide(left, right, means[left] - means[right]) for left, right in pairs if means[left] > means[right]]
    paired = {name for pair in pairs for name in pair}
    pooled = {side: [means[name] for name in means if side_of(name) == side] for side in ("left", "right")}
    for name in sorted(set(means) - paired):
        side = side_of(name)
        others = pooled["right" if side == "left" else "left"] if side else []
        if not others:
            continue
        other = float(np.mean(others))
        by = means[name] - other if side == "left" else other - means[name]
        if by > 0:
            rest = f"the {'right' if side == 'left' else 'left'} labels"
            wrong.append(WrongSide(name, rest, by) if side == "left" else WrongSide(rest, name, by))
    return wrong
