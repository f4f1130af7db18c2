"""The presence gate: which slices are run, on any grid, and that one wrong slice does not cut the organ."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers_cascade import ORGAN, PRESENCE, SECOND, bright, segmenter, write_cascade
from helpers_phantoms import oblique_affine, reoriented, write_nifti
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from test_inferers import Threshold

from ctseg.cli import main
from ctseg.dependencies import sibling
from ctseg.errors import BundleError, ConfigError, GeometryError
from ctseg.inferers import SlicewiseInferer
from ctseg.prediction import Predictor, SlicesRun
from ctseg.presence.gate import Gate
from ctseg.presence.slices import SlicePresence
from ctseg.registry import get_bundle
from ctseg.study import Predictors, Study
from ctseg.transforms import GateSlicesd, LoadVolumed

PLAIN = Gate(margin_mm=0, gap_mm=0, min_slices=1)


def marks(text: str) -> np.ndarray:
    return np.array([letter == "#" for letter in text])


def opened(text: str, gate: Gate, step: float = 5.0) -> str:
    """The slices that a gate opens on the classifier's own grid."""
    places = np.arange(len(text), dtype=float)
    return "".join(".#"[run] for run in gate.open_slices(marks(text), places, places, step).astype(int))


@pytest.mark.parametrize(
    ("found", "run"),
    [
        ("....####....", "..########.."),  # 10 mm of margin are two slices of 5 mm
        ("....##.##....", "..#########.."),  # one dropout
        ("....##...##....", "..###########.."),  # 20 mm between two positive ones
        ("....##....##........", "..############......"),  # 25 mm: two runs, whose margins meet
        (".#........####....", "........########.."),  # one false alarm far away
        (".##.......####....", "#####...########.."),  # two slices are no false alarm
        ("......#.....", "....#####..."),  # an organ on a single slice, when there is nothing else
        ("............", "............"),
        ("############", "############"),
    ],
)
def test_margin_gaps_and_false_alarms(found: str, run: str) -> None:
    assert opened(found, Gate()) == run


def test_one_wrong_slice_never_cuts_the_organ() -> None:
    organ = "." * 10 + "#" * 12 + "." * 10
    for wrong in range(len(organ)):
        said = marks(organ)
        said[wrong] ^= True
        places = np.arange(len(organ), dtype=float)
        for step in (1.0, 3.0, 10.0, 30.0):  # mm; one negative slice is a dropout however thick the slices are
            run = Gate().open_slices(said, places, places, step)
            assert run[marks(organ)].all(), (wrong, step)


def test_a_margin_is_at_least_one_slice_of_either_grid() -> None:
    thick = Gate(margin_mm=1, gap_mm=0).open_slices(marks("..##.."), np.arange(6.0), np.arange(6.0), 10.0)
    assert thick.tolist() == [False, True, True, True, True, False]
    # A classifier on every second slice: its neighbours in between belong to the margin.
    sparse = Gate(margin_mm=0, gap_mm=0).open_slices(marks(".##."), np.arange(0, 8, 2.0), np.arange(7.0), 1.0)
    assert sparse.tolist() == [True] * 7
    coarse = Gate(margin_mm=0, gap_mm=0).open_slices(marks("....##...."), np.arange(10.0), np.array([0.5, 4.5, 8.5]), 1)
    assert coarse.tolist() == [True, True, True]


def test_order_does_not_matter() -> None:
    places = np.arange(12.0)
    found = marks("..###.......")
    forth = Gate().open_slices(found, places, places, 5.0)
    back = Gate().open_slices(found[::-1], places[::-1], places[::-1], 5.0)
    assert forth.tolist() == back[::-1].tolist()


def test_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"margin_mm -1.*expected at least 0"):
        Gate(margin_mm=-1)
    with pytest.raises(ConfigError, match="min_slices 0"):
        GateSlicesd("image", "x", ["y"], min_slices=0)


# The inferer


def gated_volume(run: list[int], count: int = 20) -> MetaTensor:
    image = torch.zeros(1, 1, 8, 6, count)
    image[..., 2:5, 3, 4:9] = 1
    mask = torch.zeros(count, dtype=torch.bool)
    mask[run] = True
    return MetaTensor(image, meta={"run_slices": mask})


