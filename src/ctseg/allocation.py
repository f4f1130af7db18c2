"""Memory that was freed stays with the process, so that the next image of the same size need not ask for it again.

glibc maps every large tensor anew and gives it back at once, and the kernel clears each of its pages every time: a part
of the time of a training in float32 on a CPU (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes, the largest that can be said
_STEP = 64 * 2**20  # bytes, by how much the heap grows


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory; for programs that end soon or compute all the time.

    Not for a server that waits for hours, nor where a limit of memory was promised.

    Returns:
        Whether it could be done: only by glibc, the C library of most Linux systems.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_TOP_PAD, _STEP)])
