"""Label files for ITK-SNAP and Slicer, the voxel table, and whether left labels lie left."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_phantoms import oblique_affine, reoriented, write_nifti

from ctseg.cli import main
from ctseg.commands.voxels import imbalance
from ctseg.errors import OutputError
from ctseg.outputs.labelfiles import FILES, itksnap_text, slicer_text, write_label_file
from ctseg.sides import partners, side_of, wrong_sides

LABELS = {"caudate left": 1, "M4 right": 15, "insula left": 4}
COLORS = {"caudate left": (255, 0, 10), "M4 right": (1, 2, 3)}


def test_an_itksnap_file_is_read_back(tmp_path: Path) -> None:
    """By the format's own rule: seven numbers and a name in quotation marks, # begins a comment."""
    path = write_label_file("itksnap", LABELS, COLORS, tmp_path)
    assert path.name == FILES["itksnap"]
    rule = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"$')
    found = [rule.match(line) for line in path.read_text().splitlines() if not line.startswith("#")]
    read = {match[8]: tuple(int(match[n]) for n in (1, 2, 3, 4)) for match in found if match}
    assert len(found) == len(read) == 4 and read["Clear Label"] == (0, 0, 0, 0)
    assert read["caudate left"] == (1, 255, 0, 10) and read["M4 right"] == (15, 1, 2, 3)
    assert read["insula left"][0] == 4 and max(read["insula left"][1:]) > 0
    assert [match[1] for match in found if match] == ["0", "1", "4", "15"]


def test_a_slicer_table_is_read_back(tmp_path: Path) -> None:
    lines = write_label_file("slicer", LABELS, COLORS, tmp_path).read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)  # a space in a name would make seven
    read = {row[1].replace("_", " "): tuple(map(int, (row[0], *row[2:]))) for row in rows}
    assert read["caudate left"] == (1, 255, 0, 10, 255) and read["background"] == (0, 0, 0, 0, 0)
    assert read["M4 right"] == (15, 1, 2, 3, 255)


def test_a_name_that_no_label_file_can_hold_is_refused() -> None:
    for write in (itksnap_text, slicer_text):
        with pytest.raises(OutputError, match="without quotation marks"):
            write({'the "liver"': 1}, {})


def test_segment_writes_them_beside_the_mask(tmp_path: Path, f_study: Path, root: Path) -> None:
    task = str(root / "bundles" / "bone_ct_segmentation")
    if not Path(task).is_dir():
        pytest.skip("there is no bundle that needs no weights")
    out = tmp_path / "out"
    assert main(["segment", str(f_study), "-o", str(out), "--task", task, "--output", "nifti,itksnap,slicer,json"]) == 0
    outputs = json.loads((out / "report.json").read_text())["outputs"]
    assert set(FILES.values()) <= set(outputs)
    assert '"bone"' in (out / FILES["itksnap"]).read_text().lower()


def test_which_names_are_partners() -> None:
    assert side_of("kidney_left") == "left" and side_of("Right M4") == "right"
    assert side_of("aleft") == side_of("cleft") == side_of("left-right fibres") == ""
    names = ["M1 left", "M1 right", "kidney_right", "kidney_left", "liver", "insula left"]
    assert partners(names) == [("M1 left", "M1 right"), ("kidney_left", "kidney_right")]


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR"])
def test_left_is_told_by_the_affine(code: str) -> None:
    labels = np.zeros((20, 16, 10), np.uint8)
    affine = oblique_affine()  # the first index grows to the patient's right
    labels[2:5, 4:9, 2:6], labels[14:18, 4:9, 2:6] = 1, 2
    array, place = reoriented(labels, affine, code) if code != "RAS" else (labels, affine)
    assert wrong_sides(array, place, {1: "M1 left", 2: "M1 right"}) == []
    (wrong,) = wrong_sides(array, place, {2: "M1 left", 1: "M1 right"})
    expected = (affine[:3, :3] @ [15.5 - 3.0, 0, 0])[0]  # mean index 15.5 against 3
    assert (wrong.left, wrong.right) == ("M1 left", "M1 right") and wrong.by_mm == pytest.approx(expected)
    alone = wrong_sides(array, place, {2: "insula left", 1: "M1 right"})  # each without its partner
    assert [str(one).partition(" lies")[0] for one in alone] == ["the left labels", "insula left"]
    assert wrong_sides(array, place, {1: "liver", 2: "M1 right"}) == []


def test_the_voxel_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        {"name": f"M1 {side}", "code": code, "color": [1, 2, 3], "snomed": {"value": str(code)}}
        for code, side in ((1, "left"), (2, "right"))
    ]
    task = str(make_bundle(tmp_path / "bundles", weights=None, labels=entries))
    data, cases = tmp_path / "data", []
    data.mkdir()
    for number, values in enumerate(((7, 9), (9, 7))):
        labels = np.zeros((20, 16, 10), np.uint8)
        labels[2:5, 4:9, 2:6], labels[14:18, 4:9, 2:6] = values  # 60 and 80 voxels of 3200
        write_nifti(data / f"l{number}.nii.gz", labels, oblique_affine())
        cases.append({"case_id": f"c{number}", "patient": f"p{number}", "image": "x", "label": f"l{number}.nii.gz"})
    content = {"mask_values": {"7": "M1 left", "9": "M1 right"}, "cases": cases[:1]}
    (data / "datalist.json").write_text(json.dumps(content))
    assert main(["voxels", str(data), "--task", task, "-o", str(tmp_path / "v.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "v.csv").read_text())))
    assert [(row["class"], row["value"], row["voxels"]) for row in rows] == [
        ("M1 left", "7", "60"),
        ("M1 right", "9", "80"),
    ]
    assert float(rows[0]["percent_of_image"]) == pytest.approx(1.875)  # 60 / 3200
    assert float(rows[0]["percent_of_labels"]) == pytest.approx(42.857, abs=1e-3)  # 60 / 140
    assert float(rows[0]["ml"]) == pytest.approx(60 * 3.125 / 1000, abs=1e-3)
    assert "imbalance of all: 1.3 to 1" in capsys.readouterr().out
    content["cases"] = cases
    (data / "datalist.json").write_text(json.dumps(content))
    assert main(["voxels", str(data), "--task", task]) == 2
    said = capsys.readouterr().err
    assert "1 of 2 cases have labels on the wrong side (c1: M1 left lies" in said and "c0" not in said


def test_the_imbalance_of_a_class_that_is_missing() -> None:
    assert imbalance({"a": 105, "b": 10}) == 10.5
    assert imbalance({"a": 105, "b": 0}) is None and imbalance({}) is None
