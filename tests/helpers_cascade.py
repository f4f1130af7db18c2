"""Three tiny bundles with random weights: an organ, a second one that takes its mask, and a classifier for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from ctseg.building import build_bundle
from ctseg.files import write_beside

ROOT = Path(__file__).resolve().parent.parent
ORGAN, SECOND, PRESENCE = "organ_ct_segmentation", "second_ct_segmentation", "second_ct_classification"
_COMMON: dict[str, Any] = {
    "version": "0.1.0",
    "changelog": {"0.1.0": "for tests"},
    "authors": "the ctseg authors",
    "copyright": "Copyright (c) the ctseg authors",
    "intended_use": "Tests.",
    "modality": "CT",
    "window": [-200, 300],
    "loss": {"_target_": "monai.losses.DiceCELoss", "sigmoid": True},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.001},
    "epochs": 1,
    "batch_size": 2,
    "data": {"source": "phantoms", "licence": "Apache-2.0"},
    "licence": {"code": "Apache-2.0", "weights": "Apache-2.0"},
    "evidence": "none: random weights",
    "weights": None,
}


def label(name: str, code: int) -> dict[str, Any]:
    return {"name": name, "code": code, "color": [200, 120, 90], "snomed": {"value": "1", "meaning": name}}


def segmenter(channels: Any = 1) -> dict[str, Any]:
    return {
        "_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "in_channels": channels, "out_channels": 1,
        "channels": [4, 8], "strides": [2], "norm": "instance",
    }  # fmt: skip


TASKS: dict[str, dict[str, Any]] = {
    "organ_ct": {
        "bundle": ORGAN, "base": "slicewise", "description": "An organ in a phantom.", "labels": [label("organ", 3)],
        "spacing": [4.0, 4.0, 5.0], "thick_slices": 4.0, "patch": [32, 32], "divisor": 4, "network": segmenter(),
    },
    "second_ct": {
        "bundle": SECOND, "base": "slicewise", "description": "An organ beside it.", "labels": [label("second", 7)],
        "spacing": [3.07, 3.07, 3.0], "thick_slices": 2.5, "patch": [32, 32], "divisor": 4,
        "network": segmenter("$1 + len(@input_organs)"),
        "input_organs": ["organ"], "organ_bundles": {"organ": ORGAN},
    },
    "second_ct_presence": {
        "bundle": PRESENCE, "base": "classification", "description": "Where the second organ is.",
        "labels": [label("second", 7)], "spacing": [4.0, 4.0], "patch": [32, 32], "min_area_mm2": 25,
        "network": {"_target_": "ctseg.networks.make_classifier", "encoder": "resnet10t", "in_channels": 1,
                    "classes": 1},
    },
}  # fmt: skip


def write_task(folder: Path, task: str, **changes: Any) -> Path:
    """Write a bundle below `folder` from a task of `TASKS` with some values changed, untrained; return its folder."""
    values = {**_COMMON, **TASKS[task], **changes}
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    file = folder / "tasks" / f"{task}.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    bundle = folder / "bundles" / values["bundle"]
    for name, text in build_bundle(file, ROOT / "configs" / "base").items():
        write_beside(bundle / name, text.encode())
    return bundle


def give_weights(bundle: Path, seed: int = 0) -> None:
    """Put random weights into a bundle, shifted so that a good part of an image is above one half."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")


def write_cascade(folder: Path, **second: Any) -> Path:
    """Write the three bundles with weights and return their folder; `second` changes the one that depends."""
    for seed, task in enumerate(TASKS):
        give_weights(write_task(folder, task, **(second if task == "second_ct" else {})), seed)
    return folder / "bundles"


def phantom_ct(shape: tuple[int, int, int] = (30, 26, 14)) -> np.ndarray:
    """HU, axes R, A, S: a body in air, a bright organ at small i, texture that no flip maps on itself."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[i**2 / 0.8 + j**2 / 0.7 < 1] = 40 + 20 * i[i**2 / 0.8 + j**2 / 0.7 < 1]
    hu[(i + 0.4) ** 2 + (j - 0.1) ** 2 + (k - 0.2) ** 2 / 2 < 0.2] = 180
    hu[(i - 0.3) ** 2 + (j + 0.4) ** 2 + (k + 0.3) ** 2 < 0.06] = -50
    return (hu + np.random.default_rng(3).normal(0, 15, shape)).astype(np.int16)


class Bright(torch.nn.Module):
    """A network that finds what is bright in the first channel: as a segmenter by voxel, as a classifier by slice."""

    def __init__(self, by_slice: bool = False, level: float = 0.68) -> None:
        super().__init__()
        self.by_slice = by_slice
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, I, J), or (B, 1)."""
        logits = (slices[:, :1] - self.level) * 50
        return logits.flatten(1).amax(dim=1, keepdim=True) if self.by_slice else logits


def bright(by_slice: bool = False) -> dict[str, Any]:
    return {"_target_": "helpers_cascade.Bright", "by_slice": by_slice}
