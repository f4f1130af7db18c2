"""What the folds of a bundle came to: a row for each, mean and spread over folds and over patients, and pictures."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.evaluation.triptychs import chosen_cases, read_triptychs
from ctseg.experiments.runs import FINISHED, REPORT, TRIPTYCHS, read_state
from ctseg.experiments.table import row_of
from ctseg.files import write_beside, written_beside
from ctseg.folds.dealing import Fold
from ctseg.folds.runs import run_of
from ctseg.registry import BundleInfo

FILES = ("folds.csv", "summary.json", "folds.png")
MEASURES = {
    "dice": "Dice by patient",
    "iou": "IoU by patient",
    "pooled_iou": "IoU pooled over pixels",
    "f1": "F1 by patient",
}
_OF_ROW = {"dice": "ours_patient_dice", "iou": "ours_patient_iou", "f1": "ours_patient_f1"}


def summarise(out: Path, bundle: BundleInfo, folds: Sequence[Fold]) -> dict[str, Any]:
    """Return rows of the folds, and mean and spread of each measure over those that are finished.

    The spread is the sample's standard deviation (n - 1), None for one value. Over folds every fold counts the same;
    over patients every patient, each measured by the network that had not seen it.
    """
    rows = [_row(run_of(out, bundle, fold), fold) for fold in folds]
    done = [row for row in rows if row["status"] == FINISHED]
    patients = {name: [v for row in done for v in row["by_patient"].get(name, {}).values()] for name in MEASURES}
    return {
        "bundle": bundle.name,
        "folds": rows,
        "finished": len(done),
        "over_folds": _spreads({name: [row[name] for row in done if row[name] is not None] for name in MEASURES}),
        "over_patients": _spreads(patients),
    }


def _row(folder: Path, fold: Fold) -> dict[str, Any]:
    state = read_state(folder)
    row = row_of(folder) if state else {}
    report = folder / REPORT
    values: dict[str, Any] = {name: row.get(place) for name, place in _OF_ROW.items()}
    values["pooled_iou"] = row.get("ours_their_way") if row.get("metric") == "iou" else None
    return {
        "fold": fold.number,
        "status": state.get("status", "not begun"),
        "held_out": len(fold.held_out),
        "trained_on": len(fold.training),
        "epochs": row.get("epochs", 0),
        "best_epoch": _best_epoch(folder),
        "seconds": row.get("seconds"),
        **values,
        "by_patient": _by_patient(report) if state.get("status") == FINISHED else {},
        "reason": state.get("reason", ""),
    }


def _by_patient(report: Path) -> dict[str, dict[str, float]]:
    """Measure -> patient -> value, the mean over the labels that have one."""
    found: dict[str, dict[str, float]] = {}
    for name in ("dice", "iou"):
        content = _json(report / f"{name}.json").get("values") or {}
        known = {patient: [v for v in labels.values() if v is not None] for patient, labels in content.items()}
        found[name] = {patient: statistics.fmean(values) for patient, values in known.items() if values}
    per_label = (_json(report / "presence.json").get("patients") or {}).values()
    scores: dict[str, list[float]] = {}
    for patients in per_label:
        for patient, entry in patients.items():
            if entry.get("f1") is not None:
                scores.setdefault(patient, []).append(float(entry["f1"]))
    found["f1"] = {patient: statistics.fmean(values) for patient, values in scores.items()}
    return {name: values for name, values in found.items() if values}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _best_epoch(folder: Path) -> int | None:
    """The epoch whose weights were kept: the first with the largest monitored value."""
    from ctseg.history import read_history

    checkpoints = sorted(folder.glob("checkpoint_epoch=*.pt"))
    try:
        history = read_history(checkpoints[-1])
    except (InputError, IndexError):
        return None
    values = history.values(str(history.configuration.get("monitor")))
    return max(values, key=lambda pair: (pair[1], -pair[0]))[0] if values else None


def _spreads(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "mean": statistics.fmean(known),
            "sd": statistics.stdev(known) if len(known) > 1 else None,
            "n": len(known),
            "min": min(known),
            "median": statistics.median(known),
            "max": max(known),
        }
        for name, known in values.items()
        if known
    }


def write_summary(summary: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the table as CSV and JSON, and the picture of the spread; return the files.

    Raises:
        OutputError: when a file cannot be written.
    """
    csv_file, json_file, picture = (out / name for name in FILES)
    write_beside(csv_file, _csv(summary).encode())
    write_beside(json_file, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    if not summary["over_folds"]:
        return [csv_file, json_file]
    write_beside(picture, draw_summary(summary))
    return [csv_file, json_file, picture]


def _csv(summary: Mapping[str, Any]) -> str:
    """A line for each fold, then mean and spread over folds, then over patients."""
    known = list(summary["over_folds"]) or ["dice"]
    names = ["fold", "status", "held_out", "trained_on", "epochs", "best_epoch", "seconds", *known, "reason"]
    rows = [{name: _cell(row.get(name)) for name in names} for row in summary["folds"]]
    for over in ("over_folds", "over_patients"):
        for what in ("mean", "sd", "n"):
            values = {name: _cell(entry[what]) for name, entry in summary[over].items() if name in known}
            rows.append({"fold": f"{what} {over.replace('_', ' ')}", **values})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def main_measure(summary: Mapping[str, Any]) -> str:
    """The measure that a reader looks at first: Dice by patient, of a classifier F1."""
    return next(name for name in MEASURES if name in summary["over_folds"] and name != "pooled_iou")


def draw_summary(summary: Mapping[str, Any]) -> bytes:
    """Return a PNG: each fold's patients and their mean, and mean and standard deviation over the folds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = main_measure(summary)
    rows = [row for row in summary["folds"] if row[name] is not None]
    spread = summary["over_folds"][name]
    figure = Figure(figsize=(max(6.4, 0.35 * len(rows) + 3.0), 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        values = list(row["by_patient"].get(name, {}).values())
        label = "a held-out patient" if place == 0 else None
        axes.plot([place] * len(values), values, "o", color="#56B4E9", markersize=4, alpha=0.8, label=label)
        label = "mean of the fold" if place == 0 else None
        axes.plot([place], [row[name]], "D", color="#0072B2", markersize=8, label=label)
    sd = spread["sd"]
    if sd is not None:
        axes.axhspan(spread["mean"] - sd, spread["mean"] + sd, color="#E69F00", alpha=0.18, lw=0)
    words = f"{spread['mean']:.3f}" + ("" if sd is None else f" (sd {sd:.3f})")
    axes.axhline(spread["mean"], color="#D55E00", label=f"mean over folds: {words}")
    axes.set_xticks(range(len(rows)), [str(row["fold"]) for row in rows])
    axes.set(xlabel="fold", ylabel=MEASURES[name], title=f"{summary['bundle']}, {len(rows)} folds")
    axes.set_ylim(min(0.0, *axes.get_ylim()), 1.02)
    axes.grid(axis="y", color="#d8d8d8", linewidth=0.6)
    axes.legend(loc="lower right", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def write_triptychs(out: Path, bundle: BundleInfo, folds: Sequence[Fold]) -> dict[str, dict[str, Any]]:
    """Copy the best, the median and the worst case over all folds to `OUT/best.png` and so on.

    Returns:
        Of each its `dice`, and the `fold` that it was held out in; empty for bundles that make no mask.
    """
    rows: list[dict[str, Any]] = []
    for fold in folds:
        folder = run_of(out, bundle, fold)
        if read_state(folder).get("status") == FINISHED:
            rows += [{**row, "fold": fold.number} for row in read_triptychs(folder / REPORT / TRIPTYCHS)]
    chosen = chosen_cases(rows)
    for name, row in chosen.items():
        with written_beside(out / f"{name}.png") as beside:
            shutil.copyfile(row["file"], beside)
    return {name: {"dice": row["dice"], "fold": row["fold"]} for name, row in chosen.items()}
