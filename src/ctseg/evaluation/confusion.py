"""Which class is taken for which: the confusion matrix of label maps, and how often a left class for its right twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.sides import partners, side_of

BACKGROUND = "no label"  # last row and column: values that nobody asked for, 0 among them


def confusion_counts(
    predicted: NDArray[Any], reference: NDArray[Any], values: Sequence[tuple[int, int]]
) -> list[list[int]] | None:
    """Return how many voxels of each class are predicted as which.

    Args:
        predicted: (I, J, K) integers.
        reference: (I, J, K) integers on the same grid.
        values: of each class in the prediction and in the reference.

    Returns:
        (classes + 1)² counts: rows the reference, columns the prediction, both in the order of `values`, the background
        last. None where two classes share a value, so that a voxel would belong to both.
    """
    sides = list(zip(*values, strict=True))
    if any(len(set(side)) != len(side) for side in sides):
        return None
    size = len(values) + 1
    counts = np.zeros(size * size, dtype=np.int64)
    for k in range(reference.shape[-1]):  # slice by slice: no copy of a whole volume
        column, row = (
            _class_index(array[..., k], side) for array, side in zip((predicted, reference), sides, strict=True)
        )
        counts += np.bincount((row * size + column).ravel(), minlength=size * size)
    return [[int(count) for count in line] for line in counts.reshape(size, size)]


def _class_index(plane: NDArray[Any], values: Sequence[int]) -> NDArray[np.intp]:
    """The number of each voxel's class; that of the background where its value is no class's."""
    order = np.argsort(values)
    ordered = np.asarray(values)[order]
    place = np.minimum(np.searchsorted(ordered, plane), len(values) - 1)
    return np.where(ordered[place] == plane, order[place], len(values))


def added(tables: Sequence[Sequence[Sequence[int]] | None]) -> list[list[int]] | None:
    """Return the sum of several cases' counts; None where a case has none."""
    known = [table for table in tables if table is not None]
    if not known or len(known) < len(tables):
        return None
    return [[int(count) for count in row] for row in np.sum(known, axis=0)]


def side_confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return how many voxels of a side are taken for the other one.

    Args:
        names: of the classes, with their sides ("M1 left").
        counts: of `confusion_counts`.

    Returns:
        `classes`: name -> `voxels` of the reference, `as_twin` of these predicted as the same region of the other side,
        `as_other_side` as any region of it; `voxels`, `as_twin`, `as_other_side` over all. Empty where no class has a
        twin.
    """
    twins = partners(list(names))
    twin_of = {**dict(twins), **{right: left for left, right in twins}}
    if not twin_of:
        return {}
    classes: dict[str, Any] = {}
    for row, name in enumerate(names):
        if name not in twin_of:
            continue
        other = "right" if side_of(name) == "left" else "left"
        classes[name] = {
            "voxels": int(sum(counts[row])),
            "as_twin": int(counts[row][list(names).index(twin_of[name])]),
            "as_other_side": int(sum(counts[row][column] for column, n in enumerate(names) if side_of(n) == other)),
        }
    totals = {key: sum(entry[key] for entry in classes.values()) for key in ("voxels", "as_twin", "as_other_side")}
    return {"classes": classes, **totals}


def summarise_confusion(cases: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any] | None:
    """Return the counts of all cases together, the names of their rows and columns, and the confusion of sides.

    None where a case has no counts: two classes share a value, or it is of an earlier version.
    """
    counts = added([case.get("confusion") for case in cases])
    if counts is None:
        return None
    return {"names": [*labels, BACKGROUND], "counts": counts, "sides": side_confusion(labels, counts)}
