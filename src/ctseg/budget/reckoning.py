"""How much memory a run may take (`--max-ram`): what it needs is reckoned before anything is read.

Two ways, the first that fits is taken:

- whole: as without a limit, the image held as it was read;
- slabs: the image, a NIfTI file or a DICOM folder, is resampled onto the network's grid while it is read, and not held.

The label map is held whole by both, a byte for each voxel and mask. All sizes are bytes; G is 2^30, as in GiB.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import ResourceError

WHOLE, SLABS = "whole", "slabs"
SLAB = 64 << 20  # of the image's grid that is worked on at a time, as float32
_BETTER = ", or give it as NIfTI or a DICOM folder, which are read bit by bit"
_LEADER = 100 << 20  # what the process takes that leads a cohort's workers
_SLACK = 2 * SLAB  # a slab, its resampled form and what the allocator keeps
_UNITS = {"": 1 << 30, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# Of a voxel of the network's grid: the prepared image with its intermediates, and for each class its logits, its
# probabilities and what the clean-up makes of its mask. Measured (docs/benchmarks.md), rounded up.
_IMAGE_BYTES, _CLASS_BYTES = 28, 14
_READ_BYTES = 6  # of a voxel of the image: as int16, and while it becomes float32 where it must
_FLOAT_BYTES = 12  # of one that is turned, resampled or thresholded as float32


@dataclass(frozen=True)
class Work:
    """What is to be done, as far as headers and configurations tell.

    Attributes:
        what: the image's name in a sentence.
        shape: its voxels (I, J, K).
        base: what the process takes already, with its networks loaded.
        grid: voxels of the networks' grids together.
        classes: channels of the answer that has most.
        activations: of the network in one forward pass, for each size of batch from 1 on that may be used.
        masks: how many masks of the image's size are held at the same time.
        held: whether the image is in memory already, as part of `base`.
        streams: whether the image can be read plane by plane, and each network's grid is reached by resampling alone.
        resamples: whether each network works on a grid of its own; else the image is turned into float32 as it is.
    """

    what: str
    shape: tuple[int, int, int]
    base: int
    grid: int
    classes: int
    activations: tuple[int, ...]
    masks: int = 1
    held: bool = False
    streams: bool = False
    resamples: bool = True

    def need(self, way: str, batch: int = 1) -> int:
        """Return what a way needs at its peak, with so many tiles or slices in one forward pass."""

        voxels = math.prod(self.shape)
        network = self.grid * (_IMAGE_BYTES + _CLASS_BYTES * self.classes) + self.activations[batch - 1]
        back = 4 * min(voxels, 1 << 26)  # the mask's way back: what lies between two grids (`ctseg.grids.slabs`)
        image = 0 if way == SLABS else voxels * ((0 if self.held else _READ_BYTES) if self.resamples else _FLOAT_BYTES)
        return self.base + image + voxels * self.masks + back + network + _SLACK


@dataclass(frozen=True)
class Plan:
    """How it is done: the way, the tiles or slices in one forward pass, and the bytes that this is reckoned to need."""

    way: str
    batch: int
    needed: int


def plan(work: Work, limit: int) -> Plan:
    """Choose the fastest way that keeps to a limit.

    Raises:
        ResourceError: there is none; the sentence says what would be needed.
    """
    ways = [WHOLE, SLABS] if work.streams else [WHOLE]
    largest = len(work.activations)
    for batch in range(largest, 0, -1):
        for way in ways:
            if (needed := work.need(way, batch)) <= limit:
                return Plan(way, batch, needed)
    advice = _BETTER if work.held and work.resamples else ""
    raise too_large(work.what, work.shape, min(work.need(way) for way in ways), limit, advice)


def too_large(what: str, shape: Sequence[int], needed: int, limit: int, advice: str = "") -> ResourceError:
    """Return the sentence for an image that cannot be done within a limit."""
    shown = " x ".join(str(size) for size in shape)
    return ResourceError(
        f"{what} has {shown} voxels, which need about {gib_up(needed)} of memory with this task, but the limit "
        f"(--max-ram) is {gib(limit)}: raise it to {math.ceil(needed / 2**30 * 10) / 10:g}G, or crop the image{advice}"
    )


def check_held(shape: Sequence[int], what: str, limit: int) -> None:
    """Refuse, by its header, an image that has to be held and cannot be within a limit.

    Raises:
        ResourceError: its voxels as int16 and its mask are too much, beside what this process takes already.
    """
    needed = resident_memory() + 3 * math.prod(int(size) for size in shape) + _SLACK
    if needed > limit:
        raise too_large(what, shape, needed, limit, _BETTER)


def memory_size(text: str) -> int:
    """Read a size of memory off the command line: "4G", "3.5GiB", "800M"; a bare number counts in GiB.

    Raises:
        ArgumentTypeError: for what is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of memory; expected for example 4G, 3.5G or 800M")
    return size


def gib(size: int) -> str:
    """Return a size as people say it, rounded down."""
    return f"{math.floor(size / 2**30 * 100) / 100:g} GiB"


def gib_up(size: int) -> str:
    """Return a size as people say it, rounded up: for what is needed."""
    return f"{math.ceil(size / 2**30 * 10) / 10:g} GiB"


def share_of(limit: int, workers: int) -> int:
    """Return what each of several workers may take, so that they and the process that leads them keep to a limit."""
    return max(0, limit - _LEADER) // max(1, workers)


def resident_memory() -> int:
    """Return what this process takes now; its peak where the system does not say (not Linux)."""
    return _from_status("VmRSS:") or peak_memory()


def peak_memory() -> int:
    """Return the most that this process ever took, as the operating system counted it; 0 where it does not count."""
    if size := _from_status("VmHWM:"):
        return size
    try:
        import resource
    except ImportError:  # Windows
        return 0
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return counted if sys.platform == "darwin" else counted * 1024


def _from_status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def slab_planes(shape: Sequence[int]) -> int:
    """Return how many planes (I, J) make a slab: at least two, to interpolate between."""
    return max(2, SLAB // max(1, 4 * int(shape[0]) * int(shape[1])))
