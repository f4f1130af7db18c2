"""From annotated studies to a datalist and its split ledger, so that a viewer's labels train like any data folder.

A server hands over what it knows of each study that has a label. Label values are taken by the names that were saved
with them, never by their order; a case keeps the patient, and so the side of the split, that it had at first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.datalist import LEDGER, NOT_ANNOTATED, read_cases
from ctseg.errors import InputError
from ctseg.files import write_beside
from ctseg.ledger import SPLITS, Ledger

DATALIST = "datalist.json"
_BACKGROUND = "background"


@dataclass(frozen=True)
class AnnotatedStudy:
    """A study with a label.

    Attributes:
        case_id: the study's name, unique and lasting.
        image: the image's file or folder.
        label: the label's file, on the image's grid.
        values: what each value of the label file means, by name; None where nothing was saved with it.
        patient: id of the patient when it is known; None makes the case a patient of its own.
    """

    case_id: str
    image: Path
    label: Path
    values: Mapping[int, str] | None = None
    patient: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """What a training would use.

    Attributes:
        folder: the data folder, with `DATALIST` and the ledger in it.
        cases: split -> ids of the cases in it.
        left_out: ids of annotated cases whose label names none of the bundle's organs.
        partial: case id -> organs of the bundle that its label does not name (ignored in the loss and the metrics).
    """

    folder: Path
    cases: dict[str, list[str]]
    left_out: list[str]
    partial: dict[str, list[str]]


def named_values(told: Any, organs: Mapping[str, int]) -> dict[int, str] | None:
    """Read what a viewer saved about the values of a label.

    Args:
        told: `{"liver": 1}`, or 3D Slicer's `[{"name": "liver", "idx": 1}]`; an entry without a number has the
            bundle's code for its name. None or empty: nothing was saved.
        organs: names and codes of the bundle; a name that differs in case only is the same.

    Returns:
        Value -> name (the bundle's spelling where it is one of its organs), or None.

    Raises:
        InputError: it has another form, or gives one value two names.
    """
    if not told:
        return None
    pairs = list(told.items()) if isinstance(told, Mapping) else [_pair(entry) for entry in _list(told)]
    spelling = {name.casefold(): name for name in organs}
    values: dict[int, str] = {}
    for raw, number in pairs:
        name = spelling.get(str(raw).strip().casefold(), str(raw))
        value = _whole(organs.get(name) if number is None else number)
        if value is None:
            raise InputError(f"the label's {name!r} has the value {number!r}, expected a whole number; save it again")
        if values.setdefault(value, name) != name:
            raise InputError(f"the label's value {value} is both {values[value]!r} and {name!r}; save it again")
    return values


def _list(told: Any) -> list[Any]:
    if not isinstance(told, list):
        raise InputError(f"the label's names are a {type(told).__name__}, expected a list or an object; save it again")
    return told


def _pair(entry: Any) -> tuple[str, Any]:
    if isinstance(entry, str):
        return entry, None
    if not isinstance(entry, Mapping) or not entry.get("name"):
        raise InputError(f"the label's names hold {entry!r}, expected a name and its value (idx); save it again")
    return str(entry["name"]), next((entry[key] for key in ("idx", "value", "id") if key in entry), None)


def _whole(number: Any) -> int | None:
    if isinstance(number, str) and number.isdecimal():
        return int(number)
    if isinstance(number, int | float) and not isinstance(number, bool) and number == number // 1:
        return int(number)
    return None


def prepare_training_data(studies: Iterable[AnnotatedStudy], organs: Mapping[str, int], folder: Path) -> TrainingData:
    """Write the datalist of the annotated studies, and draw the new patients into the ledger beside it.

    Args:
        studies: the studies with a label.
        organs: names and codes of the bundle's labels.
        folder: the data folder; made when missing.

    Raises:
        InputError: no study can be used, or none would train or none validate. Nothing is drawn for fewer than two
            patients: a case once drawn never changes side.
        LedgerError, OutputError: the ledger was changed by hand, or the folder cannot be written.
    """
    studies = sorted(studies, key=lambda study: study.case_id)
    tables = {study.case_id: _table(study, organs) for study in studies}
    used = [study for study in studies if tables[study.case_id]]
    left_out = [study.case_id for study in studies if not tables[study.case_id]]
    patients = _patients(used, folder)
    _check_enough(used, len(set(patients.values())), left_out, organs)
    ledger = Ledger(folder / LEDGER)
    ledger.draw(patients.values())
    _write_datalist(folder / DATALIST, used, patients, tables, organs)
    cases: dict[str, list[str]] = {split: [] for split in SPLITS}
    for study in used:
        cases[str(ledger.split_of(patients[study.case_id]))].append(study.case_id)
    for split in ("train", "validation"):
        if not cases[split]:
            raise InputError(
                f"none of the {len(used)} labelled cases is in the split {split!r} of {ledger.path}, expected at "
                "least one; label another patient (nobody changes side)"
            )
    partial = {study.case_id: _missing(tables[study.case_id], organs).get(NOT_ANNOTATED, []) for study in used}
    return TrainingData(folder, cases, left_out, {case: names for case, names in partial.items() if names})


def _missing(table: Mapping[int, str], organs: Iterable[str]) -> dict[str, list[str]]:
    """What a case's label does not show, as an entry of the datalist; none for a complete label."""
    names = [name for name in organs if name not in table.values()]
    return {NOT_ANNOTATED: names} if names else {}


def _table(study: AnnotatedStudy, organs: Mapping[str, int]) -> dict[int, str]:
    if study.values is None:
        return {code: name for name, code in organs.items()}
    return {value: name for value, name in study.values.items() if name in organs and value != 0}


def _patients(studies: Sequence[AnnotatedStudy], folder: Path) -> dict[str, str]:
    """Give each case its patient: as before, else as a known case of the same patient, else its own."""
    known = {}
    if (folder / DATALIST).is_file():
        known = {str(case["case_id"]): str(case["patient"]) for case in read_cases(folder, DATALIST)}
    # The ledger trims what it reads, so that a name with blanks at its end would be drawn again each time.
    named = {study.case_id: " ".join(str(study.patient or study.case_id).split()) for study in studies}
    first: dict[str, str] = {}
    for case_id, patient in named.items():
        if case_id in known:
            first.setdefault(patient, known[case_id])
    return {case_id: known.get(case_id, first.get(patient, patient)) for case_id, patient in named.items()}


def _check_enough(
    used: Sequence[AnnotatedStudy], patients: int, left_out: Sequence[str], organs: Mapping[str, int]
) -> None:
    other = f" ({len(left_out)} more name none of its organs: {', '.join(organs)})" if left_out else ""
    if not used:
        raise InputError(
            f"there is no labelled case to train on{other}; save labels of at least 2 patients: one trains, one "
            "validates, a third is kept for testing"
        )
    if patients < 2:
        raise InputError(
            f"only {patients} patient has a label{other}, expected at least 2, so that one trains and another "
            "validates; label another patient"
        )


def _write_datalist(
    path: Path,
    studies: Sequence[AnnotatedStudy],
    patients: Mapping[str, str],
    tables: Mapping[str, Mapping[int, str]],
    organs: Iterable[str],
) -> None:
    # Every case lists the values of all cases: a batch is put together key by key.
    values = sorted({value for study in studies for value in tables[study.case_id]})
    cases = [
        {
            "case_id": study.case_id,
            "patient": patients[study.case_id],
            "image": str(study.image),
            "label": str(study.label),
            "mask_values": {str(value): tables[study.case_id].get(value, _BACKGROUND) for value in values},
            **_missing(tables[study.case_id], organs),
        }
        for study in studies
    ]
    write_beside(path, (json.dumps({"cases": cases}, indent=2) + "\n").encode())


def check_label_values(folder: Path, studies: Iterable[AnnotatedStudy], organs: Mapping[str, int]) -> None:
    """Read every label that trains or validates, and refuse what would be learnt wrongly.

    Args:
        folder: the data folder, prepared already.
        studies: those that it was prepared from.
        organs: names and codes of the bundle's labels.

    Raises:
        InputError: a label has a value that nobody named, or no case of a split shows any organ of the bundle.
    """
    import numpy as np

    from ctseg.reading import read_volume

    ledger, by_id = Ledger(folder / LEDGER), {study.case_id: study for study in studies}
    shown = {"train": 0, "validation": 0}
    for case in read_cases(folder, DATALIST):
        split = ledger.split_of(case["patient"])
        if split not in shown:
            continue
        study = by_id[case["case_id"]]
        table = _table(study, organs)
        found = {int(value) for value in np.unique(read_volume(study.label, "label").array)} - {0}
        if unknown := sorted(found - set(study.values or table)):
            raise InputError(
                f"the label of {study.case_id} has the value {unknown[0]}, but "
                f"{', '.join(f'{v} ({n})' for v, n in sorted((study.values or table).items()))} is what is named; "
                "save the label again with its names"
            )
        shown[split] += bool(found & set(table))
    for split, count in shown.items():
        if not count:
            raise InputError(
                f"no case of the split {split!r} shows any of {', '.join(organs)}, so nothing could be "
                f"{'learnt' if split == 'train' else 'measured'}; label another patient"
            )
