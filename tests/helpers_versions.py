"""Versions of a bundle as a training makes them, without the training: other weights, entered in the list."""

from __future__ import annotations

from pathlib import Path

import torch

from ctseg.annotation.versions import Versions
from ctseg.bundlecopy import copy_with_weights
from ctseg.registry import BundleInfo


def other_weights(bundle: BundleInfo, file: Path, seed: int) -> Path:
    """Write weights that fit a bundle's network and are not its own."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(bundle.path / "configs" / "inference.json")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = parser.get_parsed_content("network_def")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return file


def make_version(shipped: BundleInfo, data: Path, seed: int, use: bool = True) -> BundleInfo:
    """Put another network of a bundle into the folder of its trainings, taken into use or only kept.

    Args:
        shipped: the bundle.
        data: `STUDIES/ctseg/BUNDLE`.
        seed: of its random weights; part of its name.
        use: whether it is good enough to be taken into use.
    """
    run = data / "runs" / f"run-{seed}"
    weights = other_weights(shipped, run / "model.pt", seed)
    name = f"{shipped.version}+{seed}"
    made = copy_with_weights(shipped, weights, run / shipped.name, version=name, change="a test", evidence="none")
    Versions(data, shipped).add(made, 0.9 if use else 0.1, 0.5, cases=1)
    return made
