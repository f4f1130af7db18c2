"""The sections of an evaluation's report that go over classes: rates, confusion, sides, training against test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctseg.evaluation.classplots import confusion_plot, gap_plot
from ctseg.evaluation.classrates import RULE, SPREAD_OF
from ctseg.evaluation.html import NO_VALUE, Page, number, plural

FIGURES = {"dice": "Dice", "iou": "IoU", "misclassification": "misclassified, per 1000 voxels", "fp_fn": "FP/FN"}
_HEADER = ["class", *FIGURES.values()]


def figure_text(value: float | None, figure: str, *, signed: bool = False) -> str:
    """Return a figure of a class as text; a misclassification rate in voxels of a thousand."""
    if value is None:
        return NO_VALUE
    digits = 2 if figure == "fp_fn" else 3
    value = 1000 * value if figure == "misclassification" else value
    return (f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}").replace("-", "\N{MINUS SIGN}")


def variance_text(value: float | None, figure: str) -> str:
    """Return a variance as text, in the squared unit of `figure_text`."""
    if value is None:
        return NO_VALUE
    return f"{value * 1e6 if figure == 'misclassification' else value:.3g}"


def class_rows(classes: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table: a line for each class, then mean and population variance over them."""
    rows = [[name, *(figure_text(row[f], f) for f in SPREAD_OF)] for name, row in classes["labels"].items()]
    over = classes["over_classes"]
    if len(classes["labels"]) > 1:
        rows.append(["mean over classes", *(figure_text(over[f]["mean"], f) for f in SPREAD_OF)])
        rows.append(["variance over classes", *(variance_text(over[f]["variance"], f) for f in SPREAD_OF)])
    return rows


def without_ratio(classes: Mapping[str, Any]) -> str:
    """Return a sentence on the classes that have no FP/FN; "" where all have one."""
    names = classes["over_classes"]["fp_fn"]["without"]
    return f"No FP/FN, since nothing of them is missed: {', '.join(names)}." if names else ""


def classes_section(page: Page, results: Mapping[str, Any]) -> None:
    """Rates of every class, from the voxels of all cases together."""
    classes = results["classes"]
    page.heading("Classes")
    page.paragraph(
        f"Voxels of all cases together. IoU over all classes {number(classes['iou'], 'iou')}, Dice "
        f"{number(classes['dice'], 'dice')}."
    )
    page.table(
        "Misclassified: (FP + FN) of all voxels of the images, so it grows smaller with a larger field of view. FP/FN: "
        "above 1 too much is drawn, below 1 too much is missed. Variance: of the population of classes.",
        _HEADER,
        class_rows(classes),
    )
    page.paragraph(" ".join(part for part in (RULE, without_ratio(classes)) if part), "note")
    compared = (results["comparison"] or {}).get("classes")
    if compared:
        rows = []
        for figure, title in FIGURES.items():
            cells = [figure_text(compared[when][figure]["mean"], figure) for when in ("before", "now")]
            cells += [variance_text(compared[when][figure]["variance"], figure) for when in ("before", "now")]
            rows.append([title, *cells])
        page.table(
            "Mean and variance over classes beside the baseline, from the cases that are in both.",
            ["figure", "mean, baseline", "mean, this run", "variance, baseline", "variance, this run"],
            rows,
        )


def confusion_section(page: Page, results: Mapping[str, Any]) -> None:
    """The confusion matrix and the confusion of sides; nothing for a single class."""
    confusion = results["confusion"]
    if len(results["settings"]["labels"]) < 2:
        return
    page.heading("Confusion")
    if confusion is None:
        page.paragraph("Two classes share a value, so that a voxel would belong to both: there is no confusion matrix.")
        return
    names, counts = confusion["names"], confusion["counts"]
    page.picture(confusion_plot(names, counts), f"Confusion matrix. {_worst_confusion(names, counts)}", _caption(names))
    page.paragraph(_worst_confusion(names, counts))
    _sides(page, confusion["sides"])
    page.table(
        "The confusion matrix in voxels: rows the reference, columns the prediction.",
        ["reference", *names],
        [[name, *(str(count) for count in row)] for name, row in zip(names, counts, strict=True)],
        folded=True,
    )


def _caption(names: list[str]) -> str:
    from ctseg.sides import partners

    frames = " Frames: a left class taken for its right twin, or the other way round." if partners(names) else ""
    return f"Each row: where the voxels of a class of the reference are predicted, in percent.{frames}"


def _worst_confusion(names: list[str], counts: list[list[int]]) -> str:
    """The largest share of a class that is taken for another class."""
    found = [
        (counts[row][column] / sum(counts[row]), names[row], names[column])
        for row in range(len(names) - 1)
        for column in range(len(names) - 1)
        if row != column and any(counts[row])
    ]
    if not found or max(found)[0] == 0:
        return "No voxel of a class is taken for another class."
    share, one, other = max(found)
    return f"Most often a class is taken for another: {one} for {other}, {100 * share:.1f} % of its voxels."


def _sides(page: Page, sides: Mapping[str, Any]) -> None:
    if not sides:
        return
    page.subheading("Left and right")
    wrong, every = sides["as_other_side"], sides["voxels"]
    share = f" ({100 * wrong / every:.2f} %)" if every else ""
    page.paragraph(
        f"Of {every} voxels of classes with a twin, {wrong}{share} are predicted as a class of the other side, "
        f"{sides['as_twin']} of them as the twin itself."
    )
    rows = [
        [name, str(row["voxels"]), str(row["as_twin"]), str(row["as_other_side"])]
        for name, row in sides["classes"].items()
    ]
    page.table(
        "Voxels of the reference predicted as the other side.",
        ["class", "voxels", "as its twin", "as any class of the other side"],
        rows,
        folded=wrong == 0,
    )


def training_section(page: Page, results: Mapping[str, Any]) -> None:
    """Training against test cases; nothing where no evaluation of the training cases was given."""
    training = results.get("training")
    if not training:
        return
    page.heading("Training against test cases")
    page.bullets(training["notes"], "note")
    cases = training["cases"]
    of = f"{plural(cases['training'], 'training case')}, {plural(cases['test'], 'case')} of this run"
    for figure in ("iou", "dice"):
        mean = training["mean"][figure]
        said = "no class has a value in both"
        if mean["gap"] is not None:
            said = (
                f"on average {figure_text(mean['gap'], figure, signed=True)} over {mean['n']} classes, the largest "
                f"{figure_text(mean['largest'], figure, signed=True)} ({mean['largest_class']})"
            )
        page.picture(
            gap_plot(training["labels"], figure, FIGURES[figure]),
            f"Bars of {FIGURES[figure]} for each class, training beside test. Gap {said}.",
            f"{FIGURES[figure]}: training minus test stands above the bars; {said}. {of}.",
        )
    rows = []
    for name, row in training["labels"].items():
        cells = []
        for figure in ("iou", "dice"):
            cells += [figure_text(row[figure][key], figure) for key in ("training", "test")]
            cells.append(figure_text(row[figure]["gap"], figure, signed=True))
        rows.append([name, *cells])
    page.table(
        "Means over cases; the gap is training minus test.",
        ["class", *(f"{FIGURES[f]}, {what}" for f in ("iou", "dice") for what in ("training", "test", "gap"))],
        rows,
    )
