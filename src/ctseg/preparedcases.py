"""A prepared case on disk: a folder with an .npy for each array, and a JSON that says what they are and came from.

Arrays are kept with their last axis first, so that a slice along it is one piece of the file, and mapped into memory
when they are read: only what is touched is loaded. No pickles.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ctseg.errors import ConfigError, OutputError

SIDECAR = "case.json"
FORMAT = 2
# Half a step of float16 just below 1: what a value between -1 and 1 may be off.
HALF_ERROR = 2.0**-12
STORED = ("float16", "float32")
_LARGEST = 32767  # of 16 bits; the lowest, -32768, is left out so that it goes both ways


class Broken(Exception):
    """A prepared case cannot be used; it is made anew."""


@dataclass(frozen=True)
class Before:
    """What an array was before it was stored.

    Attributes:
        dtype: its type.
        divisor: what its stored whole numbers are divided by; None where they are the values themselves.
    """

    dtype: torch.dtype
    divisor: float | None = None


def write_case(
    folder: Path,
    item: Mapping[Any, Any],
    given: Mapping[Any, Any],
    origin: Any,
    stored: str,
    widths: Mapping[Any, float] | None = None,
) -> None:
    """Write a prepared case in one step: a reader sees all of it or nothing.

    Args:
        folder: where it shall lie; what is there is replaced.
        item: the case after its deterministic transforms.
        given: the case before them; what is the same is not kept.
        origin: JSON, compared when it is read.
        stored: "float32" keeps floating numbers exactly; "float16" those from -1 to 1 to within `HALF_ERROR`, others
            exactly. Whole numbers are always kept exactly, in 8 bits from 0 to 255, else in 16 where they fit: HU as
            CTs state them.
        widths: key -> width in HU of the window that an image was scaled to 0..1 by. Where its values are whole HU
            still (no resampling between), these are stored, in 8 or 16 bits, and give back the same bits.

    Raises:
        OutputError: when it cannot be written, or the disk is full.
        ConfigError: for an entry that neither is an array nor can be written as JSON.
    """
    beside = folder.parent / f".new-{folder.name}-{secrets.token_hex(4)}"
    try:
        beside.mkdir(parents=True)
        arrays: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for key, value in item.items():
            if isinstance(value, (torch.Tensor, np.ndarray)):
                width = (widths or {}).get(key)
                arrays[str(key)] = _write_array(beside / f"{len(arrays)}.npy", value, stored, width)
            elif key not in given or given[key] is not value:
                plain[str(key)] = _to_json(value)
        removed = [str(key) for key in given if key not in item]
        content = {"format": FORMAT, "origin": origin, "arrays": arrays, "plain": plain, "removed": removed}
        (beside / SIDECAR).write_text(json.dumps(content), encoding="utf-8")
        for file in beside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        discard(folder)
        beside.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Prepared cases cannot be written into {folder.parent}: {error.strerror or error}; name a folder that can be "
        "written and has space with --cache_dir, or keep the cases in memory with --cache_dir null."
    )


def discard(folder: Path) -> None:
    """Take a prepared case away, in one step for its readers; those that have it mapped keep what they have."""
    if folder.exists():
        away = folder.parent / f".old-{folder.name}-{secrets.token_hex(4)}"
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def open_case(folder: Path, given: Mapping[Any, Any], origin: Any = None) -> tuple[dict[Any, Any], dict[str, Before]]:
    """Return a prepared case whose arrays are mapped, as they are stored, and what each was before.

    Writing into an array changes this mapping only, never the file.

    Args:
        folder: of `write_case`.
        given: the case before its transforms.
        origin: what it must have been made from; None does not compare.

    Raises:
        Broken: it is missing, damaged, of another format or of another origin.
    """
    try:
        content = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or (origin is not None and content["origin"] != origin):
            raise Broken("it was made from something else")
        item = {key: value for key, value in given.items() if str(key) not in content["removed"]}
        item.update({key: _from_json(value) for key, value in content["plain"].items()})
        item.update({key: _read_array(folder, entry) for key, entry in content["arrays"].items()})
        before = {
            key: Before(getattr(torch, entry["dtype"]), entry.get("divisor"))
            for key, entry in content["arrays"].items()
        }
        return item, before
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


def restored(item: dict[Any, Any], before: Mapping[str, Before]) -> dict[Any, Any]:
    """Return an item of `open_case`, or what was cropped of one, in memory of its own and as it was before."""
    result = dict(item)
    for key, was in before.items():
        value = item.get(key)
        if isinstance(value, torch.Tensor):
            value = value.to(dtype=was.dtype, memory_format=torch.contiguous_format, copy=True)
            result[key] = value if was.divisor is None else value.div_(was.divisor)
        elif isinstance(value, np.ndarray):
            result[key] = np.array(value, dtype=str(was.dtype).removeprefix("torch."))
    return result


@contextmanager
def claimed(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the right to make a prepared case, among all processes; the kernel takes it back when a process dies.

    Args:
        folder: of the case.
        wait: until another process has let go; else gives False when one holds it.

    Raises:
        OutputError: when the folder cannot be written.
    """
    lock = folder.parent / ".locks" / folder.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _write_array(path: Path, value: Any, stored: str, width: float | None) -> dict[str, Any]:
    """Write one array and return what the sidecar says of it."""
    tensor = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
    array = tensor.detach().cpu().numpy()
    whole = _as_hu(array, width) if width and isinstance(value, torch.Tensor) else None
    kept = array.astype(_kept_type(array, stored), copy=False) if whole is None else whole
    np.save(path, np.ascontiguousarray(np.moveaxis(kept, -1, 0) if kept.ndim > 1 else kept), allow_pickle=False)
    entry = {"file": path.name, "bytes": path.stat().st_size, "dtype": str(tensor.dtype).removeprefix("torch.")}
    if whole is not None:
        entry["divisor"] = width
    if isinstance(value, MetaTensor):
        return {**entry, "kind": "meta", "meta": _to_json(dict(value.meta))}
    return {**entry, "kind": "tensor" if isinstance(value, torch.Tensor) else "array"}


