"""The report and the output folder: hand-computed measures, honest sums, nothing of anybody else's touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_prediction import FakePrediction, make_labels, make_volume

from ctseg.errors import OutputError
from ctseg.files import written_beside
from ctseg.organs import measure_organs, voxel_volume_ml
from ctseg.outputs.folder import KINDS, check_folder, file_names, write_outputs
from ctseg.outputs.preview import write_preview
from ctseg.outputs.report import build_report
from ctseg.registry import get_bundle


@pytest.fixture
def prediction(tmp_path: Path) -> FakePrediction:
    info = get_bundle(make_bundle(tmp_path / "bundles"))
    return FakePrediction(
        make_volume(source=Path("/secret/place/case.nii.gz"), notes=("A note.",)), make_labels(), info
    )


def test_organs_are_measured_by_hand() -> None:
    liver, spleen = measure_organs(make_labels(), {"liver": 1, "spleen": 3}, make_volume().source_affine)
    assert (liver.voxels, liver.volume_ml) == (224, pytest.approx(4.48))
    assert liver.box == ((5, 16), (6, 11), (4, 7))
    assert not liver.touches_edge
    assert (spleen.voxels, spleen.volume_ml, spleen.box, spleen.touches_edge) == (0, 0.0, None, False)


def test_a_sheared_mirrored_affine_has_a_positive_volume() -> None:
    affine = np.array([[-2.0, 0.5, 0.0, 1.0], [0.0, 3.0, 0.7, 2.0], [0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    assert voxel_volume_ml(affine) == pytest.approx(0.024)


def test_edges_are_named_by_axis_and_side_and_not_for_a_single_slice() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 2, 5] = 1
    assert measure_organs(labels, {"x": 1}, np.eye(4))[0].edges == ((0, -1), (2, 1))
    assert measure_organs(labels[:, :, 5:], {"x": 1}, np.eye(4))[0].edges == ((0, -1),)


def test_the_report_says_what_was_done(prediction: FakePrediction, tmp_path: Path) -> None:
    organs = measure_organs(prediction.label_map, prediction.labels, prediction.volume.source_affine)
    file = tmp_path / "mask.nii.gz"
    file.write_bytes(b"abc")
    report = build_report(prediction, organs, prediction.seconds, [file])
    assert list(report) == [
        "schema", "intended_use", "versions", "bundle", "device", "runtime", "slices", "source", "quality", "organs",
        "seconds", "notes", "mesh_coordinates", "outputs",
    ]  # fmt: skip
    assert report["source"] == {
        "file": "case.nii.gz",
        "format": "nifti",
        "shape": [30, 24, 10],
        "spacing_mm": [2.0, 2.0, 5.0],
        "axis_codes": "LPS",
    }
    liver, spleen = report["organs"]
    assert (liver["name"], liver["code"], liver["voxels"], liver["volume_ml"]) == ("liver", 1, 224, 4.48)
    assert liver["bounding_box"] == [[5, 16], [6, 11], [4, 7]] and liver["snomed"]["value"] == "10200004"
    assert (spleen["found"], spleen["bounding_box"]) == (False, None)
    assert report["seconds"] == {"read": 0.5, "preprocess": 0.25, "network": 2.0, "postprocess": 0.125, "total": 2.875}
    assert report["outputs"] == {"mask.nii.gz": {"sha256": hashlib.sha256(b"abc").hexdigest()}}
    assert report["intended_use"].startswith("research only")
    assert report["bundle"]["weights_sha256"] == prediction.bundle.weights_sha256
    assert report["bundle"]["weights"] == "trained"
    assert "/secret" not in json.dumps(report)


def test_the_report_names_a_users_own_weights_by_their_sum(prediction: FakePrediction, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, "mine", weights=None)
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"abc")
    mine = FakePrediction(prediction.volume, prediction.label_map, get_bundle(folder))
    bundle = build_report(mine, [], {}, [])["bundle"]
    assert (bundle["weights"], bundle["weights_sha256"]) == ("own weights", hashlib.sha256(b"abc").hexdigest())


def test_edges_are_patient_directions(prediction: FakePrediction) -> None:
    labels = np.zeros((30, 24, 10), np.uint8)
    labels[0, 23, 9] = (
        1  # an LPS grid: index 0 along I is the patient's right, the last J the back, the last K the head
    )
    cut = FakePrediction(prediction.volume, labels, prediction.bundle)
    organs = measure_organs(labels, cut.labels, cut.volume.source_affine)
    assert build_report(cut, organs, {}, [])["organs"][0]["edges_touched"] == ["R", "P", "S"]


def test_a_dicom_source_is_named_by_its_series_only(prediction: FakePrediction) -> None:
    volume = make_volume(source=Path("/scans/DOE_JOHN"), series_uid="1.2.3")
    object.__setattr__(volume, "format", "dicom")
    report = build_report(FakePrediction(volume, make_labels(), prediction.bundle), [], {}, [])
    assert report["source"]["series_uid"] == "1.2.3" and "DOE" not in json.dumps(report)


def test_all_files_are_written_and_their_sums_are_true(prediction: FakePrediction, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    files, report = write_outputs(prediction, out)
    names = ["mask.nii.gz", "liver.stl", "preview.png", "report.json"]
    assert [file.name for file in files] == names
    assert sorted(p.name for p in out.iterdir()) == sorted(names)  # no leftovers; no mesh of a spleen not found
    assert json.loads((out / "report.json").read_text()) == report
    for name, entry in report["outputs"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"]


def test_the_preview_shows_the_values_that_the_task_wishes(
    prediction: FakePrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    def watched(*args: Any, **options: Any) -> Path:
        seen.append(options["window"])
        return write_preview(*args, **options)

    monkeypatch.setattr("ctseg.outputs.preview.write_preview", watched)
    head = get_bundle(make_bundle(tmp_path, "head", shown_window=[0, 80]))
    for bundle in (prediction.bundle, head):
        chosen = FakePrediction(prediction.volume, prediction.label_map, bundle)
        write_outputs(chosen, tmp_path / bundle.name / "out", ["png"])
    assert seen == [(400.0, 40.0), (80.0, 40.0)]  # width and level


def test_what_must_be_said_with_every_result_is_in_the_report(tmp_path: Path) -> None:
    info = get_bundle(make_bundle(tmp_path, "head", caution="seen to miss regions"))
    case = FakePrediction(make_volume(notes=("A note.",)), make_labels(), info)
    assert build_report(case, [], {}, [])["notes"] == ["A note.", "head: seen to miss regions"]


def test_two_runs_give_the_same_bytes(prediction: FakePrediction, tmp_path: Path) -> None:
    for out in ("a", "b"):
        write_outputs(prediction, tmp_path / out)
    for name in ("mask.nii.gz", "liver.stl", "preview.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_second_run_replaces_its_own_files_and_takes_away_what_is_stale(
    prediction: FakePrediction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_outputs(prediction, out)
    (out / "notes.txt").write_text("mine")
    check_folder(out, tmp_path / "ct.nii", file_names(KINDS, prediction.labels))
    nothing = FakePrediction(prediction.volume, np.zeros_like(prediction.label_map), prediction.bundle)
    write_outputs(nothing, out)
    assert sorted(p.name for p in out.iterdir()) == ["mask.nii.gz", "notes.txt", "preview.png", "report.json"]


def test_a_file_that_was_worked_on_is_not_replaced_unless_the_user_insists(
    prediction: FakePrediction, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_outputs(prediction, out)
    (out / "mask.nii.gz").write_bytes(b"corrected by hand")
    names = file_names(KINDS, prediction.labels)
    with pytest.raises(OutputError, match=r"mask\.nii\.gz is there already .* --overwrite"):
        check_folder(out, tmp_path / "ct.nii", names)
    check_folder(out, tmp_path / "ct.nii", names, overwrite=True)


def test_a_report_that_names_files_elsewhere_makes_nothing_ours(prediction: FakePrediction, tmp_path: Path) -> None:
    out, treasure = tmp_path / "out", tmp_path / "treasure"
    write_outputs(prediction, out)
    treasure.write_bytes(b"abc")
    report = json.loads((out / "report.json").read_text())
    report["outputs"]["../treasure"] = {"sha256": hashlib.sha256(b"abc").hexdigest()}
    (out / "report.json").write_text(json.dumps(report))
    write_outputs(prediction, out)
    assert treasure.exists()


def test_folders_that_cannot_be_filled_are_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "ct.nii.gz"
    file.write_bytes(b"x")
    for out, said in (
        (file, "it is a file, expected a folder"),
        (file / "below", r"ct\.nii\.gz takes no files \(Not a directory\)"),
        (Path("/proc/ctseg"), "/proc takes no files"),
    ):
        with pytest.raises(OutputError, match=said):
            check_folder(out, tmp_path / "other", ["mask.nii.gz"])
    with pytest.raises(OutputError, match="it is the input itself"):
        check_folder(tmp_path, tmp_path, ["mask.nii.gz"])
    with pytest.raises(OutputError, match="it is the input itself"):
        check_folder(tmp_path, file, ["ct.nii.gz"], overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_while_writing_leaves_the_folder_as_it_was(
    prediction: FakePrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path / "a" / "out"
    before = {}
    if there:
        write_outputs(prediction, out)
        before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctseg.outputs.preview.write_preview", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_outputs(prediction, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before if there else not (tmp_path / "a").exists()


def test_written_beside_keeps_the_earlier_file_when_the_writer_fails(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("earlier")
    with pytest.raises(ValueError, match="broken"), written_beside(file) as beside:
        beside.write_text("half")
        raise ValueError("broken")
    assert file.read_text() == "earlier" and list(tmp_path.iterdir()) == [file]
