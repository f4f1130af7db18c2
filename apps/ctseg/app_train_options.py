"""What a training may be told in a request: a few known options, each checked; everything else is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from app_studies import checked_tag
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import device_list, device_map

from ctseg.annotation.versions import TOLERANCE
from ctseg.devices import inference_device
from ctseg.errors import ConfigError, DeviceError
from ctseg.registry import BundleInfo
from ctseg.tracking import PACKAGES

_STARTS = ("shipped", "current")
_TRACKERS = ("mlflow", "tensorboard")
_LARGEST = {"max_epochs": 10_000, "train_batch_size": 512, "val_interval": 1_000, "num_workers": 64}


@dataclass(frozen=True)
class TrainOptions:
    """The options of one training; the names are those of MONAI Label's clients.

    Attributes:
        device: "cpu" or "cuda:N".
        pretrained: start from trained weights, those of `start`.
        start: "shipped" (the network that the bundle came with) or "current" (the one in use).
        max_epochs: how often each case is seen.
        train_batch_size: items in a batch.
        val_interval: epochs between two validations, at most `max_epochs`.
        num_workers: processes that augment.
        label_tag: which labels are learnt.
        tolerance: by how much the new network's validation Dice may be lower for it to be taken into use.
        resume: go on with the last training where it was killed, if nothing has changed since.
        tracking: where the epochs are tracked beside the training's own history, one of `_TRACKERS`; "" for nowhere.
    """

    device: str
    pretrained: bool
    max_epochs: int
    train_batch_size: int
    val_interval: int
    num_workers: int
    label_tag: str
    start: str = "shipped"
    tolerance: float = TOLERANCE
    resume: bool = True
    tracking: str = ""

    def as_request(self, model: str) -> dict[str, Any]:
        """Return a request that `read_options` reads as the same; only such a one reaches the training's process."""
        return {"model": model, **asdict(self)}


def shown_options(info: BundleInfo) -> dict[str, Any]:
    """Return the options with their defaults, as a viewer shows and sends them; of a list the first counts."""
    declared = _declared(info)
    return {
        # A viewer sends the first unasked: the CPU must be chosen.
        "device": [*(name for name in device_list() if name != "cpu"), "cpu"] if has_gpu() else ["cuda", "cpu"],
        "pretrained": True,
        "max_epochs": declared["epochs"],
        "train_batch_size": declared["batch_size"],
        "val_interval": declared["val_interval"],
        "start": list(_STARTS),
        "tolerance": TOLERANCE,
        "resume": True,
        "tracking": [*_trackers(), "None"],
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
        start=_start(request.get("start")),
        tolerance=_share(request, "tolerance", TOLERANCE),
        resume=_truth(request.get("resume", True), "resume"),
        tracking=_tracking(request.get("tracking")),
    )


def training_device(asked: Any) -> str:
    """Return the device of a training: a GPU, or the CPU when exactly that was asked for.

    Raises:
        DeviceError: as `read_options`.
    """
    first = asked[0] if isinstance(asked, list) and asked else asked
    if first == "cpu":
        return "cpu"
    if not has_gpu():
        raise DeviceError(
            "training runs on CUDA and PyTorch sees no GPU on this server: train on a machine with one, or insist by "
            "choosing the device cpu (slow; meant for tests and small data)"
        )
    name = str(first or "auto")
    return inference_device(str(device_map().get(name, name)))


def has_gpu() -> bool:
    """Whether there is a GPU to train on."""
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


def _start(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value or _STARTS[0]
    if first not in _STARTS:
        raise ConfigError(f"start is {value!r}, expected one of {', '.join(_STARTS)}")
    return str(first)


def _trackers() -> list[str]:
    """The trackers whose packages are installed; MLflow first, since MONAI Label's server brings it."""
    return [name for name in _TRACKERS if all(map(find_spec, PACKAGES[name]))]


def _tracking(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if first is None:
        return next(iter(_trackers()), "")
    if str(first).lower() in ("", "none", "false"):
        return ""
    if first not in _trackers():
        known = ", ".join([*_trackers(), "None"])
        raise ConfigError(f"tracking is {value!r}, expected one of {known}; others are not installed on this server")
    return str(first)


def _share(request: Mapping[str, Any], key: str, default: float) -> float:
    value = request.get(key)
    try:
        number = default if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise ConfigError(f"{key} is {value!r}, expected a number from 0 to 1")
    return number


def _truth(value: Any, key: str = "pretrained") -> bool:
    text = str(value).lower()
    if text not in ("true", "false", "1", "0"):
        raise ConfigError(f"{key} is {value!r}, expected true or false")
    return text in ("true", "1")
