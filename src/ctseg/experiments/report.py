"""The written report of a folder of experiments, one HTML page: what was run, figures, findings, curves, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.evaluation.html import NO_VALUE, Page
from ctseg.evaluation.triptychs import chosen_cases, read_triptychs
from ctseg.experiments.findings import (
    LEARNT,
    LEVEL,
    RISE,
    Run,
    at_the_end,
    axes_of,
    followed,
    overfitting,
    read_runs,
    speeds,
)
from ctseg.experiments.plots import curves_of, matrix, side_by_side
from ctseg.experiments.runs import REPORT, TRIPTYCHS, read_state
from ctseg.files import write_beside

FILE = "report.html"
REFERENCE = "reference.json"  # beside the experiments' files: what others ran and found
MEASURES = {
    "thresholded_iou_at_half": "thresholded IoU at a logit of 0.5",
    "thresholded_iou": "thresholded IoU at a logit of 0",
    "ours_patient_iou": "IoU by patient",
    "ours_patient_dice": "Dice by patient",
    "ours_patient_f1": "F1 by patient",
}
_WORDS = {
    "val_thresholded_iou_at_half": MEASURES["thresholded_iou_at_half"],
    "val_mean_dice": MEASURES["ours_patient_dice"],
    "val_f1": MEASURES["ours_patient_f1"],
}


def write_reports(out: Path) -> list[Path]:
    """Write the report of a folder of experiments: `OUT/report.html`, of several tasks `OUT/TASK/report.html` for each.

    Returns:
        The files; none of a task without a finished experiment.

    Raises:
        InputError: when the folder holds no experiment.
        OutputError: when a file cannot be written.
    """
    tasks: dict[str, list[Run]] = {}
    for run in read_runs(out):
        tasks.setdefault(run.name.partition("/")[0], []).append(run)
    files = []
    for task, runs in tasks.items():
        measure = followed(runs)
        if measure is not None:
            file = out / FILE if len(tasks) == 1 else out / task / FILE
            write_beside(file, _report(task, runs, measure).encode())
            files.append(file)
    return files


def _report(task: str, runs: Sequence[Run], measure: str) -> str:
    page = Page(f"Experiments: {task}")
    _what_was_run(page, runs)
    _figures(page, runs)
    _reference(page, runs, measure)
    _overfitting(page, runs)
    _speed(page, runs, measure)
    _curves(page, runs, measure)
    _pictures(page, runs, measure)
    return page.text()


def _what_was_run(page: Page, runs: Sequence[Run]) -> None:
    page.heading("What was run")
    first, states = runs[0].row, [read_state(run.folder) for run in runs]
    axes = [f"{axis}: {', '.join(values)}" for axis, values in _values(runs).items()]
    patients = states[0].get("patients") or {}
    seconds = sum(float(run.row["seconds"] or 0) for run in runs)
    page.bullets(
        [
            f"{len(runs)} experiments over {first['bundle']}" + (f"; {'; '.join(axes)}" if axes else ""),
            f"Data: {first['data']}; patients: "
            + ", ".join(f"{count} {split}" for split, count in patients.items() if count),
            f"Measured on {first['patients']} patients of the split {first['split']}; the epoch was chosen on the "
            "validation, so its figures flatter",
            f"{_range(_epochs(runs))} epochs, {seconds / 60:.0f} minutes of training together",
        ]
    )
    changed = sorted({str(run.row["changed"]) for run in runs if run.row["changed"]})
    if changed:
        page.paragraph("Run otherwise than the experiments' files say: " + " | ".join(changed) + ".")


def _figures(page: Page, runs: Sequence[Run]) -> None:
    page.heading("Figures")
    axes = axes_of(runs)
    for name, words in MEASURES.items():
        known = [(run, float(run.row[name])) for run in runs if run.row.get(name) is not None]
        if not known:
            continue
        best = max(value for _, value in known)
        if len(axes) == 2:
            rows, columns = _values(runs).values()
            cells = {tuple(run.grid.values()): _marked(value, best) for run, value in known}
            table = [[row, *(cells.get((row, column), NO_VALUE) for column in columns)] for row in rows]
            page.table(words, [f"{axes[0]} / {axes[1]}", *columns], table)
        else:
            page.table(words, ["experiment", words], [[run.short, _marked(v, best)] for run, v in known])
    if len(axes) == 2:
        shown = [name for name in MEASURES if any(run.row.get(name) for run in runs)]  # above 0 somewhere
        if not shown:
            return
        name = shown[0]
        values = {
            (run.grid[axes[0]], run.grid[axes[1]]): float(run.row[name])
            for run in runs
            if run.row.get(name) is not None
        }
        rows, columns = _values(runs).values()
        drawn = matrix(values, rows, columns, (*axes, MEASURES[name]))
        page.picture(drawn, f"{MEASURES[name]} of each experiment, as in the table", MEASURES[name])


def _reference(page: Page, runs: Sequence[Run], measure: str) -> None:
    reference = _reference_of(runs)
    rows = []
    for run in runs:
        theirs: Mapping[str, float] = read_state(run.folder).get("theirs") or {}
        for name, value in theirs.items():
            ours = run.row.get("ours_their_way") if name == run.row["metric"] else None
            words = [_text(value), _text(ours), _text(None if ours is None else ours - value, signed=True)]
            rows.append([run.short, name.replace("_", " "), *words])
    if not rows and not reference:
        return
    page.heading("Beside the reference")
    page.paragraph(
        "Theirs is on their own data and patients, ours on the data named above; they differ in more than the method."
    )
    if reference.get("about"):
        page.paragraph(f"Theirs: {reference['about']}.")
    if rows:
        page.table("Their figures and ours", ["experiment", "measure", "theirs", "ours", "ours - theirs"], rows)
    if reference.get("findings"):
        page.subheading("What they found")
        page.bullets([str(finding) for finding in reference["findings"]])
        page.subheading("What was found here")
        page.bullets(_findings(runs, measure))


def _findings(runs: Sequence[Run], measure: str) -> list[str]:
    """The same questions, answered by these runs."""
    words = _WORDS[measure]
    order = sorted(runs, key=lambda run: max(value for _, value in run.curves[measure]))
    ends = [(run, max(value for _, value in run.curves[measure])) for run in (order[-1], order[0])]
    found = [
        f"{what}: {run.short}, {words} {value:.3f} in its best validation"
        for what, (run, value) in zip(("best", "worst"), ends, strict=True)
    ]
    overfit = [one.epoch for run in runs if (one := overfitting(run)) is not None and one.overfits]
    found.append(
        f"overfitting in {len(overfit)} of {len(runs)} experiments, from epoch {_range(overfit)} on"
        if overfit
        else f"no overfitting within {_range(_epochs(runs))} epochs"
    )
    if axis := _compared(runs):
        rows = speeds(runs, measure, axis)
        if rows and rows[0].median < math.inf:
            found.append(f"{rows[0].value} learns fastest, {rows[-1].value} slowest (below)")
        value, mean = at_the_end(runs, measure, axis)[0]
        found.append(f"{value} is best at the end: {words} {mean:.3f}, mean over its experiments")
    return found


def _overfitting(page: Page, runs: Sequence[Run]) -> None:
    page.heading("When it overfits")
    page.paragraph(
        f"Overfitting: the validation loss rose by more than {RISE:.0%} over its lowest value while the training loss "
        "fell further. The end is the mean of the last three validations."
    )
    rows = []
    for run in runs:
        one = overfitting(run)
        if one is not None:
            verdict = "yes" if one.overfits else "no"
            rows.append([run.short, str(one.epoch), str(one.last), f"{one.rise:+.1%}", verdict])
    head = ["experiment", "lowest validation loss at epoch", "last epoch", "rise by the end", "overfits"]
    page.table("Validation loss after its lowest value", head, rows)


def _speed(page: Page, runs: Sequence[Run], measure: str) -> None:
    axis = _compared(runs)
    if not axis:
        return
    page.heading(f"Which {axis} learns fastest")
    rows = speeds(runs, measure, axis)
    if not rows:
        page.paragraph(f"None of them reached {LEARNT} in {_WORDS[measure]}: too little was learnt to compare.")
        return
    page.paragraph(
        f"Losses have scales of their own, so a common measure is followed: the first epoch at which {_WORDS[measure]} "
        f"of the validation reaches {LEVEL:.0%} of the best value of any {axis} under the same conditions."
    )
    groups = list(dict.fromkeys(group for row in rows for group in row.epochs))
    table = []
    for row in rows:
        cells = ["not reached" if row.epochs.get(group) is None else str(row.epochs[group]) for group in groups]
        table.append([row.value, *cells, "not reached" if row.median == math.inf else f"{row.median:g}"])
    page.table(f"First epoch at the level, by {axis}", [axis, *groups, "median"], table)


def _curves(page: Page, runs: Sequence[Run], measure: str) -> None:
    page.heading("Learning curves")
    axis = _compared(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        others = ", ".join(value for name, value in run.grid.items() if name != axis) if axis else ""
        groups.setdefault(others, []).append(run)
    for group, members in groups.items():
        words = f"{_WORDS[measure]} and validation loss" + (f", {group}" if group else "")
        page.picture(
            curves_of(members, measure, _WORDS[measure], group or "all experiments"), f"Curves: {words}", words
        )


def _pictures(page: Page, runs: Sequence[Run], measure: str) -> None:
    order = sorted(runs, key=lambda run: max(value for _, value in run.curves[measure]))
    cases = {run.name: read_triptychs(run.folder / REPORT / TRIPTYCHS) for run in runs}
    if not cases[order[-1].name]:
        return
    page.heading("Pictures")
    median = chosen_cases(cases[order[-1].name]).get("median") or cases[order[-1].name][0]
    same = [(run, row["file"]) for run in runs for row in cases[run.name] if row["case"] == median["case"]]
    axes = axes_of(runs)
    if len(axes) == 2 and len(same) > 1:
        rows, columns = _values(runs).values()
        pictures = {(run.grid[axes[0]], run.grid[axes[1]]): file for run, file in same}
        page.picture(
            side_by_side(pictures, rows, columns),
            "The same validation image as each experiment outlines it",
            "One image as each experiment outlines it: the median case of the best one. Colour: what is outlined.",
        )
    for what, run in (("best", order[-1]), ("worst", order[0])):
        page.subheading(f"The {what} experiment: {run.short}")
        for name, row in chosen_cases(cases[run.name]).items():
            alt = f"Image, reference and prediction of the {name} case"
            page.picture(row["file"].read_bytes(), alt, f"{name} case, Dice {row['dice']:.3f}")


def _values(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Axis -> its values, in the order of the experiments."""
    return {axis: list(dict.fromkeys(run.grid[axis] for run in runs)) for axis in axes_of(runs)}


def _compared(runs: Sequence[Run]) -> str:
    """The axis whose values are compared: the last one that has several; "" without a grid."""
    return next((axis for axis, values in reversed(_values(runs).items()) if len(values) > 1), "")


def _reference_of(runs: Sequence[Run]) -> dict[str, Any]:
    file = Path(str(read_state(runs[0].folder).get("file", ""))).parent / REFERENCE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _epochs(runs: Sequence[Run]) -> list[int]:
    return [int(run.row["epochs"]) for run in runs]


def _range(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _marked(value: float, best: float) -> str:
    return f"{value:.3f} (best)" if value == best > 0 else f"{value:.3f}"


def _text(value: float | None, *, signed: bool = False) -> str:
    return NO_VALUE if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"
