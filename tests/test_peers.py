"""What the benchmarks compare with: peers' ways give the bundle's mask on a phantom; the scripts run, tiny."""

from __future__ import annotations

import argparse
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import torch
from helpers_cascade import bright, give_weights, phantom_ct, write_task
from helpers_phantoms import straight_affine, write_nifti

from ctseg import peers
from ctseg.benchmarking import dice, in_lps, measured_rate, naive_segmentation, noisy_body, operations
from ctseg.errors import ConfigError
from ctseg.prediction import Predictor
from ctseg.registry import get_bundle

ROOT = Path(__file__).resolve().parent.parent
# The model zoo's Invertd and MONAI's sliding window say so of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def organ_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that finds what is bright, so that the right mask is known."""
    folder = tmp_path_factory.mktemp("bundle")
    made = write_task(folder, "organ_ct", network=bright(), spacing=[2.0, 2.0, 3.0], thick_slices=2.5, patch=[16, 16])
    give_weights(made)
    return made


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    made = write_nifti(folder / "ras.nii.gz", phantom_ct((40, 35, 8)), straight_affine((1.5, 1.6, 3.0)))
    return in_lps(made, folder / "ct.nii.gz")


@pytest.fixture(scope="module")
def predictor(organ_bundle: Path) -> Predictor:
    return Predictor(get_bundle(organ_bundle), "cpu", {"clean_up": {}})


def _script(name: str) -> ModuleType:
    spec = spec_from_loader(name, SourceFileLoader(name, str(ROOT / "scripts" / name)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_is_the_same_with_a_background() -> None:
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    image = torch.rand(2, 1, 8, 9)
    two = peers.TwoClasses(network)(image)
    assert torch.equal(two.argmax(1) > 0, network(image)[:, 0] > 0)
    assert torch.equal(peers.SliceOfVolume(network)(image[..., None])[..., 0], network(image))


def test_the_case_in_lps_lies_where_it_did(ct: Path) -> None:
    image = nibabel.load(ct)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    other = nibabel.load(ct.with_name("ras.nii.gz"))
    place = np.linalg.inv(other.affine) @ image.affine @ [3, 4, 5, 1]
    assert np.asarray(image.dataobj)[3, 4, 5] == np.asarray(other.dataobj)[tuple(np.rint(place[:3]).astype(int))]


def test_the_zoo_s_way_finds_the_same(predictor: Predictor, ct: Path, tmp_path: Path) -> None:
    seconds = peers.by_zoo(predictor, ct, tmp_path / "zoo.nii.gz")
    assert list(seconds) == ["preprocess", "network", "postprocess", "write"]
    _agrees(tmp_path / "zoo.nii.gz", predictor, ct)


def test_monai_label_s_way_finds_the_same(predictor: Predictor, ct: Path, tmp_path: Path) -> None:
    post = pytest.importorskip("monailabel.transform.post", reason="MONAI Label is not installed (extra server)")
    peers.by_monailabel(predictor, ct, tmp_path / "label.nii.gz", post.Restored)
    _agrees(tmp_path / "label.nii.gz", predictor, ct)


def test_nnunet_s_way_finds_the_same_or_says_what_is_missing(predictor: Predictor, ct: Path, tmp_path: Path) -> None:
    if not _script("benchmark_peers").has_nnunet():
        with pytest.raises(ConfigError, match="nnunetv2 cannot be imported"):
            peers.by_nnunet(predictor, ct, tmp_path / "nnunet.nii.gz", mirroring=False)
        return
    seconds = peers.by_nnunet(predictor, ct, tmp_path / "nnunet.nii.gz", mirroring=True)
    assert list(seconds) == ["preprocess", "network", "postprocess"]
    _agrees(tmp_path / "nnunet.nii.gz", predictor, ct)


def _agrees(mask: Path, predictor: Predictor, ct: Path) -> None:
    ours = predictor.predict(ct).label_map > 0
    theirs = np.asarray(nibabel.load(mask).dataobj) > 0
    assert 50 < ours.sum() < ours.size / 2 and dice(ours, theirs) > 0.88  # a few voxels across


def test_the_plans_hold_the_bundle_s_own_values(predictor: Predictor, ct: Path) -> None:
    spacing = peers.grid_spacing(predictor, ct)
    assert spacing == pytest.approx((2.0, 2.0, 3.0))
    plans = peers.nnunet_plans(predictor, spacing)
    configuration = plans["configurations"]["2d"]
    assert configuration["spacing"] == pytest.approx([3.0, 2.0, 2.0]) and configuration["patch_size"] == [16, 16]
    ends = plans["foreground_intensity_properties_per_channel"]["0"]
    assert ((40 - ends["mean"]) / ends["std"]) == pytest.approx((40 + 200) / 500)  # the window is -200 to 300


def test_the_loop_finds_the_same(predictor: Predictor, ct: Path) -> None:
    volume, mask, seconds = naive_segmentation(predictor, ct)
    assert mask.shape == volume.shape and set(seconds) == {"read", "network", "postprocess"}
    assert dice(mask > 0, predictor.predict(ct).label_map > 0) > 0.8  # it clips first and keeps one piece


@pytest.mark.parametrize("name", ["body.nii", "body.nii.gz"])
def test_a_body_is_the_same_patient_in_more_voxels(ct: Path, tmp_path: Path, name: str) -> None:
    made = nibabel.load(noisy_body(ct, tmp_path / name, (80, 35, 20), noise=2.0))
    source = nibabel.load(ct)
    values, known = np.asarray(made.dataobj), np.asarray(source.dataobj)
    assert values.shape == (80, 35, 20) and values.dtype == np.int16
    assert np.abs(values[20:22, 9, 0].astype(float) - known[10, 9, 0]).max() < 12  # six standard deviations
    corner = np.array([-0.5, -0.5, -0.5, 1])
    assert np.allclose(made.affine @ corner, source.affine @ corner, atol=1e-4)


def test_operations_by_hand_and_a_rate() -> None:
    # 3 x 3 weights, 2 channels in, 4 out, at 6 x 5 places, a multiplication and an addition each
    assert operations(torch.nn.Conv2d(2, 4, 3, padding=1), (1, 2, 6, 5)) == 2 * 9 * 2 * 4 * 30
    assert measured_rate(seconds=0.01) > 1e8


def test_the_gpu_s_benchmark_refuses_without_one_and_runs_tiny(
    organ_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ctseg.gpubenchmarks import samples_per_second

    script = _script("benchmark_gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmark_gpu"])
    with pytest.raises(SystemExit, match="no CUDA device is there"):
        script.main()
    arguments = argparse.Namespace(task=str(organ_bundle), device="cpu", quick=True, ct=None)
    made = script.case_of(arguments, tmp_path)
    rows = [row for part in (script.segmentation, script.steps_on_device) for row in part(arguments, made, tmp_path, 1)]
    assert len(rows) == 9 and all(row.count("|") == 6 for row in rows)
    network, image = torch.nn.Conv2d(1, 1, 3, padding=1), torch.rand(2, 1, 8, 8)
    assert samples_per_second(network, iter(lambda: image, None), "cpu", 2, 2) > 0
