"""A run beside an earlier one: what changed for each case, what changed on average, which cases got worse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.evaluation.bootstrap import PatientBootstrap
from ctseg.evaluation.classrates import summarise_classes
from ctseg.evaluation.scoring import LOWER_IS_BETTER, METRICS

SCHEMA = "ctseg-evaluation/1"
# A fall of Dice up to this is not called worse. The choice is ours: about what redrawing an edge moves.
WORSE_BY = 0.01


def read_baseline(path: str | Path) -> dict[str, Any]:
    """Read the `evaluation.json` of an earlier run.

    Raises:
        InputError: when it cannot be read, or is no such file.
    """
    return read_evaluation(path, "baseline")


def read_evaluation(path: str | Path, what: str) -> dict[str, Any]:
    """Read an `evaluation.json`; `what` it is for stands in the sentence of an error.

    Raises:
        InputError: when it cannot be read, or is no such file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the {what} {path} cannot be read ({type(error).__name__}); expected the evaluation.json that an "
            "earlier ctseg evaluate wrote"
        ) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise InputError(
            f"the {what} {path} says schema {found!r}, expected {SCHEMA!r}: name the evaluation.json that an earlier "
            "ctseg evaluate wrote, made by this version"
        )
    return dict(content)


def compare(now: Mapping[str, Any], before: Mapping[str, Any], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare two results of `ctseg.evaluation.measuring.evaluate_folders` case by case.

    Args:
        now: the new result.
        before: the stored one.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Returns:
        `labels`: name -> `cases` (case, metric -> before, now, difference), `mean` (metric -> mean difference with its
        paired interval, and a verdict) and `worse` (cases, the worst first). A difference is now minus before.
        `classes`: misclassification, FP/FN, Dice and IoU over classes, before and now, from the voxels of the cases
        that are in both (`ctseg.evaluation.classrates`). `only_now`, `only_before`: cases that cannot be compared.
        `notes`: what makes the comparison doubtful.

    Raises:
        InputError: when no case and label is in both.
    """
    old = {case["case"]: case for case in before["cases"]}
    pairs = [(case, old[case["case"]]) for case in now["cases"] if case["case"] in old]
    names = [name for name in now["settings"]["labels"] if name in before["settings"]["labels"]]
    if not pairs or not names:
        raise InputError(
            "the baseline has no case and label of this run: expected the same cases by name and at least one label "
            f"of the same name; it has {', '.join(sorted(old)[:3])} with {', '.join(before['settings']['labels'])}"
        )
    metrics = _comparable(now["settings"], before["settings"])
    shared = {case["case"] for case, _ in pairs}
    boot = PatientBootstrap([case["patient"] for case, _ in pairs], resamples, seed)
    return {
        "labels": {name: _of_label(boot, pairs, name, metrics) for name in names},
        "classes": {
            "before": summarise_classes([case for _, case in pairs], names)["over_classes"],
            "now": summarise_classes([case for case, _ in pairs], names)["over_classes"],
        },
        "only_now": sorted(case["case"] for case in now["cases"] if case["case"] not in shared),
        "only_before": sorted(set(old) - shared),
        "notes": _notes(now, before, pairs, names, metrics),
    }


def _comparable(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The metrics that were measured the same way in both runs."""
    changed = {"nsd"} if now["tolerance_mm"] != before["tolerance_mm"] else set()
    if now["beta"] != before["beta"]:
        changed.add("f_beta")
    return [metric for metric in METRICS if metric not in changed]


def _of_label(
    boot: PatientBootstrap, pairs: Sequence[tuple[Any, Any]], name: str, metrics: Sequence[str]
) -> dict[str, Any]:
    rows = []
    for case, old in pairs:
        new_row, old_row = case["labels"][name], old["labels"][name]
        row: dict[str, Any] = {"case": case["case"]}
        for metric in metrics:
            a, b = old_row[metric], new_row[metric]
            row[metric] = {"before": a, "now": b, "difference": None if a is None or b is None else b - a}
        rows.append(row)
    mean = {}
    for metric in metrics:
        entry = boot.mean([row[metric]["difference"] for row in rows])
        mean[metric] = {**entry, "verdict": _verdict(metric, entry)}
    worse = [row for row in rows if _fall(row) > WORSE_BY]
    return {"cases": rows, "mean": mean, "worse": [row["case"] for row in sorted(worse, key=_fall, reverse=True)]}


def _fall(row: Mapping[str, Any]) -> float:
    """By how much Dice fell; an organ invented where neither mask had one before fell from perfect to 0."""
    dice = row["dice"]
    if dice["difference"] is not None:
        return -float(dice["difference"])
    return 1.0 if dice["before"] is None and dice["now"] == 0 else 0.0


def _verdict(metric: str, entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "not comparable"
    if entry["low"] is None:
        return "too few patients"
    if entry["low"] <= 0 <= entry["high"]:
        return "no clear difference"
    return "better" if (entry["value"] < 0) == (metric in LOWER_IS_BETTER) else "worse"


def _notes(
    now: Mapping[str, Any],
    before: Mapping[str, Any],
    pairs: Sequence[tuple[Any, Any]],
    names: Sequence[str],
    metrics: Sequence[str],
) -> list[str]:
    notes = []
    if left := [metric for metric in METRICS if metric not in metrics]:
        notes.append(f"{', '.join(left)}: measured with another setting in the baseline, so not compared.")
    if missing := sorted(set(now["settings"]["labels"]) ^ set(before["settings"]["labels"])):
        notes.append(f"{', '.join(missing)}: in only one of the two runs, so not compared.")
    changed = [
        case["case"]
        for case, old in pairs
        if any(_reference_voxels(case, name) != _reference_voxels(old, name) for name in names)
    ]
    if changed:
        notes.append(
            f"The reference of {', '.join(changed)} is not the one of the baseline (another number of voxels): "
            "a difference there may come from the reference."
        )
    return notes


def _reference_voxels(case: Mapping[str, Any], name: str) -> int:
    voxels = case["labels"][name]["voxels"]
    return int(voxels["tp"] + voxels["fn"])
