"""Tiny bundles of every kind with networks of a few channels, to be exported and run without PyTorch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from helpers_organs import TASK, write_guided_bundle, write_moved_bundle, write_organ_bundles
from helpers_server import add_weights

from ctseg.building import build_bundle
from ctseg.files import write_beside
from ctseg.registry import BundleInfo, get_bundle

ROOT = Path(__file__).resolve().parent.parent
_TASK = {
    **TASK,
    "description": "For tests.",
    "loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.001},
    "epochs": 1,
    "batch_size": 1,
    "window": [-200, 400],
}
_BLOCK = {"name": "block", "code": 2, "color": [200, 120, 90], "snomed": {"value": "10200004", "meaning": "block"}}
_BAR = {"name": "bar", "code": 5, "color": [90, 120, 200], "snomed": {"value": "28231008", "meaning": "bar"}}


def _bundle(root: Path, name: str, values: dict[str, Any]) -> Path:
    file = root / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({**_TASK, "bundle": name, **values}))
    for path, text in build_bundle(file, ROOT / "configs" / "base").items():
        write_beside(root / name / path, text.encode())
    file.unlink()
    (root / name / "models").mkdir()
    return root / name


def add_drawn_weights(bundle: Path, seed: int = 0) -> None:
    """Give a bundle weights that fit its network, drawn wide enough for all labels to come up."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
        state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    content = io.BytesIO()
    torch.save(state, content)
    add_weights(bundle, content.getvalue())


def write_pair_bundle(root: Path) -> Path:
    """Write a 2D network that halves its grid twice and gives background and two labels; pixels of 2 mm."""
    network = (
        "$torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, 2, 1), "
        "torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 3, 4, 4))"
    )
    cleaned = {**_BAR, "clean_up": {"keep": "largest", "fill_holes": "axial", "min_ml": 0.05}}
    values = {
        "base": "slicewise", "labels": [_BLOCK, cleaned], "spacing": [2.0, 2.0, 3.0], "thick_slices": 2.6,
        "patch": [32, 32], "divisor": 4, "network": network,
    }  # fmt: skip
    bundle = _bundle(root, "pair_ct_segmentation", values)
    add_drawn_weights(bundle)
    return bundle


def write_cube_bundle(root: Path) -> Path:
    """Write a 3D network on patches of 24 x 16 x 12 voxels of 3 mm."""
    network = {
        "_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1,
    }  # fmt: skip
    labels = [{**label, "clean_up": {"keep": "all"}} for label in (_BLOCK, _BAR)]
    values = {
        "base": "volume", "labels": labels, "spacing": [3.0, 3.0, 3.0], "patch": [24, 16, 12], "network": network,
    }  # fmt: skip
    bundle = _bundle(root, "cube_ct_segmentation", values)
    add_drawn_weights(bundle, 3)
    return bundle


def write_says_bundle(root: Path, labels: Sequence[dict[str, Any]] = (_BLOCK,)) -> Path:
    """Write a classifier of slices of 24 x 20 pixels of 4 mm."""
    network = (
        "$torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), "
        f"torch.nn.Flatten(), torch.nn.Linear(3, {len(labels)}))"
    )
    values = {
        "base": "classification", "labels": list(labels), "spacing": [4.0, 4.0], "patch": [24, 20],
        "min_area_mm2": 10, "network": network,
    }  # fmt: skip
    bundle = _bundle(root, "says_ct_classification", values)
    add_drawn_weights(bundle)
    return bundle


def write_tint_bundle(root: Path) -> Path:
    """Write a network for colour pictures, resized to 24 x 32, that marks what is redder than green."""
    import torch

    network = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 1, "kernel_size": 1}
    label = {"name": "tint", "code": 1, "color": [220, 60, 60], "snomed": {"value": "10200004", "meaning": "tint"}}
    values = {"base": "flat", "modality": "XC", "labels": [label], "patch": [24, 32], "network": network}
    bundle = _bundle(root, "tint_xc_segmentation", values)
    content = io.BytesIO()
    weight = torch.tensor([20.0, -20.0, 0.0]).reshape(1, 3, 1, 1)
    torch.save({"weight": weight, "bias": torch.tensor([-5.0])}, content)
    add_weights(bundle, content.getvalue())
    return bundle


def write_all(root: Path) -> dict[str, BundleInfo]:
    """Write one bundle of every kind, and those of `helpers_organs`; return them by name, without the ending."""
    write_organ_bundles(root)
    writers = (write_pair_bundle, write_cube_bundle, write_says_bundle, write_tint_bundle)
    folders = [write(root) for write in (*writers, write_guided_bundle, write_moved_bundle)]
    folders += [root / "core_ct_segmentation", root / "shell_ct_segmentation"]
    return {folder.name.partition("_")[0]: get_bundle(folder) for folder in folders}
