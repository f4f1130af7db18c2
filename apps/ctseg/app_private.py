"""The folder of what a server is sent: only its user can enter it, and it goes with the process, however that ends."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_PREFIX = "ctseg-server-"
_SWEEPER = "import shutil, sys; sys.stdin.buffer.read(); [shutil.rmtree(path, True) for path in sys.argv[1:]]"
_sweepers: list[Any] = []


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True


@cache
def private_folder() -> Path:
    """Make a folder that only this user can enter.

    A server's uploads, sessions and masks go there (the stock server leaves them world-readable in /tmp and below the
    home folder). It is removed when the process ends; what a machine that lost its power left is removed by the next
    server: the folder's name carries the process id.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        if old.stat().st_uid == os.getuid() and not _is_alive(old.name.removeprefix(_PREFIX).partition("-")[0]):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_when_the_process_ends(folder: Path) -> None:
    """Remove a folder once this process is gone, also when it is killed.

    uvicorn ends on SIGTERM without Python's exit functions, and nothing in this process survives SIGKILL. A small
    process of its own session waits for the end of a pipe that only this process holds.
    """
    command = [sys.executable, "-I", "-S", "-c", _SWEEPER, str(folder)]
    silent = subprocess.DEVNULL
    sweeper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=silent, stderr=silent, cwd="/", start_new_session=True
    )
    _sweepers.append(sweeper)  # its pipe stays open as long as this process lives


def folder_mode(folder: Path) -> int:
    """Return the rights (as `chmod` takes them) of a file in a shared folder: who may read the folder may read it."""
    return folder.stat().st_mode & 0o666
