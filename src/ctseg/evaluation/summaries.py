"""The cases of an evaluation summed up: per organ and over all organs, by case, by voxel and by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.evaluation.bootstrap import PatientBootstrap
from ctseg.evaluation.scoring import COUNTS, FOUND, METRICS

_POOLED_OVER_SLICES = ("dice", "iou", "precision", "recall", "f_beta")


def summarise(
    cases: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    *,
    beta: float = 1.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Sum up scored cases.

    Args:
        cases: `case`, `patient`, and `labels`: name -> what `ctseg.evaluation.scoring.score` returns.
        labels: names, in the order of the result.
        beta: of F-beta.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        `labels`: name -> `found` (cases by where the organ is), `macro` (every metric, mean over cases: each case
        counts the same), `spread` (median, lowest, highest), `micro` (metrics of overlap from the voxels of all cases
        summed: each voxel counts the same), `slices` (mean and pooled over slices with organ; presence per slice).
        `overall`: `macro` is the mean over organs of their means, `micro` the voxels of all organs and cases summed.
        Every value is a mapping of `value`, `low`, `high` (95 % interval, by patient), `n` and `patients`.
    """
    boot = PatientBootstrap([case["patient"] for case in cases], resamples, seed)
    counts = np.zeros((len(cases), len(COUNTS)))
    result: dict[str, Any] = {"labels": {}, "overall": {}}
    for name in labels:
        rows = [case["labels"][name] for case in cases]
        result["labels"][name] = _of_label(boot, rows, beta)
        counts += _counts(rows)
    result["overall"] = {"macro": _over_labels(boot, cases, labels), "micro": boot.pooled(counts, beta)}
    return result


def _counts(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([[row["voxels"][part] for part in COUNTS] for row in rows], dtype=np.float64)


def _of_label(boot: PatientBootstrap, rows: Sequence[Mapping[str, Any]], beta: float) -> dict[str, Any]:
    return {
        "found": {where: sum(row["found"] == where for row in rows) for where in FOUND},
        "macro": {metric: boot.mean([row[metric] for row in rows]) for metric in METRICS},
        "spread": {metric: _spread([row[metric] for row in rows]) for metric in METRICS},
        "micro": boot.pooled(_counts(rows), beta),
        "slices": _slices(boot, [row["slices"] for row in rows], beta),
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "lowest": None, "highest": None}
    return {"median": float(np.median(known)), "lowest": min(known), "highest": max(known)}


def _slices(boot: PatientBootstrap, rows: Sequence[Mapping[str, Any]], beta: float) -> dict[str, Any]:
    n = np.array([row["with_organ"] for row in rows], dtype=np.float64)
    mean = {}
    for metric in ("dice", "iou"):
        sums = np.array([(row[metric] or 0.0) * row["with_organ"] for row in rows])
        # A mean over slices is the ratio of two sums over cases, so each draw weighs both.
        with np.errstate(invalid="ignore"):
            samples = boot.sums(sums) / boot.sums(n)
        mean[metric] = {**boot.interval(samples, n > 0), "n": int(n.sum())}
    pooled = boot.pooled(_counts(rows), beta)
    missed, false = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("missed", "false"))
    every = np.array([row["all"] for row in rows], dtype=np.float64)
    presence = np.stack([n - missed, false, missed, every - n - false], axis=1)
    of_presence = boot.pooled(presence)
    return {
        "mean": mean,
        "pooled": {metric: pooled[metric] for metric in _POOLED_OVER_SLICES},
        "presence": {
            "slices": {part: int(total) for part, total in zip(COUNTS, presence.sum(axis=0), strict=True)},
            **{metric: of_presence[metric] for metric in ("precision", "recall", "f_beta")},
        },
    }


def _over_labels(
    boot: PatientBootstrap, cases: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    result = {}
    for metric in METRICS:
        samples, used = [], np.zeros(len(cases), dtype=bool)
        for name in labels:
            values = [case["labels"][name][metric] for case in cases]
            samples.append(boot.mean_samples(values))
            used |= np.array([value is not None for value in values])
        table = np.stack(samples)
        known = ~np.isnan(table)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, table, 0.0).sum(axis=0) / known.sum(axis=0)
        result[metric] = boot.interval(mean, used)
    return result
