"""Our transforms: a slice is a volume in radiological view, labels go by name, and the way back keeps the place."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine, write_nifti
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from PIL import Image

from ctseg.errors import ConfigError, GeometryError, InputError
from ctseg.transforms import LoadLabeld, LoadVolumed, RestoreGridd, SaveMaskd, ToLabelMapd


def test_a_png_in_radiological_view_meets_a_ct_the_same_way_round(tmp_path: Path) -> None:
    # A CT in RAS with one bright voxel: right (x grows towards it), anterior.
    ct = np.full((4, 5, 1), -500, np.int16)
    ct[3, 4, 0] = 200
    path = write_nifti(tmp_path / "ct.nii.gz", ct, np.diag([1.5, 1.5, 5.0, 1.0]))
    # The same slice as a radiologist sees it, rows from anterior: right is the image's left, anterior its top.
    picture = np.zeros((5, 4), np.uint8)
    picture[0, 0] = 200
    Image.fromarray(picture).save(tmp_path / "slice.png")
    pipeline = Compose([LoadVolumed("image"), Orientationd("image", axcodes="LPS", labels=None)])
    from_ct = pipeline({"image": str(path)})["image"]
    from_png = pipeline({"image": str(tmp_path / "slice.png"), "slice_spacing": [1.5, 1.5, 5.0]})["image"]
    assert torch.equal(from_ct.as_tensor().clip(0).float(), from_png.as_tensor().float())
    assert from_png[0, 0, 0, 0] == 200
    assert np.allclose(np.diag(from_png.affine)[:3], [-1.5, -1.5, 5.0])


def test_a_png_without_spacing_or_with_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="names no slice_spacing"):
        LoadVolumed("image")({"image": tmp_path / "c.png"})
    with pytest.raises(InputError, match="mode RGB, expected one grey channel"):
        LoadVolumed("image")({"image": tmp_path / "c.png", "slice_spacing": [1, 1, 1]})


def labelled(tmp_path: Path, label_affine: np.ndarray, shape: tuple[int, int, int] = (4, 4, 2)) -> dict[str, object]:
    label = np.zeros(shape, np.int16)
    label[0, 0, 0], label[1, 1, 1], label[2, 2, 0] = 5, 4, 9
    image = write_nifti(tmp_path / "i.nii.gz", np.arange(32, dtype=np.int16).reshape(4, 4, 2) - 9, oblique_affine())
    return {"image": str(image), "label": str(write_nifti(tmp_path / "l.nii.gz", label, label_affine))}


def test_labels_go_by_name(tmp_path: Path) -> None:
    item = {**labelled(tmp_path, oblique_affine()), "mask_values": {"4": "gallbladder", "5": "liver", "9": "stomach"}}
    label = LoadLabeld("label", labels=["liver", "gallbladder"])(LoadVolumed("image")(item))["label"]
    assert (label[0, 0, 0, 0], label[0, 1, 1, 1], label[0, 2, 2, 0]) == (1, 2, 0)
    assert int((label > 0).sum()) == 2


def test_a_label_of_none_of_the_tasks_organs_is_refused(tmp_path: Path) -> None:
    item = {**labelled(tmp_path, oblique_affine()), "mask_values": {"9": "stomach"}}
    with pytest.raises(ConfigError, match="mask_values name stomach, but the task knows liver"):
        LoadLabeld("label", labels=["liver"])(LoadVolumed("image")(item))


@pytest.mark.parametrize("change", ["shift", "flip", "shape"])
def test_a_label_on_another_grid_is_refused(tmp_path: Path, change: str) -> None:
    affine = oblique_affine()
    if change == "shift":
        affine[:3, 3] += 0.2
    elif change == "flip":
        affine[:3, 0] *= -1
    item = labelled(tmp_path, affine, (4, 4, 3) if change == "shape" else (4, 4, 2))
    with pytest.raises(GeometryError, match=r"the grid \(4, 4, 3\)" if change == "shape" else "mm away from its image"):
        LoadLabeld("label", labels=["liver"])(LoadVolumed("image")(item))


def test_one_channel_is_decided_at_one_half_and_several_by_the_largest() -> None:
    single = ToLabelMapd("pred", codes=[7])({"pred": torch.tensor([[-0.1, 0.0, 0.1]])})["pred"]
    assert single.tolist() == [[0, 0, 7]]
    several = ToLabelMapd("pred", codes=[3, 34])({"pred": torch.tensor([[3.0, 0, 0], [1, 2, 0], [0, 0, 1.0]])})["pred"]
    assert several.tolist() == [[0, 3, 34]]
    assert several.dtype == torch.uint8
    with pytest.raises(ConfigError, match="gives 2 channels for 1 label codes"):
        ToLabelMapd("pred", codes=[1])({"pred": torch.zeros(2, 3)})


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR", "IAL"])
def test_there_and_back_is_where_it_was(tmp_path: Path, code: str) -> None:
    """A blob on an oblique grid goes through turning and resampling and comes back onto its own voxels."""
    blob = np.full((30, 34, 20), -500, np.int16)
    blob[8:18, 6:26, 4:12] = 60
    straight = nibabel.Nifti1Image(blob, oblique_affine())
    turned = straight.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(straight.affine), nibabel.orientations.axcodes2ornt(code)
        )
    )
    path = write_nifti(tmp_path / "blob.nii.gz", np.asarray(turned.dataobj), turned.affine)
    item = Compose([
        LoadVolumed("image"),
        Orientationd("image", axcodes="LPS", labels=None),
        Spacingd("image", pixdim=(0.8, 0.8, 1.5), dtype=torch.float32),
    ])({"image": str(path)})  # fmt: skip
    item["pred"] = MetaTensor((item["image"] > -220).to(torch.uint8), meta=item["image"].meta)
    item = SaveMaskd("pred", output_dir=tmp_path)(RestoreGridd("pred")(item))
    mask = nibabel.load(tmp_path / "blob" / "mask.nii.gz")
    found, expected = np.asarray(mask.dataobj) > 0, np.asarray(turned.dataobj) > 0
    assert mask.affine.tobytes() == nibabel.load(path).affine.tobytes()
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.99
    shift = np.argwhere(found).mean(axis=0) - np.argwhere(expected).mean(axis=0)
    assert np.abs(shift).max() < 0.05


def test_certainty_places_the_border_on_smaller_voxels_and_is_left_alone_on_larger_ones(tmp_path: Path) -> None:
    """Logits 3 and -1 two mm apart: the border lies 1.5 mm behind the first, and half way without certainty."""
    found = []
    for size in (0.25, 4.0):
        voxels = np.arange(160, dtype=np.int16).reshape(40, 2, 2) - 100
        path = write_nifti(tmp_path / f"{size}.nii.gz", voxels, np.diag([size, 2.0, 2.0, 1.0]))
        item = LoadVolumed("image")({"image": str(path)})
        meta = {**item["image"].meta, "affine": torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))}
        logits = torch.full((1, 5, 2, 2), -1.0)
        logits[:, :2] = 3.0
        item["image"] = MetaTensor(torch.zeros_like(logits), meta=meta)
        item["pred"] = MetaTensor(logits, meta=meta)
        done = RestoreGridd("pred")(ToLabelMapd("pred", codes=[1], certainty="certainty")(item))
        assert "certainty" not in done
        found.append(int(done["pred"][0, :, 0, 0].sum()))
    assert found == [15, 1]  # 0 to 3.5 mm in steps of 0.25; of 0, 4, 8 mm the first


def test_a_lost_place_is_noticed(tmp_path: Path) -> None:
    item = LoadVolumed("image")(labelled(tmp_path, oblique_affine()))
    item["pred"] = torch.zeros(1, 4, 4, 2, dtype=torch.uint8)
    with pytest.raises(GeometryError, match="has lost its place"):
        RestoreGridd("pred")(item)
    item["pred"] = MetaTensor(item["pred"], affine=np.eye(4))
    with pytest.raises(GeometryError, match="does not lie on the preprocessed image's grid"):
        RestoreGridd("pred")(item)
