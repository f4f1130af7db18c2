"""Prepare: every layout becomes the same datalist, every bad case is named with its reason, and none stops the rest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_collections import (
    GALLBLADDER,
    LIVER,
    ct,
    label,
    write_decathlon,
    write_image,
    write_nnunet,
    write_pairs,
    write_slices,
    write_totalsegmentator,
)
from helpers_phantoms import oblique_affine

from ctseg.cli import main
from ctseg.datalist import read_cases
from ctseg.ledger import Ledger

LABELS = [{"name": "liver", "code": 1, "color": [221, 130, 101], "snomed": {"value": "10200004"}}]


@pytest.fixture
def task(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundles", weights=None, labels=LABELS))


def prepared(source: Path, out: Path, task: str, *options: str) -> dict:
    assert main(["prepare", str(source), "-o", str(out), "--task", task, *options]) == 0
    return json.loads((out / "prepare-report.json").read_text())


def voxels(report: dict) -> list[dict[str, int]]:
    return [case["voxels"] for case in report["cases"]]


def test_pairs_by_name(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pairs(tmp_path / "source", 4)
    report = prepared(source, tmp_path / "data", task, "--label", "liver=1", "--patient", r"^(p\d)_")
    assert report["kind"] == "pairs" and "4 pairs" in report["saw"] and report["refused"] == []
    assert voxels(report) == [{"liver": LIVER}] * 4
    cases = read_cases(tmp_path / "data")
    assert [case["patient"] for case in cases] == ["p0", "p1", "p2", "p3"]
    assert cases[0]["image"] == str((source / "images" / "p0_a.nii.gz").resolve())
    assert cases[0]["mask_values"] == {"1": "liver"}
    assert not [key for case in cases for key in case if key.startswith(("image_", "label_"))]
    assert len(Ledger(tmp_path / "data" / "split.csv")) == 4
    assert not list((tmp_path / "data").glob("**/*.nii.gz"))  # nothing is copied
    assert "4 cases taken, 0 refused" in capsys.readouterr().out


def test_label_called_mask_and_real_slices(tmp_path: Path, task: str, shared_data: Path) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    for name in ("10001_081", "10001_095", "10002_085"):
        found = shared_data / "liver_slices" / "images" / f"msdliver_{name}.png"
        if not found.is_file():
            pytest.skip(f"{found} is not here")
        (source / "images" / f"{name}.png").symlink_to(found)
        (source / "masks" / f"{name}_mask.png").symlink_to(shared_data / "liver_slices" / "masks" / found.name)
    options = ("--label", "liver=255", "--patient", r"(\d+)_", "--slice-spacing", "1.5", "1.5", "5")
    report = prepared(source, tmp_path / "data", task, *options)
    from PIL import Image

    with Image.open(source / "masks" / "10001_081_mask.png") as mask:
        assert report["cases"][0]["voxels"]["liver"] == int((np.asarray(mask) == 255).sum()) > 0
    assert {case["patient"] for case in report["cases"]} == {"10001", "10002"}
    assert read_cases(tmp_path / "data")[0]["slice_spacing"] == [1.5, 1.5, 5.0]


def test_decathlon(tmp_path: Path, task: str) -> None:
    report = prepared(write_decathlon(tmp_path / "Task03"), tmp_path / "data", task)
    assert report["kind"] == "msd" and voxels(report) == [{"liver": LIVER, "cancer": GALLBLADDER}] * 2
    assert read_cases(tmp_path / "data")[0]["mask_values"] == {"1": "liver", "2": "cancer"}
    joined = prepared(tmp_path / "Task03", tmp_path / "joined", task, "--label", "liver=2")
    assert voxels(joined) == [{"liver": LIVER + GALLBLADDER}] * 2


def test_nnunet_and_its_fold(tmp_path: Path, task: str) -> None:
    source = write_nnunet(tmp_path / "Dataset001")
    write_image(source / "imagesTr" / "case_000_0001.nii.gz", ct(50))  # a second channel
    write_image(source / "imagesTr" / "case_009_0000.nii.gz", ct(51))  # no label
    names = [f"case_{n:03d}" for n in range(4)]
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": names, "val": []}, {"train": names[1:], "val": names[:1]}]))
    report = prepared(source, tmp_path / "data", task, "--split", str(splits), "--fold", "1")
    assert report["kind"] == "nnunet" and [row["case_id"] for row in report["refused"]] == ["case_009"]
    assert "channels the first (CT) is taken, 0001 left out" in report["notes"][0]
    ledger = Ledger(tmp_path / "data" / "split.csv")
    assert ledger.patients("validation") == ["case_000"] and ledger.patients("train") == names[1:]
    assert ledger.patients("test") == []


def test_nnunet_regions_that_overlap_must_be_named(tmp_path: Path, task: str, capsys: pytest.CaptureFixture) -> None:
    source = write_nnunet(tmp_path / "D", 3, {"background": 0, "liver": [1, 2], "tumour": [2]})
    report = prepared(source, tmp_path / "data", task, "--label", "liver=2")
    assert voxels(report) == [{"liver": LIVER + GALLBLADDER}] * 3
    assert main(["prepare", str(source), "-o", str(tmp_path / "other"), "--task", task]) == 2
    capsys.readouterr()


def test_totalsegmentator_masks_are_joined_once(tmp_path: Path, task: str) -> None:
    source = write_totalsegmentator(tmp_path / "ts")
    (source / "s0007").mkdir()
    write_image(source / "s0007" / "ct.nii.gz", ct(7))
    report = prepared(source, tmp_path / "data", task, "--label", "gallbladder")
    assert report["kind"] == "totalsegmentator"
    assert voxels(report) == [{"liver": LIVER, "gallbladder": GALLBLADDER}] * 2  # the shared voxel is the liver's
    assert "1 voxels of gallbladder belong to an earlier structure" in report["cases"][0]["notes"][0]
    assert "segmentations/liver.nii.gz" in report["refused"][0]["reason"]
    case = read_cases(tmp_path / "data")[0]
    assert json.loads((tmp_path / "data" / "datalist.json").read_text())["cases"][0]["label"] == "labels/s0000.nii.gz"
    written = nib.load(case["label"])
    assert written.get_data_dtype() == np.uint8 and np.array_equal(written.affine, nib.load(case["image"]).affine)
    assert np.array_equal(np.asarray(written.dataobj), label(1, 2))


def test_totalsegmentator_label_map_names_its_own_values(tmp_path: Path, task: str) -> None:
    folder = tmp_path / "ts" / "s0001"
    write_image(folder / "ct.nii.gz", ct(1))
    image = nib.Nifti1Image(label(5, 4), oblique_affine())
    table = (
        b'<LabelTable><Label Key="4" Red="1"><![CDATA[gallbladder]]></Label>\n<Label Key="5"><![CDATA[liver]]></Label>'
    )
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table))
    nib.save(image, folder / "segmentations.nii.gz")
    report = prepared(tmp_path / "ts", tmp_path / "data", task)
    assert voxels(report) == [{"gallbladder": GALLBLADDER, "liver": LIVER}]


def test_every_bad_case_is_named_and_the_rest_is_taken(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_pairs(tmp_path / "source", 3)
    images, labels = source / "images", source / "labels"
    write_image(images / "alone.nii.gz", ct(10))
    write_image(labels / "orphan.nii.gz", label())
    write_image(images / "moved.nii.gz", ct(11))
    write_image(labels / "moved.nii.gz", label(), oblique_affine(origin=(0.0, 0.0, 0.0)))
    write_image(images / "small.nii.gz", ct(12))
    write_image(labels / "small.nii.gz", label()[:-1])
    write_image(images / "values.nii.gz", ct(13))
    write_image(labels / "values.nii.gz", label(1, 7))
    write_image(images / "blurred.nii.gz", ct(14))
    write_image(labels / "blurred.nii.gz", label().astype(np.float32) * 0.5)
    (images / "broken.nii.gz").write_bytes(b"no image")
    write_image(labels / "broken.nii.gz", label())
    write_image(images / "twin.nii.gz", ct(0))  # the same voxels as p0_a
    write_image(labels / "twin.nii.gz", label())
    write_image(images / "empty.nii.gz", ct(15))
    write_image(labels / "empty.nii.gz", label(0))
    report = prepared(source, tmp_path / "data", task, "--label", "liver=1")
    reasons = {row["case_id"]: row["reason"] for row in report["refused"]}
    expected = {
        "alone": "no label called alone",
        "orphan": "no image called orphan",
        "moved": "mm away from its image's grid",
        "small": "(11, 14, 6), its image has (12, 14, 6)",
        "values": "unknown values 7 (8 voxels)",
        "blurred": "whole numbers",
        "broken": "broken.nii.gz",
        "twin": "same voxels as p0_a",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name], name
    assert [case["case_id"] for case in report["cases"]] == ["empty", "p0_a", "p1_a", "p2_a"]
    assert report["cases"][0]["notes"] == ["its label is empty"]
    said = capsys.readouterr().out
    assert "4 cases taken, 8 refused" in said and "values: its label" in said
    rows = list(csv.DictReader(io.StringIO((tmp_path / "data" / "prepare-report.csv").read_text())))
    assert sorted(row["case_id"] for row in rows if row["status"] == "refused") == sorted(expected)
    again = prepared(source, tmp_path / "data", task, "--label", "liver=1", "--replace", "--ignore-other-labels")
    assert "values" in [case["case_id"] for case in again["cases"]]


def test_patient_pattern(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pairs(tmp_path / "source", 2)
    write_image(source / "images" / "x.nii.gz", ct(9))
    write_image(source / "labels" / "x.nii.gz", label())
    report = prepared(source, tmp_path / "data", task, "--label", "liver=1", "--patient", r"^p(\d)")
    assert [row["case_id"] for row in report["refused"]] == ["x"]
    assert "finds no patient" in report["refused"][0]["reason"]
    command = ["prepare", str(source), "-o", str(tmp_path / "o"), "--task", task, "--label", "liver=1", "--patient"]
    assert main([*command, "p"]) == 2 and "0 groups" in capsys.readouterr().err
    assert main([*command, "("]) == 2 and "no regular expression" in capsys.readouterr().err


def test_refusals_before_the_first_image(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pairs(tmp_path / "source", 1)
    (tmp_path / "empty").mkdir()
    command = ["prepare", "-o", str(tmp_path / "data"), "--task", task]
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "there is no folder"),
        ([str(tmp_path / "empty")], "layout of"),
        ([str(source)], "which label value is liver"),
        ([str(source), "--label", "liver=0"], "whole number from 1"),
        ([str(source), "--label", "liver=1", "--label", "spleen"], "write --label spleen=VALUE"),
        ([str(source), "--label", "liver=1", "--label", "spleen=1"], "two names"),
        ([str(source), "--label", "liver=1", "--orientation", "array:LR"], "no orientation"),
    ):
        assert main([*command, *arguments]) == 2
        assert words in capsys.readouterr().err, words
    assert not (tmp_path / "data").exists()
    write_image(source / "labels" / "p0_a.nii.gz", label(9))
    assert main([*command, str(source), "--label", "liver=1"]) == 2
    assert "no case could be taken" in capsys.readouterr().err
    assert not (tmp_path / "data" / "datalist.json").exists()


def test_add_replace_and_the_frozen_ledger(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    prepared(write_pairs(tmp_path / "one", 3), data, task, "--label", "liver=1")
    before = (data / "split.csv").read_text()
    other = write_nnunet(tmp_path / "two", 6)
    command = ["prepare", str(other), "-o", str(data), "--task", task]
    assert main(command) == 2 and "--add" in capsys.readouterr().err
    write_image(other / "imagesTr" / "case_000_0000.nii.gz", ct(100))
    for n in range(1, 6):
        write_image(other / "imagesTr" / f"case_{n:03d}_0000.nii.gz", ct(100 + n))
    assert main([*command, "--add"]) == 0
    cases = {case["case_id"]: case for case in read_cases(data)}
    assert len(cases) == 9
    assert cases["p0_a"]["mask_values"] == {"1": "liver"}
    assert cases["case_000"]["mask_values"] == {"1": "liver", "2": "gallbladder"}
    assert set(before.splitlines()) <= set((data / "split.csv").read_text().splitlines())


def test_slice_table_in_array_order(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_slices(tmp_path / "slices", 4)
    options = ["--label", "liver=36", "--slice-spacing", "1", "1.25", "2.5"]
    command = ["prepare", str(table), "-o", str(tmp_path / "data"), "--task", task, *options]
    assert main(command) == 2 and "--orientation" in capsys.readouterr().err
    assert main([*command[:-4], "--orientation", "array"]) == 2 and "--slice-spacing" in capsys.readouterr().err
    report = prepared(table.parent, tmp_path / "data", task, *options, "--orientation", "array")
    assert report["kind"] == "slices"
    assert voxels(report) == [{"liver": 12}, {"liver": 12}, {"liver": 12}, {"liver": 0}]
    case = read_cases(tmp_path / "data")[3]
    assert (case["patient"], case["slice_orientation"], case["presence"]) == ("3", "array", {"liver": 0})


def test_presence_flags_are_checked_or_made(tmp_path: Path, task: str) -> None:
    table = write_slices(tmp_path / "slices", 3, "CT_number,slice,seg,has_liver")
    table.write_text(table.read_text().replace("ct2_3_mask.npy,0", "ct2_3_mask.npy,1"))
    options = ("--label", "liver=36", "--slice-spacing", "1", "1", "2", "--orientation", "radiological")
    report = prepared(table, tmp_path / "data", task, *options)
    assert [row["case_id"] for row in report["refused"]] == ["ct2_3"]
    assert "liver is present in the table but has 0 voxels" in report["refused"][0]["reason"]
    prepared(table, tmp_path / "data", task, *options, "--flags", "masks", "--replace")
    assert [case["presence"]["liver"] for case in read_cases(tmp_path / "data")] == [1, 1, 0]
    text = table.read_text().replace("CT_number,slice,seg,has_liver", "nr,bild,maske,x")
    table.write_text(text)
    columns = ("--column", "case=nr", "--column", "image=bild", "--column", "mask=maske")
    made = prepared(table.parent, tmp_path / "made", task, *options, *columns, "--kind", "slices")
    assert len(made["cases"]) == 3


def test_page_of_samples_is_self_contained(tmp_path: Path, task: str) -> None:
    source = write_pairs(tmp_path / "source", 3)
    write_image(source / "images" / "<b>.nii.gz", ct(20))
    prepared(source, tmp_path / "data", task, "--label", "liver=1", "--samples", "2")
    page = (tmp_path / "data" / "samples.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "4.5" not in page.split("liver ")[-1][:3]
    millilitres = LIVER * 1.0 * 1.25 * 2.5 / 1000
    assert f"liver {millilitres:.1f} ml" in page


def test_given_split_is_frozen_and_names_everyone(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = write_pairs(tmp_path / "source", 4), tmp_path / "data"
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [0, 1], "test": [2]}))
    options = ("--label", "liver=1", "--patient", r"^(p\d)", "--split", str(split))
    report = prepared(source, data, task, *options)
    assert {case["patient"]: case["split"] for case in report["cases"]} == {"p0": "train", "p1": "train", "p2": "test"}
    assert [row["case_id"] for row in report["refused"]] == ["p3_a"]
    split.write_text(json.dumps({"train": [0, 2]}))
    before = (data / "split.csv").read_text()
    assert main(["prepare", str(source), "-o", str(data), "--task", task, "--replace", *options]) == 2
    assert "never changes side" in capsys.readouterr().err
    assert (data / "split.csv").read_text() == before


def test_training_reads_what_was_prepared(tmp_path: Path, task: str) -> None:
    """The transforms that every bundle begins with find the voxels that the report counted."""
    from ctseg.transforms import LoadLabeld, LoadVolumed

    table = write_slices(tmp_path / "slices", 2)
    options = ("--label", "liver=36", "--slice-spacing", "1", "1.25", "2.5", "--orientation", "array")
    prepared(table, tmp_path / "data", task, *options)
    prepared(write_totalsegmentator(tmp_path / "ts", 1), tmp_path / "data", task, "--add")
    counted = {}
    for case in read_cases(tmp_path / "data"):
        item = LoadLabeld("label", labels=["liver"])(LoadVolumed("image")(case))
        assert item["image"].shape == item["label"].shape
        counted[case["case_id"]] = int((item["label"] == 1).sum())
    assert counted == {"ct0_3": 12, "ct1_3": 0, "s0000": LIVER}
