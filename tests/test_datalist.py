"""Datalists: absolute paths, defaults, the split by patient, and sentences for what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctseg.datalist import cases_of, images_of, read_cases
from ctseg.errors import InputError
from ctseg.ledger import Ledger


def write(folder: Path, cases: list[dict[str, object]], **shared: object) -> None:
    (folder / "datalist.json").write_text(json.dumps({**shared, "cases": cases}))


def case(number: int, patient: int | str) -> dict[str, object]:
    return {"case_id": f"c{number}", "patient": patient, "image": f"i{number}.nii", "label": f"/abs/l{number}.nii"}


def test_paths_become_absolute_and_defaults_are_taken_over(tmp_path: Path) -> None:
    write(tmp_path, [case(1, 7)], mask_values={"5": "liver"})
    (read,) = read_cases(tmp_path)
    assert read["image"] == str(tmp_path / "i1.nii")
    assert read["label"] == "/abs/l1.nii"
    assert read["patient"] == "7"
    assert read["mask_values"] == {"5": "liver"}


def test_no_patient_is_on_two_sides(tmp_path: Path) -> None:
    write(tmp_path, [case(n, f"p{n % 5}") for n in range(20)])
    split = {side: cases_of(side, tmp_path) for side in ("train", "validation", "test")}
    patients = {side: {c["patient"] for c in cases} for side, cases in split.items()}
    assert sum(len(cases) for cases in split.values()) == 20
    assert patients["train"] | patients["validation"] | patients["test"] == {f"p{n}" for n in range(5)}
    assert sum(len(p) for p in patients.values()) == 5


def test_the_ledger_decides(tmp_path: Path) -> None:
    write(tmp_path, [case(n, f"p{n}") for n in range(3)])
    Ledger(tmp_path / "split.csv").assign({"p0": "validation", "p1": "validation", "p2": "train"})
    assert [c["case_id"] for c in cases_of("validation", tmp_path)] == ["c0", "c1"]


def test_an_empty_side_stops_with_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, [case(0, "p0")])
    with pytest.raises(SystemExit, match=r"None of the 1 cases .* is in the split 'validation'"):
        cases_of("validation", tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "No datalist can be read"),
        ('{"cases": []}', "names no case"),
        ('{"cases": [{"case_id": "c1", "image": "i", "label": "l"}]}', "Case c1 .* lacks patient"),
        ("[1]", "No datalist can be read"),
    ],
)
def test_a_broken_datalist_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_cases(tmp_path)


def test_images_of_a_folder_or_one_image(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "notes.txt"):
        (tmp_path / name).touch()
    found = [Path(item["image"]).name for item in images_of(None, tmp_path)]
    assert found == ["a.nrrd", "b.nii.gz"]
    assert images_of("/x/ct.nii", tmp_path) == [{"image": "/x/ct.nii"}]
    with pytest.raises(SystemExit, match="there is no image in"):
        images_of(None, tmp_path / "nowhere")
