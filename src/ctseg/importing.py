"""`ctseg import-weights`: weights from elsewhere, taken into a bundle, checked and with a version of their own."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, OutputError
from ctseg.files import file_sha256, write_beside, written_beside
from ctseg.foreignweights import fit_weights, read_foreign
from ctseg.registry import BundleInfo, bundles_root, get_bundle

if TYPE_CHECKING:
    import torch

MODEL = "models/model.pt"
_COPIED = ("configs", "docs", "LICENSE")


def take_weights(
    path: Path, bundle: BundleInfo, out: Path | None = None, *, replace: bool = False, note: str = "", licence: str = ""
) -> tuple[Path, tuple[str, ...]]:
    """Check weights against a bundle's network and put them into the bundle, or into a copy of it.

    The bundle's metadata get a version of their own, a line in the changelog, the sha256, and the evidence "none".

    Args:
        path: the foreign file.
        bundle: whose network they are for.
        out: folder of a copy, made where it is not there; None takes the bundle itself.
        replace: overwrite weights that are there, and allow to write into a bundle that ships with ctseg.
        note: for the changelog, e.g. where they come from.
        licence: of the weights, an SPDX name.

    Returns:
        The weights' new place, and what was done, one phrase each.

    Raises:
        InputError: the file cannot be read as tensors.
        BundleError: the weights do not fit, or the bundle's network cannot be built.
        OutputError: weights are there already, or the place cannot be written.
    """
    import torch

    target = _target(bundle, out, replace)
    foreign = read_foreign(path)
    network = _network(bundle)
    fitted = fit_weights(foreign, network.state_dict(), f"the weights {path} and the network of {bundle.name}")
    network.load_state_dict(fitted.weights, strict=True)
    if not (target / "configs").is_dir():
        _copy(bundle.path, target)
    model = target / MODEL
    with written_beside(model) as beside:
        torch.save(fitted.weights, beside)
    _note_version(target, model, f"weights taken from {path.name}", [*fitted.words, *([note] if note else [])], licence)
    return model, fitted.words


def _network(bundle: BundleInfo) -> torch.nn.Module:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        parser.read_config(bundle.path / "configs" / "inference.json")
        network: torch.nn.Module = parser.get_parsed_content("network_def")
    except Exception as error:
        raise BundleError(
            f"the network of bundle {bundle.name} cannot be built ({error.__cause__ or error}); make the bundle again "
            "with scripts/build_bundles"
        ) from error
    return network


def _target(bundle: BundleInfo, out: Path | None, replace: bool) -> Path:
    """The bundle folder to write into, refused before any work when its weights must not be touched."""
    target = bundle.path if out is None else out
    if not replace and out is None and bundle.path.parent == bundles_root().resolve():
        raise OutputError(
            f"bundle {bundle.name} ships with ctseg: name a folder for a copy with -o FOLDER, or pass --replace"
        )
    if (target / MODEL).exists() and not replace:
        raise OutputError(f"{target / MODEL} is there already: pass --replace to overwrite it, or name another folder")
    if out is not None and out.exists() and not (out / "configs").is_dir() and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out} is there and is no bundle: name a new folder, or a copy of the bundle")
    if out is not None and (out / "configs").is_dir() and get_bundle(out).task != bundle.task:
        raise OutputError(f"{out} is a bundle of another task, {get_bundle(out).task}: name a copy of {bundle.name}")
    return target


def _copy(source: Path, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in _COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name)
            elif (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    except OSError as error:
        raise OutputError(f"the bundle cannot be copied to {target}: {error.strerror}; name another folder") from error


def _note_version(target: Path, model: Path, what: str, words: list[str], licence: str) -> None:
    file = target / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    base = str(metadata["version"]).split("+")[0]
    number = 1 + sum(str(version).startswith(f"{base}+own.") for version in metadata.get("changelog", {}))
    metadata["version"] = f"{base}+own.{number}"
    said = f"{what} ({'; '.join(words)})" if words else what
    metadata["changelog"] = {metadata["version"]: said, **metadata.get("changelog", {})}
    block = metadata["ctseg"]
    block["weights"] = {"file": MODEL, "sha256": file_sha256(model)}
    block["evidence"] = "none: weights from elsewhere, not measured here"
    block["licence"] = {**block["licence"], "weights": licence or "unknown"}
    write_beside(file, (json.dumps(metadata, indent=4, ensure_ascii=False) + "\n").encode())


def add_command(commands: Any) -> None:
    """Add `ctseg import-weights` to the command line."""
    command = commands.add_parser(
        "import-weights",
        help="take weights from elsewhere into a bundle",
        description="Check weights against a bundle's network and put them into a copy of the bundle.",
        epilog="example:\n  ctseg import-weights theirs.ckpt --task liver_ct_segmentation -o my_liver\n"
        "  ctseg segment ct.nii.gz -o out --task my_liver",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE", help="state_dict, .safetensors or Lightning .ckpt")
    command.add_argument("--task", required=True, metavar="NAME", help="bundle, or the path of one of your own")
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="copy of the bundle to write into")
    command.add_argument("--replace", action="store_true", help="overwrite weights that are there")
    command.add_argument("--note", default="", help="for the changelog: whose weights, which version")
    command.add_argument("--licence", default="", metavar="SPDX", help="of the weights (default: unknown)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    bundle = get_bundle(arguments.task)
    print(f"ctseg: checking {arguments.file.name} against {bundle.name}", file=sys.stderr)
    model, words = take_weights(
        arguments.file,
        bundle,
        arguments.out,
        replace=arguments.replace,
        note=arguments.note,
        licence=arguments.licence,
    )
    for word in words:
        print(f"note: {word}")
    info = get_bundle(model.parents[1])
    print(f"{model}: every name and shape fits; version {info.version}, sha256 {info.weights_sha256}")
    print(f"they were not measured here; use them with --task {model.parents[1]}")
