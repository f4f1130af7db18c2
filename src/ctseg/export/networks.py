"""A bundle's network as ONNX, OpenVINO or TorchScript, checked against PyTorch, with its description beside it."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg import __version__
from ctseg.errors import BundleError, ConfigError
from ctseg.export.runtimes import export_folder, network_sha256, weights_sha256
from ctseg.files import file_sha256, write_beside, written_beside
from ctseg.light.described import SCHEMA, SUFFIXES, description_of
from ctseg.registry import BundleInfo, verify_weights

if TYPE_CHECKING:
    from torch import nn

# The largest difference from PyTorch in float32, as a share of the largest output (or of 1, if that is smaller).
TOLERANCE = 1e-4
_PACKAGES = ("torch", "monai", "onnx", "onnxruntime", "openvino")

Shape = tuple[int, ...]
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        files: the network's file first, then OpenVINO's weights, then the description.
        difference: the largest difference from PyTorch, as a share of the largest output.
        sizes: "any multiple of N" or the sizes that the network takes.
    """

    files: tuple[Path, ...]
    difference: float
    sizes: str


@dataclass(frozen=True)
class _Network:
    """A bundle's network with its weights, and the images it is made for."""

    module: nn.Module
    channels: int
    patch: Shape
    divisor: int
    steps: dict[str, Any]
    threshold: float | None


def export_bundle(
    bundle: BundleInfo, kind: str = "onnx", folder: Path | None = None, tolerance: float = TOLERANCE
) -> Export:
    """Export a bundle's network, compare it with PyTorch on random images, and keep it only if the two agree.

    Batches of any number are taken; images of any multiple of a size where the network allows it, else of the size of
    the bundle's patch, which is what inference gives it.

    Args:
        bundle: one that is ready: trained, or in need of no weights.
        kind: "onnx", "openvino" or "torchscript".
        folder: where it is written; None takes the bundle's `models`, where `--runtime` looks.
        tolerance: see `TOLERANCE`.

    Raises:
        BundleError: the bundle is untrained or broken, its network cannot be exported, or the file does not agree.
        ConfigError: an unknown format, or a package that is missing.
        OutputError: the files cannot be written.
    """
    if kind not in SUFFIXES:
        raise ConfigError(f"there is no format {kind!r}: expected one of {', '.join(SUFFIXES)}")
    _check_packages(kind)
    network = _network_of(bundle)
    folder = export_folder(bundle) if folder is None else folder
    target = folder / f"{bundle.name}{SUFFIXES[kind]}"
    with tempfile.TemporaryDirectory(prefix="ctseg-export-") as scratch:
        made, step = _made(network, kind, Path(scratch) / target.name, bundle.name)
        shapes = _shapes(network, step)
        difference = _difference(network, _opened(made, kind), shapes, bundle.name)
        if not difference <= tolerance:
            raise BundleError(
                f"{target.name} does not agree with PyTorch: found a difference of {difference:.2g} of the largest "
                f"output, expected at most {tolerance:g}; it was not kept, take another format"
            )
        files = _moved(made, target)
    told = _description(bundle, network, kind, files, step)
    told["agreement"] = {"tolerance": tolerance, "difference": difference, "shapes": [list(one) for one in shapes]}
    beside = description_of(target)
    write_beside(beside, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    sizes = f"any multiple of {step}" if step else " x ".join(str(size) for size in network.patch)
    return Export((*files, beside), difference, sizes)


def _check_packages(kind: str) -> None:
    wanted = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
    for package in wanted.get(kind, ()):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                f"the format {kind} needs the package {package}, which is not installed: run scripts/setup export"
            ) from error


