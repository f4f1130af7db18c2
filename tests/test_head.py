"""Head preparation: the brain and the mirror plane found from the image, on a phantom and on a head template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_heads import AFFINE, SHAPE, head, rotation, template, turned_affine

from ctseg.errors import ConfigError, InputError
from ctseg.heads.brain import box_of, find_brain, window_to_background
from ctseg.heads.mirror import find_mirror_plane
from ctseg.transforms import CropBraind, RestoreGridd, StraightenHeadd, WholeHounsfieldd, WindowHeadd
from ctseg.transforms.loading import to_tensor
from ctseg.volume import Volume

TURNS = [(0, 0, 0), (12, -8, 10), (-25, 15, -12), (20, 20, 5)]  # turn, tilt, nod in degrees


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def tensor(array: np.ndarray, affine: np.ndarray):  # type: ignore[no-untyped-def]
    return to_tensor(Volume(array, affine, affine, Path("head.nii.gz"), "nifti"))


@pytest.mark.parametrize("angles", TURNS)
def test_the_mirror_plane_of_a_turned_phantom(angles: tuple[float, float, float]) -> None:
    """A lesion on one side, a headrest and noise are there; measured: 0.3 degrees and 0.1 mm at worst."""
    array, _ = head(*angles)
    plane = find_mirror_plane(array, AFFINE)
    assert plane.degrees_to(rotation(*angles) @ [1, 0, 0]) < 1.0
    assert abs(np.dot(plane.normal, np.array((4.0, 3.0, 2.0)) - plane.point)) < 1.0
    assert plane.score > 0.9
    straight = plane.straightening()
    assert straight.rigid and (straight.ras[:3, :3] @ [1, 0, 0]) == pytest.approx(plane.normal)
    assert straight.ras @ [*plane.point, 1] == pytest.approx([*plane.point, 1])


@pytest.mark.parametrize("angles", [(5, 3, 0), (-30, 10, 15)])
def test_the_mirror_plane_of_a_turned_template(angles: tuple[float, float, float], shared_data: Path) -> None:
    """A mean head is more symmetric than any patient's: measured 0.1 degrees at worst."""
    array, affine = template(shared_data)
    plane = find_mirror_plane(array, turned_affine(affine, array.shape, *angles))
    assert plane.degrees_to(rotation(*angles) @ [1, 0, 0]) < 0.5


def test_an_image_without_tissue_has_no_mirror() -> None:
    assert find_mirror_plane(np.full((20, 20, 10), -1000, np.int16), AFFINE).score == 0


@pytest.mark.parametrize("angles", TURNS[2:3])
def test_the_brain_of_a_phantom(angles: tuple[float, float, float]) -> None:
    array, truth = head(*angles)
    found = find_brain(array, AFFINE)
    assert dice(found.mask, truth) > 0.98
    assert (truth & ~found.mask).sum() < 0.01 * truth.sum()
    bleed = (array > 60) & (array < 80) & truth  # at 70 HU, and within the brain
    assert (found.mask & bleed).sum() > 0.95 * bleed.sum()
    inside = np.zeros(SHAPE, bool)
    inside[box_of(found.mask, (3, 3, 2))] = True
    assert not (truth & ~inside).any()


def test_the_brain_of_the_turned_template(shared_data: Path) -> None:
    import nibabel as nib

    array, affine = template(shared_data)
    path = shared_data / "head_ct_template" / "scct_stripped.nii.gz"
    truth = np.asarray(nib.load(path).dataobj) > 1000  # what the template's makers kept, above -91 HU
    found = find_brain(array, turned_affine(affine, array.shape, 20, -15, -10))
    assert dice(found.mask, truth) > 0.9
    assert (truth & ~found.mask).sum() < 0.02 * truth.sum()


def test_what_is_no_head_is_refused() -> None:
    block = np.full((60, 60, 40), -1000, np.int16)
    block[10:50, 10:50, 5:35] = 30  # 480 ml of tissue without bone
    with pytest.raises(InputError, match="no brain was found"):
        find_brain(block, np.diag([2.0, 2.0, 4.0, 1.0]))


def test_the_window_ends_bone_and_air_as_background() -> None:
    values = np.array([-1024, -125, -124, 0, 130, 131, 3071], np.int16)
    assert window_to_background(values).tolist() == [-124, -124, -124, 0, 130, -124, -124]
    item = WindowHeadd("image")({"image": tensor(np.resize(values, (4, 3, 2)), AFFINE)})
    assert item["image"].dtype == torch.int16 and int(item["image"].max()) == 130
    with pytest.raises(ConfigError, match="is empty"):
        WindowHeadd("image", window=(130, -124))


