"""A page for each case in an evaluation's report: its classes, its errors as a picture, its confusion of sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import CtsegError
from ctseg.evaluation.classes import class_rows, figure_text, without_ratio
from ctseg.evaluation.classrates import of_case
from ctseg.evaluation.confusion import side_confusion
from ctseg.evaluation.html import Page, number
from ctseg.evaluation.types import Evaluation

MOST_PICTURES = 24  # of the lowest mean Dice first; a report of hundreds of cases must still open
MEANING = "Blue: missed; orange: drawn where nothing is; pink: taken for another class; grey: right"
_HEADER = ["class", "Dice", "IoU", "misclassified, per 1000 voxels", "FP/FN", "NSD", "HD95, mm", "pred. ml", "ref. ml"]


def case_pages(page: Page, evaluation: Evaluation, images: Mapping[str, Path]) -> None:
    """Write the pages; printed, each begins on a new sheet.

    Args:
        page: of the report.
        evaluation: the scored cases.
        images: case -> its CT, for the pictures; others are drawn on the masks alone.
    """
    results = evaluation.results
    names = list(results["settings"]["labels"])
    page.heading("A page for each case")
    order = {case["case"]: _mean_dice(case) for case in results["cases"]}
    drawn = set(sorted(order, key=lambda case: order[case])[:MOST_PICTURES])
    if len(order) > MOST_PICTURES:
        page.paragraph(f"The {MOST_PICTURES} cases with the lowest mean Dice have a picture.", "note")
    page.links([f"{case}{f', mean Dice {dice:.3f}' if dice <= 1 else ''}" for case, dice in order.items()], "case")
    for number_, case in enumerate(results["cases"], start=1):
        page.sheet(f"Case {case['case']}", f"case{number_}")
        _numbers(page, case, names)
        if case["case"] in drawn and case["case"] in evaluation.pairs:
            _picture(page, case, evaluation, images)


def _mean_dice(case: Mapping[str, Any]) -> float:
    """Mean Dice over the classes of a case; 2 where none has a value, so that it comes last."""
    known = [row["dice"] for row in case["labels"].values() if row["dice"] is not None]
    return sum(known) / len(known) if known else 2.0


def _numbers(page: Page, case: Mapping[str, Any], names: Sequence[str]) -> None:
    classes = of_case(case, names)
    over = classes["over_classes"]
    shape, spacing = "x".join(map(str, case["shape"])), "x".join(f"{mm:g}" for mm in case["spacing_mm"])
    page.paragraph(
        f"Patient {case['patient']}, grid {shape} at {spacing} mm. IoU over all classes "
        f"{number(classes['iou'], 'iou')}, mean over classes {figure_text(over['iou']['mean'], 'iou')}."
    )
    rows = class_rows(classes)
    for row, name in zip(rows, names, strict=False):
        own = case["labels"][name]
        row += [number(own["nsd"], "nsd"), number(own["hd95_mm"], "hd95_mm")]
        row += [f"{own[key]:.1f}" for key in ("predicted_ml", "reference_ml")]
    rows = [row + [""] * (len(_HEADER) - len(row)) for row in rows]
    page.table(f"{case['case']}: every class.", _HEADER, rows)
    if word := without_ratio(classes):
        page.paragraph(word, "note")
    if case.get("confusion") is not None and (sides := side_confusion(names, case["confusion"])):
        page.paragraph(
            f"Left and right: {sides['as_other_side']} of {sides['voxels']} voxels are predicted as a class of the "
            "other side."
        )


def _picture(page: Page, case: Mapping[str, Any], evaluation: Evaluation, images: Mapping[str, Path]) -> None:
    from ctseg.evaluation.pictures import errors_picture

    name, values = case["case"], evaluation.results["settings"]["labels"]
    try:
        picture, planes, word = errors_picture(
            evaluation.pairs[name], [(row["prediction"], row["reference"]) for row in values.values()], images.get(name)
        )
    except CtsegError as error:
        page.paragraph(f"No picture: {error}")
        return
    where = f"The slices with most errors: {', '.join(planes)}. {MEANING}."
    page.picture(picture, f"Errors of case {name}. {where}", where + (f" The CT is not shown: {word}." if word else ""))
