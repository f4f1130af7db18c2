"""How well masks meet their references: one pair, or two folders paired by the names of their cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import ConfigError, CtsegError, InputError
from ctseg.evaluation.types import Evaluation, Labels, Settings, SliceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctseg.volume import Volume

_IN_PIXELS = (
    "Masks of flat images know no millimetres: lengths said to be in mm are in pixels, and volumes mean nothing."
)


def evaluate_masks(
    prediction: str | Path, reference: str | Path, labels: Labels
) -> dict[str, dict[str, float | int | None]]:
    """Compare two label maps of one study.

    Dice = 2 TP / (P + R) and IoU = TP / (P + R - TP), with P predicted, R reference and TP common voxels; None where
    the label is in neither.

    Args:
        prediction: label map.
        reference: label map on the same grid.
        labels: name -> (value in the prediction, value in the reference).

    Returns:
        name -> dice, iou, predicted_ml, reference_ml, voxels_common, voxels_predicted, voxels_reference.

    Raises:
        InputError: when a file cannot be read or is no label map.
        GeometryError: when the two do not lie on one grid.
    """
    import numpy as np

    from ctseg.evaluation.pairing import read_pair

    volume, predicted_map = read_pair(prediction, reference, only_pair(labels))
    millilitres = abs(float(np.linalg.det(volume.source_affine[:3, :3]))) / 1000
    result: dict[str, dict[str, float | int | None]] = {}
    for name, (predicted, referred) in labels.items():
        p, r = predicted_map == predicted, volume.array == referred
        common, n_p, n_r = int((p & r).sum()), int(p.sum()), int(r.sum())
        result[name] = {
            "dice": 2 * common / (n_p + n_r) if n_p + n_r else None,
            "iou": common / (n_p + n_r - common) if n_p + n_r else None,
            "predicted_ml": n_p * millilitres,
            "reference_ml": n_r * millilitres,
            "voxels_common": common,
            "voxels_predicted": n_p,
            "voxels_reference": n_r,
        }
    return result


def evaluate_folders(
    prediction: str | Path,
    reference: str | Path,
    settings: Settings,
    *,
    patients: Mapping[str, str] | None = None,
    strip: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score the masks of two folders, paired by the names of their cases; what does not fit is named, never fatal.

    Args:
        prediction: folder of label maps; also folders of a run, `<case>/mask.nii.gz`.
        reference: folder of label maps.
        settings: what to measure and how.
        patients: case -> patient, for the intervals; None takes each case for a patient of its own.
        strip: endings to leave off the names of cases.
        progress: called with a word on each case.

    Raises:
        InputError: when a folder is missing or empty, or not one case can be scored.
    """
    from ctseg.evaluation.pairing import pair_folders

    found = pair_folders(prediction, reference, strip)
    return evaluate_pairs(found.pairs, settings, patients=patients, refused=found.refused, progress=progress)


