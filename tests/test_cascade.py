"""Another organ's mask as an input channel: the same voxels whichever way a bundle is run, and at the right place."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers_cascade import ORGAN, SECOND, give_weights, phantom_ct, write_cascade, write_task
from helpers_phantoms import oblique_affine, reoriented, straight_affine, write_nifti
from monai.bundle import ConfigParser, ConfigWorkflow

from ctseg.building import build_bundle
from ctseg.cli import main
from ctseg.datalist import read_cases
from ctseg.errors import ConfigError
from ctseg.prediction import Predictor
from ctseg.reading import read_volume
from ctseg.registry import get_bundle
from ctseg.study import Predictors, Study
from ctseg.transforms import LoadLabeld, LoadVolumed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nifti(tmp_path_factory.mktemp("ct") / "ct.nii.gz", phantom_ct(), oblique_affine((4.0, 4.2, 3.0)))


@pytest.fixture(scope="module")
def mask(bundles: Path, ct: Path) -> np.ndarray:
    """What the dependent bundle finds, by its own predictor."""
    found = Predictor(get_bundle(SECOND, bundles), "cpu").predict(ct).label_map
    assert 100 < np.count_nonzero(found == 7) < found.size - 100
    return found


def saved(folder: Path) -> np.ndarray:
    return np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj)


def test_a_run_of_the_bundle_gives_the_same_voxels(bundles: Path, ct: Path, mask: np.ndarray, tmp_path: Path) -> None:
    ConfigWorkflow(
        config_file=str(bundles / SECOND / "configs" / "inference.json"), workflow_type="infer", logging_file=False,
        image=str(ct), output_dir=str(tmp_path), device="cpu",
    ).run()  # fmt: skip
    assert np.array_equal(saved(tmp_path / "ct"), mask)


def test_the_command_line_gives_the_same_voxels(bundles: Path, ct: Path, mask: np.ndarray, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--output", "nifti,json", "--task", str(bundles / SECOND)]
    assert main(["segment", str(ct), "-o", str(tmp_path / "out"), *options]) == 0
    assert np.array_equal(saved(tmp_path / "out"), mask)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert ORGAN in report["seconds"]
    assert report["slices"] == {"run": 14, "of": 14, "gate": None}


def test_the_server_gives_the_same_voxels(bundles: Path, ct: Path, mask: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("monailabel", reason="MONAI Label is not installed")
    from helpers_app import sibling

    task = sibling("app_infer").SegmentationTask(get_bundle(SECOND, bundles), tmp_path, threading.Lock())
    file, answer = task({"image": str(ct), "device": "cpu"})
    assert np.array_equal(np.asarray(nibabel.load(file).dataobj), mask)
    assert answer["slices"] == {"run": 14, "of": 14, "gate": None}


def test_a_study_gives_the_same_voxels_and_runs_each_bundle_once(
    bundles: Path, ct: Path, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    answer = Predictor.answer

    def counting(self: Predictor, *args: Any, **kwargs: Any) -> Any:
        ran.append(self.bundle.name)
        return answer(self, *args, **kwargs)

    monkeypatch.setattr(Predictor, "answer", counting)
    study = Study(ct, Predictors("cpu", bundles))
    second = study.prediction(SECOND)
    assert np.array_equal(second.label_map, mask)
    assert second.seconds[ORGAN] > 0
    assert np.array_equal(
        study.prediction(ORGAN).label_map, Predictor(get_bundle(ORGAN, bundles)).predict(ct).label_map
    )
    assert study.prediction(SECOND) is second
    assert ran == [SECOND, ORGAN, ORGAN]  # the last one is the comparison


def test_the_other_organ_changes_the_answer(bundles: Path, ct: Path, mask: np.ndarray, tmp_path: Path) -> None:
    other = write_cascade(tmp_path)
    give_weights(other / ORGAN, seed=5)
    found = Predictor(get_bundle(SECOND, other), "cpu").predict(ct).label_map
    assert not np.array_equal(found, mask)


def prepared(bundle: Path, ct: Path, study: Study | None = None) -> torch.Tensor:
    """The image as the network gets it."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    item = {"image": str(ct)} if study is None else {"image": str(ct), "study": study}
    return parser.get_parsed_content("preprocessing")(item)["image"]


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR", "SAR", "IRP"])
@pytest.mark.parametrize("spacing", [(4.0, 4.2, 1.3), (4.0, 4.2, 8.0)], ids=["thin", "thick"])
def test_the_mask_lies_where_the_organ_is(
    bundles: Path, tmp_path: Path, code: str, spacing: tuple[float, float, float]
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    array, affine = reoriented(phantom_ct(), oblique_affine(spacing), code)
    ct = write_nifti(tmp_path / "ct.nii.gz", array, affine)
    study = Study(ct, Predictors("cpu", bundles))
    image = prepared(bundles / SECOND, ct, study)
    organ = study.prediction(ORGAN).label_map == 3
    assert image.shape[0] == 2 and organ.any() and not organ.all()

    def as_itk(array: np.ndarray, affine: np.ndarray) -> Any:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        size = np.linalg.norm(lps[:3, :3], axis=0)
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T.astype(np.uint8)))
        image.SetSpacing(size.tolist())
        image.SetDirection((lps[:3, :3] / size).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        return image

    grid = as_itk(np.zeros(image.shape[1:]), np.asarray(image.affine))
    expected = sitk.Resample(as_itk(organ, affine), grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    found = np.asarray(image[1])
    assert set(np.unique(found)) == {0.0, 1.0}
    # Over one field of view some new centres lie on the border of two voxels, and either may be taken there.
    index = np.stack(np.meshgrid(*(np.arange(size) for size in found.shape), indexing="ij"), axis=-1)
    matrix = np.linalg.inv(affine) @ np.asarray(image.affine)
    places = index @ matrix[:3, :3].T + matrix[:3, 3]
    clear = (np.abs(places - np.floor(places) - 0.5) > 1e-4).all(axis=-1)
    assert clear.mean() > 0.8
    wrong = np.count_nonzero((found != sitk.GetArrayFromImage(expected).T) & clear)
    # Beyond the image's border ours holds its outermost half voxel, as ITK does.
    assert wrong <= 0.002 * found.size, f"{wrong} of {found.size} voxels differ"


def training_item(bundle: Path, folder: Path, **overrides: Any) -> tuple[Any, dict[str, Any]]:
    """The parsed training configuration of a bundle, and one case whose label map has organ (5) and second (9)."""
    array = phantom_ct()
    label = np.zeros(array.shape, np.uint8)
    label[4:14, 8:20, 3:12], label[15:24, 6:11, 2:8] = 5, 9
    affine = straight_affine((4.0, 4.2, 6.0))
    paths = {
        key: str(write_nifti(folder / f"{key}.nii.gz", a, affine)) for key, a in (("image", array), ("label", label))
    }
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    for name, value in {"bundle_root": str(bundle), "device": "cpu", **overrides}.items():
        parser[name] = value
    return parser, {**paths, "patient": "p", "mask_values": {"5": "organ", "9": "second"}}


def test_training_takes_the_mask_from_the_label_file(bundles: Path, tmp_path: Path) -> None:
    parser, case = training_item(bundles / SECOND, tmp_path)
    item = parser.get_parsed_content("validate#preprocessing")(case)
    image, label = item["image"], item["label"]
    assert "study" not in item and "organs" not in item
    assert image.shape[0] == 2 and label.shape == (1, *image.shape[1:])
    source = read_volume(case["label"], modality="label").array
    voxel = (4.0 * 4.2) / (3.07 * 3.07)  # in the slice only: slices of 6 mm are taken as they are
    assert image[1].sum() == pytest.approx((source == 5).sum() * voxel, rel=0.08)
    assert label.sum() == pytest.approx((source == 9).sum() * voxel, rel=0.08)
    assert not (image[1].bool() & label[0].bool()).any()
    assert image[0].min() >= 0 and image[0].max() <= 1 and len(torch.unique(image[0])) > 50


def test_augmentation_moves_mask_and_label_alike_and_leaves_the_mask_a_mask(bundles: Path, tmp_path: Path) -> None:
    # The organ to find is its own input here, so that both must stay the same.
    parser, case = training_item(bundles / SECOND, tmp_path, input_organs=["second"], spacing=[4.0, 4.2, 3.0])
    steps = parser.get_parsed_content("train#preprocessing")
    moved = 0
    for seed in range(6):
        steps.set_random_state(seed)
        item = steps(dict(case))
        assert item["image"].shape == (2, 32, 32)
        assert set(torch.unique(item["image"][1]).tolist()) <= {0.0, 1.0}
        assert torch.equal(item["image"][1], item["label"][0].float())
        moved += int(item["label"].any())
    assert moved


def test_without_input_organs_there_is_one_channel(bundles: Path, tmp_path: Path) -> None:
    parser, case = training_item(bundles / SECOND, tmp_path, input_organs=[])
    assert parser.get_parsed_content("validate#preprocessing")(dict(case))["image"].shape[0] == 1
    assert parser.get_parsed_content("train#preprocessing")(dict(case))["image"].shape == (1, 32, 32)
    assert parser.get_parsed_content("network_def").model[0].conv.in_channels == 1


def test_a_label_file_without_the_organ_is_a_sentence(bundles: Path, tmp_path: Path) -> None:
    parser, case = training_item(bundles / SECOND, tmp_path)
    steps = parser.get_parsed_content("validate#preprocessing")
    for values, said in (({"9": "second"}, "mask_values name second"), (None, "mask_values name no names")):
        with pytest.raises(RuntimeError) as refused:
            steps({**case, "mask_values": values})
        assert isinstance(refused.value.__cause__, ConfigError)
        assert "takes 'organ' as an input channel" in str(refused.value.__cause__)
        assert said in str(refused.value.__cause__)


def test_either_takes_the_label_where_it_names_the_organ(bundles: Path, ct: Path, tmp_path: Path) -> None:
    parser, case = training_item(bundles / SECOND, tmp_path, organs_from="either")
    steps = parser.get_parsed_content("validate#preprocessing")
    drawn = steps(dict(case))["image"][1]
    strict, _ = training_item(bundles / SECOND, tmp_path)
    assert torch.equal(drawn, strict.get_parsed_content("validate#preprocessing")(dict(case))["image"][1])
    found = steps({**case, "mask_values": {"9": "second"}})["image"]
    assert torch.equal(found.as_tensor(), prepared(bundles / SECOND, Path(case["image"])).as_tensor())
    with pytest.raises(ConfigError, match=r"organs_from is 'labels': expected one of label, bundle, either"):
        LoadLabeld("label", ["second"], organs=["organ"], organs_from="labels")


def test_a_label_volume_of_the_callers_is_not_written_over() -> None:
    from helpers_prediction import make_labels, make_volume

    volume = dataclasses.replace(make_volume(), array=make_labels().astype(np.int16) * 9)
    item = LoadLabeld("label", ["a"])({"label": volume, "mask_values": {"9": "a"}})
    assert item["label"].max() == 1 and volume.array.max() == 9


def test_preparing_a_collection_joins_the_input_organs(tmp_path: Path) -> None:
    from helpers_collections import GALLBLADDER, LIVER, write_totalsegmentator

    source = write_totalsegmentator(tmp_path / "ts")
    task = str(ROOT / "bundles" / "gallbladder_ct_segmentation")
    assert main(["prepare", str(source), "-o", str(tmp_path / "data"), "--task", task]) == 0
    report = json.loads((tmp_path / "data" / "prepare-report.json").read_text())
    assert all({"gallbladder", "liver"} == set(case["voxels"]) for case in report["cases"])
    case = read_cases(tmp_path / "data")[0]
    item = LoadLabeld("label", ["gallbladder"], organs=["liver"])(LoadVolumed("image")(case))
    assert (int(item["label"].sum()), int(item["organs"].sum())) == (GALLBLADDER + 1, LIVER - 1)  # the first one wins


def test_evaluation_takes_the_mask_as_in_use(bundles: Path, tmp_path: Path) -> None:
    parser, case = training_item(bundles / SECOND, tmp_path)
    evaluate = json.loads((bundles / SECOND / "configs" / "evaluate.json").read_text())
    assert evaluate["organs_from"] == "bundle"
    parser["organs_from"] = evaluate["organs_from"]
    image = parser.get_parsed_content("validate#preprocessing")(case)["image"]
    used = prepared(bundles / SECOND, Path(case["image"]))
    assert torch.equal(image.as_tensor(), used.as_tensor())


def test_an_organ_laid_over_without_a_bundle_is_a_sentence(bundles: Path, ct: Path) -> None:
    predictor = Predictor(get_bundle(SECOND, bundles), "cpu", {"input_organs": ["spleen"]})
    with pytest.raises(ConfigError, match=r"'spleen' has no bundle .* organ_bundles, which names organ; add it there"):
        predictor.predict(ct)


def test_metadata_names_the_channels_and_what_is_needed(bundles: Path, tmp_path: Path) -> None:
    info = get_bundle(SECOND, bundles)
    image = info.metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["channel_def"]) == (2, {"0": "image", "1": "organ mask"})
    assert info.depends_on == ({"bundle": ORGAN, "as": "input_organ", "organ": "organ"},)
    assert info.input_organs == ("organ",)
    with pytest.raises(ConfigError, match=r"input organs organ but names no bundle .*organ_bundles"):
        write_task(tmp_path, "second_ct", organ_bundles={})
    gated = write_task(tmp_path, "second_ct", gate="second_ct_classification")
    assert get_bundle(gated).depends_on[1] == {"bundle": "second_ct_classification", "as": "gate"}


def test_a_part_asked_of_a_workflow_knows_its_bundle(bundles: Path) -> None:
    flows = [
        ConfigWorkflow(str(bundles / name / "configs" / "inference.json"), workflow_type="infer", logging_file=False)
        for name in (ORGAN, SECOND)
    ]
    one, other = flows
    found = [flow.parser.get_parsed_content("preprocessing").transforms[-3].bundle_root for flow in (other, one)]
    assert found == [(bundles / name).resolve() for name in (SECOND, ORGAN)]


def test_a_volume_network_takes_organs_too(tmp_path: Path) -> None:
    import yaml

    task = yaml.safe_load((ROOT / "tests" / "tasks" / "phantom_volume.yaml").read_text())
    task |= {"input_organs": ["organ"], "organ_bundles": {"organ": ORGAN}}
    task["network"]["in_channels"] = "$1 + len(@input_organs)"
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    folder = tmp_path / "bundle"
    for name, text in build_bundle(tmp_path / "task.yaml", ROOT / "configs" / "base").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    parser, case = training_item(folder, tmp_path)
    case["mask_values"] = {"5": "organ", "9": "block"}
    crops = parser.get_parsed_content("train#preprocessing")(case)
    assert [tuple(crop["image"].shape) for crop in crops] == [(2, 32, 32, 32)] * 2
    assert all(set(torch.unique(crop["image"][1]).tolist()) <= {0.0, 1.0} for crop in crops)
    assert parser.get_parsed_content("network_def")(crops[0]["image"][None]).shape == (1, 3, 32, 32, 32)
