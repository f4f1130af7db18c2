"""Presence of organs on slices: where each slice lies, runs and gaps, table, plot, command, the bundle's own run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine
from monai.bundle import ConfigParser

from ctseg.cli import main
from ctseg.errors import BundleError, ConfigError
from ctseg.presence.output import write_presence
from ctseg.presence.plot import write_presence_plot
from ctseg.presence.slices import PresencePredictor, SlicePresence, SliceTable, checked_threshold, gaps_between, runs_of
from ctseg.presence.table import summary_line, table_csv, table_json
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo, find_bundles, get_bundle
from ctseg.volume import Volume

CLASSIFIERS = [name for name, info in find_bundles().items() if info.classifies and not info.flat]


def volume_of(affine: np.ndarray, shape: tuple[int, int, int] = (6, 5, 4)) -> Volume:
    rng = np.random.default_rng(0)
    array = rng.integers(-900, 300, shape).astype(np.int16)
    return Volume(array, affine, affine.copy(), Path("case.nii.gz"), "nifti")


def table_of(probability: list[float], threshold: float = 0.5, affine: np.ndarray | None = None) -> SliceTable:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0]) if affine is None else affine
    affine = affine.copy()
    affine[2, 3] = -100.0
    column = np.array(probability, dtype=np.float32)[:, None]
    volume = volume_of(affine, (6, 5, len(probability)))
    return SliceTable(volume, ("liver",), column, np.arange(float(len(probability))), 2, threshold)


def test_runs_and_gaps_by_hand() -> None:
    runs = runs_of([1, 2, 3, 4, 5, 6, 7, 8], [True, True, False, False, True, False, True, True])
    assert runs == [(1, 2), (5, 5), (7, 8)]
    assert gaps_between(runs) == [(3, 4), (6, 6)]
    assert runs_of([4, 5], [False, False]) == [] and gaps_between([]) == []
    assert runs_of([4, 5], [True, True]) == [(4, 5)]


def test_summary_says_runs_and_gaps() -> None:
    found = table_of([0.1, 0.9, 0.8, 0.2, 0.5, 0.1])
    assert summary_line(found, "liver") == "liver: present on 3 of 6 slices: 2-3, 5 (gap: 4)"
    assert summary_line(table_of([0.1, 0.2]), "liver") == "liver: absent on all 2 slices"
    assert summary_line(table_of([0.9, 0.2]), "liver") == "liver: present on 1 of 2 slices: 1"


def test_a_probability_at_the_threshold_is_present() -> None:
    assert table_of([0.3, 0.29], threshold=0.3).present.ravel().tolist() == [True, False]
    for wrong in (-0.1, 1.5, "much", None, float("nan")):
        with pytest.raises(ConfigError, match="expected a probability, 0 to 1"):
            checked_threshold(wrong)


def test_table_has_a_line_a_slice_with_its_height() -> None:
    rows = list(csv.reader(io.StringIO(table_csv(table_of([0.25, 0.75])))))
    assert rows == [
        ["slice", "index", "position_mm", "liver_probability", "liver_present"],
        ["1", "0", "-100.00", "0.2500", "0"],
        ["2", "1", "-97.00", "0.7500", "1"],
    ]
    told = table_json(table_of([0.25, 0.75]))
    assert json.loads(json.dumps(told)) == told
    assert told["organs"][0]["runs"] == [[2, 2]] and told["organs"][0]["slices_present"] == 1
    assert told["slices"][1] == {
        "slice": 2, "index": 1, "position_mm": -97.0, "probability": {"liver": 0.75}, "present": {"liver": True},
    }  # fmt: skip


def test_height_is_the_affines_own_at_the_middle_of_a_tilted_slice() -> None:
    affine = oblique_affine()
    volume = volume_of(affine, (7, 5, 3))
    found = SliceTable(volume, ("a",), np.zeros((3, 1), np.float32), np.arange(3.0), 2, 0.5)
    expected = [(affine @ [3, 2, k, 1])[2] for k in range(3)]
    np.testing.assert_allclose(found.positions_mm, expected)


@pytest.fixture(params=CLASSIFIERS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> BundleInfo:
    """A copy of a shipped classifier with random weights of its own, on coarse pixels so that it is quick."""
    return with_random_weights(find_bundles()[request.param], tmp_path)


def with_random_weights(shipped: BundleInfo, folder: Path) -> BundleInfo:
    config = json.loads((shipped.path / "configs" / "inference.json").read_text())
    config["patch"], config["spacing"] = [32, 32], [8.0, 8.0]
    metadata = json.loads((shipped.path / "configs" / "metadata.json").read_text())
    metadata["ctseg"]["weights"] = None
    copy = folder / "bundles" / shipped.name
    (copy / "configs").mkdir(parents=True)
    (copy / "models").mkdir()
    (copy / "configs" / "inference.json").write_text(json.dumps(config))
    (copy / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(copy / "configs" / "inference.json")
    torch.save(parser.get_parsed_content("network_def").state_dict(), copy / "models" / "model.pt")
    return get_bundle(copy)


class BrightSlices(torch.nn.Module):
    """Says that the organ is on a slice by its mean brightness."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return one logit an image."""
        return (image.mean(dim=(1, 2, 3)) * 100 - 10)[:, None]


