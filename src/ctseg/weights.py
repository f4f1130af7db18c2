"""Weights: tensors only, loaded strictly, from a bundle's folder or a training's checkpoint."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ctseg.errors import BundleError, CtsegError, OutputError
from ctseg.files import written_beside


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict of tensors; of a checkpoint with several parts, the part "model".

    Raises:
        BundleError: when the file is missing, broken, or holds pickled code instead of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(
            f"There are no weights at {path}: expected a file of tensors; train the bundle first "
            "(python -m monai.bundle run --config_file BUNDLE/configs/train.json) or fetch its weights."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts the pickle protocol of what is refused anyway
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise BundleError(
            f"The weights {path} cannot be read as tensors ({type(error).__name__}): expected a state_dict saved by "
            "torch.save(model.state_dict(), path); save it so where the model was made, or fetch the file again."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BundleError(
            f"The weights {path} hold a {type(content).__name__}, expected names and tensors: save a state_dict."
        )
    return content


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values to a file in one step: it is the old or the new one, never half of one.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with written_beside(path) as beside:
        try:
            torch.save(content, beside)
        except RuntimeError as error:  # what torch's own writer makes of a full disk
            raise OutputError(
                f"cannot write {path.name} into {path.parent}: the disk is full, or went away; make room there"
            ) from error


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load weights into a network, every name and shape exactly; half-precision files are widened.

    Raises:
        BundleError: as `read_weights`, or when a name or shape differs.
    """
    weights = read_weights(path)
    module = network.module if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise BundleError(
            f"The weights {path} do not fit the network of the bundle ({first}): expected the same names and shapes; "
            "use the weights that were trained with this configuration."
        ) from error


class LoadWeights:
    """Handler that loads weights strictly when an engine starts; a configuration's way to `load_weights`."""

    def __init__(self, path: str | Path, network: torch.nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Load when `engine` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load now. Raises SystemExit with a sentence: out of `monai.bundle run` nothing else reaches the user so."""
        try:
            load_weights(self.network, self.path)
        except CtsegError as error:
            raise SystemExit(f"ctseg: {error}") from error