@pytest.mark.parametrize("classes", [1, 2])
def test_only_the_open_slices_are_run_in_batches(classes: int) -> None:
    network, image = Threshold(classes), gated_volume([3, 4, 5, 6, 15])
    logits = SlicewiseInferer(batch_size=2, probe=4)(image, network)
    found = logits[0, 0] > 0 if classes == 1 else logits[0].argmax(0) > 0
    assert network.seen == [2, 2, 1]
    assert found.any(dim=(0)).any(dim=0).nonzero().ravel().tolist() == [4, 5, 6]
    assert (logits.meta["slices_run"], logits.meta["slices"]) == (5, 20)


@pytest.mark.parametrize("classes", [1, 2])
def test_no_open_slice_is_background_everywhere(classes: int) -> None:
    logits = SlicewiseInferer()(gated_volume([]), Threshold(classes))
    assert logits.shape == (1, classes, 8, 6, 20)
    assert not (logits[0, 0] > 0 if classes == 1 else logits[0].argmax(0) > 0).any()
    assert logits.meta["slices_run"] == 0


def test_the_count_without_a_gate_is_that_of_the_probes() -> None:
    image = gated_volume([])
    del image.meta["run_slices"]
    network = Threshold()
    logits = SlicewiseInferer(probe=4)(image, network)
    assert logits.meta["slices_run"] == sum(network.seen) < 20


def test_a_gate_for_another_grid_is_refused() -> None:
    image = gated_volume([1])
    image.meta["run_slices"] = torch.ones(19, dtype=torch.bool)
    with pytest.raises(ConfigError, match="20 slices and a gate for 19"):
        SlicewiseInferer()(image, Threshold())


# From the classifier's grid to the segmenter's


