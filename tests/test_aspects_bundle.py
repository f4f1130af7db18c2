"""The bundles of heads with a tiny untrained network: whatever it says, its sides are right and its place is kept."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers_heads import AFFINE, SHAPE, head, rotation
from helpers_phantoms import write_dicom, write_nifti
from monai.bundle import ConfigParser

from ctseg.building import build_bundle, load_yaml
from ctseg.bundlecopy import copy_with_weights
from ctseg.cli import main
from ctseg.commands.join_planes import join_planes
from ctseg.errors import BundleError, ConfigError, OutputError
from ctseg.files import write_beside
from ctseg.registry import BundleInfo, get_bundle

TINY_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 11, "features": [4, 4, 4, 4, 4, 4]}
TINY_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 11, "channels": [4, 8], "strides": [2]}
CHANGES = {
    "aspects_ct": {
        "spacing": [6.0] * 3,
        "patch": [24, 32, 24],
        "network": {"_target_": "monai.networks.nets.UNet", **TINY_3D},
    },
    "aspects_plane_ct": {
        "spacing": [6.0] * 3,
        "patch": [32, 32],
        "network": {"_target_": "monai.networks.nets.BasicUNet", **TINY_2D},
    },
}


def tiny(root: Path, folder: Path, task: str) -> BundleInfo:
    """A shipped task with a tiny network at 6 mm."""
    values = load_yaml(root / "configs" / "tasks" / f"{task}.yaml")
    changes = CHANGES[task]
    values |= {"spacing": changes["spacing"], "patch": changes["patch"], "weights": None}
    values["network"]["network"] = changes["network"]
    file = folder / f"{task}.yaml"
    file.write_text(yaml.safe_dump(values))
    for name, text in build_bundle(file, root / "configs" / "base").items():
        write_beside(folder / task / name, text.encode())
    return get_bundle(folder / task)


def weights_of(bundle: BundleInfo, path: Path, seed: int) -> Path:
    """Random weights that name a region nearly everywhere."""
    torch.manual_seed(seed)
    parser = ConfigParser()
    parser.read_config(bundle.path / "configs" / "inference.json")
    state = parser.get_parsed_content("network_def").state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def plane_bundle(root: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return tiny(root, tmp_path_factory.mktemp("plane"), "aspects_plane_ct")


@pytest.fixture(scope="module")
def volume_bundle(root: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return tiny(root, tmp_path_factory.mktemp("volume"), "aspects_ct")


@pytest.fixture(scope="module")
def joined(plane_bundle: BundleInfo, volume_bundle: BundleInfo, tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    folder = tmp_path_factory.mktemp("joined")
    planes = ("axial", "coronal", "sagittal")
    weights = {plane: weights_of(plane_bundle, folder / plane / "model.pt", n) for n, plane in enumerate(planes)}
    made: BundleInfo = join_planes(weights, plane_bundle, volume_bundle, folder / "planes", "mean")
    return made


def wrong_side(mask: np.ndarray, affine: np.ndarray, angles: tuple[float, float, float]) -> tuple[int, int]:
    """Labelled voxels, and those on the wrong side of the head's true mid-plane (1 voxel of 6 mm to spare)."""
    index = np.argwhere(mask > 0)
    world = nib.affines.apply_affine(affine, index) - np.array((4.0, 3.0, 2.0))
    right = world @ (rotation(*angles) @ [1, 0, 0])
    left_label = mask[mask > 0] <= 10
    return len(index), int(((left_label & (right > 6)) | (~left_label & (right < -6))).sum())


def test_the_labels_of_both_tasks_are_the_same(root: Path) -> None:
    one, other = (load_yaml(root / "configs" / "tasks" / f"{task}.yaml") for task in CHANGES)
    assert one["labels"] == other["labels"]
    names = [label["name"] for label in one["labels"]]
    assert [label["code"] for label in one["labels"]] == list(range(1, 21))
    assert all(name.endswith("_left") for name in names[:10])
    assert [name.replace("_left", "_right") for name in names[:10]] == names[10:]
    assert names[4:10] == ["m4_left", "m5_left", "m6_left", "m1_left", "m2_left", "m3_left"]


def test_a_turned_head_in_one_command(joined: BundleInfo, tmp_path: Path) -> None:
    angles = (20.0, -8.0, 10.0)
    path = write_nifti(tmp_path / "head.nii.gz", head(*angles)[0], AFFINE)
    assert (
        main(["segment", str(path), "--task", str(joined.path), "-o", str(tmp_path / "out"), "--output", "nifti"]) == 0
    )
    mask = nib.load(tmp_path / "out" / "mask.nii.gz")
    assert mask.shape == SHAPE and mask.affine == pytest.approx(AFFINE)
    labelled, wrong = wrong_side(np.asarray(mask.dataobj), AFFINE, angles)
    assert labelled > 500 and wrong == 0


