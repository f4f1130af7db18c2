"""How well one organ's mask meets its reference: overlap from counts of voxels, distances of surfaces in mm.

What happens with empty masks stands in `EMPTY_RULE`, and the report repeats it. Distances and surfaces are MONAI's
(`get_mask_edges`, `get_surface_distance`), both aware of the spacing; the masks are cut to their common box first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OVERLAPS = ("dice", "iou", "precision", "recall", "f_beta", "accuracy", "specificity")
SURFACES = ("nsd", "hd95_mm", "hd_mm")
METRICS = OVERLAPS + SURFACES
LOWER_IS_BETTER = ("hd95_mm", "hd_mm")
COUNTS = ("tp", "fp", "fn", "tn")
FOUND = ("both", "reference only", "prediction only", "neither")
EMPTY_RULE = (
    "An organ in neither mask says nothing on overlap or surfaces: no value, left out of every mean; accuracy and "
    "specificity still count. An organ in only one of the two has Dice, IoU, F-beta and NSD of 0; its precision is 0 "
    "and its recall has no value when only the prediction has it, its recall is 0 and its precision has no value when "
    "only the reference has it; its distances have no value, since there is no second surface to measure to. A mean "
    "says over how many cases it is, so that cases without a value are seen."
)

# MONAI's distances are float32: a surface at exactly the tolerance is within it.
_TOLERANCE_SLACK_MM = 1e-4

Bools = NDArray[np.bool_]


def overlaps(counts: NDArray[Any], beta: float = 1.0) -> dict[str, NDArray[np.float64]]:
    """Return every metric of overlap, NaN where it is 0 / 0.

    Dice = 2 TP / (2 TP + FP + FN); IoU = TP / (TP + FP + FN); precision = TP / (TP + FP); recall = TP / (TP + FN);
    F-beta = (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP); accuracy = (TP + TN) / all; specificity = TN / (TN + FP).

    Args:
        counts: (..., 4) voxels: TP, FP, FN, TN.
        beta: weight of recall against precision in F-beta.
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    weight = beta**2
    parts = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f_beta": ((1 + weight) * tp, (1 + weight) * tp + weight * fn + fp),
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "specificity": (tn, tn + fp),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.asarray(above / below) for name, (above, below) in parts.items()}


def count_slices(predicted: Bools, reference: Bools, axis: int) -> NDArray[np.int64]:
    """Return the counts TP, FP, FN, TN of each slice along an axis, shape (slices, 4)."""
    across = tuple(other for other in range(3) if other != axis)
    common, n_p, n_r = (np.count_nonzero(mask, axis=across) for mask in (predicted & reference, predicted, reference))
    pixels = predicted.size // predicted.shape[axis]
    return np.stack([common, n_p - common, n_r - common, pixels - n_p - n_r + common], axis=1).astype(np.int64)


def surface_values(
    predicted: Bools, reference: Bools, spacing: Sequence[float], tolerance_mm: float
) -> dict[str, float | None]:
    """Return NSD, HD95 and Hausdorff distance of two masks on one grid.

    The Hausdorff distance is the largest distance from a surface voxel of one mask to the nearest surface voxel of the
    other, HD95 the larger of the two 95th percentiles, both in mm between centres of voxels. NSD is the part of the two
    surfaces that lies within the tolerance of the other one, each surface element weighed by its area in mm^2 as in
    DeepMind's surface-distance (arXiv:1809.04430): with thick slices, counting voxels instead would overrate the rim.
    A mask that reaches the edge of the grid has a surface there.

    Args:
        predicted: (I, J, K).
        reference: (I, J, K).
        spacing: voxel size in mm along I, J, K.
        tolerance_mm: distance up to which a surface counts as met.
    """
    either = predicted | reference
    if not either.any():
        return {"nsd": None, "hd95_mm": None, "hd_mm": None}
    if not (predicted.any() and reference.any()):
        return {"nsd": 0.0, "hd95_mm": None, "hd_mm": None}
    box = bounding_box(either)
    return _surfaces(predicted[box], reference[box], tuple(float(length) for length in spacing), tolerance_mm)


