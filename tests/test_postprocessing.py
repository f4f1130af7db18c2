"""Activation, thresholds and clean-up by configuration, organ by organ, against scipy and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from helpers_phantoms import oblique_affine, reoriented, write_nifti
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from scipy import ndimage

from ctseg.building import build_bundle
from ctseg.errors import ConfigError, GeometryError
from ctseg.transforms import CleanUpd, ToLabelMapd
from ctseg.transforms.cleaning import fill_holes

SPACING = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml
CODES = {"liver": 7, "gallbladder": 3}


def cleaned(labels: np.ndarray, affine: np.ndarray | None = None, **rules: dict[str, Any]) -> np.ndarray:
    place = oblique_affine(spacing=SPACING) if affine is None else affine
    tensor = MetaTensor(torch.from_numpy(labels[None]), affine=place, meta={"patient": "p"})
    result = CleanUpd("pred", codes=CODES, rules=rules)({"pred": tensor})["pred"]
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, tensor.affine)
    assert result.dtype == tensor.dtype and result.meta["patient"] == "p"
    return result[0].numpy()


def noise(seed: int = 0) -> np.ndarray:
    """Blobs of two organs with holes, pieces and specks."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 22, 14)), 1.0)
    labels = np.zeros(smooth.shape, np.uint8)
    labels[smooth > 0.08], labels[smooth < -0.12] = 7, 3
    return labels


def test_without_rules_nothing_changes() -> None:
    labels = noise()
    assert np.array_equal(cleaned(labels), labels)
    assert np.array_equal(cleaned(labels, liver={}), labels)
    assert not cleaned(np.zeros((5, 6, 7), np.uint8), liver={"keep": "core", "fill_holes": "3d"}).any()


def test_the_largest_piece_in_3d_of_one_organ_and_the_other_left_alone() -> None:
    labels = noise()
    pieces, _ = ndimage.label(labels == 7)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    kept = cleaned(labels, liver={"keep": "largest"})
    assert np.array_equal(kept == 7, largest) and largest.sum() < (labels == 7).sum()
    assert np.array_equal(kept == 3, labels == 3)


def test_small_pieces_by_millilitres_of_each_organ() -> None:
    labels = noise()
    kept = cleaned(labels, liver={"min_ml": 0.5}, gallbladder={"min_ml": 0.1})
    for code, voxels in ((7, 25), (3, 5)):
        pieces, count = ndimage.label(labels == code)
        sizes = ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, count + 1))
        expected = np.isin(pieces, 1 + np.flatnonzero(sizes >= voxels))
        assert np.array_equal(kept == code, expected)
        assert 0 < expected.sum() < (labels == code).sum()


@pytest.mark.parametrize("how", ["3d", "axial"])
def test_holes_as_scipy_fills_them_on_the_whole_grid_and_only_background(how: str) -> None:
    labels = noise()
    labels[2:9, 2:9, 2:9], labels[3:5, 4, 4], labels[6, 6, 6] = 7, 0, 3
    organ = labels == 7
    whole = (
        ndimage.binary_fill_holes(organ)
        if how == "3d"
        else np.stack([ndimage.binary_fill_holes(organ[:, :, k]) for k in range(organ.shape[2])], axis=2)
    )
    kept = cleaned(labels, liver={"fill_holes": how})
    assert np.array_equal(kept == 7, organ | (whole & (labels == 0)))
    assert np.array_equal(kept == 3, labels == 3), "an organ inside a hole stays"
    assert (whole & (labels == 0) & ~organ).any() and (whole & (labels == 3)).any()


def test_a_tunnel_is_a_hole_of_its_slices_and_not_in_3d() -> None:
    labels = np.zeros((12, 12, 6), np.uint8)
    labels[2:10, 2:10] = 7
    labels[5:7, 4:6] = 0  # open at both ends
    assert np.array_equal(cleaned(labels, liver={"fill_holes": "3d"}), labels)
    assert (cleaned(labels, liver={"fill_holes": "axial"})[2:10, 2:10] == 7).all()


@pytest.mark.parametrize("code", ["LPS", "PSR", "SAL"])
def test_axial_is_axial_however_the_axes_are_stored(code: str) -> None:
    labels = np.zeros((12, 14, 6), np.uint8)
    labels[2:10, 2:10, 1:5] = 7
    labels[5:7, 4:6, 1:5] = 0
    stored, affine = reoriented(labels, oblique_affine(spacing=SPACING), code)
    kept = cleaned(np.ascontiguousarray(stored), affine, liver={"fill_holes": "axial"})
    assert (kept == 7).sum() == 8 * 8 * 4


