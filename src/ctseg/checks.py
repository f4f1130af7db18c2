"""What an image must be before anything is computed from it: small enough, of numbers, and in Hounsfield units."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, ResourceError

AIR_HU = -1024
# What a volume costs until its mask is written, in float32 copies of itself: as read, while it is resampled, and the
# label map with its intermediates on the way back.
MEMORY_FACTOR = 3
_GIB = float(1 << 30)


def available_memory() -> int | None:
    """Return the bytes this process may still take, or None where the system does not say (not Linux).

    The smaller of `MemAvailable` and what the control group (version 2, then 1) leaves.
    """
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limits.append(max(0, int(Path(limit).read_text()) - int(Path(usage).read_text())))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits) if limits else None


_instead: ContextVar[Callable[[Sequence[int], str], None] | None] = ContextVar("_instead", default=None)


@contextmanager
def memory_checked_by(check: Callable[[Sequence[int], str], None]) -> Iterator[None]:
    """Have another check than `check_memory`'s own judge the grids that are read meanwhile."""
    token = _instead.set(check)
    try:
        yield
    finally:
        _instead.reset(token)


def check_memory(shape: Sequence[int], what: str) -> None:
    """Refuse a grid whose processing cannot fit in memory, before it is loaded.

    Args:
        shape: the size that the header declares.
        what: the image's name in the sentence.

    Raises:
        InputError: an axis has no voxel.
        ResourceError: `MEMORY_FACTOR` float32 copies are more than `available_memory`.
    """
    shown = " x ".join(str(size) for size in shape)
    if any(size < 1 for size in shape):
        raise InputError(f"{what} declares {shown} voxels, but every axis needs at least one; export the image again")
    if (instead := _instead.get()) is not None:
        instead(shape, what)
        return
    needed = math.prod(int(size) for size in shape) * 4 * MEMORY_FACTOR
    available = available_memory()
    if available is not None and needed > available:
        raise ResourceError(
            f"{what} declares {shown} voxels, which need about {needed / _GIB:.1f} GiB of memory, but "
            f"{available / _GIB:.1f} GiB are free; crop the image, or use a machine with more memory"
        )


def _slabs(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Walk over views of the last axis, so that a check never makes a copy of the whole volume."""
    for index in range(array.shape[-1]):
        yield array[..., index]


def replace_not_finite(array: NDArray[Any], fill: float, what: str) -> tuple[NDArray[Any], str | None]:
    """Put `fill` in the place of NaN and infinite voxels.

    Returns:
        The array (changed in place where it is writeable) and a sentence for the report, or None where there were none.

    Raises:
        InputError: no voxel is a finite number.
    """
    if array.dtype.kind != "f":
        return array, None
    count = sum(int(slab.size - np.isfinite(slab).sum()) for slab in _slabs(array))
    if count == 0:
        return array, None
    if count == array.size:
        raise InputError(f"{what} has no voxel that is a finite number; export the image again")
    if not array.flags.writeable:
        array = array.copy(order="K")
    for slab in _slabs(array):
        slab[~np.isfinite(slab)] = fill
    return array, f"{count} voxels were NaN or infinite and were replaced by {fill:g}"


def check_hounsfield(array: NDArray[Any], spacing: Sequence[float], what: str, eight_bit: bool = False) -> str | None:
    """Refuse what is plainly no CT in Hounsfield units; let a tightly cropped CT pass.

    Air is -1000 HU and fat -100 HU, so every CT of a body has negative values, and only a small box inside an organ may
    have none. An image **without a negative value** is therefore refused when one of these holds:

    - all voxels are equal (with or without a negative value), or lie in 0..1 (scaled, or a mask);
    - the file keeps 8-bit unsigned grey values;
    - at least 1 % of the voxels are exactly 0, or exactly 255 as the maximum (clipped: noise around an organ's value
      cannot pile up at its end without crossing it);
    - the values fill the range 0..255;
    - they reach from about 0 (at most 10) beyond 600, or half of them are above 900 (an offset of 1024 is missing, MR);
    - the image is wider than 150 mm along two axes, where fat and air cannot be missing.

    Args:
        array: (I, J, K), finite.
        spacing: mm along the axes.
        what: the image's name in the sentence.
        eight_bit: the file keeps unsigned 8-bit values without scaling.

    Returns:
        None, or a sentence for the report when the image passes without any negative value.

    Raises:
        InputError: the sentence names the values found and what is missing.
    """
    low, high = float(array.min()), float(array.max())
    if low < 0 and low != high:
        return None
    seen = SeenValues()
    for slab in _slabs(array):
        seen.add(slab)
    return judge_values(seen, array.shape, spacing, what, eight_bit)


class SeenValues:
    """What `judge_values` asks of an image, gathered from one part of it after the other.

    Attributes:
        low: the smallest value.
        high: the largest.
        voxels: how many there were.
        zeros: how many are 0; this and the next two are not gathered any more once a value was negative.
        tops: how many are 255.
        bright: how many are above 900.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.voxels = self.zeros = self.tops = self.bright = 0

    def add(self, part: NDArray[Any]) -> None:
        """Look at some voxels, finite ones."""
        self.low, self.high = min(self.low, float(part.min())), max(self.high, float(part.max()))
        self.voxels += part.size
        if self.low >= 0:
            self.zeros += int((part == 0).sum())
            self.tops += int((part == 255).sum())
            self.bright += int((part > 900).sum())


def judge_values(
    seen: SeenValues, shape: Sequence[int], spacing: Sequence[float], what: str, eight_bit: bool = False
) -> str | None:
    """Judge as `check_hounsfield` does, from what was seen of the whole image.

    Raises:
        InputError: as `check_hounsfield`.
    """
    low, high = seen.low, seen.high
    found = f"{what} is no CT in Hounsfield units: its values are {low:g} to {high:g}"
    if low == high:
        raise InputError(f"{what} is no CT: all its voxels are {low:g}; give the image with its grey values")
    if low < 0:
        return None
    if high <= 1:
        raise InputError(f"{found} (a mask, or scaled to 0..1), air should be near -1000; give the original CT")
    at_zero = seen.zeros / seen.voxels
    at_top = seen.tops / seen.voxels if high == 255 else 0.0
    if high <= 255 and (eight_bit or at_zero >= 0.01 or at_top >= 0.01 or (low <= 2 and high >= 250)):
        raise InputError(f"{found} (8-bit grey values), air should be near -1000; give the CT before it was windowed")
    wide = sum(size * step > 150.0 for size, step in zip(shape, spacing, strict=True)) >= 2
    offset_missing = (low <= 10 and high > 600) or 2 * seen.bright >= seen.voxels
    if at_zero >= 0.01 or wide or offset_missing:
        raise InputError(
            f"{found} without a negative one, air should be near -1000; "
            "if it is a CT, apply its rescale intercept (often -1024), else name the right modality"
        )
    return f"no voxel is below 0 HU ({low:g} to {high:g}): taken for a CT cropped inside an organ"
