"""Annotated studies as training data: names of values, patients that never move, and what is refused; new bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_phantoms import write_nifti

from ctseg.annotation.annotated import AnnotatedStudy, check_label_values, named_values, prepare_training_data
from ctseg.bundlecopy import copy_with_weights
from ctseg.datalist import cases_of, read_cases
from ctseg.errors import InputError, LedgerError, OutputError
from ctseg.ledger import Ledger
from ctseg.registry import get_bundle, verify_weights

ORGANS = {"liver": 1, "gallbladder": 4}


def study(case: str, values: dict[int, str] | None = None, patient: str | None = None) -> AnnotatedStudy:
    return AnnotatedStudy(case, Path(f"/s/{case}.nii.gz"), Path(f"/s/labels/{case}.nii.gz"), values, patient)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, None),
        ([], None),
        ({"liver": 1}, {1: "liver"}),
        ([{"name": "Liver ", "idx": 2}, {"name": "tumour", "idx": 1}], {2: "liver", 1: "tumour"}),
        ([{"name": "gallbladder"}, {"name": "liver", "value": "3"}], {4: "gallbladder", 3: "liver"}),
        (["gallbladder"], {4: "gallbladder"}),
    ],
)
def test_names_of_values(told: Any, expected: Any) -> None:
    assert named_values(told, ORGANS) == expected


@pytest.mark.parametrize(
    "told",
    ["liver", 7, [7], [{"idx": 1}], ["spleen"], {"liver": "one"}, {"liver": 1.5}, {"liver": True}, {"a": 1, "b": 1}],
)
def test_names_that_cannot_be_read_are_refused(told: Any) -> None:
    with pytest.raises(InputError, match="save it again"):
        named_values(told, ORGANS)


def test_values_go_by_name_and_by_code(tmp_path: Path) -> None:
    studies = [study("b", {3: "liver", 1: "gallbladder", 2: "other"}), study("a"), study("c", {7: "liver"})]
    data = prepare_training_data(studies, ORGANS, tmp_path)
    tables = {case["case_id"]: case["mask_values"] for case in read_cases(tmp_path)}
    # Each case lists all values, since a batch is put together key by key; only a's codes are the bundle's own.
    assert tables["a"] == {"1": "liver", "3": "background", "4": "gallbladder", "7": "background"}
    assert tables["b"] == {"1": "gallbladder", "3": "liver", "4": "background", "7": "background"}
    assert tables["c"] == {"1": "background", "3": "background", "4": "background", "7": "liver"}
    assert data.partial == {"c": ["gallbladder"]}
    assert sorted(case for cases in data.cases.values() for case in cases) == ["a", "b", "c"]
    assert {split: len(cases) for split, cases in data.cases.items()} == {"train": 1, "validation": 1, "test": 1}
    trained = {case["case_id"] for case in cases_of("train", tmp_path)}
    assert trained == set(data.cases["train"])


def test_too_few_patients_are_refused_and_nobody_is_drawn(tmp_path: Path) -> None:
    other = study("z", {1: "spleen"})
    for studies, sentence in (
        ([], "no labelled case"),
        ([other], "no labelled case to train on .1 more name none of its organs: liver, gallbladder"),
        ([study("a"), other], "only 1 patient"),
        ([study("a", patient="p"), study("b", patient="p")], "only 1 patient"),
    ):
        with pytest.raises(InputError, match=sentence):
            prepare_training_data(studies, ORGANS, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_nobody_moves_when_cases_come_or_their_patient_becomes_known(tmp_path: Path) -> None:
    prepare_training_data([study(case) for case in "abcd"], ORGANS, tmp_path)
    before = {
        case["case_id"]: Ledger(tmp_path / "split.csv").split_of(case["patient"]) for case in read_cases(tmp_path)
    }
    later = [study(case, patient=f"id {case}") for case in "abcd"] + [study("e", patient="id c"), study("f ")]
    for _ in range(2):
        data = prepare_training_data(later, ORGANS, tmp_path)
    split_of = {case: split for split, cases in data.cases.items() for case in cases}
    assert {case: split_of[case] for case in "abcd"} == before
    assert split_of["e"] == before["c"]  # the same patient
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 1 + 5


def test_split_changed_by_hand_or_without_validation_is_refused(tmp_path: Path) -> None:
    prepare_training_data([study(case) for case in "abc"], ORGANS, tmp_path)
    ledger = Ledger(tmp_path / "split.csv")
    kept = [study(case) for case in "abc" if ledger.split_of(case) != "validation"]
    with pytest.raises(InputError, match="'validation'"):
        prepare_training_data(kept, ORGANS, tmp_path)
    text = ledger.path.read_text()
    ledger.path.write_text(text.replace(",test,", ",train,"))
    with pytest.raises(LedgerError, match="by hand"):
        prepare_training_data([study(case) for case in "abc"], ORGANS, tmp_path)


def write_labels(folder: Path, values: dict[str, int], **named: dict[int, str]) -> list[AnnotatedStudy]:
    for case, value in values.items():
        write_nifti(folder / f"{case}.nii.gz", np.full((4, 4, 4), value, np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    return [AnnotatedStudy(c, folder / f"{c}.nii.gz", folder / f"{c}.nii.gz", named.get(c)) for c in values]


def test_label_values_are_checked(tmp_path: Path) -> None:
    studies = write_labels(tmp_path, {"a": 1, "b": 4})
    prepare_training_data(studies, ORGANS, tmp_path / "data")
    check_label_values(tmp_path / "data", studies, ORGANS)
    for value, named in ((2, {}), (1, {"b": {3: "liver"}})):
        wrong = write_labels(tmp_path, {"a": 1, "b": value}, **named)
        with pytest.raises(InputError, match=f"the label of b has the value {value}"):
            check_label_values(tmp_path / "data", wrong, ORGANS)
    with pytest.raises(InputError, match="shows any of liver, gallbladder"):
        check_label_values(tmp_path / "data", write_labels(tmp_path, {"a": 1, "b": 0}), ORGANS)


def test_bundle_with_other_weights(tmp_path: Path) -> None:
    original = get_bundle(make_bundle(tmp_path / "bundles"))
    (original.path / "docs").mkdir()
    new = tmp_path / "new.pt"
    new.write_bytes(b"other tensors")
    target = tmp_path / "run" / original.name
    target.parent.mkdir()
    made = copy_with_weights(original, new, target, "0.3.0+x", "trained anew", "validation Dice 0.5")
    assert (made.name, made.version, made.status) == (original.name, "0.3.0+x", "trained")
    assert made.evidence == "validation Dice 0.5" and made.metadata["changelog"]["0.3.0+x"] == "trained anew"
    assert verify_weights(made).read_bytes() == b"other tensors"
    assert verify_weights(original).read_bytes() != b"other tensors"
    assert not (target / "docs").exists()  # the model card tells of the other weights
    assert [path.name for path in target.parent.iterdir()] == [original.name]
    with pytest.raises(OutputError, match="already"):
        copy_with_weights(original, new, target, "0.3.0+x", "", "")
    with pytest.raises(OutputError, match="cannot write"):
        copy_with_weights(original, tmp_path / "none.pt", tmp_path / "run" / "b", "0.3.0+x", "", "")
    assert [path.name for path in target.parent.iterdir()] == [original.name]
    assert json.loads((original.path / "configs" / "metadata.json").read_text())["version"] == "0.3.0"