def test_the_order_is_pieces_holes_volume() -> None:
    """A shell of 56 + 6 voxels closes round a hole of 2: with it 64 voxels, 1.28 ml, are there."""
    labels = np.zeros((20, 12, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 7
    labels[3:5, 3, 3] = 0
    labels[10, 10, 3] = 7
    kept = cleaned(labels, liver={"keep": "largest", "fill_holes": "3d", "min_ml": 1.28})
    assert (kept == 7).sum() == 64
    assert not cleaned(labels, liver={"keep": "largest", "min_ml": 1.28}).any()
    assert not cleaned(labels, liver={"keep": "largest", "fill_holes": "3d", "min_ml": 1.29}).any()


def test_two_organs_claim_one_hole_and_the_first_has_it() -> None:
    labels = np.zeros((9, 9, 5), np.uint8)
    labels[1:8, 1:8], labels[2:7, 2:7] = 3, 7
    labels[3:6, 3:6] = 0  # a hole of the liver, which lies in a hole of the gallbladder
    rules = {organ: {"fill_holes": "axial"} for organ in CODES}
    assert (cleaned(labels, **rules)[3:6, 3:6] == 7).all()
    assert (cleaned(labels, gallbladder={"fill_holes": "axial"})[3:6, 3:6] == 3).all()


def test_fill_holes_leaves_its_input_alone() -> None:
    mask = np.ones((5, 5, 5), bool)
    mask[2, 2, 2] = False
    assert fill_holes(mask).all() and not mask[2, 2, 2]
    empty = np.zeros((3, 3, 3), bool)
    assert not fill_holes(empty, 2).any()


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"spleen": {}}, "names spleen, which the bundle does not have: expected one of liver, gallbladder"),
        ({"liver": {"smallest": 1}}, "The clean-up of liver has no option smallest: expected one of keep, radius_mm"),
        ({"liver": {"keep": "biggest"}}, "keep 'biggest' is not known: expected one of all, largest, core"),
        ({"liver": {"fill_holes": "2d"}}, "fill_holes '2d' is not known: expected one of none, 3d, axial"),
        ({"liver": {"min_ml": -1}}, "min_ml is -1: expected a number, 0 or more"),
        ({"liver": {"min_ml": "1 ml"}}, "min_ml is '1 ml'"),
        ({"liver": {"radius_mm": float("nan")}}, "radius_mm is nan"),
    ],
)
def test_rules_that_cannot_work_are_refused(rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CleanUpd("pred", codes=CODES, rules=rules)


def test_a_lost_place_is_noticed() -> None:
    with pytest.raises(GeometryError, match="has lost its place"):
        CleanUpd("pred", codes=CODES, rules={})({"pred": torch.zeros(1, 4, 4, 4)})


def to_map(output: list[list[float]], **options: Any) -> list[int]:
    tensor = MetaTensor(torch.tensor(output), affine=torch.eye(4))
    result = ToLabelMapd("pred", **options)({"pred": tensor})["pred"]
    assert isinstance(result, MetaTensor) and result.dtype == torch.uint8
    return result[0].tolist()


def test_a_threshold_of_probability_is_one_of_logits() -> None:
    logits = [[-1.4, -1.38, -0.1, 0.0, 0.1]]  # the sigmoid of -1.3863 is 0.2
    assert to_map(logits, codes=[7]) == [0, 0, 0, 0, 7]
    assert to_map(logits, codes=[7], thresholds=[0.2]) == [0, 7, 7, 7, 7]
    assert to_map([[0.2, 0.5, 0.7]], codes=[7], activation="none") == [0, 0, 7]
    assert to_map([[0.2, 0.5, 0.7]], codes=[7], activation="none", thresholds=[0.1]) == [7, 7, 7]


def test_certainty_is_how_far_the_logit_is_from_another_label() -> None:
    """In steps of 1/32, from 1/32 to 255/32: of one logit its size, of several the lead over the next."""

    def certainty(logits: list[list[float]], **options: Any) -> list[int]:
        item = ToLabelMapd("pred", certainty="sure", **options)({"pred": torch.tensor(logits)})
        assert item["sure"].dtype == torch.uint8
        return item["sure"][0].tolist()

    assert certainty([[0.0, 0.5, -0.5, 2.0, -90.0]], codes=[1]) == [1, 16, 16, 64, 255]
    # A threshold of 0.731 is a logit of 1: 2 is 1 above it, -1 is 2 below.
    assert certainty([[2.0, -1.0]], codes=[1], thresholds=[1 / (1 + np.exp(-1))]) == [32, 64]
    assert certainty([[3.0, 0.0], [1.0, 0.25]], codes=[1], activation="softmax") == [64, 8]
    assert certainty([[3.0, 0.0, 9.0], [1.0, 2.0, 0.0], [2.5, 1.5, 0.0]], codes=[1, 2]) == [16, 16, 255]
    assert certainty([[-1.0, 2.0], [-2.0, 0.5]], codes=[1, 2], activation="sigmoid") == [32, 64]
    assert certainty([[3.0], [1.0], [1.0]], codes=[1, 2], thresholds=[0.3, None]) == [32]  # all count alike
    assert "sure" not in ToLabelMapd("pred", codes=[1])({"pred": torch.zeros(1, 2)})


def test_softmax_with_a_threshold_for_one_organ() -> None:
    """Probabilities of background, liver, gallbladder in four voxels."""
    probability = np.array([[0.6, 0.1, 0.3], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.4, 0.5]]).T
    logits = np.log(probability).tolist()
    assert to_map(logits, codes=[7, 3]) == [0, 0, 7, 3]
    assert to_map(logits, codes=[7, 3], thresholds=[None, 0.25]) == [3, 0, 7, 3]
    assert to_map(logits, codes=[7, 3], thresholds=[0.45, 0.1]) == [3, 3, 7, 3]
    assert to_map(logits, codes=[7, 3], thresholds=[0.25, None]) == [0, 7, 7, 3]


