"""Small file habits that every output shares: names, write beside and rename, and the sha256 of a file."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctseg.errors import OutputError

_BLOCK = 1 << 20
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}-.+")  # what `written_beside` writes to
PART = ".part"  # the ending of a folder that is not complete yet; its name begins with a dot
REPORT_SCHEMA = "ctseg-report/1"  # of report.json, raised when a key changes its meaning


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 lower-case hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a new name in the same folder to write to; when the block ends well it becomes `path`, durably.

    A reader never sees half a file, and a failure leaves an earlier file of that name as it was. The temporary name
    keeps the suffixes, because writers choose the format by them. A missing folder is made.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    beside = path.with_name(f".{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path.name} into {path.parent}: {reason}; name a folder that can be written and has space"
        ) from error
    finally:
        if path.parent.is_dir():
            beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: after a power cut a renamed file is there under its new name."""
    with suppress(OSError):  # some file systems (network shares, Windows) cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_beside(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write `content` to `path` in one step. Raises OutputError as `written_beside` does.

    Args:
        path: the file.
        content: all of it.
        mode: the file's rights; None leaves them to the process's mask.
    """
    with written_beside(path) as beside:
        beside.touch(0o600 if mode is not None else 0o666)
        beside.write_bytes(content)
        if mode is not None:
            beside.chmod(mode)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in a folder: files written beside, and folders not complete.

    Nobody else may be writing there. Folders below are not looked into.
    """
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.is_dir() and path.name.endswith(PART):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file() and _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that goes with the process, however it ends; True, or False when another one holds it.

    Args:
        path: a file for it; its folder is made.
        wait: until it is free; False gives False at once instead. Where the system has no such locks (Windows), there
            is none, and True.

    Raises:
        OutputError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError as error:
        raise OutputError(
            f"cannot write {path.name} into {path.parent}: {error.strerror or error}; name a folder that can be written"
        ) from error
    with stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except ImportError:
            pass
        except BlockingIOError:
            yield False
            return
        yield True


def mesh_name(label: str, kind: str = "stl") -> str:
    """File name of a label's mesh, of kind "stl", "obj" or "glb"; what a name cannot hold becomes an underscore."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in label) + f".{kind}"
