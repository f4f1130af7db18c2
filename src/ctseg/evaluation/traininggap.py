"""Training cases against test cases: how much better a network is on what it learnt from, by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.evaluation.comparison import read_evaluation

FIGURES = ("dice", "iou")


def read_training(path: str | Path) -> dict[str, Any]:
    """Read the `evaluation.json` of the training cases.

    Raises:
        InputError: when it cannot be read, or is no such file.
    """
    return read_evaluation(path, "evaluation of the training cases")


def training_gap(now: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """Compare an evaluation with that of the training cases.

    Args:
        now: the evaluation of the test cases.
        training: that of the training cases, by the same network.

    Returns:
        `labels`: class -> figure -> `training`, `test` (means over cases), `gap` (training minus test), and how many
        cases each is over; `mean`: figure -> mean gap over classes, and the class with the largest; `cases`: how many;
        `notes`: what makes it doubtful, a patient that is in both first of all.

    Raises:
        InputError: no class is in both.
    """
    names = [name for name in now["settings"]["labels"] if name in training["settings"]["labels"]]
    if not names:
        raise InputError(
            "the evaluation of the training cases has no class of this run: expected the same names; it has "
            f"{', '.join(training['settings']['labels'])}"
        )
    labels = {
        name: {figure: _gap(now["cases"], training["cases"], name, figure) for figure in FIGURES} for name in names
    }
    return {
        "labels": labels,
        "mean": {figure: _over_classes({name: labels[name][figure] for name in names}) for figure in FIGURES},
        "cases": {"training": len(training["cases"]), "test": len(now["cases"])},
        "notes": _notes(now, training, names),
    }


def _gap(
    test: Sequence[Mapping[str, Any]], training: Sequence[Mapping[str, Any]], name: str, figure: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, cases in (("training", training), ("test", test)):
        known = [row for case in cases if (row := case["labels"][name][figure]) is not None]
        found[key], found[f"{key}_cases"] = sum(known) / len(known) if known else None, len(known)
    both = found["training"] is not None and found["test"] is not None
    return {**found, "gap": found["training"] - found["test"] if both else None}


def _over_classes(gaps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = {name: entry["gap"] for name, entry in gaps.items() if entry["gap"] is not None}
    if not known:
        return {"gap": None, "largest": None, "largest_class": None, "n": 0}
    worst = max(known, key=lambda name: known[name])
    return {"gap": sum(known.values()) / len(known), "largest": known[worst], "largest_class": worst, "n": len(known)}


def _notes(now: Mapping[str, Any], training: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    notes = []
    both = sorted({case["patient"] for case in now["cases"]} & {case["patient"] for case in training["cases"]})
    if both:
        shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        notes.append(
            f"{len(both)} patients are among the training cases and among these too ({shown}): for them this is no "
            "test."
        )
    if missing := sorted(set(now["settings"]["labels"]) ^ set(training["settings"]["labels"])):
        notes.append(f"{', '.join(missing)}: in only one of the two evaluations, so not compared.")
    return notes