def ct_with_organ(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """HU on axes R, A, S: an organ in the upper third only, smaller towards the head; the mm of its slices are kept."""
    hu = np.full((24, 22, 30), -1000, np.int16)
    hu[3:20, 2:19] = 40
    for k in range(20, 26):
        hu[6 : 32 - k, 5:10, k] = 250
    return hu, oblique_affine(spacing)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three bundles: the second one finds what is bright, and its gate says where something is."""
    import helpers_cascade

    folder = tmp_path_factory.mktemp("gated")
    tasks = dict(helpers_cascade.TASKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            helpers_cascade.TASKS, "second_ct_presence", {**tasks["second_ct_presence"], "network": bright(True)}
        )
        return write_cascade(
            folder, network=bright(), gate=PRESENCE, input_organs=[], organ_bundles={}, gate_margin_mm=6.0
        )


@pytest.mark.parametrize("code", ["RAS", "LPI", "PSR", "SAR", "IRP"])
@pytest.mark.parametrize("step", [1.5, 4.0, 10.0])
def test_the_slices_run_are_those_of_the_organ_on_every_grid(
    gated: Path, tmp_path: Path, code: str, step: float
) -> None:
    canonical, affine = ct_with_organ((4.0, 4.2, step))
    array, stored = reoriented(canonical, affine, code)
    ct = write_nifti(tmp_path / "ct.nii.gz", array, stored)
    study = Study(ct, Predictors("cpu", gated))
    found = study.prediction(SECOND)
    ungated = Predictor(get_bundle(SECOND, gated), "cpu", {"gate": None}).predict(ct)
    assert np.array_equal(found.label_map, ungated.label_map) and found.label_map.any()
    assert found.slices is not None and found.slices.gate == PRESENCE
    assert ungated.slices is not None and ungated.slices.gate is None

    # Worked out along the organ's own axis: slices 20 to 25 of `step` mm, and 6 mm (or one slice) at each end.
    pitch = max(step, 3.0) if step < 2.5 else step
    margin = max(6.0, pitch, step) + 1e-6
    places = np.arange(found.slices.of) * pitch
    expected = (places >= 20 * step - margin) & (places <= 25 * step + margin)
    # From the other end the grid may begin at the other side: flipped, the same count within one slice.
    assert abs(found.slices.run - int(expected.sum())) <= (1 if pitch != step else 0)
    assert found.slices.run < found.slices.of


def test_the_four_ways_are_gated_alike(gated: Path, tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "ct.nii.gz", *ct_with_organ((4.0, 4.2, 4.0)))
    found = Predictor(get_bundle(SECOND, gated), "cpu").predict(ct)
    assert found.slices == SlicesRun(8, 30, PRESENCE)  # six slices of 4 mm, and 6 mm: one more at each end
    assert PRESENCE in found.seconds
    ConfigWorkflow(
        config_file=str(gated / SECOND / "configs" / "inference.json"), workflow_type="infer", logging_file=False,
        image=str(ct), output_dir=str(tmp_path / "run"), device="cpu",
    ).run()  # fmt: skip
    by_run = np.asarray(nibabel.load(tmp_path / "run" / "ct" / "mask.nii.gz").dataobj)
    assert np.array_equal(by_run, found.label_map)
    # Without it: probes 0, 4 ... 28 and 29, of which 20 and 24 hit, so 15 to 29: 9 probes and 10 more.
    assert Predictor(get_bundle(SECOND, gated), "cpu", {"gate": "$None"}).predict(ct).slices == SlicesRun(19, 30)
    options = ["--device", "cpu", "--output", "nifti,json", "--task", str(gated / SECOND)]
    assert main(["segment", str(ct), "-o", str(tmp_path / "out"), *options]) == 0
    by_command = np.asarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj)
    assert np.array_equal(by_command, found.label_map)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["slices"] == {"run": 8, "of": 30, "gate": PRESENCE}


def test_the_summary_says_how_many_slices_were_run(
    gated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = write_nifti(tmp_path / "ct.nii.gz", *ct_with_organ((4.0, 4.2, 4.0)))
    main(["segment", str(ct), "-o", str(tmp_path / "out"), "--output", "json", "--task", str(gated / SECOND)])
    assert f"slices run: 8 of 30, chosen by {PRESENCE}" in capsys.readouterr().out


def test_a_study_without_the_organ_runs_no_slice(gated: Path, tmp_path: Path) -> None:
    array, affine = ct_with_organ((4.0, 4.2, 4.0))
    ct = write_nifti(tmp_path / "ct.nii.gz", np.minimum(array, 40), affine)
    found = Predictor(get_bundle(SECOND, gated), "cpu").predict(ct)
    assert found.slices == SlicesRun(0, 30, PRESENCE)
    assert not found.label_map.any()


def presence(volume: Any, present: list[bool], axis: int) -> SlicePresence:
    probability = np.array(present, np.float32)[:, None]
    positions = np.arange(len(present), dtype=np.float64)
    return SlicePresence(volume, ("second",), probability, positions, axis, 0.5, {}, "cpu", None)  # type: ignore


def test_a_classifier_along_another_axis_and_one_that_is_none_are_refused(gated: Path, tmp_path: Path) -> None:
    ct = write_nifti(tmp_path / "ct.nii.gz", *ct_with_organ((4.0, 4.2, 4.0)))
    item = LoadVolumed("image")({"image": str(ct)})
    step = GateSlicesd("image", PRESENCE, ["second"], bundle_root=gated / SECOND)
    item["study"] = SimpleNamespace(presence=lambda info, every_mm: presence(None, [True] * 24, 0), find=sibling)
    with pytest.raises(GeometryError, match=rf"slices of {PRESENCE} run along axis 0 .* along axis 2"):
        step(item)
    with pytest.raises(BundleError, match=rf"needs {ORGAN} as gate and that is a segmenter, expected a classifier"):
        GateSlicesd("image", ORGAN, ["second"], bundle_root=gated / SECOND)(item)
    with pytest.raises(BundleError, match=rf"needs third of {PRESENCE}, which knows second"):
        GateSlicesd("image", PRESENCE, ["third"], bundle_root=gated / SECOND)(item)
    assert GateSlicesd("image", None, ["second"])(item)["image"].meta.get("run_slices") is None
    assert segmenter()["in_channels"] == 1
