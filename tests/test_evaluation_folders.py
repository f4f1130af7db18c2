"""Folders of masks: pairs by name, what does not fit, and the report that comes out."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import f_phantom, oblique_affine, reoriented, write_itk, write_nifti

from ctseg.cli import main
from ctseg.errors import ConfigError, InputError
from ctseg.evaluation.measuring import evaluate_folders
from ctseg.evaluation.pairing import find_images, pair_folders
from ctseg.evaluation.types import Settings

AFFINE = oblique_affine()
LABELS = "f=1:3,bar=2:4"
HEIGHT = {"a": 6, "b": 5, "c": 4}


def reference_map() -> np.ndarray:
    mask = np.zeros((20, 24, 10), np.uint8)
    mask[4:14, 4:20, 2:8], mask[15:18, 6:18, 3:6] = 3, 4
    return mask


def prediction_map(height: int) -> np.ndarray:
    """The block of 10x16x6 voxels only so many slices high; the bar as it is."""
    mask = np.zeros((20, 24, 10), np.uint8)
    mask[4:14, 4:20, 2 : 2 + height], mask[15:18, 6:18, 3:6] = 1, 2
    return mask


def make_folders(tmp_path: Path) -> tuple[Path, Path]:
    """Cases a (perfect), b, c as NIfTI, NRRD and a run's folder; and one of each thing that does not fit."""
    prediction, reference = tmp_path / "prediction", tmp_path / "reference"
    for folder in (prediction / "c", reference):
        folder.mkdir(parents=True)
    for case in (*HEIGHT, "other_grid", "broken", "without_prediction"):
        write_nifti(reference / f"{case}.nii.gz", reference_map(), AFFINE)
    write_nifti(prediction / "a.nii.gz", prediction_map(6), AFFINE)
    write_itk(prediction / "b.nrrd", *reoriented(prediction_map(5), AFFINE, "LPS"))
    write_nifti(prediction / "c" / "mask.nii.gz", prediction_map(4), AFFINE)
    write_nifti(prediction / "other_grid.nii.gz", prediction_map(6), oblique_affine(spacing=(2, 2, 2)))
    (prediction / "broken.nii.gz").write_bytes(b"no image")
    for name in ("twice.nii.gz", "twice.nrrd.nii"):
        write_nifti(prediction / name, prediction_map(6), AFFINE)
    (prediction / "twice.nrrd.nii").rename(prediction / "twice.nii")
    (prediction / "notes.txt").write_text("passed over")
    return prediction, reference


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path)


def settings(**changes: object) -> Settings:
    return Settings(**{"labels": {"f": (1, 3), "bar": (2, 4)}, "resamples": 100, **changes})  # type: ignore[arg-type]


def test_cases_are_paired_by_name_and_scored(folders: tuple[Path, Path]) -> None:
    results = evaluate_folders(*folders, settings()).results
    dice = {case["case"]: case["labels"]["f"]["dice"] for case in results["cases"]}
    # Of 6 slices, 6, 5 and 4 are predicted.
    assert dice == pytest.approx({name: 2 * high / (high + 6) for name, high in HEIGHT.items()})
    assert {case["labels"]["bar"]["dice"] for case in results["cases"]} == {1.0}
    assert results["cases"][1]["labels"]["f"]["hd_mm"] == pytest.approx(2.5, rel=1e-4)
    assert results["summary"]["labels"]["f"]["macro"]["dice"]["value"] == pytest.approx(np.mean(list(dice.values())))


def test_what_does_not_fit_is_named_and_the_rest_scored(folders: tuple[Path, Path]) -> None:
    refused = {row["case"]: row["reason"] for row in evaluate_folders(*folders, settings()).results["refused"]}
    assert sorted(refused) == ["broken", "other_grid", "twice", "without_prediction"]
    assert "no sound gzip file" in refused["broken"]
    assert "the prediction other_grid.nii.gz of grid 20x24x10 at 2x2x2 mm" in refused["other_grid"]
    assert "more than one prediction has this name: twice.nii, twice.nii.gz" in refused["twice"]
    assert "no prediction" in refused["without_prediction"]
    assert str(folders[0].parent) not in " ".join(refused.values())