def evaluate_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    settings: Settings,
    *,
    patients: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score pairs that are known already; otherwise as `evaluate_folders`.

    Args:
        pairs: case -> (prediction, reference).
        settings: what to measure and how.
        patients: case -> patient; None takes each case for a patient of its own.
        refused: case -> why it was left out before.
        progress: called with a word on each case.

    Raises:
        InputError: when not one case can be scored.
    """
    left_out, cases, slices, notes = dict(refused or {}), [], [], []
    for number, (case, paths) in enumerate(pairs.items(), start=1):
        if progress:
            progress(f"case {number} of {len(pairs)}: {case}")
        if patients is not None and case not in patients:
            left_out[case] = "the list of patients does not name it; add a line for it"
            continue
        try:
            row, rows, words = _score_case(case, *paths, settings)
        except CtsegError as error:
            left_out[case] = _without_folders(error, paths)
            continue
        cases.append({"case": case, "patient": patients[case] if patients is not None else case, **row})
        slices += rows
        notes += words
    notes = list(dict.fromkeys(notes))
    if not cases:
        why = "; ".join(f"{case}: {reason}" for case, reason in sorted(left_out.items())[:3])
        raise InputError(f"not one of {len(left_out)} cases can be scored; {why}")
    results = build_results(cases, left_out, notes, settings, own_patients=patients is not None)
    return Evaluation(results, slices, {case["case"]: pairs[case["case"]] for case in cases})


def _score_case(
    case: str, prediction: Path, reference: Path, settings: Settings
) -> tuple[dict[str, Any], list[SliceRow], list[str]]:
    from ctseg.evaluation.pairing import read_pair

    volume, predicted_map = read_pair(prediction, reference, only_pair(settings.labels))
    row, rows = score_maps(case, predicted_map, volume.array, volume.affine, settings)
    words = _foreign_values(case, volume, predicted_map, settings.labels)
    return row, rows, [_IN_PIXELS, *words] if volume.format == "flat" else words


def only_pair(labels: Labels) -> tuple[int, int] | None:
    """Return the values of the only label; None where there are several."""
    return next(iter(labels.values())) if len(labels) == 1 else None


def score_maps(
    case: str, predicted_map: NDArray[Any], reference_map: NDArray[Any], affine: NDArray[Any], settings: Settings
) -> tuple[dict[str, Any], list[SliceRow]]:
    """Score two label maps in memory.

    Args:
        case: its name, for the rows.
        predicted_map: (I, J, K) integers.
        reference_map: (I, J, K) integers on the same grid.
        affine: (4, 4) of the grid, RAS mm.
        settings: what to measure and how.

    Returns:
        A case of `evaluation.json` without its names, and the rows of `Evaluation.slices`.
    """
    import numpy as np

    from ctseg.evaluation.classrates import rates
    from ctseg.evaluation.confusion import confusion_counts
    from ctseg.evaluation.pairing import axial_axis
    from ctseg.evaluation.scoring import score
    from ctseg.geometry import spacing_of

    axis, spacing = axial_axis(affine), spacing_of(affine)
    labels, rows = {}, []
    for name, (predicted, referred) in settings.labels.items():
        labels[name], per_slice = score(
            predicted_map == predicted,
            reference_map == referred,
            spacing,
            slice_axis=axis,
            beta=settings.beta,
            tolerance_mm=settings.tolerance_mm,
        )
        labels[name].update(rates(labels[name]["voxels"]))
        for index in np.flatnonzero(per_slice[:, :3].any(axis=1)):
            tp, fp, fn, tn = per_slice[index].tolist()
            rows.append((case, name, int(index) + 1, tp, fp, fn, tn))
    rounded = [round(length, 6) for length in spacing]
    row: dict[str, Any] = {"shape": list(reference_map.shape), "spacing_mm": rounded, "slice_axis": axis}
    confusion = confusion_counts(predicted_map, reference_map, list(settings.labels.values()))
    return {**row, "labels": labels, "confusion": confusion}, rows


def _foreign_values(case: str, volume: Volume, predicted_map: NDArray[Any], labels: Labels) -> list[str]:
    """A word when a mask holds something, but nothing that was asked for: most often the values are wrong."""
    import numpy as np

    words = []
    for array, asked, what in (
        (predicted_map, {p for p, _ in labels.values()}, "prediction"),
        (volume.array, {r for _, r in labels.values()}, "reference"),
    ):
        if any((array == value).any() for value in asked):
            continue
        held = {int(value) for value in np.unique(array)} - {0}
        if held:
            some = ", ".join(map(str, sorted(held)[:8]))
            words.append(f"The {what} of {case} holds the values {some}, none that --labels asks for: are they right?")
    return words


def _without_folders(error: CtsegError, paths: Sequence[Path]) -> str:
    """The sentence of an error with file names in place of paths, since a report is passed on."""
    text = " ".join(str(error).split())
    for path, what in zip(paths, ("prediction", "reference"), strict=True):
        text = text.replace(str(path), f"the {what} {path.name}")
    return text


def build_results(
    cases: list[dict[str, Any]], refused: Mapping[str, str], notes: list[str], settings: Settings, *, own_patients: bool
) -> dict[str, Any]:
    """Return what `evaluation.json` holds, from scored cases.

    Args:
        cases: rows of `score_maps`, each with `case` and `patient`.
        refused: case -> why it was left out.
        notes: sentences for the reader.
        settings: with which the cases were scored.
        own_patients: whether the patients are known, or each case stands for one.
    """
    from ctseg.evaluation.bootstrap import CONFIDENCE
    from ctseg.evaluation.classrates import RULE, summarise_classes
    from ctseg.evaluation.comparison import SCHEMA
    from ctseg.evaluation.confusion import summarise_confusion
    from ctseg.evaluation.scoring import EMPTY_RULE
    from ctseg.evaluation.summaries import summarise
    from ctseg.outputs.report import INTENDED_USE, versions

    if not own_patients:
        notes = [*notes, "No list of patients was given: each case counts as a patient of its own."]
    return {
        "schema": SCHEMA,
        "intended_use": INTENDED_USE,
        "versions": versions(),
        "settings": {
            "labels": {name: {"prediction": p, "reference": r} for name, (p, r) in settings.labels.items()},
            "beta": settings.beta,
            "tolerance_mm": settings.tolerance_mm,
            "resamples": settings.resamples,
            "seed": settings.seed,
            "confidence": CONFIDENCE,
            "empty_masks": EMPTY_RULE,
            "fp_fn": RULE,
        },
        "summary": summarise(
            cases, list(settings.labels), beta=settings.beta, resamples=settings.resamples, seed=settings.seed
        ),
        "classes": summarise_classes(cases, list(settings.labels)),
        "confusion": summarise_confusion(cases, list(settings.labels)),
        "cases": cases,
        "refused": [{"case": case, "reason": reason} for case, reason in sorted(refused.items())],
        "notes": notes,
        "comparison": None,
        "training": None,
    }


def parse_labels(text: str) -> dict[str, tuple[int, int]]:
    """Parse "liver=1:5,gallbladder=2" into name -> (value in the prediction, value in the reference).

    Raises:
        ConfigError: when an entry is not NAME=VALUE or NAME=VALUE:VALUE, or a name comes twice.
    """
    labels: dict[str, tuple[int, int]] = {}
    for entry in text.split(","):
        name, _, values = entry.strip().partition("=")
        predicted, _, referred = values.partition(":")
        if not name or not predicted.isdecimal() or (referred and not referred.isdecimal()):
            raise ConfigError(
                f"The label {entry.strip()!r} cannot be understood: expected NAME=VALUE, or NAME=VALUE:REFERENCE_VALUE "
                "when the two files use different values, with commas between labels; for example liver=1:5."
            )
        if name in labels:
            raise ConfigError(f"The label {name} is named twice: give each name once.")
        labels[name] = (int(predicted), int(referred or predicted))
    return labels