def test_each_slice_is_named_as_in_the_source_whatever_its_orientation(own: BundleInfo, tmp_path: Path) -> None:
    """The same asymmetric volume stored with its cranio-caudal axis first, last, or upside down."""
    array = np.full((20, 24, 9), -1000, np.int16)
    array[:, :, 2:4] = 200  # bright at indices 2, 3 and 6 from the feet
    array[:, :, 6] = 200
    straight = nib.Nifti1Image(array, np.diag([-8.0, -8.0, 5.0, 1.0]))
    predictor = PresencePredictor(own, "cpu")
    predictor._predictor._network = BrightSlices()
    for codes, axis, bright in (("LPS", 2, [2, 3, 6]), ("SLA", 0, [2, 3, 6]), ("RIP", 1, [2, 5, 6])):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(straight.affine), nib.orientations.axcodes2ornt(codes)
        )
        path = tmp_path / f"{codes}.nii.gz"
        nib.save(straight.as_reoriented(turn), path)
        found = predictor.predict(path)
        assert found.axis == axis
        np.testing.assert_allclose(found.positions, np.arange(9))
        assert np.flatnonzero(found.present[:, 0]).tolist() == bright
        assert found.numbers.tolist() == list(range(1, 10))
        expected = np.arange(9) * 5.0 if codes != "RIP" else np.arange(8, -1, -1) * 5.0
        np.testing.assert_allclose(found.positions_mm, expected, atol=1e-4)
        assert found.probability.dtype == np.float32 and found.labels == tuple(own.labels)
        assert list(found.seconds) == ["read", "preprocess", "network", "postprocess"]


def test_batches_of_any_size_give_the_same_probabilities(own: BundleInfo, f_study: Path) -> None:
    predictor = PresencePredictor(own, "cpu")
    volume = read_volume(f_study)
    at_once = predictor.predict(volume)
    predictor._predictor._inferer.batch_size = 1
    np.testing.assert_allclose(predictor.predict(volume).probability, at_once.probability, atol=2e-3)


