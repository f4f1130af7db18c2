"""A bundle without a network: its own status, the voxels that a threshold and scipy give, and no weights anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers_bundles import make_bundle
from helpers_phantoms import oblique_affine, write_nifti
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from scipy.ndimage import find_objects, label

from ctseg.building import build_bundle
from ctseg.errors import BundleError, ConfigError, GeometryError
from ctseg.prediction import Predictor
from ctseg.registry import BundleInfo, find_bundles, get_bundle, verify_weights
from ctseg.thresholding import Threshold
from ctseg.transforms import RemoveSmallPiecesd

RULES = [name for name, info in find_bundles().items() if not info.needs_weights]


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> BundleInfo:
    return find_bundles()[request.param]


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """Voxels of 3.125 mm3: a large bar at and just below the threshold, one piece of 64 and one of 63 voxels."""
    ct = np.full((40, 36, 20), 40, np.int16)
    ct[:4] = -1000
    ct[6:30, 6:12, 2:18] = 226
    ct[6:30, 11, 2:18] = 225
    ct[20:24, 20:24, 4:8] = 900
    ct[30:34, 28:32, 12:16] = 3000
    ct[30, 28, 12] = 0
    return write_nifti(tmp_path / "ct.nii.gz", ct, oblique_affine(spacing=(1.0, 1.25, 2.5)))


def test_status_is_its_own_and_honest(rule: BundleInfo) -> None:
    assert (rule.status, rule.ready, rule.trained, rule.weights) == ("no weights needed", True, False, None)
    assert verify_weights(rule) is None
    assert rule.metadata["ctseg"]["weights"] is None
    assert not (rule.path / "configs" / "train.json").exists()
    config = (rule.path / "configs" / "inference.json").read_text()
    assert "model.pt" not in config and "LoadWeights" not in config


def test_a_bundle_that_needs_weights_is_not_ready_without_and_nonsense_is_broken(tmp_path: Path) -> None:
    assert not get_bundle(make_bundle(tmp_path, "a", weights=None)).ready
    assert get_bundle(make_bundle(tmp_path, "b")).ready
    for name, block in {"c": {"needs_weights": "no"}, "d": {"needs_weights": False}}.items():
        with pytest.raises(BundleError, match=f"bundle {name} is broken.*(needs_weights 'no'|says that it needs none)"):
            get_bundle(make_bundle(tmp_path, name, **block))  # d names weights all the same
    lonely = make_bundle(tmp_path, "e", weights=None, needs_weights=False)
    (lonely / "models").mkdir()
    (lonely / "models" / "model.pt").write_bytes(b"put there by mistake")
    assert (get_bundle(lonely).status, get_bundle(lonely).weights) == ("no weights needed", None)


def test_voxels_are_those_of_the_threshold_without_small_pieces(rule: BundleInfo, skeleton: Path) -> None:
    task = json.loads((rule.path / "configs" / "inference.json").read_text())
    assert task["network_def"]["lower"] == 226
    prediction = Predictor(rule, device="cpu").predict(skeleton)
    ct = np.asarray(nibabel.load(skeleton).dataobj)
    pieces, count = label(ct >= 226)
    assert count == 3
    expected = np.zeros(ct.shape, np.uint8)
    for number, box in enumerate(find_objects(pieces), start=1):
        size = int((pieces[box] == number).sum())
        if size * 3.125 >= 200.0:  # 0.2 ml are 64 voxels exactly
            expected[pieces == number] = 1
    assert expected.sum() == 24 * 5 * 16 + 64
    np.testing.assert_array_equal(prediction.label_map, expected)


def test_the_bundle_run_gives_the_same_voxels(rule: BundleInfo, skeleton: Path, tmp_path: Path) -> None:
    config = rule.path / "configs" / "inference.json"
    ConfigWorkflow(
        config_file=str(config), workflow_type="infer", logging_file=False,
        image=str(skeleton), output_dir=str(tmp_path), device="cpu",
    ).run()  # fmt: skip
    mask = nibabel.load(tmp_path / "ct" / "mask.nii.gz")
    assert mask.affine.tobytes() == nibabel.load(skeleton).affine.tobytes()
    np.testing.assert_array_equal(np.asarray(mask.dataobj), Predictor(rule, device="cpu").predict(skeleton).label_map)


def test_another_threshold_task_costs_its_file_only(root: Path, tmp_path: Path) -> None:
    text = (root / "configs" / "tasks" / "bone_ct.yaml").read_text()
    task = tmp_path / "calcium_ct.yaml"
    task.write_text(text.replace("[226, null]", "[130, 600]").replace("name: bone", "name: calcium"))
    files = build_bundle(task, root / "configs" / "base")
    assert sorted(files) == ["LICENSE", "configs/inference.json", "configs/logging.conf", "configs/metadata.json"]
    assert json.loads(files["configs/inference.json"])["network_def"] == {
        "_target_": "ctseg.thresholding.Threshold", "lower": 130, "upper": 600,
    }  # fmt: skip
    task.write_text(text.replace("min_ml", "max_ml"))
    with pytest.raises(ConfigError, match="no value for 'min_ml'"):
        build_bundle(task, root / "configs" / "base")


def test_limits_are_included_and_checked() -> None:
    image = torch.tensor([[225.9, 226.0, 400.0, 400.1, float("nan")]])
    assert Threshold(226, 400)(image).tolist() == [[-1, 1, 1, -1, -1]]
    assert Threshold(226)(image).tolist() == [[-1, 1, 1, 1, -1]]
    assert list(Threshold(226).state_dict()) == []
    for limits in ((400, 226), (float("nan"), None)):
        with pytest.raises(ConfigError, match="the lower one first"):
            Threshold(*limits)


def test_small_pieces_go_by_volume_and_label_by_label() -> None:
    labels = torch.zeros((1, 12, 12, 12), dtype=torch.uint8)
    labels[0, 1:3, 1:3, 1:3] = 5  # 8 voxels
    labels[0, 3:5, 1:3, 1:3] = 2  # 8 more of another label, touching
    labels[0, 6:9, 6:9, 6:9] = 5  # 27 voxels
    labels[0, 9, 9, 9] = 5  # touches by a corner only
    affine = torch.as_tensor([[0.0, -2.0, 0, 5], [3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])  # 30 mm3
    item = {"pred": MetaTensor(labels, affine=affine), "other": 1}
    kept = RemoveSmallPiecesd("pred", min_ml=0.24)(item)["pred"]
    assert torch.equal(kept.affine, item["pred"].affine) and kept.dtype == torch.uint8
    expected = labels[0].clone()
    expected[9, 9, 9] = 0
    assert torch.equal(kept.as_tensor()[0], expected)
    kept = RemoveSmallPiecesd("pred", min_ml=0.2401)(item)["pred"]
    assert (int(kept.sum()), int(kept[0, 7, 7, 7])) == (27 * 5, 5)
    assert labels.count_nonzero() == 44  # the input is left alone
    with pytest.raises(GeometryError, match="lost its place"):
        RemoveSmallPiecesd("pred", min_ml=0.1)({"pred": labels})
    with pytest.raises(ConfigError, match="expected 0 or more"):
        RemoveSmallPiecesd("pred", min_ml=-1)
