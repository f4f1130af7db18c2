"""Turned cases: in a pipeline and back onto the scanner's grid, from a folder into a data list, on the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_phantoms import write_nifti
from helpers_turned import LEFT, RIGHT, write_case

from ctseg.cli import main
from ctseg.datalist import read_cases
from ctseg.transforms import ApplyItkTransformd, LoadLabeld, LoadVolumed, RestoreGridd

LABELS = [
    {"name": "left block", "code": 1, "color": [221, 130, 101], "snomed": {"value": "1"}},
    {"name": "right block", "code": 2, "color": [21, 130, 201], "snomed": {"value": "2"}},
]
HU = {LEFT: 45, RIGHT: 60}
NAMED = ("--label", "left block=1", "--label", "right block=2")


@pytest.fixture
def task(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundles", weights=None, labels=LABELS))


def loaded(folder: Path, **options: object) -> dict:
    item = {"image": folder / "3.nii.gz", "label": folder / "3-seg.nii.gz", "itk_transform": str(folder / "3.txt")}
    item = LoadVolumed("image")(item)
    item = LoadLabeld("label", ["left block", "right block"], image_key="")(item)
    return ApplyItkTransformd(["image", "label"], **options)(item)


def agrees(labels: np.ndarray, image: np.ndarray) -> None:
    """Each label lies on the HU of its own block, the noise of 3 HU aside, but for its rim."""
    for value, hu in HU.items():
        under = np.asarray(image, float)[np.asarray(labels) == value]
        assert under.size > 300 and (np.abs(under - hu) <= 6).mean() > 0.8, (value, under.size)


def test_the_ct_is_turned_and_a_mask_made_on_it_goes_back(tmp_path: Path) -> None:
    write_case(tmp_path, "3")
    item = loaded(tmp_path)
    assert "itk_transform" not in item and item["image"].shape == item["label"].shape
    assert np.allclose(item["image"].affine, item["label"].affine)
    agrees(item["label"][0], item["image"][0])
    from monai.transforms import Compose, Orientationd, SpatialPadd

    steps = Compose(
        [Orientationd(["image", "label"], axcodes="LPS", labels=None), SpatialPadd(["image", "label"], (60, 60, 40))]
    )
    item = steps(item)
    item["pred"] = item["label"]
    back = RestoreGridd("pred")(item)["pred"]
    ct = np.asarray(nib.load(tmp_path / "3.nii.gz").dataobj)
    assert back.shape[1:] == ct.shape
    agrees(back[0], ct)


def test_the_mask_is_turned_to_the_ct(tmp_path: Path) -> None:
    write_case(tmp_path, "3")
    for mode in ("nearest", "gaussian", "linear"):
        item = loaded(tmp_path, direction="mask", label_mode=mode)
        assert np.array_equal(np.asarray(item["image"][0]), np.asarray(nib.load(tmp_path / "3.nii.gz").dataobj))
        agrees(item["label"][0], item["image"][0])


def test_a_file_of_the_opposite_and_an_item_without_a_transform(tmp_path: Path) -> None:
    write_case(tmp_path, "3")
    with pytest.raises(AssertionError):  # the wrong way round does not fit, so `agrees` can fail
        item = loaded(tmp_path, inverse=True)
        agrees(item["label"][0], item["image"][0])
    plain = LoadVolumed("image")({"image": tmp_path / "3.nii.gz"})
    assert ApplyItkTransformd(["image", "label"])(plain)["image"] is plain["image"]


def test_without_a_mask_the_ct_keeps_its_grid_and_its_place(tmp_path: Path) -> None:
    affine = write_case(tmp_path, "3")
    item = LoadVolumed("image")({"image": tmp_path / "3.nii.gz", "itk_transform": tmp_path / "3.txt"})
    turned = ApplyItkTransformd(["image"])(item)["image"]
    assert turned.shape == item["image"].shape and turned.dtype == item["image"].dtype
    assert not np.allclose(turned.affine, affine, atol=0.1)
    assert np.asarray(turned.meta["original_affine"]) == pytest.approx(affine, abs=1e-4)


def test_prepare_brings_each_mask_to_its_ct(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = tmp_path / "heads", tmp_path / "data"
    for number, name in enumerate(("1", "2", "10")):
        write_case(source, name, (4.0 * number, -3.0, 5.0), seed=number)
    (source / "1-seg.nii.gz").rename(source / "1-seg.nii.gz.part")
    nib.save(nib.load(source / "2-seg.nii.gz"), source / "2-seg.nii")
    write_case(source, "4", seed=9)
    write_case(source, "5", seed=11)
    text = (source / "5.txt").read_text()
    (source / "5.txt").write_text(text + text.replace("#Insight Transform File V1.0\n", ""))
    (source / "readme.txt").write_text("seven heads")
    assert main(["prepare", str(source), "-o", str(data), "--task", task, *NAMED]) == 0
    report = json.loads((data / "prepare-report.json").read_text())
    assert report["kind"] == "turned" and [case["patient"] for case in report["cases"]] == ["4", "10"]
    refused = {one["case_id"]: one["reason"] for one in report["refused"]}
    assert sorted(refused) == ["1", "2", "5"] and "no 1-seg.nii.gz" in refused["1"]
    assert "several files" in refused["2"] and "holds 2 transforms" in refused["5"]
    for case in read_cases(data):
        assert "itk_transform" not in case
        agrees(*(np.asarray(nib.load(case[key]).dataobj) for key in ("label", "image")))
    rows = list(csv.DictReader(io.StringIO((data / "turns.csv").read_text())))
    assert [row["case"] for row in rows] == ["4", "10"]
    assert [float(rows[1][key]) for key in ("x_nod_degrees", "y_tilt_degrees", "z_turn_degrees")] == [8.0, -3.0, 5.0]
    assert (data / "turns.html").read_text().count("<img") == 2


def test_prepare_leaves_the_turn_only_to_a_pipeline_that_turns(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "heads"
    write_case(source, "4")
    assert main(["prepare", str(source), "-o", str(tmp_path / "d"), "--task", task, *NAMED, "--turn", "ct"]) == 2
    assert "has no ctseg.transforms.ApplyItkTransformd" in capsys.readouterr().err
    config = Path(task) / "configs" / "train.json"
    config.write_text('{"_target_": "ctseg.transforms.ApplyItkTransformd"}')
    assert main(["prepare", str(source), "-o", str(tmp_path / "d"), "--task", task, *NAMED, "--turn", "ct"]) == 0
    (case,) = read_cases(tmp_path / "d")
    assert case["itk_transform"].endswith("4.txt") and case["label"].endswith("4-seg.nii.gz")


def test_turn_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "heads"
    write_case(source, "3")
    files = [str(source / "3.nii.gz"), str(source / "3.txt"), "--mask", str(source / "3-seg.nii.gz")]
    assert main(["turn", *files, "-o", str(tmp_path / "a")]) == 0
    mask = np.asarray(nib.load(source / "3-seg.nii.gz").dataobj)
    turned = nib.load(tmp_path / "a" / "turned_ct.nii.gz")
    assert np.allclose(turned.affine, nib.load(source / "3-seg.nii.gz").affine)
    agrees(mask, np.asarray(turned.dataobj))
    row = json.loads((tmp_path / "a" / "report.json").read_text())["turn"]
    assert row["brain_after"] > 0.99 > row["brain_inverse"] and row["rigid"]
    assert main(["turn", *files, "-o", str(tmp_path / "b"), "--direction", "mask"]) == 0
    back = nib.load(tmp_path / "b" / "mask_on_ct.nii.gz")
    assert np.array_equal(back.affine, nib.load(source / "3.nii.gz").affine)
    agrees(np.asarray(back.dataobj), np.asarray(nib.load(source / "3.nii.gz").dataobj))
    assert main(["turn", str(source), "-o", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "turns.html").is_file() and "100%" in capsys.readouterr().out
    write_nifti(tmp_path / "x.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4))
    assert main(["turn", str(tmp_path / "x.nii.gz"), "-o", str(tmp_path / "d")]) == 2
    assert main(["turn", *files[:2], "-o", str(tmp_path / "d"), "--direction", "mask"]) == 2
    assert "comes without a transform" in (error := capsys.readouterr().err) and "add --mask" in error