def test_a_tilted_series_in_one_command(volume_bundle: BundleInfo, tmp_path: Path) -> None:
    """Sheared in DICOM by 18 degrees: the mask lies on the tilted slices, and its sides are right there."""
    from test_tilt import SHAPE as TILTED
    from test_tilt import TILT, tilted_affine

    weights = weights_of(volume_bundle, tmp_path / "w.pt", 3)
    bundle = copy_with_weights(volume_bundle, weights, tmp_path / "b", "1.0", "for a test", "none: random")

    def stated(image: object, k: int) -> None:
        image.GantryDetectorTilt = TILT  # type: ignore[attr-defined]

    affine = tilted_affine()
    angles = (12.0, 6.0, 0.0)
    series = tmp_path / "series"
    write_dicom(series, head(*angles, affine=affine, shape=TILTED, noise=0)[0], affine, edit=stated)
    assert (
        main(["segment", str(series), "--task", str(bundle.path), "-o", str(tmp_path / "out"), "--output", "nifti"])
        == 0
    )
    mask = nib.load(tmp_path / "out" / "mask.nii.gz")
    assert mask.shape == TILTED and mask.get_sform() == pytest.approx(affine, abs=1e-3)
    labelled, wrong = wrong_side(np.asarray(mask.dataobj), affine, angles)
    assert labelled > 500 and wrong == 0


def test_the_joined_bundle_is_of_its_planes(joined: BundleInfo, plane_bundle: BundleInfo, volume_bundle: BundleInfo,
                                            tmp_path: Path) -> None:  # fmt: skip
    assert joined.labels == volume_bundle.labels and joined.trained and joined.version.endswith("+planes")
    parser = ConfigParser()
    parser.read_config([joined.path / "configs" / "train.json"])
    assert parser["network_def"]["fusion"] == "mean"
    stored = torch.load(joined.path / "models" / "model.pt", weights_only=True)
    assert {name.split(".")[1] for name in stored} == {"axial", "coronal", "sagittal"}
    weights = {plane: weights_of(plane_bundle, tmp_path / plane / "model.pt", 0) for plane in ("axial", "coronal")}
    weights["sagittal"] = weights_of(volume_bundle, tmp_path / "sagittal" / "model.pt", 0)
    with pytest.raises(BundleError, match="do not fit"):
        join_planes(weights, plane_bundle, volume_bundle, tmp_path / "no", "consensus")
    assert not (tmp_path / "no").exists() and not list(tmp_path.glob("*.pt"))
    (tmp_path / "axial" / "training.json").write_text('{"plane": "coronal", "network_def": {}}')
    with pytest.raises(ConfigError, match="trained on coronal slices"):
        join_planes(weights, plane_bundle, volume_bundle, tmp_path / "no", "consensus")
    weights = {plane: weights_of(plane_bundle, tmp_path / f"{plane}2" / "model.pt", 0) for plane in weights}
    with pytest.raises(OutputError, match="is there already"):
        join_planes(weights, plane_bundle, volume_bundle, joined.path, "consensus")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_slicewise_kind_takes_a_plane(plane_bundle: BundleInfo, plane: str, tmp_path: Path) -> None:
    """Each plane's slices reach the network with square pixels of the task's size, from thick slices too."""
    parser = ConfigParser()
    parser.read_config(plane_bundle.path / "configs" / "inference.json")
    parser["plane"], parser["device"], parser["bundle_root"] = plane, "cpu", str(plane_bundle.path)
    path = write_nifti(tmp_path / "head.nii.gz", head()[0], AFFINE)
    image = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"]
    steps = np.asarray(image.affine)[:3, :3]
    # The grid keeps the field of view, so the spacing is met to within half a voxel over it.
    assert np.linalg.norm(steps, axis=0) == pytest.approx([6.0, 6.0, 6.0], rel=0.5 / 30)
    across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert np.abs(steps[:, 2]).argmax() == across
    assert image.shape[0] == 2 and image.shape[1] % 16 == image.shape[2] % 16 == 0


@pytest.mark.parametrize("name", ["aspects_ct/sides_channel", "aspects_ct/sides_none", "aspects_ct/tversky_85_15",
                                  "aspects_plane_ct/sagittal", "aspects_plane_ct/reference_coronal"])  # fmt: skip
def test_an_experiment_answers_with_the_tasks_labels(name: str, root: Path) -> None:
    task = name.partition("/")[0]
    parser = ConfigParser()
    parser.read_config(
        [
            root / "bundles" / f"{task}_segmentation" / "configs" / "train.json",
            root / "configs" / "experiments" / f"{name}.yaml",
        ]
    )
    network = parser.get_parsed_content("network_def").eval()
    size = [32, 32, 32] if task == "aspects_ct" else [32, 32]
    answer = network(torch.rand(1, 2, *size))
    assert answer.shape == (1, 21, *size)
    loss = parser.get_parsed_content("loss")
    assert loss(answer, torch.zeros(1, 1, *size)).isfinite()
    if "reference" in name:
        # 31,448,756 with their 20 outputs ("31.5 million"), and 33 for the background
        assert sum(value.numel() for value in network.parameters()) == 31_448_756 + 33
        assert (parser["plane"], parser["loss"]["alpha"], parser["loss"]["beta"]) == ("coronal", 0.8, 0.2)
