"""A bundle of several trainings' networks: it answers with the mean of their probabilities, and is used like any other.

So the command line, the Python functions, the server and `monai.bundle run` take the folds of a cross-validation as
they take one network: one preprocessing, one network whose answer is the mean (`ctseg.folds.ensembles`), one clean-up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.bundlecopy import copy_with_weights
from ctseg.errors import BundleError
from ctseg.files import sync_folder, write_beside, written_beside
from ctseg.registry import BundleInfo, get_bundle

_ONLY_TRAINING = ("train.json", "evaluate.json", "multi_gpu_train.json")
_NOT_ITS_OWN = ("quality", "part_of")  # of the single network: how its doubt is calibrated, where it is a part


def write_ensemble(
    bundle: BundleInfo, weights: Sequence[Path], target: Path, evidence: str, over: Path | None = None
) -> BundleInfo:
    """Write the bundle that runs several networks of one bundle; one that lies there is replaced.

    Args:
        bundle: whose training made the weights.
        weights: one file for each network.
        target: the new bundle's folder.
        evidence: one sentence on what the ensemble was measured on.
        over: the experiment that was laid over the training; None for none.

    Raises:
        BundleError: no weights, or they are of different networks.
        OutputError: when it cannot be written.
    """
    if not weights:
        raise BundleError(f"an ensemble of {bundle.name} needs the weights of one network at least; none are there")
    making = target.with_name(f".{target.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    joined = target.with_name(f".{target.name}.pt")
    try:
        _join(weights, joined)
        count = len(weights)
        made = copy_with_weights(
            bundle, joined, making, f"{bundle.version}-ensemble{count}",
            f"the mean of the probabilities of {count} networks", evidence,
        )  # fmt: skip
        for name in _ONLY_TRAINING:
            (made.path / "configs" / name).unlink(missing_ok=True)
        _rewrite_inference(made, count, over)
        _rewrite_metadata(made)
        shutil.rmtree(target, ignore_errors=True)
        making.rename(target)
        sync_folder(target.parent)
    finally:
        joined.unlink(missing_ok=True)
        shutil.rmtree(making, ignore_errors=True)
    return get_bundle(target)


def _join(weights: Sequence[Path], target: Path) -> None:
    """Write the weights of all networks as those of `MeanOfNetworks`."""
    import torch

    from ctseg.weights import read_weights

    joined: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Size] = {}
    for number, path in enumerate(weights):
        state = read_weights(path)
        shapes = {name: tensor.shape for name, tensor in state.items()}
        if number and shapes != first:
            raise BundleError(
                f"the weights {path} are of another network than {weights[0]}: expected the same names and shapes; "
                "join trainings of one configuration"
            )
        first = shapes
        joined |= {f"networks.{number}.{name}": tensor for name, tensor in state.items()}
    with written_beside(target) as beside:
        torch.save(joined, beside)


def _rewrite_inference(made: BundleInfo, count: int, over: Path | None) -> None:
    from monai.bundle import ConfigParser

    file = made.path / "configs" / "inference.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    own = set(content)
    if over is not None:
        content = ConfigParser.load_config_files([str(file), str(over)])
        # What only a training has refers to parts that are not here.
        content = {key: value for key, value in content.items() if key in own or key not in _TRAINING_KEYS}
    activation = "@activation" if "activation" in content else "sigmoid" if made.classifies else None
    content["network_def"] = {
        "_target_": "ctseg.folds.ensembles.MeanOfNetworks",
        "network": content["network_def"],
        "count": count,
        "activation": activation,
    }
    write_beside(file, (json.dumps(content, indent=4) + "\n").encode())


_TRAINING_KEYS = {
    "experiment", "loss", "optimizer", "lr_scheduler", "epochs", "batch_size", "val_interval", "monitor", "early_stop",
    "stages", "pretrained", "seed", "only_with_organ", "train", "validate", "num_workers", "cache_type", "track",
    "flip_vertical", "flip_horizontal", "rotate", "rotate_degrees", "colour", "colour_cast", "brightness", "contrast",
    "sample_pictures", "prediction_pictures",
}  # fmt: skip


def _rewrite_metadata(made: BundleInfo) -> None:
    file = made.path / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    for key in _NOT_ITS_OWN:
        metadata["ctseg"].pop(key, None)
    write_beside(file, (json.dumps(metadata, indent=4) + "\n").encode())
