"""The ultrasound sector of synthetic captures whose fan is known, and of real ones whose lesions must not be cut."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialCropd
from numpy.typing import NDArray
from PIL import Image
from skimage.morphology import convex_hull_image

from ctseg.errors import ConfigError, InputError
from ctseg.flat.sectors import find_sector
from ctseg.transforms import CropSectord


def fan(rows: int = 200, columns: int = 260) -> NDArray[np.bool_]:
    """Where a curved probe sees: 35 degrees to each side of a line off the middle, from 40 to 180 pixels deep."""
    row, column = np.mgrid[:rows, :columns]
    down, right = row + 30.0, column - 110.0
    depth = np.hypot(down, right)
    return (depth >= 40) & (depth <= 180) & (np.abs(np.degrees(np.arctan2(right, down))) <= 35)


def capture(seed: int = 0) -> NDArray[np.uint8]:
    """Speckle in the fan with a black cyst and a shadow; letters, a ruler and a grey bar outside."""
    random = np.random.default_rng(seed)
    seen = fan()
    picture = np.where(seen, random.rayleigh(40, seen.shape), 0)
    row, column = np.mgrid[: seen.shape[0], : seen.shape[1]]
    picture[(row - 70) ** 2 + (column - 120) ** 2 < 14**2] = 0
    picture[(np.abs(column - 95) < 6) & (row > 90)] *= 0.2
    for left in range(200, 250, 6):  # letters
        picture[8:14, left : left + 2] = 255
    picture[20:180:10, 250:256] = 180  # ruler
    picture[150:195, 5:9] = np.linspace(0, 255, 45)[:, None]  # grey bar
    return picture.clip(0, 255).astype(np.uint8)


def test_finds_the_fan_without_what_stands_beside_it() -> None:
    found = find_sector(capture())
    expected = convex_hull_image(fan())
    assert found is not None and (found & expected).sum() / (found | expected).sum() > 0.97
    assert found[70, 120]  # the cyst
    assert not found[8:14, 200:250].any() and not found[:, 245:].any() and not found[150:195, 5:9].any()


@pytest.mark.parametrize("change", [lambda values: values / 255.0, lambda values: values * 100.0 - 1000])
def test_any_scale_of_grey(change: object) -> None:
    np.testing.assert_array_equal(find_sector(change(capture())), find_sector(capture()))  # type: ignore[operator]


def test_letters_alone_and_black_are_no_sector() -> None:
    picture = capture()
    picture[fan()] = 0
    assert find_sector(picture) is None
    assert find_sector(np.zeros((20, 30))) is None


@pytest.mark.parametrize("name", ["10120", "10509", "10523"])
def test_real_captures_lose_black_and_no_lesion(name: str, shared_data: Path) -> None:
    """The three of 30 breast pictures that have more than a rim of black."""
    folder = shared_data / "breast_ultrasound"
    picture = np.array(Image.open(folder / "images" / f"{name}.png").convert("L"))
    lesion = np.array(Image.open(folder / "masks_binary" / f"{name}.png").convert("L")) > 0
    found = find_sector(picture)
    assert found is not None and 0.75 < found.mean() < 0.97
    assert not (lesion & ~found).any()
    assert picture[~found].mean() < 0.2 * picture.mean()


def item(frames: bool = False) -> dict[str, MetaTensor]:
    picture = torch.from_numpy(capture())[None]
    mask = torch.zeros_like(picture)
    mask[0, 60:80, 110:130] = 1
    if frames:
        picture = torch.stack([picture, torch.from_numpy(capture(1))[None]], dim=-1)
        mask = torch.stack([mask, mask], dim=-1)
    affine = torch.diag(torch.tensor([0.2, 0.3, 1.0, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(picture, affine=affine), "label": MetaTensor(mask, affine=affine)}


def test_crops_picture_and_mask_alike_and_back() -> None:
    crop = CropSectord(["image", "label"], "image", blank="image")
    before = item()
    after = crop(item())
    expected = convex_hull_image(fan())
    rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
    top, left = rows[0], columns[0]
    size = after["image"].shape[1:]
    assert after["label"].shape[1:] == size
    assert abs(size[0] - (rows[-1] - top + 1)) <= 3 and abs(size[1] - (columns[-1] - left + 1)) <= 4
    assert after["label"].sum() == 400
    start = after["image"].affine[:2, 3] / torch.tensor([0.2, 0.3], dtype=torch.float64)
    assert (start - torch.tensor([top, left])).abs().max() <= 2  # the place moved with it
    corner = [round(float(value)) for value in start]
    window = slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1])
    inside = torch.from_numpy(find_sector(capture()))[window]  # type: ignore[index]
    assert torch.equal(after["image"][0][inside].as_tensor(), before["image"][0][window][inside].as_tensor())
    assert after["image"][0][~inside].sum() == 0
    back = crop.inverse(after)
    assert torch.equal(back["label"].as_tensor(), before["label"].as_tensor())
    assert back["image"].shape == before["image"].shape and torch.equal(back["image"].affine, before["image"].affine)


def test_without_blank_only_the_edges_go() -> None:
    wide = CropSectord(["image"], "image", margin=2)(item())["image"]
    tight = CropSectord(["image"], "image")(item())["image"]
    assert wide.shape[1:] == (tight.shape[1] + 4, tight.shape[2] + 4)
    corner = CropSectord(["image"], "image", margin=100)(item())["image"]
    assert corner.shape == (1, 200, 260)  # a margin ends with the picture
    assert torch.equal(corner.as_tensor(), item()["image"].as_tensor())


def test_frames_and_colours_share_a_sector() -> None:
    after = CropSectord(["image", "label"], "image")(item(frames=True))
    flat = CropSectord(["image"], "image")(item())["image"]
    assert after["image"].shape[-1] == 2 and after["label"].sum() == 800
    assert abs(after["image"].shape[1] - flat.shape[1]) <= 2 and abs(after["image"].shape[2] - flat.shape[2]) <= 2
    colours = MetaTensor(torch.from_numpy(np.stack([capture()] * 3)))
    assert CropSectord(["image"], "image")({"image": colours})["image"].shape[1:] == flat.shape[1:]


def test_no_sector_keeps_all_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        after = CropSectord(["image"], "image")({"image": MetaTensor(torch.zeros(1, 20, 30))})["image"]
    assert after.shape == (1, 20, 30) and "no ultrasound sector was found in a picture of 20 x 30" in caplog.text


def test_the_fixed_crop_is_monais() -> None:
    crop = SpatialCropd(["image", "label"], roi_start=[10, 20], roi_end=[190, 240])
    after = crop(item())
    assert after["image"].shape == after["label"].shape == (1, 180, 220)
    np.testing.assert_array_equal(after["image"][0], capture()[10:190, 20:240])
    assert after["image"].affine[:2, 3].tolist() == pytest.approx([2.0, 6.0])
    assert crop.inverse(after)["image"].shape == (1, 200, 260)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 1.0}, "level 1.0"),
        ({"smallest": 0}, "smallest 0"),
        ({"margin": -1}, "whole pixels, 0 or more"),
        ({"blank": "label"}, "label, which is not among its keys"),
    ],
)
def test_refusals(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CropSectord(["image"], "image", **options)
    with pytest.raises(InputError, match=r"shape \(4, 4\)"):
        CropSectord(["image"], "image")({"image": MetaTensor(torch.zeros(4, 4))})
