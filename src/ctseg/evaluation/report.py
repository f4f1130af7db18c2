"""Everything an evaluation writes; first of all one HTML page with its pictures inside, for a reader in a hospital."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.evaluation.casepages import case_pages
from ctseg.evaluation.classes import classes_section, confusion_section, training_section
from ctseg.evaluation.html import Page, interval, number, plural
from ctseg.evaluation.plots import change_plot
from ctseg.evaluation.scoring import OVERLAPS, SURFACES
from ctseg.evaluation.sections import (
    cases_section,
    images_of,
    reading_section,
    refused_section,
    slices_section,
    spread_section,
    volumes_section,
    worst_section,
)
from ctseg.evaluation.types import Evaluation
from ctseg.evaluation.words import NAMES, WHERE
from ctseg.files import write_beside

_TABLE_METRICS = ("dice", "iou", "precision", "recall", "f_beta", *SURFACES, "accuracy", "specificity")


def write_evaluation(
    evaluation: Evaluation, out: Path, *, images: Path | None = None, strip: Sequence[str] = ()
) -> list[Path]:
    """Write the report, the JSON and the tables of an evaluation into a folder.

    Args:
        evaluation: of `ctseg.evaluation.measuring.evaluate_folders`; its `comparison` may be filled in.
        out: the folder, made where missing; files of an earlier evaluation are replaced.
        images: folder of the CTs by case (or one file), for the pictures.
        strip: endings to leave off the names of the CTs.

    Returns:
        The files: evaluation.html, evaluation.json, cases.csv, summary.csv, classes.csv, confusion.csv (unless two
        classes share a value), slices.csv.

    Raises:
        OutputError: when the folder cannot be written.
        InputError: when there is no folder of images.
    """
    from ctseg.evaluation.tables import cases_table, classes_table, confusion_table, slices_table, summary_table

    results = evaluation.results
    contents = {
        "evaluation.html": html_report(evaluation, images, strip).encode(),
        "evaluation.json": (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode(),
        "cases.csv": cases_table(results),
        "summary.csv": summary_table(results),
        "classes.csv": classes_table(results),
        **({"confusion.csv": confusion_table(results)} if results["confusion"] else {}),
        "slices.csv": slices_table(evaluation.slices, results["settings"]["beta"]),
    }
    for name, content in contents.items():
        write_beside(out / name, content)
    return [out / name for name in contents]


def html_report(evaluation: Evaluation, images: Path | None = None, strip: Sequence[str] = ()) -> str:
    """Return the page. It asks nothing of the network, and the same evaluation gives the same text."""
    results = evaluation.results
    page = Page("How well the masks meet the references")
    _opening(page, results)
    _summary(page, results)
    classes_section(page, results)
    confusion_section(page, results)
    if results["comparison"]:
        _comparison(page, results["comparison"])
    training_section(page, results)
    spread_section(page, results)
    worst_section(page, evaluation, images, strip)
    volumes_section(page, results)
    slices_section(page, results)
    cases_section(page, results)
    case_pages(page, evaluation, images_of(images, evaluation, strip))
    refused_section(page, results)
    reading_section(page, results)
    return page.text()


def _opening(page: Page, results: Mapping[str, Any]) -> None:
    patients = len({case["patient"] for case in results["cases"]})
    whose = f" of {plural(patients, 'patient')}" if patients < len(results["cases"]) else ""
    sentences = [f"{plural(len(results['cases']), 'case')}{whose} could be scored."]
    if results["refused"]:
        sentences.append(f"{plural(len(results['refused']), 'case')} could not: see “Not scored”.")
    page.paragraph(" ".join(sentences))
    items = []
    for name, label in results["summary"]["labels"].items():
        dice, found = label["macro"]["dice"], label["found"]
        if dice["value"] is None:
            items.append(f"{name}: in no prediction and in no reference.")
            continue
        missed, extra = found["reference only"], found["prediction only"]
        words = [f"{name}: Dice {interval(dice, 'dice')} on average, over {plural(dice['n'], 'case')}"]
        words += [f"missed altogether in {plural(missed, 'case')}"] if missed else []
        words += [f"drawn where there is none in {plural(extra, 'case')}"] if extra else []
        items.append("; ".join(words) + ".")
    page.bullets(items)
    page.paragraph(f"For {results['intended_use']}.", "note")
    page.bullets(results["notes"], "note")


def _summary(page: Page, results: Mapping[str, Any]) -> None:
    page.heading("Summary")
    several = len(results["summary"]["labels"]) > 1
    columns = {name: label["macro"] for name, label in results["summary"]["labels"].items()}
    pooled = {name: label["micro"] for name, label in results["summary"]["labels"].items()}
    if several:
        columns["all organs, mean of their means"] = results["summary"]["overall"]["macro"]
        pooled["all organs"] = results["summary"]["overall"]["micro"]
    cases = len(results["cases"])
    page.table(
        "Mean over cases, each case counting the same, with its 95 % interval in brackets.",
        ["organ", *(NAMES[metric] for metric in _TABLE_METRICS)],
        [[title, *(interval(row[m], m, of=cases) for m in _TABLE_METRICS)] for title, row in columns.items()],
    )
    of_voxels = [metric for metric in _TABLE_METRICS if metric in OVERLAPS]
    page.table(
        "All voxels of all cases pooled, each voxel counting the same, so that large organs weigh more.",
        ["organ", *(NAMES[metric] for metric in of_voxels)],
        [[title, *(interval(row[m], m) for m in of_voxels)] for title, row in pooled.items()],
    )
    counts = [
        [name, *(str(label["found"][where]) for where in WHERE)] for name, label in results["summary"]["labels"].items()
    ]
    page.table("In how many cases the organ is where.", ["organ", *WHERE.values()], counts)
    missing = _without_distance(results)
    if missing:
        page.paragraph(missing, "note")


def _without_distance(results: Mapping[str, Any]) -> str:
    words = []
    for name, label in results["summary"]["labels"].items():
        one_sided = label["found"]["reference only"] + label["found"]["prediction only"]
        if one_sided:
            words.append(f"{name} in {plural(one_sided, 'case')}")
    if not words:
        return ""
    return (
        f"Only one of the two masks has {'; '.join(words)}: such a case has Dice 0 but no distance, so the mean "
        "distances are over the other cases and look better than the whole."
    )


def _comparison(page: Page, comparison: Mapping[str, Any]) -> None:
    page.heading("Beside the baseline")
    page.bullets(comparison["notes"], "note")
    for name, label in comparison["labels"].items():
        page.subheading(name)
        rows = []
        for metric, entry in label["mean"].items():
            known = [row[metric] for row in label["cases"] if row[metric]["difference"] is not None]
            means = [
                number(sum(row[k] for row in known) / len(known) if known else None, metric) for k in ("before", "now")
            ]
            rows.append(
                [NAMES[metric], *means, interval(entry, metric, signed=True), str(entry["n"]), entry["verdict"]]
            )
        page.table(
            f"{name}: this run minus the baseline, over the cases that have a value in both. “Better” and “worse” are "
            "said only where the 95 % interval, paired by patient, leaves out 0.",
            ["metric", "baseline", "this run", "difference", "cases", "verdict"],
            rows,
        )
        worse = ", ".join(label["worse"])
        page.paragraph(f"Worse by more than 0.01 Dice: {worse or 'no case'}.")
        fallen = sum((row["dice"]["difference"] or 0) < 0 for row in label["cases"])
        page.picture(
            change_plot(label["cases"]),
            f"Dice of {name} in the baseline and in this run, a line for each of "
            f"{plural(len(label['cases']), 'case')}; it falls in {fallen}. The values are in the table that follows.",
            "A line for each case; a dashed orange line falls.",
        )
        shown = [m for m in ("dice", "nsd", "hd95_mm") if m in label["mean"]]
        page.table(
            f"{name}: every case, before → now.",
            ["case", *(NAMES[m] for m in shown)],
            [[row["case"], *(_change(row[m], m) for m in shown)] for row in label["cases"]],
            folded=True,
        )
    for key, where in (("only_now", "this run"), ("only_before", "the baseline")):
        if comparison[key]:
            page.paragraph(f"Only in {where}, so not compared: {', '.join(comparison[key])}.")


def _change(entry: Mapping[str, Any], metric: str) -> str:
    before, now = (number(entry[key], metric) for key in ("before", "now"))
    text = f"{before} → {now}"
    return text if entry["difference"] is None else f"{text} ({number(entry['difference'], metric, signed=True)})"