def test_a_mask_made_on_the_prepared_head_lands_on_the_scanners_image() -> None:
    array, truth = head(12, -8, 10)
    label = (array > 55) & (array < 85) & truth  # the bleed on one side
    item = {"image": tensor(array, AFFINE), "label": tensor(label.astype(np.uint8), AFFINE)}
    keys = ["image", "label"]
    item = StraightenHeadd(keys)(item)
    assert item["image"].meta["turn_degrees"] == pytest.approx(12, abs=1) and item["image"].meta["mirror_score"] > 0.9
    # the straightened array's first axis is across the mirror plane: its halves agree
    upright = np.asarray(item["image"][0])
    item = WindowHeadd("image")(CropBraind(keys, fill=-124)(item))
    assert item["image"].shape == item["label"].shape and np.prod(item["image"].shape) < 0.75 * array.size
    assert float((upright == -1024).mean()) > 0.001 and int(item["image"].min()) == -124
    assert item["image"].dtype == torch.int16
    back = np.asarray(RestoreGridd("label")(item)["label"][0])
    assert back.shape == array.shape
    found, bleed = back > 0, label
    assert dice(found, bleed) > 0.9
    again = find_mirror_plane(upright, AFFINE)
    assert abs(again.turn_degrees) < 1 and abs(again.tilt_degrees) < 1


@pytest.mark.parametrize("angles", [(-38, 20, -15)])
def test_the_whole_preparation_of_a_turned_template(angles: tuple[float, float, float], shared_data: Path) -> None:
    """Upright to half a degree (measured: 0.01), the brain kept, whole HU, one background, and the way back."""
    array, affine = template(shared_data)
    place = turned_affine(affine, array.shape, *angles)
    brain = (array > -20) & (array < 100) & find_brain(array, affine).mask
    item = {"image": tensor(array, place), "label": tensor(brain.astype(np.uint8), place)}
    item = StraightenHeadd(["image", "label"])(item)
    turned = np.asarray(item["image"].affine) @ np.linalg.inv(place)  # from the upright head to the scanner
    across = turned[:3, :3].T @ rotation(*angles) @ [1, 0, 0]  # the true normal, as the upright head has it
    left = float(np.degrees(np.arccos(min(1.0, abs(across[0]) / np.linalg.norm(across)))))
    assert left < 0.5 < np.degrees(np.arccos(abs((rotation(*angles) @ [1, 0, 0])[0])))
    kept_before = int(item["label"].sum())
    item = WindowHeadd("image")(WholeHounsfieldd("image")(CropBraind(["image", "label"], fill=-1024)(item)))
    image = np.asarray(item["image"][0])
    assert image.dtype == np.int16 and image.min() == -124 and image.max() <= 130
    assert np.prod(image.shape) < 0.9 * array.size and int(item["label"].sum()) > 0.995 * kept_before
    assert all(image[corner] == -124 for corner in ((0, 0, 0), (-1, -1, -1), (0, -1, 0), (-1, 0, -1)))  # fill, hull
    back = np.asarray(RestoreGridd("label")(item)["label"][0]) > 0
    assert dice(back, brain) > 0.97


def test_they_stand_in_a_bundles_preprocessing() -> None:
    from monai.bundle import ConfigParser

    steps = [
        {"_target_": "ctseg.transforms.ApplyItkTransformd", "keys": ["image", "label"], "direction": "ct"},
        {"_target_": "ctseg.transforms.StraightenHeadd", "keys": ["image", "label"], "least_score": 0.7},
        {"_target_": "ctseg.transforms.CropBraind", "keys": ["image", "label"], "margin_mm": 10, "fill": -124},
        {"_target_": "ctseg.transforms.WindowHeadd", "keys": "image", "window": [-124, 130]},
    ]
    parser = ConfigParser({"preprocessing": {"_target_": "Compose", "transforms": steps}})
    array, _ = head(5, 0, 0)
    item = parser.get_parsed_content("preprocessing")({"image": tensor(array, AFFINE)})
    assert sorted(item) == ["image"] and float(item["image"].max()) <= 130
    with pytest.raises(ConfigError, match="margin_mm -1"):
        CropBraind("image", margin_mm=-1)
