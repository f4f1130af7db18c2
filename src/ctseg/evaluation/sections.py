"""The sections of an evaluation's report that follow its summary: plots, pictures, tables, explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import CtsegError
from ctseg.evaluation.html import NO_VALUE, Page, interval, number, plural
from ctseg.evaluation.plots import FEWEST_FOR_A_BOX, bland_altman, box_plot, volume_plot
from ctseg.evaluation.scoring import METRICS
from ctseg.evaluation.types import Evaluation
from ctseg.evaluation.words import HOW_TO_READ, NAMES, SHORT, WHERE

WORST_OF_EACH = 3
_MOST_PICTURES = 12
_MOST_PLOTTED = 8  # organs; of more, those with the lowest mean Dice: twenty pages of plots are read by nobody


def spread_section(page: Page, results: Mapping[str, Any]) -> None:
    """Plots of how the cases spread."""
    page.heading("Spread over cases")
    for name in _plotted(page, results):
        label = results["summary"]["labels"][name]
        rows = [case["labels"][name] for case in results["cases"]]
        spread = label["spread"]
        said = "; ".join(
            f"{NAMES[m]}: median {number(spread[m]['median'], m)}, from {number(spread[m]['lowest'], m)} to "
            f"{number(spread[m]['highest'], m)}"
            for m in ("dice", "nsd", "hd95_mm")
            if spread[m]["median"] is not None
        )
        if not said:
            continue
        boxes = (
            "The box holds the middle half of the cases, its line is the median, the whiskers reach up to 1.5 box "
            "lengths further. "
            if label["macro"]["dice"]["n"] >= FEWEST_FOR_A_BOX
            else f"Fewer than {FEWEST_FOR_A_BOX} cases have a value, so there are points only. "
        )
        page.subheading(name)
        page.picture(
            box_plot(rows, SHORT), f"Spread of {name} over cases. {said}.", f"{boxes}Each point is a case. {said}."
        )


def _plotted(page: Page, results: Mapping[str, Any]) -> list[str]:
    """The organs that get a plot of their own; a word where these are not all."""
    means = {name: label["macro"]["dice"]["value"] for name, label in results["summary"]["labels"].items()}
    if len(means) <= _MOST_PLOTTED:
        return list(means)
    lowest = sorted((value, name) for name, value in means.items() if value is not None)[:_MOST_PLOTTED]
    page.paragraph(
        f"The {len(lowest)} organs with the lowest mean Dice of {len(means)}; figures of all are in the tables.", "note"
    )
    return [name for _, name in lowest]


def worst_section(page: Page, evaluation: Evaluation, images: Path | None, strip: Sequence[str]) -> None:
    """Pictures of the cases with the lowest Dice."""
    from ctseg.evaluation.pictures import case_picture

    chosen = worst_cases(evaluation.results)
    if not chosen:
        return
    page.heading("Worst cases")
    page.paragraph(
        "The cases with the lowest Dice of each organ, in the slices where the two masks differ most. "
        "Solid blue line: reference. Dashed orange line: prediction. Letters are the patient's sides (R right, L left, "
        "A front, P back, S head, I feet); in axial and coronal pictures image left is the patient's right."
    )
    ways = images_of(images, evaluation, strip)
    for case, name in chosen:
        row = next(c for c in evaluation.results["cases"] if c["case"] == case)["labels"][name]
        values = evaluation.results["settings"]["labels"][name]
        page.subheading(f"{case}: {name}")
        distance = "has no value" if row["hd95_mm"] is None else f"{row['hd95_mm']:.1f} mm"
        said = (
            f"Dice {number(row['dice'], 'dice')}, NSD {number(row['nsd'], 'nsd')}, "
            f"HD95 {distance}; prediction {row['predicted_ml']:.1f} ml, "
            f"reference {row['reference_ml']:.1f} ml; in {WHERE[row['found']]}."
        )
        if case not in evaluation.pairs:  # scored in memory, so there is no file to draw from
            page.paragraph(said)
            continue
        try:
            picture, planes, word = case_picture(
                evaluation.pairs[case], (values["prediction"], values["reference"]), ways.get(case)
            )
        except CtsegError as error:
            page.paragraph(f"{said} No picture: {error}")
            continue
        on = "the CT" if case in ways and word is None else "the masks alone"
        if images is not None and case not in ways:
            word = "there is no image of this name"
        page.picture(
            picture,
            f"{name} of {case}: outlines of reference and prediction on {on}; {', '.join(planes)}. {said}",
            said
            + (f" The CT is not shown: {word}." if word else "")
            + (" Grey: in both; dark blue: missed; brown: too much." if on == "the masks alone" else ""),
        )


def worst_cases(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return case and organ of those with the lowest Dice, a few of each organ, the lowest first."""
    chosen = []
    for name in results["summary"]["labels"]:
        rows = [(c["labels"][name]["dice"], c["case"], name) for c in results["cases"]]
        chosen += sorted(row for row in rows if row[0] is not None)[:WORST_OF_EACH]
    return [(case, name) for _, case, name in sorted(chosen)[:_MOST_PICTURES]]


