"""The formats themselves: a torch module to an ONNX file, an OpenVINO file or a TorchScript file."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

INPUT, OUTPUT = "image", "pred"
_USUAL_STEPS = (16, 32)  # tried where a network does not take any size: most halve theirs four or five times


def free_steps(module: nn.Module, channels: int, dimensions: int, divisor: int) -> list[int]:
    """Return numbers, the smallest first, of which a network takes any multiple as size; found by trying.

    What a bundle pads to is tried, then what networks usually need.
    """
    found = []
    for step in [divisor, *(one for one in _USUAL_STEPS if one > divisor)]:
        sizes = [step * number for number in range(2, 2 + dimensions)]
        with contextlib.suppress(Exception), torch.inference_mode():  # many kinds of error say that a size is not taken
            module(torch.zeros(1, channels, *sizes))
            found.append(step)
    return found


def write_onnx(module: nn.Module, file: Path, channels: int, patch: Sequence[int], divisor: int) -> int | None:
    """Write a network as ONNX that takes batches of any number, and images of other sizes where it allows them.

    Args:
        module: in evaluation mode, on the CPU.
        file: to write.
        channels: of the input.
        patch: the sizes of the bundle's images, which are the ones taken where no others are.
        divisor: what the bundle pads sizes to.

    Returns:
        The number that sizes must be multiples of; None where only `patch` is taken.
    """
    for step in free_steps(module, channels, len(patch), divisor):
        with contextlib.suppress(Exception):  # torch.export says with many kinds of error that a size cannot be free
            _write_onnx(module, file, channels, [3 * step] * len(patch), step)
            return step
    _write_onnx(module, file, channels, patch, None)
    return None


def _write_onnx(module: nn.Module, file: Path, channels: int, sizes: Sequence[int], step: int | None) -> None:
    # Sizes that differ, so that none is taken for another; a batch of 2, for 1 would be taken for a fixed number.
    shown = [size + step * number for number, size in enumerate(sizes)] if step else sizes
    example = torch.rand(2, channels, *shown)
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    for axis, name in enumerate(("i", "j", "k")[: len(shown)] if step else (), start=2):
        dimension = torch.export.Dim(name, min=2)
        free[axis] = dimension if step == 1 else step * dimension
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(free,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        if program is None:
            raise RuntimeError("PyTorch made no ONNX program")
        _save_without_places(program.model_proto, file)


def _save_without_places(proto: Any, file: Path) -> None:
    """Write an ONNX model without the exporter's notes, which name the folders of the machine it was made on."""
    onnx: Any = importlib.import_module("onnx")
    for holder in (proto.graph, *proto.functions):
        for noted in (holder, *holder.node, *holder.value_info):
            del noted.metadata_props[:]
            noted.doc_string = ""
    onnx.save(proto, str(file))


def write_openvino(onnx: Path, file: Path) -> Path:
    """Write an ONNX file as OpenVINO's .xml and .bin, in float32; read by its core, which sends no telemetry."""
    openvino: Any = importlib.import_module("openvino")
    openvino.save_model(openvino.Core().read_model(str(onnx)), str(file), compress_to_fp16=False)
    return file


def write_torchscript(module: nn.Module, file: Path) -> Path:
    """Write a network as TorchScript, compiled as MONAI's `ckpt_export` does."""
    from monai.networks import convert_to_torchscript

    with _quiet():
        torch.jit.save(convert_to_torchscript(module), str(file))
    return file


def open_torchscript(file: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Open a TorchScript file as a function of arrays."""
    with _quiet():
        network = torch.jit.load(str(file), map_location="cpu").eval()

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer: NDArray[np.float32] = network(torch.from_numpy(image)).numpy()
        return answer

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, log and warn about their own progress; what matters is the check that follows."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
