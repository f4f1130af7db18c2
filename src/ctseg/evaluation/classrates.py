"""How classes are wrong: share of misclassified voxels and false against missed ones, with their spread over classes.

Reference system B's two figures: the misclassification rate (FP + FN) / all voxels, and FP / FN, which is near 1 where
a network draws as much too much as it misses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.evaluation.scoring import COUNTS

RATES = ("misclassification", "fp_fn")
SPREAD_OF = ("dice", "iou", *RATES)
RULE = (
    "FP/FN has no value where nothing is missed (FN is 0): with FP 0 too there is no error to weigh, else it would be "
    "infinite. Such a class is left out of mean and variance over classes, and named. So is a class in neither mask "
    "from those of Dice and IoU; its misclassification rate is 0 and counts."
)


def rates(voxels: Mapping[str, int]) -> dict[str, float | None]:
    """Return the misclassification rate and FP/FN of one class.

    Args:
        voxels: `tp`, `fp`, `fn`, `tn`.
    """
    fp, fn, every = voxels["fp"], voxels["fn"], sum(voxels[part] for part in COUNTS)
    return {"misclassification": (fp + fn) / every if every else None, "fp_fn": fp / fn if fn else None}


def class_values(voxels: Mapping[str, int]) -> dict[str, float | None]:
    """Return Dice, IoU, misclassification rate and FP/FN of one class; None where one has no value."""
    tp, wrong = voxels["tp"], voxels["fp"] + voxels["fn"]
    overlap = {"dice": 2 * tp / (2 * tp + wrong), "iou": tp / (tp + wrong)} if tp + wrong else {}
    return {"dice": None, "iou": None, **overlap, **rates(voxels)}


def over_classes(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return mean and population variance over classes of each figure.

    Args:
        values: class -> what `class_values` returns.

    Returns:
        figure -> `mean`, `variance` (divided by the number of classes), `n` classes with a value, `without` the names
        of the others.
    """
    table = {}
    for figure in SPREAD_OF:
        known = [value for row in values.values() if (value := row[figure]) is not None]
        table[figure] = {
            "mean": float(np.mean(known)) if known else None,
            "variance": float(np.var(known)) if known else None,
            "n": len(known),
            "without": [name for name, row in values.items() if row[figure] is None],
        }
    return table


def summarise_classes(cases: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """Return the figures of each class from the voxels of all cases together, and their spread over classes.

    Args:
        cases: of `evaluation.json`.
        labels: names of the classes.

    Returns:
        `labels`: class -> the figures; `over_classes`: of `over_classes`; `iou`, `dice`: over all classes' voxels.
    """
    pooled = {}
    for name in labels:
        parts = [case["labels"][name]["voxels"] for case in cases]
        pooled[name] = {key: sum(int(part[key]) for part in parts) for key in COUNTS}
    values = {name: class_values(voxels) for name, voxels in pooled.items()}
    every = {key: sum(voxels[key] for voxels in pooled.values()) for key in COUNTS}
    overall = class_values(every)
    return {"labels": values, "over_classes": over_classes(values), "iou": overall["iou"], "dice": overall["dice"]}


def of_case(case: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the same of a single case."""
    return summarise_classes([case], labels)