def images_of(images: Path | None, evaluation: Evaluation, strip: Sequence[str]) -> dict[str, Path]:
    """Return case -> its CT of a folder; empty without one."""
    from ctseg.evaluation.pairing import find_images

    if images is None:
        return {}
    if images.is_file():
        return {case: images for case in evaluation.pairs if len(evaluation.pairs) == 1}
    found = find_images(images, strip).paths
    folders = {case: images / case for case in evaluation.pairs if (images / case).is_dir()}  # DICOM
    return {**folders, **found}


def volumes_section(page: Page, results: Mapping[str, Any]) -> None:
    """Plots of how the volumes agree."""
    page.heading("Agreement of volumes")
    for name in _plotted(page, results):
        rows = [case["labels"][name] for case in results["cases"]]
        agreement = bland_altman(rows)
        if agreement is None:
            page.paragraph(f"{name}: fewer than two cases have it, so there is nothing to plot.")
            continue
        side = "more" if agreement["bias_ml"] >= 0 else "less"
        said = (
            f"{name}, {plural(int(agreement['n']), 'case')}: the prediction is on average "
            f"{abs(agreement['bias_ml']):.1f} ml {side} than the reference; 95 % of differences are expected between "
            f"{agreement['low_ml']:+.1f} and {agreement['high_ml']:+.1f} ml."
        )
        page.subheading(name)
        page.picture(
            volume_plot(rows),
            f"Two plots of volumes: prediction against reference, difference against mean. {said}",
            f"Left: on the line both volumes are equal. Right: difference against mean (Bland-Altman). {said}",
        )


def slices_section(page: Page, results: Mapping[str, Any]) -> None:
    """Tables by slice."""
    page.heading("By slice")
    overlap, presence = [], []
    for name, label in results["summary"]["labels"].items():
        part = label["slices"]
        for way, key in (("mean over slices", "mean"), ("voxels of these slices pooled", "pooled")):
            cells = [
                interval(part[key][m], m) if m in part[key] else NO_VALUE
                for m in ("dice", "iou", "precision", "recall")
            ]
            overlap.append([f"{name}: {way}", *cells])
        slices = part["presence"]["slices"]
        values = [interval(part["presence"][m], m) for m in ("recall", "precision", "f_beta")]
        presence.append([name, *(str(slices[k]) for k in ("tp", "fn", "fp", "tn")), *values])
    page.table(
        "Axial slices that have the organ in the reference, and only these: false voxels on other slices do not count "
        "here.",
        ["organ", "Dice", "IoU", "precision", "recall"],
        overlap,
    )
    page.table(
        "Whether a slice has the organ at all.",
        ["organ", "found", "missed", "false", "rightly empty", "recall", "precision", "F1"],
        presence,
    )


def cases_section(page: Page, results: Mapping[str, Any]) -> None:
    """Tables of every case."""
    page.heading("Every case")
    for name in results["summary"]["labels"]:
        rows = []
        for case in results["cases"]:
            row = case["labels"][name]
            volumes = [f"{row['predicted_ml']:.1f}", f"{row['reference_ml']:.1f}"]
            rows.append([case["case"], *(number(row[metric], metric) for metric in METRICS), *volumes, row["found"]])
        header = ["case", *(NAMES[metric] for metric in METRICS), "prediction, ml", "reference, ml", "organ in"]
        page.table(f"{name}: every case. – means that there is no value.", header, rows)


def refused_section(page: Page, results: Mapping[str, Any]) -> None:
    """What could not be scored, and why."""
    if not results["refused"]:
        return
    page.heading("Not scored")
    page.table(
        "Cases that could not be scored, and why.",
        ["case", "reason"],
        [[row["case"], row["reason"]] for row in results["refused"]],
    )


def reading_section(page: Page, results: Mapping[str, Any]) -> None:
    """What the words mean, and with which settings it was measured."""
    settings = results["settings"]
    page.heading("How to read this")
    page.definitions(HOW_TO_READ)
    page.subheading("Empty masks")
    page.paragraph(settings["empty_masks"])
    page.subheading("Settings")
    labels = "; ".join(
        f"{name} (value {row['prediction']} in the prediction, {row['reference']} in the reference)"
        for name, row in settings["labels"].items()
    )
    page.bullets(
        [
            f"Organs: {labels}.",
            f"Tolerance of NSD: {settings['tolerance_mm']:g} mm. Beta of F-beta: {settings['beta']:g}.",
            f"Bootstrap: {settings['resamples']} draws of patients, seed {settings['seed']}.",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        ]
    )