def test_a_probability_is_no_mask(folders: tuple[Path, Path]) -> None:
    write_nifti(folders[0] / "a.nii.gz", prediction_map(6) * np.float32(0.4), AFFINE)
    refused = {row["case"]: row["reason"] for row in evaluate_folders(*folders, settings()).results["refused"]}
    assert "no whole numbers" in refused["a"]


def test_patients_come_from_a_list(folders: tuple[Path, Path]) -> None:
    results = evaluate_folders(*folders, settings(), patients={"a": "p", "b": "p"}).results
    assert {case["case"]: case["patient"] for case in results["cases"]} == {"a": "p", "b": "p"}
    assert results["summary"]["labels"]["f"]["macro"]["dice"]["low"] is None
    assert {"case": "c", "reason": "the list of patients does not name it; add a line for it"} in results["refused"]


def test_values_that_nobody_asked_for_are_said(folders: tuple[Path, Path]) -> None:
    notes = evaluate_folders(*folders, settings(labels={"f": (7, 3)})).results["notes"]
    assert any("prediction of a holds the values 1, 2, none that --labels asks for" in note for note in notes)


def test_endings_are_left_off(tmp_path: Path) -> None:
    for name in ("one_seg.nii.gz", "two_0000.nii.gz", "_seg.nii.gz", ".hidden.nii.gz"):
        (tmp_path / name).touch()
    assert sorted(find_images(tmp_path, ["_seg", "_0000"]).paths) == ["_seg", "one", "two"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "three.nii.gz").touch()
    with pytest.raises(InputError, match="predictions are called _seg, one_seg, two_0000 and the references three"):
        pair_folders(tmp_path, other)


def test_settings_that_cannot_work_are_refused() -> None:
    for change in ({"beta": 0}, {"tolerance_mm": float("nan")}, {"resamples": 5}, {"labels": {}}):
        with pytest.raises(ConfigError, match="expected"):
            settings(**change)