def _surfaces(
    predicted: Bools, reference: Bools, spacing: tuple[float, ...], tolerance_mm: float
) -> dict[str, float | None]:
    from monai.metrics import get_mask_edges, get_surface_distance

    edge_p, edge_r = get_mask_edges(predicted, reference)
    ways = [get_surface_distance(*pair, spacing=spacing) for pair in ((edge_p, edge_r), (edge_r, edge_p))]
    edge_p, edge_r, area_p, area_r = get_mask_edges(predicted, reference, spacing=spacing)
    met = whole = 0.0
    for edges, others, areas in ((edge_p, edge_r, area_p), (edge_r, edge_p, area_r)):
        near = get_surface_distance(edges, others, spacing=spacing) <= tolerance_mm + _TOLERANCE_SLACK_MM
        area = areas[edges].astype(np.float64)
        met, whole = met + float(area[near].sum()), whole + float(area.sum())
    return {
        "nsd": met / whole,
        "hd95_mm": max(float(np.percentile(way, 95)) for way in ways),
        "hd_mm": max(float(way.max()) for way in ways),
    }


def bounding_box(mask: Bools) -> tuple[slice, ...]:
    """Return the smallest box that holds every True voxel of a mask that has some."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def score(
    predicted: Bools,
    reference: Bools,
    spacing: Sequence[float],
    *,
    slice_axis: int = 2,
    beta: float = 1.0,
    tolerance_mm: float = 3.0,
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Score one organ of one case.

    Args:
        predicted: (I, J, K).
        reference: (I, J, K).
        spacing: voxel size in mm along I, J, K.
        slice_axis: the axis that slices are counted along.
        beta: of F-beta.
        tolerance_mm: of NSD.

    Returns:
        The values as JSON types, None where there is none: every one of `METRICS`, `found` (one of `FOUND`), volumes
        in ml, `voxels` (TP, FP, FN, TN), and `slices` (see `slice_values`); and the counts of each slice (slices, 4).
    """
    per_slice = count_slices(predicted, reference, slice_axis)
    counts = per_slice.sum(axis=0)
    n_p, n_r = int(counts[0] + counts[1]), int(counts[0] + counts[2])
    ml = float(np.prod([float(length) for length in spacing])) / 1000
    values = {
        "found": FOUND[0 if n_p and n_r else 1 if n_r else 2 if n_p else 3],
        **plain(overlaps(counts, beta)),
        **surface_values(predicted, reference, spacing, tolerance_mm),
        "predicted_ml": n_p * ml,
        "reference_ml": n_r * ml,
        "voxels": dict(zip(COUNTS, counts.tolist(), strict=True)),
        "slices": slice_values(per_slice),
    }
    return values, per_slice


def slice_values(per_slice: NDArray[np.int64]) -> dict[str, Any]:
    """Return what the slices of one case say.

    Args:
        per_slice: (slices, 4) TP, FP, FN, TN.

    Returns:
        `all`: how many slices; `with_organ`: of these, with the organ in the reference; `missed` of these, without any
        in the prediction; `false`: without the organ in the reference but with some in the prediction; `dice` and
        `iou`: mean over the slices with organ; `voxels`: the counts pooled over the slices with organ.
    """
    tp, fp, fn, _ = per_slice.T
    has, said = tp + fn > 0, tp + fp > 0
    of_organ = per_slice[has]
    each = overlaps(of_organ)
    return {
        "all": len(per_slice),
        "with_organ": int(has.sum()),
        "missed": int((has & ~said).sum()),
        "false": int((~has & said).sum()),
        **{name: float(each[name].mean()) if len(of_organ) else None for name in ("dice", "iou")},
        "voxels": dict(zip(COUNTS, of_organ.sum(axis=0).tolist(), strict=True)),
    }


def plain(values: dict[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """Turn scalars into JSON types, NaN into None."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