def test_command_writes_table_plot_and_report(
    own: BundleInfo, f_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(f_study), "--task", str(own.path), "-o", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    (label,) = own.labels
    assert (f"{label}: " in said and "of 12 slices" in said) or "on all 12 slices" in said
    assert sorted(path.name for path in out.iterdir()) == ["presence.csv", "presence.png", "report.json"]
    rows = list(csv.DictReader(io.StringIO((out / "presence.csv").read_text())))
    assert [row["slice"] for row in rows] == [str(n) for n in range(1, 13)]
    report = json.loads((out / "report.json").read_text())
    assert report["presence"]["threshold"] == 0.5 and len(report["presence"]["slices"]) == 12
    assert set(report["outputs"]) == {"presence.csv", "presence.png"} and "organs" not in report
    for row, told in zip(rows, report["presence"]["slices"], strict=True):
        assert float(row[f"{label}_probability"]) == pytest.approx(told["probability"][label], abs=6e-5)
    assert main(["segment", str(f_study), "--task", str(own.path), "-o", str(out), "--output", "csv"]) == 0
    assert [path.name for path in out.iterdir()] == ["presence.csv"]
    assert main(["segment", str(f_study), "--task", str(own.path), "-o", str(out), "--output", "nifti"]) == 2
    assert "writes no nifti: expected one or more of csv,png,json" in capsys.readouterr().err


def test_the_bundles_own_run_writes_the_same_table(own: BundleInfo, f_study: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    flow = ConfigWorkflow(
        str(own.path / "configs" / "inference.json"), workflow_type="infer", logging_file=False, image=str(f_study),
        output_dir=str(tmp_path / "run"), device="cpu", bundle_root=str(own.path),
    )  # fmt: skip
    flow.run()
    found = PresencePredictor(own, "cpu").predict(f_study)
    assert (tmp_path / "run" / "f" / "presence.csv").read_text() == table_csv(found)


def test_wrong_kinds_of_bundles_and_outputs_are_refused(
    phantom_bundle: BundleInfo, f_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="is no classifier"):
        PresencePredictor(phantom_bundle, "cpu")
    assert phantom_bundle.segments and not phantom_bundle.classifies
    arguments = ["segment", str(f_study), "--task", "bone_ct_segmentation", "-o", str(tmp_path), "--output", "csv"]
    assert main(arguments) == 2
    assert "writes no csv" in capsys.readouterr().err


def test_an_untrained_classifier_says_what_to_do(f_study: Path, tmp_path: Path, capsys: Any) -> None:
    untrained = [name for name in CLASSIFIERS if not find_bundles()[name].ready]
    if not untrained:
        pytest.skip("every shipped classifier is trained")
    assert main(["segment", str(f_study), "--task", untrained[0], "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "untrained" in said and "train.json" in said and not (tmp_path / "out").exists()


def test_plot_is_a_picture_for_any_stack(tmp_path: Path) -> None:
    from PIL import Image

    many = table_of([0.1] * 20 + [0.9] * 20)
    one = table_of([0.7])
    flat = np.array([[-2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1.0]])  # slices along A: no heights
    across = SliceTable(volume_of(flat), ("liver",), np.full((4, 1), 0.9, np.float32), np.arange(4.0), 2, 0.5)
    for found in (many, one, across):
        with Image.open(write_presence_plot(found, tmp_path / "plot.png", {"liver": (221, 130, 101)})) as picture:
            assert picture.size[1] == 704
            assert len(set(picture.convert("L").tobytes())) > 20


def test_answer_of_two_organs_has_two_columns(own: BundleInfo, tmp_path: Path) -> None:
    one = table_of([0.1, 0.9, 0.2])
    two = SlicePresence(
        one.volume, ("liver", "gallbladder"), np.c_[one.probability, one.probability[::-1] / 2], one.positions, 2,
        0.4, {"read": 0.1}, "cpu", own,
    )  # fmt: skip
    files, report = write_presence(two, tmp_path / "out", ("csv", "json"))
    assert [file.name for file in files] == ["presence.csv", "report.json"]
    assert (tmp_path / "out" / "presence.csv").read_text().splitlines()[2] == "2,1,-97.00,0.9000,1,0.4500,1"
    assert [organ["runs"] for organ in report["presence"]["organs"]] == [[[2, 2]], [[2, 2]]]


@pytest.mark.parametrize("code", ["RAS", "LPI", "PSR", "SAR"])
def test_every_so_many_mm_is_classified_and_what_lies_between_interpolated(tmp_path: Path, code: str) -> None:
    from helpers_cascade import PRESENCE, TASKS, bright, give_weights, write_task
    from helpers_phantoms import reoriented, write_nifti

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "second_ct_presence", {**TASKS["second_ct_presence"], "network": bright(True)})
        give_weights(write_task(tmp_path, "second_ct_presence"))
    hu = np.full((12, 10, 31), -1000, np.int16)
    hu[3:8, 2:9] = 40
    hu[4:7, 4:7, 9:20] = 290
    array, affine = reoriented(hu, oblique_affine((8.0, 8.4, 1.0)), code)
    predictor = PresencePredictor(get_bundle(PRESENCE, tmp_path / "bundles"), "cpu")
    ct = write_nifti(tmp_path / "ct.nii.gz", array, affine)
    each, some = predictor.predict(ct), predictor.predict(ct, every_mm=3.0)
    assert some.volume.shape == each.volume.shape and some.axis == each.axis
    assert np.array_equal(some.positions, np.rint(each.positions)) and len(some.positions) == 31
    exact = slice(None, None, 3)  # slices 0, 3 ... 30 of the source
    assert np.allclose(some.probability[exact], each.probability[exact], atol=1e-6)
    between = some.probability[:-1:3] * 2 / 3 + some.probability[3::3] / 3
    assert np.allclose(some.probability[1::3], between, atol=1e-6)
    assert abs(int(some.present.sum()) - 11) <= 2  # at most a slice at each end
    assert np.array_equal(predictor.predict(ct, every_mm=0.7).probability, each.probability)