class Reader(HTMLParser):
    """Collects what the page refers to and says."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.tags: dict[str, int] = {}
        self.unscoped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.addresses += [str(given[name]) for name in ("src", "href", "action", "srcset", "data") if name in given]
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        self.unscoped += tag == "th" and given.get("scope") not in ("col", "row")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the command, beside a baseline, with a CT for one case."""
    tmp_path = tmp_path_factory.mktemp("report")
    folders = make_folders(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    write_nifti(images / "c.nii.gz", f_phantom(), AFFINE)
    arguments = ["--prediction", str(folders[0]), "--reference", str(folders[1]), "--labels", LABELS]
    assert main(["evaluate", *arguments, "-o", str(tmp_path / "old"), "--resamples", "100"]) == 0
    write_nifti(folders[0] / "a.nii.gz", prediction_map(3), AFFINE)
    more = ["--images", str(images), "--baseline", str(tmp_path / "old" / "evaluation.json"), "--resamples", "100"]
    assert main(["evaluate", *arguments, "-o", str(tmp_path / "new"), *more]) == 0
    return tmp_path / "new"


def test_the_page_stands_alone_and_can_be_read_aloud(report: Path) -> None:
    text = (report / "evaluation.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in reader.addresses)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert text.startswith("<!DOCTYPE html>") and '<html lang="en">' in text
    assert reader.tags["img"] == len(reader.alts) >= 10
    assert all(len(alt) > 30 for alt in reader.alts)
    assert reader.unscoped == 0 and reader.tags["th"] > 20
    for anchor in (address[1:] for address in reader.addresses if address.startswith("#")):
        assert f'id="{anchor}"' in text
    assert "Dice 0.667" in text and "not scored" in text.lower() and "other_grid" in text
    assert "Axial" in next(alt for alt in reader.alts if "f of c" in alt and "on the CT" in alt)
    assert "on the masks alone" in next(alt for alt in reader.alts if "f of a" in alt)


def test_pictures_are_pictures(report: Path) -> None:
    from PIL import Image

    text = (report / "evaluation.html").read_text(encoding="utf-8")
    for code in re.findall(r'src="data:image/png;base64,([^"]+)"', text):
        with Image.open(io.BytesIO(base64.b64decode(code))) as image:
            assert image.size[0] > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10


def test_the_comparison_names_the_case_that_got_worse(report: Path) -> None:
    label = json.loads((report / "evaluation.json").read_text())["comparison"]["labels"]["f"]
    assert label["worse"] == ["a"]
    row = next(row for row in label["cases"] if row["case"] == "a")
    assert row["dice"] == pytest.approx({"before": 1.0, "now": 6 / 9, "difference": -1 / 3})


def test_the_tables_say_the_same_as_the_json(report: Path) -> None:
    results = json.loads((report / "evaluation.json").read_text())
    cases, summary, slices = (
        list(csv.DictReader((report / f"{name}.csv").read_text().splitlines()))
        for name in ("cases", "summary", "slices")
    )
    row = next(row for row in cases if (row["case"], row["organ"]) == ("c", "f"))
    assert float(row["dice"]) == results["cases"][2]["labels"]["f"]["dice"]
    assert int(row["tp"]) == 10 * 16 * 4 and int(row["fn"]) == 10 * 16 * 2
    assert next(row for row in cases if row["case"] == "broken")["not_scored_because"]
    mean = next(
        row for row in summary if (row["organ"], row["summed_up"], row["metric"]) == ("f", "mean over cases", "dice")
    )
    assert float(mean["value"]) == results["summary"]["labels"]["f"]["macro"]["dice"]["value"]
    of_c = [row for row in slices if (row["case"], row["organ"]) == ("c", "f")]
    assert [row["slice"] for row in of_c] == ["3", "4", "5", "6", "7", "8"]
    assert [float(row["dice"]) for row in of_c] == [1.0] * 4 + [0.0] * 2


def test_the_same_input_gives_the_same_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        arguments = [
            "--prediction",
            str(folders[0]),
            "--reference",
            str(folders[1]),
            "--labels",
            "f=1:3",
            "-o",
            str(out),
        ]
        assert main(["evaluate", *arguments, "--resamples", "100"]) == 0
    for file in outs[0].iterdir():
        assert file.read_bytes() == (outs[1] / file.name).read_bytes()


def test_a_name_cannot_write_into_the_page(tmp_path: Path) -> None:
    name = "<b>&amp;"
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / f"{name}.nii.gz", reference_map(), AFFINE)
    arguments = ["--prediction", str(tmp_path / "p"), "--reference", str(tmp_path / "r"), "--labels", "<i>=3"]
    assert main(["evaluate", *arguments, "-o", str(tmp_path / "out"), "--resamples", "100"]) == 0
    text = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;&amp;amp;" in text


def test_command_refuses_with_a_sentence(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--prediction", str(folders[0]), "--reference", str(folders[1])]
    baseline = tmp_path / "evaluation.json"
    baseline.write_text("{}")
    file = folders[0] / "a.nii.gz"
    for arguments, word in (
        ([*both, "--labels", "f=1", "--baseline", str(baseline), "-o", str(tmp_path)], "would be replaced"),
        ([*both, "--labels", "f=1", "--baseline", str(baseline)], "expected 'ctseg-evaluation/1'"),
        ([*both, "--labels", "f=1", "--images", str(tmp_path / "nowhere")], "there is no folder"),
        ([*both, "--labels", "f=1,f=2"], "named twice"),
        ([*both, "--labels", "f=1", "--patients", str(baseline)], "patients cannot be read"),
        (["--prediction", str(file), "--reference", str(folders[1]), "--labels", "f=1"], "the other a file"),
        ([*both, "--labels", "f=1", "-o", str(file)], "is a file, expected a folder"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert word in capsys.readouterr().err


def test_two_files_with_a_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["--prediction", str(folders[0] / "c" / "mask.nii.gz"), "--reference", str(folders[1] / "c.nii.gz")]
    assert main(["evaluate", *arguments, "--labels", "f=1:3", "-o", str(tmp_path / "out")]) == 0
    (case,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["cases"]
    assert case["case"] == "c" and case["labels"]["f"]["dice"] == pytest.approx(0.8)
