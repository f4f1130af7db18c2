"""All settings of a run in one flat table, and the versions that it ran with."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

PACKAGES = ("ctseg", "monai", "torch", "pytorch-ignite", "numpy", "segmentation-models-pytorch", "timm")
Setting = str | int | float | bool | None | list[Any]


def parser_in_use() -> Any:
    """Return the `ConfigParser` that is making the caller, found on the stack; None outside of one."""
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, ConfigParser):
            return found
        frame = frame.f_back
    return None


def flat_settings(parser: Any) -> dict[str, Setting]:
    """Return every setting of a parsed configuration by its place, levels joined by "::".

    A reference or expression is given by its value when that was worked out and is a number, text or list of them, else
    as it is written. A list of plain values is one setting.
    """
    known: Mapping[str, Any] = parser.ref_resolver.resolved_content
    return {place: _worked_out(value, place, known) for place, value in _leaves("", parser.config)}


def _leaves(place: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(f"{place}::{key}" if place else str(key), value)
    elif isinstance(node, list) and not _is_plain(node):
        for number, value in enumerate(node):
            yield from _leaves(f"{place}::{number}", value)
    else:
        yield place, node


def _worked_out(written: Any, place: str, known: Mapping[str, Any]) -> Setting:
    if isinstance(written, str) and written[:1] in ("@", "$"):
        value = known.get(place, known.get(written[1:].replace("#", "::")) if written[0] == "@" else None)
        if value is not None and _is_plain(value) and value != written:
            return list(value) if isinstance(value, (list, tuple)) else value
    return written if _is_plain(written) else str(written)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) and not isinstance(item, (list, tuple)) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def versions(device: Any = None) -> dict[str, str]:
    """Return the versions of Python and the packages, and the name of the device."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    from ctseg import __version__

    found["ctseg"] = __version__
    if device is not None:
        import torch

        is_gpu = torch.device(device).type == "cuda"
        found["device"] = torch.cuda.get_device_name(device) if is_gpu else f"cpu, {platform.machine()}"
        if is_gpu:
            found["cuda"] = str(torch.version.cuda)
    return found
