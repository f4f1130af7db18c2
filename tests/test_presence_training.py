"""What a classifier learns from: slices drawn with and without the organ, presence out of masks, pixels, losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor

from ctseg.building import build_bundle, load_yaml
from ctseg.classifying import EachLabel, PrepareSlices, SliceClassifierInferer
from ctseg.errors import ConfigError
from ctseg.losses import make_loss
from ctseg.transforms import PixelSpacingd, RandSlicesd, ToPresenced


def item_of(organ: list[int], patient: str = "p") -> dict[str, object]:
    """A volume of 4 x 4 slices, each filled with its own number; `organ` of them hold class 1."""
    image = torch.arange(8.0).expand(1, 4, 4, 8).clone()
    label = torch.zeros(1, 4, 4, 8)
    label[..., organ] = 1
    return {"image": image, "label": label, "mask_values": {"5": "liver"}, "patient": patient}


def test_slices_are_drawn_from_both_sides_as_asked() -> None:
    draw = RandSlicesd(["image", "label"], num_samples=2, with_organ=0.75)
    draw.set_random_state(0)
    seen = []
    for _ in range(400):
        items = draw(item_of([6]))
        numbers = [int(one["image"][0, 0, 0]) for one in items]
        assert len(set(numbers)) == 2 and all(one["image"].shape == (1, 4, 4) for one in items)
        assert [bool(one["label"].any()) for one in items] == [number == 6 for number in numbers]
        seen.append(6 in numbers)
    # missed only when both draws take the other side: 1 - 0.25 ** 2
    assert np.mean(seen) == pytest.approx(0.9375, abs=0.05)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_share_of_slices_with_the_organ(share: float, expected: float) -> None:
    draw = RandSlicesd(["image", "label"], with_organ=share)
    draw.set_random_state(1)
    organ = [bool(draw(item_of([0, 1]))[0]["label"].any()) for _ in range(300)]
    assert np.mean(organ) == pytest.approx(expected, abs=0.08)


def test_a_volume_of_one_side_and_a_single_slice_are_not_refused() -> None:
    draw = RandSlicesd(["image", "label"], num_samples=20)
    assert sorted(int(one["image"][0, 0, 0]) for one in draw(item_of([]))) == list(range(8))
    single = {key: value[..., :1] for key, value in item_of([0]).items() if key in ("image", "label")}
    assert len(draw(single)) == 1
    for wrong in ({"num_samples": 0}, {"with_organ": 1.2}):
        with pytest.raises(ConfigError, match="slices_per_case"):
            RandSlicesd(["image"], **wrong)


def test_presence_counts_area_in_mm2() -> None:
    label = torch.zeros(1, 10, 10)
    label[0, :5, :4] = 1  # 20 pixels of 2 x 3 mm: 120 mm2
    label[0, 9, 9] = 2  # 6 mm2
    for least, expected in ((120.0, [1, 0]), (121.0, [0, 0]), (6.0, [1, 1]), (0.0, [1, 1])):
        made = ToPresenced("label", labels=["a", "b"], min_area_mm2=least, spacing=[2.0, 3.0])({"label": label})
        assert made["label"].tolist() == expected and made["label"].dtype == torch.float32
    nothing = ToPresenced("label", ["a"], 0.0, [1.0, 1.0])({"label": torch.zeros(1, 4, 4)})
    assert nothing["label"].tolist() == [0]


def test_presence_of_a_volume_knows_case_and_slice_numbers() -> None:
    label = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    label[..., 2] = 1
    # The source is stored upside down: its index falls as the network's slices go up.
    meta = {
        "original_affine": torch.diag(torch.tensor([1.0, 1.0, -3.0, 1.0], dtype=torch.float64)),
        "patient": "p", "filename_or_obj": "/data/case7.nii.gz",
    }  # fmt: skip
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    affine[2, 3] = -6.0
    made = ToPresenced("label", ["a"], 1.0, [1.0, 1.0])({"label": MetaTensor(label, affine=affine, meta=meta)})["label"]
    assert made.tolist() == [[0, 0, 1]]
    assert made.meta["slice_index"].tolist() == [2, 1, 0]
    assert (made.meta["case_id"], made.meta["patient"]) == ("case7", "p")


def test_pixels_keep_their_place_and_mean() -> None:
    rng = np.random.default_rng(0)
    image = torch.as_tensor(rng.normal(100, 50, (1, 40, 60, 2)), dtype=torch.float32)
    affine = torch.as_tensor([[0.5, 0, 0, 10.0], [0, 1.0, 0, 20.0], [0, 0, 3.0, 30.0], [0, 0, 0, 1]]).double()
    item = {
        "image": MetaTensor(image, affine=affine),
        "label": MetaTensor((image > 100).to(torch.uint8), affine=affine),
    }
    made = PixelSpacingd(["image", "label"], spacing=[2.0, 2.0], mode=["bilinear", "nearest"])(item)
    assert made["image"].shape == made["label"].shape == (1, 10, 30, 2)
    # The first new pixel covers four old ones along I and two along J: its centre is at 0.75 and 0.5 mm from theirs.
    expected = torch.tensor([[2.0, 0, 0, 10.75], [0, 2.0, 0, 20.5], [0, 0, 3.0, 30.0], [0, 0, 0, 1]]).double()
    torch.testing.assert_close(made["image"].affine, expected)
    assert set(made["label"].unique().tolist()) <= {0.0, 1.0}
    # Every fourth pixel as it is would keep the noise of 50; a mean over the area does not.
    assert float(made["image"].std()) < 30 and float(made["image"].mean()) == pytest.approx(100, abs=3)
    with pytest.raises(ConfigError, match="above 0"):
        PixelSpacingd("image", spacing=[0.0, 1.0])


class Corner(torch.nn.Module):
    """Two logits: the first pixel, and the number of images in the batch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, 2)."""
        return torch.stack([image[:, 0, 0, 0], torch.full((len(image),), float(len(image)))], dim=1)


def test_inferer_runs_every_slice_in_batches() -> None:
    volume = torch.arange(7.0).expand(1, 1, 3, 3, 7).clone()
    logits = SliceClassifierInferer(batch_size=3)(volume, Corner())
    assert logits.shape == (1, 2, 7) and logits.dtype == torch.float32
    assert logits[0, 0].tolist() == list(range(7)) and logits[0, 1].tolist() == [3, 3, 3, 3, 3, 3, 1]
    for wrong in (torch.zeros(2, 1, 3, 3, 7), torch.zeros(1, 3, 3, 7), torch.zeros(1, 1, 3, 3, 0)):
        with pytest.raises(ConfigError, match="expected"):
            SliceClassifierInferer()(wrong, Corner())
    with pytest.raises(ConfigError, match=r"expected \(slices, organs\)"):
        SliceClassifierInferer()(volume, torch.nn.Identity())


def test_losses_take_several_organs_each_by_itself() -> None:
    logits, target = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert EachLabel(make_loss("bce"))(logits, target) == pytest.approx(float(expected))
    smoothed = target * 0.8 + 0.1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, smoothed)
    assert EachLabel(make_loss("bce", label_smoothing=0.2))(logits, target) == pytest.approx(float(expected))
    half = EachLabel(make_loss("focal", gamma=2.0))(logits.bfloat16(), target)
    assert half.dtype == torch.float32 and half.isfinite()
    with pytest.raises(ConfigError, match="one logit an organ"):
        EachLabel(make_loss("bce"))(logits[:, :1], target)


def test_stages_resize_images_and_leave_presence() -> None:
    prepare = PrepareSlices([{"epochs": 2, "size": [8, 8]}], 2)
    batch = {"image": torch.rand(3, 1, 16, 16), "label": torch.tensor([[1.0], [0.0], [1.0]])}
    image, label = prepare(batch)
    assert image.shape == (3, 1, 8, 8) and label.tolist() == [[1.0], [0.0], [1.0]]


def test_a_kind_replaces_entries_within_the_shared_wiring(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "configs" / "base", tmp_path / "base")
    kind = load_yaml(tmp_path / "base" / "classification.yaml")
    kind["train"] = {"train#trainer#amp": None, "train#dataloader#shuffle": False, "own#key": 1, "seed": 7}
    kind["evaluate"] = {"validate#key_metric": {"a": 1}}
    (tmp_path / "base" / "classification.yaml").write_text(yaml.safe_dump(kind))
    made = build_bundle(root / "configs" / "tasks" / "liver_ct_presence.yaml", tmp_path / "base")
    train, evaluate = (json.loads(made[f"configs/{name}.json"]) for name in ("train", "evaluate"))
    assert "amp" not in train["train"]["trainer"] and "max_epochs" in train["train"]["trainer"]
    assert train["train"]["dataloader"]["shuffle"] is False and train["seed"] == 7
    assert train["own#key"] == 1  # nothing of that name to go into: as it stands
    assert evaluate["validate#key_metric"] == {"a": 1}  # an overlay's own key
    kind["train"] = {"train#trainre#amp": 1}
    (tmp_path / "base" / "classification.yaml").write_text(yaml.safe_dump(kind))
    with pytest.raises(ConfigError, match=r"classification replaces 'train#trainre#amp' of train.*no 'trainre' there"):
        build_bundle(root / "configs" / "tasks" / "liver_ct_presence.yaml", tmp_path / "base")
