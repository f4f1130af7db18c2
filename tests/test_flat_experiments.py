"""The flat systems' experiments: what the sources say stands in them, and every loss, optimiser and schedule works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from ctseg.folds.runs import folds_wanted

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "configs" / "experiments"
NAMES = [
    path.relative_to(EXPERIMENTS).as_posix()
    for folder in ("skin_lesion", "stroke_ct", "prostate_tumor_us")
    for path in sorted((EXPERIMENTS / folder).glob("*.yaml"))
]


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXPERIMENTS / name).read_text(encoding="utf-8"))


def unlike() -> list[str]:
    """One experiment for each combination of loss, optimiser and schedule."""
    first: dict[str, str] = {}
    for name in NAMES:
        one = content(name)
        first.setdefault(str([one["loss"], one["optimizer"], one["lr_scheduler"]]), name)
    return list(first.values())


def test_the_grid_is_whole() -> None:
    found = {}
    for name in NAMES:
        if name.startswith("skin_lesion"):
            one = content(name)
            grid = one["experiment"]["grid"]
            assert one["network_def"]["name"] == grid["network"] and name.endswith(
                f"{grid['network']}_{grid['loss']}.yaml"
            )
            assert (one["epochs"], one["batch_size"], one["patch"]) == (200, 25, [256, 256])
            assert (one["optimizer"]["name"], one["optimizer"]["lr"]) == ("adamw", 0.0005)
            assert (one["lr_scheduler"]["factor"], one["lr_scheduler"]["cooldown"]) == (0.5, 5)
            assert one["monitor"] == "val_thresholded_iou_at_half"
            found[grid["network"], grid["loss"]] = (one["loss"]["name"], one["experiment"]["theirs"])
    losses = {
        "bce": "bce", "dice": "dice_pixel", "focal": "focal_one_sided", "structural": "structural",
        "bce_structural": "bce_structural",
    }  # fmt: skip
    networks = ("segnet", "unet_unpool", "unet_nearest", "unet_strided")
    assert {place: loss for place, (loss, _) in found.items()} == {
        (n, k): v for n in networks for k, v in losses.items()
    }
    theirs = {place: figures for place, (_, figures) in found.items() if figures}
    assert theirs[("segnet", "bce_structural")] == {"thresholded_iou": 0.778} and len(theirs) == 8
    assert theirs[("unet_nearest", "dice")] == {"thresholded_iou_test": 0.84}


def test_what_the_other_sources_say() -> None:
    stroke = content("stroke_ct/unet_bce.yaml")
    assert (stroke["network_def"]["name"], stroke["batch_size"], stroke["epochs"]) == ("unet_64_512", 16, 20)
    assert (stroke["optimizer"]["name"], stroke["optimizer"]["lr"], stroke["patch"]) == ("adam", 0.0001, [256, 256])
    schedules = {content(name)["lr_scheduler"]["name"] for name in NAMES if name.startswith("stroke")}
    assert schedules == {"constant", "exponential", "step", "cyclic"}
    prostate = content("prostate_tumor_us/fpn_resnet152_dice_bce.yaml")
    assert prostate["experiment"]["theirs"] == {"iou": 0.44, "iou_test": 0.30} and prostate["monitor"] == "val_mean_iou"
    assert (prostate["network_def"]["name"], prostate["patch"]) == ("fpn_resnet152", [768, 768])
    assert (prostate["loss"]["name"], prostate["lr_scheduler"]["name"]) == ("dice_ce", "plateau")
    assert folds_wanted(EXPERIMENTS / "prostate_tumor_us" / "kfold_fpn_resnet152_dice_bce.yaml") == 5


@pytest.mark.parametrize("name", unlike())
def test_loss_optimiser_and_schedule_take_a_step(name: str) -> None:
    """With a network of one layer in place of its own, which `tests/test_flat_networks.py` builds."""
    bundle = ROOT / "bundles" / f"{name.partition('/')[0]}_segmentation" / "configs" / "train.json"
    parser = ConfigParser()
    parser.read_config([str(bundle), str(EXPERIMENTS / name)])
    classes = int(parser["network_def"].get("classes", 1))
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, classes, 1))
    parser["network"] = network
    parser["device"] = "cpu"
    parser["train"]["dataloader"] = "$[None, None]"
    loss = parser.get_parsed_content("loss")
    optimizer, schedule = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    image = torch.rand(2, 3, 12, 12)
    label = (image.sum(dim=1, keepdim=True) > 1.5).float()
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        value = loss(network(image), label)
        value.backward()
        optimizer.step()
        schedule.step()
        values.append(value.item())
    assert all(value == value for value in values) and values[-1] < values[0]