def _network_of(bundle: BundleInfo) -> _Network:
    from monai.bundle import ConfigParser

    from ctseg.export.steps import described_steps
    from ctseg.weights import load_weights

    weights = verify_weights(bundle)
    parser = ConfigParser()
    parser.read_config(bundle.path / "configs" / "inference.json")
    parser["bundle_root"], parser["device"] = str(bundle.path), "cpu"
    try:
        module = parser.get_parsed_content("network_def").float().eval()
    except Exception as error:
        raise BundleError(
            f"the network of bundle {bundle.name} cannot be built ({error.__cause__ or error}); make the bundle again "
            "with scripts/build_bundles"
        ) from error
    if weights is not None:
        load_weights(module, weights)
    image = bundle.metadata["network_data_format"]["inputs"]["image"]
    patch = tuple(size if isinstance(size, int) else 32 for size in image["spatial_shape"])
    divisor = parser.get_parsed_content("divisor") if "divisor" in parser else 1
    threshold = parser.get_parsed_content("threshold") if "threshold" in parser else None
    return _Network(module, int(image["num_channels"]), patch, int(divisor or 1), described_steps(parser), threshold)


def _made(network: _Network, kind: str, file: Path, name: str) -> tuple[Path, int | None]:
    """Write a network; return its file and the number that sizes must be multiples of, None for fixed sizes."""
    from ctseg.export import formats

    try:
        if kind == "torchscript":
            steps = formats.free_steps(network.module, network.channels, len(network.patch), network.divisor)
            return formats.write_torchscript(network.module, file), steps[0] if steps else None
        onnx = file.with_suffix(".onnx")
        step = formats.write_onnx(network.module, onnx, network.channels, network.patch, network.divisor)
        return (onnx if kind == "onnx" else formats.write_openvino(onnx, file)), step
    except Exception as error:  # an exporter raises what it likes
        if isinstance(error, ConfigError | BundleError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BundleError(
            f"the network of {name} cannot be written as {kind} ({type(error).__name__}: "
            f"{lines[0][:200] if lines else 'no reason given'}); take another format"
        ) from error


def _opened(file: Path, kind: str) -> Run:
    if kind == "torchscript":
        from ctseg.export.formats import open_torchscript

        return open_torchscript(file)
    from ctseg.light.sessions import Session

    return Session(file, kind)


def _shapes(network: _Network, step: int | None) -> list[Shape]:
    """The images to compare on: the patch, and where sizes are free, two of another and odd shape."""
    first = (1, network.channels, *network.patch)
    if step is None:
        return [first, (2, *first[1:])]
    small = [max(step, size // 2 // step * step) + step * number for number, size in enumerate(network.patch, start=1)]
    return [first, (3, network.channels, *small)]


def _difference(network: _Network, run: Run, shapes: Sequence[Shape], name: str) -> float:
    import torch

    largest = 0.0
    draw = np.random.default_rng(0)
    for shape in shapes:
        # Inside and outside of the window alike, for a network without weights that looks at HU.
        image = draw.random(shape, dtype=np.float32) * np.float32(1 if network.module.state_dict() else 1000)
        with torch.inference_mode():
            expected = network.module(torch.from_numpy(image)).numpy()
        found = run(image)
        if found.shape != expected.shape:
            raise BundleError(
                f"the export of {name} answers an image {shape} with {found.shape}, PyTorch with {expected.shape}; it "
                "was not kept, take another format"
            )
        scale = max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(found - expected).max()) / scale
        largest = max(largest, difference) if np.isfinite(difference) else float("inf")
    return largest


def _moved(made: Path, target: Path) -> tuple[Path, ...]:
    """Bring a network's file, and OpenVINO's weights, to their place, each in one step."""
    files = [path for path in (target.with_suffix(".bin"), target) if made.with_suffix(path.suffix).is_file()]
    for path in files:
        with written_beside(path) as beside:
            beside.write_bytes(made.with_suffix(path.suffix).read_bytes())
    return tuple(reversed(files))


def _description(
    bundle: BundleInfo, network: _Network, kind: str, files: Sequence[Path], step: int | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": bundle.name,
        "format": kind,
        "files": {file.name: file_sha256(file) for file in files},
        "weights_sha256": weights_sha256(bundle),
        "network_sha256": network_sha256(bundle),
        "input": {
            "channels": network.channels,
            "dimensions": len(network.patch),
            "batch": "any",
            "size": "any" if step else list(network.patch),
            "divisor": step,
        },
        **network.steps,
        **({"threshold": network.threshold} if network.threshold is not None else {}),
        "versions": {"ctseg": __version__, **_versions()},
        "metadata": dict(bundle.metadata),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
