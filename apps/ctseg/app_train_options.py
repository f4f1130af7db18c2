"""What a training may be told in a request: a few known options, each checked; everything else is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app_studies import checked_tag
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import device_list, device_map

from ctseg.devices import inference_device
from ctseg.errors import ConfigError, DeviceError
from ctseg.registry import BundleInfo

_LARGEST = {"max_epochs": 10_000, "train_batch_size": 512, "val_interval": 1_000, "num_workers": 64}


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training; the names are those of MONAI Label's clients.

    Attributes:
        device: "cpu" or "cuda:N".
        pretrained: start from the weights in use.
        max_epochs: how often each case is seen.
        train_batch_size: items in a batch.
        val_interval: epochs between two validations, at most `max_epochs`.
        num_workers: processes that augment.
        label_tag: which labels are learnt.
    """

    device: str
    pretrained: bool
    max_epochs: int
    train_batch_size: int
    val_interval: int
    num_workers: int
    label_tag: str

    def as_request(self, model: str) -> dict[str, Any]:
        """Return a request that `read_options` reads as the same; only such a one reaches the training's process."""
        return {"model": model, **asdict(self)}


def shown_options(info: BundleInfo) -> dict[str, Any]:
    """Return the options with their defaults, as a viewer shows and sends them; of a list the first counts."""
    declared = _declared(info)
    return {
        # A viewer sends the first unasked: the CPU must be chosen.
        "device": [*(name for name in device_list() if name != "cpu"), "cpu"] if _has_gpu() else ["cuda", "cpu"],
        "pretrained": True,
        "max_epochs": declared["epochs"],
        "train_batch_size": declared["batch_size"],
        "val_interval": declared["val_interval"],
    }


def read_options(request: Mapping[str, Any], info: BundleInfo) -> TrainOptions:
    """Check the options of a request and fill in the bundle's own values.

    Raises:
        DeviceError: no GPU and the CPU not asked for, or a device that is not known or not there.
        ConfigError: a value of another kind or out of its bounds.
        HTTPException: 400 for a label tag that is no plain name.
    """
    declared = _declared(info)
    device = training_device(request.get("device"))
    epochs = _number(request, "max_epochs", declared["epochs"])
    return TrainOptions(
        device=device,
        pretrained=_truth(request.get("pretrained", True)),
        max_epochs=epochs,
        train_batch_size=_number(request, "train_batch_size", declared["batch_size"]),
        val_interval=min(_number(request, "val_interval", declared["val_interval"]), epochs),
        num_workers=_number(request, "num_workers", 0 if device == "cpu" else declared["num_workers"], least=0),
        label_tag=checked_tag(request.get("label_tag") or DefaultLabelTag.FINAL),
    )


def training_device(asked: Any) -> str:
    """Return the device of a training: a GPU, or the CPU when exactly that was asked for.

    Raises:
        DeviceError: as `read_options`.
    """
    first = asked[0] if isinstance(asked, list) and asked else asked
    if first == "cpu":
        return "cpu"
    if not _has_gpu():
        raise DeviceError(
            "training runs on CUDA and PyTorch sees no GPU on this server: train on a machine with one, or insist by "
            "choosing the device cpu (slow; meant for tests and small data)"
        )
    name = str(first or "auto")
    return inference_device(str(device_map().get(name, name)))


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _declared(info: BundleInfo) -> dict[str, int]:
    """The bundle's own values, as far as its train.json gives them as numbers."""
    try:
        config = json.loads((info.path / "configs" / "train.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    usual = {"epochs": 50, "batch_size": 1, "val_interval": 5, "num_workers": 4}
    return {key: config[key] if type(config.get(key)) is int else value for key, value in usual.items()}


def _number(request: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    value = request.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= _LARGEST[key]:
        raise ConfigError(f"{key} is {value!r}, expected a whole number from {least} to {_LARGEST[key]}")
    return value


def _truth(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "false", "1", "0"):
        raise ConfigError(f"pretrained is {value!r}, expected true or false")
    return text in ("true", "1")