def test_sigmoids_of_several_organs_compete() -> None:
    logits = [[1.0, 2.0, -1.0, -1.0], [2.0, 1.0, -2.0, 0.5]]
    assert to_map(logits, codes=[7, 3], activation="sigmoid") == [3, 7, 0, 3]
    assert to_map(logits, codes=[7, 3], activation="sigmoid", thresholds=[0.2, 0.95]) == [7, 7, 7, 7]
    assert to_map(logits, codes=[7, 3], activation="sigmoid", thresholds=[0.8, 0.6]) == [3, 7, 0, 3]
    assert to_map([[0.0, -2.0], [0.1, 1.0]], codes=[7], activation="softmax") == [7, 7]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": "relu"}, "activation 'relu' is not known: expected one of softmax, sigmoid, none"),
        ({"thresholds": [1.0]}, "threshold 1.0 cannot work: expected a probability between 0 and 1"),
        ({"thresholds": [0.5, 0.5]}, "2 thresholds for 1 labels"),
    ],
)
def test_activations_and_thresholds_that_cannot_work_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ToLabelMapd("pred", codes=[1], **options)


def test_a_task_says_it_for_its_organ_and_the_command_line_overrules_it(root: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((root / "tests" / "tasks" / "phantom_volume.yaml").read_text())
    task["labels"][1].update(threshold=0.3, clean_up={"keep": "all", "fill_holes": "axial", "min_ml": 0.5})
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    files = build_bundle(tmp_path / "task.yaml", root / "configs" / "base")
    config = json.loads(files["configs/inference.json"])
    assert config["thresholds"] == {"block": None, "bar": 0.3}
    assert config["clean_up"]["block"]["keep"] == "core"  # of the kind
    assert config["clean_up"]["bar"] == {
        "keep": "all", "radius_mm": 6.0, "reach_mm": 15.0, "fill_holes": "axial", "min_ml": 0.5
    }  # fmt: skip
    labels = json.loads(files["configs/metadata.json"])["ctseg"]["labels"]
    assert all(set(label) == {"name", "code", "color", "snomed"} for label in labels)

    bundle = tmp_path / "bundle"
    for name, text in files.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(text)
    ct = write_nifti(tmp_path / "ct.nii.gz", np.full((16, 16, 8), 40, np.int16), oblique_affine())

    def flow(**overrides: Any) -> ConfigWorkflow:
        made = ConfigWorkflow(
            config_file=str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False,
            image=str(ct), device="cpu", **overrides,
        )  # fmt: skip
        made.initialize()
        return made

    for overrides, expected in (({}, 0.5), ({"clean_up#bar#min_ml": 2.0}, 2.0)):
        steps = flow(**overrides).parser.get_parsed_content("postprocessing").transforms
        (step,) = (step for step in steps if isinstance(step, CleanUpd))
        assert step.rules["bar"].min_ml == expected
    with pytest.raises(SystemExit, match="ctseg: The clean-up's keep 'one' is not known"):
        flow(**{"clean_up#block#keep": "one"}).run()


def test_a_run_cleans_up_and_keeps_the_grid(root: Path, tmp_path: Path) -> None:
    """A threshold in place of the network finds a block and a speck; the speck goes, the mask lies on the CT's grid."""
    files = build_bundle(root / "tests" / "tasks" / "phantom_volume.yaml", root / "configs" / "base")
    config = json.loads(files["configs/inference.json"])
    config["network_def"] = {"_target_": "ctseg.thresholding.Threshold", "lower": 0.5, "upper": None}
    config["handlers"] = [{"_target_": "StatsHandler", "iteration_log": False}]
    config["postprocessing"]["transforms"][0]["codes"], config["thresholds"] = [1], {"block": None}
    config["spacing"], config["patch"] = [1.0, 1.25, 2.5], [16, 16, 8]
    path = tmp_path / "bundle" / "configs" / "inference.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config))
    ct = np.full((24, 20, 12), -900, np.int16)
    ct[4:14, 5:15, 2:10] = 200
    ct[8:10, 8:10, 5] = -900  # a hole
    ct[20, 17, 5] = 200  # a speck
    file = write_nifti(tmp_path / "ct.nii.gz", ct, oblique_affine())
    overrides = {"image": str(file), "output_dir": str(tmp_path), "device": "cpu", "clean_up#block#keep": "largest"}
    overrides["clean_up#block#fill_holes"] = "3d"
    ConfigWorkflow(config_file=str(path), workflow_type="infer", logging_file=False, **overrides).run()
    mask = nibabel.load(tmp_path / "ct" / "mask.nii.gz")
    expected = np.zeros(ct.shape, np.uint8)
    expected[4:14, 5:15, 2:10] = 1
    assert np.array_equal(np.asarray(mask.dataobj), expected)
    assert mask.affine.tobytes() == nibabel.load(file).affine.tobytes()