def _as_hu(array: np.ndarray, width: float) -> np.ndarray | None:
    """The whole HU above a window's lower bound that give every bit of a scaled image back; None where they do not."""
    if array.dtype.kind != "f" or array.ndim < 2 or not array.size:
        return None
    whole = np.empty(array.shape, dtype=np.int16)
    for k in range(array.shape[-1]):  # slab by slab: bounds the memory, and most others are known by the first
        slab = np.rint(array[..., k] * width)
        if not bool((np.abs(slab) <= _LARGEST).all()):  # NaN fails too
            return None
        whole[..., k] = slab
        back = torch.from_numpy(np.ascontiguousarray(whole[..., k]).astype(array.dtype)).div_(width).numpy()
        if not np.array_equal(back, array[..., k]):
            return None
    return whole.astype(np.uint8) if whole.min() >= 0 and whole.max() <= 255 else whole


def _kept_type(array: np.ndarray, stored: str) -> np.dtype[Any]:
    """The smallest type that keeps an array well enough, see `write_case`."""
    if array.dtype.kind not in "fiu" or not array.size:
        return array.dtype
    low, high = array.min(), array.max()  # NaN comes through, and fails every comparison
    if low >= -_LARGEST and high <= _LARGEST and (array.dtype.kind != "f" or _is_whole(array)):
        small = np.dtype(np.uint8 if low >= 0 and high <= 255 else np.int16)
        return small if small.itemsize < array.dtype.itemsize else array.dtype
    if stored == "float16" and array.dtype.kind == "f" and low >= -1 and high <= 1:
        return np.dtype(np.float16)
    return array.dtype


def _is_whole(array: np.ndarray) -> bool:
    slabs = (array[..., k] for k in range(array.shape[-1])) if array.ndim > 1 else (array,)  # bounds the memory
    return all(bool((slab == np.rint(slab)).all()) for slab in slabs)


def _read_array(folder: Path, entry: Mapping[str, Any]) -> Any:
    path = folder / entry["file"]
    if path.stat().st_size != entry["bytes"]:
        raise Broken(f"{path.name} has another size")
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    array = np.moveaxis(array, 0, -1) if array.ndim > 1 else array
    if entry["kind"] == "array":
        return array
    tensor = torch.from_numpy(array)
    return MetaTensor(tensor, meta=_from_json(entry["meta"])) if entry["kind"] == "meta" else tensor


def _to_json(value: Any) -> Any:
    """Plain JSON for what an item or its meta holds; `_from_json` gives it back in its type."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {"mapping": [[str(key), _to_json(entry)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_to_json(entry) for entry in value]}
    raise ConfigError(
        f"A {type(value).__name__} in a prepared case cannot be written as JSON: expected arrays, numbers and text; "
        "train with cache_dir null, or take it out of the item with DeleteItemsd."
    )


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if "array" in value:
        return np.asarray(value["array"], dtype=value["dtype"])
    if "list" in value:
        return [_from_json(entry) for entry in value["list"]]
    return {key: _from_json(entry) for key, entry in value["mapping"]}
