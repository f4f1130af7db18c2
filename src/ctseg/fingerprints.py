"""What a prepared case depends on, as plain text: the transforms with their settings, the program, the source files.

A prepared case may only be used again when all three are what they were.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctseg.errors import ConfigError
from ctseg.files import file_sha256

# What changes with every use, or says only how the work is done, never what comes out.
_LEFT_OUT = {"R", "_tracing", "_lazy", "log_stats", "progress"}
_DETACHED_HEADERS = (".mhd", ".nhdr")  # the voxels lie in another file beside it


def digest(content: Any) -> str:
    """Return 32 hexadecimal digits that stand for JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def describe(value: Any) -> Any:
    """Return JSON that is the same for two objects exactly when they do the same: classes by name, all their settings.

    An object that depends on more than its settings, such as the weights of a network, says so by a method
    `fingerprint()`, whose answer is taken with its class in their place.

    Args:
        value: a transform, or anything that it may hold.

    Raises:
        ConfigError: for something whose settings cannot be seen.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value if not isinstance(value, enum.Enum) else [type(value).__name__, value.name]
    if isinstance(value, float):
        return repr(value)  # JSON has no NaN
    if isinstance(value, enum.Enum):
        return [type(value).__name__, value.name]
    if isinstance(value, (torch.dtype, torch.device, np.dtype, Path, complex, range, slice, bytes)):
        return [type(value).__name__, str(value)]
    if isinstance(value, np.generic):
        return [type(value).__name__, repr(value.item())]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return ["mapping", [[describe(key), describe(item)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(json.dumps(describe(item)) for item in value)]
    return _describe_object(value)


def _describe_object(value: Any) -> Any:
    if isinstance(value, type):
        return ["class", value.__module__, value.__qualname__]
    if isinstance(value, partial):
        return ["partial", describe(value.func), describe(value.args), describe(value.keywords)]
    if callable(value) and hasattr(value, "__code__"):
        code = value.__code__
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        # A lambda's name says nothing: what it does is its code.
        inside = [code.co_code.hex(), [describe(c) for c in code.co_consts if not hasattr(c, "co_code")], code.co_names]
        return ["function", value.__module__, value.__qualname__, inside, describe(held), describe(value.__defaults__)]
    if callable(value) and hasattr(value, "__self__"):
        return ["method", describe(value.__self__), getattr(value, "__name__", "")]
    if callable(getattr(value, "fingerprint", None)):
        return ["fingerprint", type(value).__module__, type(value).__qualname__, describe(value.fingerprint())]
    if hasattr(value, "__dict__"):
        settings = {k: v for k, v in vars(value).items() if k not in _LEFT_OUT}
        kind = type(value)
        return ["object", kind.__module__, kind.__qualname__, [[k, describe(v)] for k, v in sorted(settings.items())]]
    raise ConfigError(
        f"The settings of a {type(value).__module__}.{type(value).__qualname__} in the preprocessing cannot be seen, "
        "so it is not known when a prepared case is out of date: train with cache_dir null, or use another transform."
    )


@lru_cache(maxsize=1)
def program() -> list[str]:
    """Return what stands for the program that prepares cases: MONAI's version, and the content of this package."""
    package = Path(__file__).resolve().parent
    files = sorted(path for path in package.rglob("*.py"))
    content = hashlib.sha256("".join(f"{p.relative_to(package)} {file_sha256(p)}\n" for p in files).encode())
    return [importlib.metadata.version("monai"), torch.__version__, content.hexdigest()[:32]]


def source_files(item: Mapping[Any, Any]) -> list[list[Any]]:
    """Return path, size in bytes and time of the last change in ns of every file that an item of a datalist names.

    A folder stands for all files in it, and a header (.mhd, .nhdr) for the files beside it of the same name.
    """
    found = []
    for path in sorted(set(_paths(item.values()))):
        for file in _files_of(path):
            state = file.stat()
            found.append([str(file), state.st_size, state.st_mtime_ns])
    return found


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _paths(value)
        elif isinstance(value, Mapping):
            yield from _paths(value.values())
        elif isinstance(value, Path) or (isinstance(value, str) and os.sep in value and Path(value).exists()):
            yield Path(value)


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.name.lower().endswith(_DETACHED_HEADERS):
        return sorted(file for file in path.parent.glob(f"{path.name.partition('.')[0]}.*") if file.is_file())
    return [path] if path.is_file() else []
