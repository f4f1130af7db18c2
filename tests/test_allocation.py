"""Freed memory that stays with the process: counted in pages that the kernel had to hand out."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
if sys.argv[1] == "keep":
    from ctseg.allocation import keep_freed_memory
    if not keep_freed_memory():
        sys.exit("no glibc")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del_me = b"x" * 64_000_000
    del del_me
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 64_000_000 // 4096  # of one block


def faults(how: str) -> int:
    """How many pages were handed out for ten blocks, one after the other."""
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, timeout=60)
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc, whose allocator this is about")
    return int(done.stdout)


def test_a_block_is_handed_out_once_instead_of_each_time() -> None:
    """Without it the kernel clears every block anew; with it the second block lies where the first one was."""
    assert faults("as it is") > 9 * PAGES
    assert faults("keep") < 2 * PAGES
