"""A network's file opened in ONNX Runtime or OpenVINO: float32 arrays in, float32 arrays out."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

FORMATS = {"onnx": "onnx", "openvino": "openvino"}  # runtime -> the format of its files (`ctseg.light.described`)
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def is_installed(runtime: str) -> bool:
    """Whether a runtime's package is there; it is not imported."""
    return importlib.util.find_spec(PACKAGES[runtime]) is not None


def version_of(runtime: str) -> str:
    """The version of a runtime's package; "not installed" where there is none."""
    try:
        return importlib.metadata.version(PACKAGES[runtime])
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_runtime(runtime: str) -> None:
    """Refuse a runtime that cannot open files here.

    Raises:
        ConfigError: an unknown one, or one that is not installed.
    """
    if runtime not in FORMATS:
        raise ConfigError(f"there is no runtime {runtime!r}: expected one of {', '.join(FORMATS)}")
    if not is_installed(runtime):
        raise ConfigError(
            f"the runtime {runtime} needs the package {PACKAGES[runtime]}, which is not installed: run scripts/setup "
            "export, or choose another runtime"
        )


class Session:
    """A network, loaded once; any number of threads may run it.

    Args:
        file: a .onnx file, or OpenVINO's .xml with its .bin beside it.
        runtime: "onnx" or "openvino".
        threads: for one run; None takes the processor's cores.

    Raises:
        ConfigError: an unknown runtime, or one that is not installed.
        BundleError: the file is no network of this format, or one that takes or gives several images.
    """

    def __init__(self, file: Path, runtime: str, threads: int | None = None) -> None:
        check_runtime(runtime)
        self.file = file
        self.runtime = runtime
        opened = _open_onnx if runtime == "onnx" else _open_openvino
        try:
            self._run = opened(file, threads)
        except (RuntimeError, ValueError, OSError) as error:
            raise BundleError(
                f"{file.name} cannot be opened by {PACKAGES[runtime]} ({_first_line(error)}); export it again"
            ) from error
        except Exception as error:  # ONNX Runtime's own errors share no base class but this
            if not type(error).__module__.startswith(("onnxruntime", "openvino")):
                raise
            raise BundleError(
                f"{file.name} cannot be opened by {PACKAGES[runtime]} ({_first_line(error)}); export it again"
            ) from error

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the network's answer for a batch (B, C, ...).

        Raises:
            BundleError: the network does not take such an image.
        """
        import numpy as np

        try:
            return self._run(np.ascontiguousarray(image, dtype=np.float32))
        except Exception as error:
            if not isinstance(error, RuntimeError | ValueError) and not type(error).__module__.startswith(
                "onnxruntime"
            ):
                raise
            shown = " x ".join(str(size) for size in image.shape)
            raise BundleError(
                f"{self.file.name} does not take an image of {shown} ({_first_line(error)}): expected what its "
                "description says; correct it, or export it again"
            ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _one(names: list[Any], what: str, file: Path) -> Any:
    if len(names) != 1:
        raise ValueError(f"it has {len(names)} {what}, expected one")
    return names[0]


def _open_onnx(file: Path, threads: int | None) -> Run:
    # From 1.29 on ONNX Runtime reports processes and networks' file names to its maker, from Linux too. Only this
    # variable, set before it is imported, keeps it from that wholly: no event, no identifier, no file of its own.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime: Any = importlib.import_module("onnxruntime")

    onnxruntime.disable_telemetry_events()  # where another program imported it before
    onnxruntime.set_default_logger_severity(3)  # errors; its warnings are about optimisations
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # memory goes back between images of different sizes
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    taken = _one([one.name for one in session.get_inputs()], "inputs", file)
    given = _one([one.name for one in session.get_outputs()], "outputs", file)

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session.run([given], {taken: image})[0]
        return answer

    return run


def _open_openvino(file: Path, threads: int | None) -> Run:
    import numpy as np

    openvino: Any = importlib.import_module("openvino")

    core = openvino.Core()
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(str(file)), "CPU", options)
    _one(list(compiled.inputs), "inputs", file)
    _one(list(compiled.outputs), "outputs", file)

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        # A request of its own for each call: threads do not share one.
        answer = compiled.create_infer_request().infer([image])
        return np.array(answer[0], dtype=np.float32)

    return run
