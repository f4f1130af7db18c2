"""`ctseg join-planes`: three 2D networks, trained apart, become one bundle that is used like any other."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ctseg.errors import BundleError, ConfigError, OutputError

_PLANE_TASK, _VOLUME_TASK = "aspects_plane_ct_segmentation", "aspects_ct_segmentation"
_FUSIONS = ("consensus", "mean", "learned")
_CONFIGS = ("inference", "train")

_EPILOG = """Each plane is a weights' file (model.pt); where a training.json of `ctseg experiments` lies beside it, the
network is the one that it describes, else that of --plane-task.

fusions:
  consensus  the class that two of three planes hold, else background
  mean       the class of the largest mean probability
  learned    a weight for each plane and class, fitted on the validation patients of --data; without --data all a third

examples:
  ctseg join-planes runs/axial/model.pt runs/coronal/model.pt runs/sagittal/model.pt -o my_planes
  ctseg join-planes AXIAL.pt CORONAL.pt SAGITTAL.pt -o my_planes --fusion learned --data DATA
  ctseg segment head.nii.gz --task my_planes -o out"""


def add_command(commands: Any) -> None:
    """Add `ctseg join-planes` to the command line."""
    command = commands.add_parser(
        "join-planes",
        help="make one bundle of three networks, one for each plane",
        description="Join an axial, a coronal and a sagittal 2D network into a bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for plane in ("axial", "coronal", "sagittal"):
        command.add_argument(plane, type=Path, metavar=plane.upper(), help=f"weights of the {plane} network")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="the new bundle's folder")
    command.add_argument("--fusion", choices=_FUSIONS, default="consensus", help="how (default: consensus)")
    command.add_argument("--data", type=Path, metavar="DATA", help="data folder to learn the fusion on")
    command.add_argument("--device", default="auto", help="of that: auto, cpu, cuda or cuda:N (default: auto)")
    command.add_argument("--plane-task", default=_PLANE_TASK, metavar="NAME", help=f"bundle of a plane ({_PLANE_TASK})")
    command.add_argument(
        "--task", default=_VOLUME_TASK, metavar="NAME", help=f"bundle whose pipeline is taken over ({_VOLUME_TASK})"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.registry import get_bundle

    if arguments.data is not None and arguments.fusion != "learned":
        raise ConfigError(f"--data is to learn a fusion, and {arguments.fusion} learns nothing: pass --fusion learned")
    weights = {plane: getattr(arguments, plane) for plane in ("axial", "coronal", "sagittal")}
    bundle, learn = get_bundle(arguments.task), None
    if arguments.data is not None:
        learn = _learner(bundle.path / "configs" / "train.json", arguments.data, arguments.device)
    made = join_planes(weights, get_bundle(arguments.plane_task), bundle, arguments.out, arguments.fusion, learn)
    print(f"{made.path}: three planes, {arguments.fusion}; version {made.version}")
    print(f"next: ctseg segment HEAD --task {arguments.out} -o OUT")


def _learner(train_config: Path, data: Path, device: str) -> Callable[[Any], Any]:
    from ctseg.commands.segment import say
    from ctseg.devices import inference_device
    from ctseg.planes.fusion import learn_weights

    return partial(learn_weights, train_config=train_config, data=data, device=inference_device(device), say=say)


def join_planes(
    weights: Mapping[str, Path],
    plane_bundle: Any,
    bundle: Any,
    out: Path,
    fusion: str,
    learn: Callable[[Any], Any] | None = None,
) -> Any:
    """Write the bundle of three planes.

    Args:
        weights: plane -> its network's weights.
        plane_bundle: the `BundleInfo` of one plane's network.
        bundle: the `BundleInfo` of a volume's, whose preprocessing, labels and training are taken over.
        out: a new folder.
        fusion: "consensus", "mean" or "learned".
        learn: gives the weights of "learned" for the network with its planes' weights; None leaves a third each.

    Returns:
        The new `BundleInfo`.

    Raises:
        BundleError: weights that cannot be read or do not fit, or bundles of other labels.
        ConfigError: an experiment of another plane.
        OutputError: the folder is there already, or cannot be written.
    """
    from monai.bundle import ConfigParser

    from ctseg.bundlecopy import copy_with_weights
    from ctseg.files import write_beside
    from ctseg.registry import get_bundle
    from ctseg.weights import load_weights, read_weights, save_tensors

    if out.exists():
        raise OutputError(f"{out} is there already; name a new folder")
    if plane_bundle.labels != bundle.labels:
        raise BundleError(f"{plane_bundle.name} and {bundle.name} have other labels: name bundles of the same ones")
    networks = {plane: _network_of(plane, path, plane_bundle) for plane, path in weights.items()}
    definition = {
        "_target_": "ctseg.planes.networks.ThreePlanes",
        **networks,
        "classes": len(bundle.labels) + 1,
        "fusion": fusion,
        "divisor": _config(plane_bundle.path, "inference")["divisor"],
        "freeze_planes": fusion == "learned",
    }
    joined = {
        f"planes.{plane}.{name}": tensor
        for plane, path in weights.items()
        for name, tensor in read_weights(path).items()
    }
    parser = ConfigParser({"network_def": definition})
    network = parser.get_parsed_content("network_def")
    if fusion == "learned":
        joined["weights"] = network.weights.detach().clone()
    file = out.with_name(f"{out.name}.pt")
    try:
        save_tensors(joined, file)
        load_weights(network, file)
        if fusion == "learned" and learn is not None:
            joined["weights"] = learn(network).detach().clone()
            save_tensors(joined, file)
        made = copy_with_weights(
            bundle,
            file,
            out,
            f"{bundle.version}+planes",
            f"three planes of {plane_bundle.name} joined by {fusion}",
            "none: planes joined, not measured",
        )
    finally:
        file.unlink(missing_ok=True)
    for name in _CONFIGS:
        config = _config(made.path, name)
        config["network_def"] = definition
        # whole volumes: every slice of every plane is seen once
        place = config if name == "inference" else config["validate"]
        place["inferer"] = {"_target_": "SimpleInferer"}
        if name == "train":  # further training begins with these planes; frozen ones would be random else
            config["pretrained"] = "$@bundle_root + '/models/model.pt'"
        write_beside(made.path / "configs" / f"{name}.json", (json.dumps(config, indent=4) + "\n").encode())
    return get_bundle(made.path)


def _network_of(plane: str, weights: Path, plane_bundle: Any) -> Any:
    """The definition of one plane's network: of the experiment that the weights are from, else the bundle's."""
    told = weights.parent / "training.json"
    if not told.is_file():
        return _config(plane_bundle.path, "inference")["network_def"]
    try:
        config = json.loads(told.read_text(encoding="utf-8"))
        network, found = config["network_def"], config["plane"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{told} says no plane and network ({error}): name weights of a plane's training") from error
    if found != plane:
        raise ConfigError(f"{weights} was trained on {found} slices, but is named as the {plane} one: change the order")
    return network


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "configs" / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); make it again with scripts/build_bundles") from error
    return content
