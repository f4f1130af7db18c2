"""Files are written beside their place and renamed: a reader never sees half a file, a crash loses nothing."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ctseg.errors import OutputError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder with the same ending; on success it becomes `path`, durably.

    Raises:
        OutputError: when the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=ending, dir=path.parent)
        os.close(handle)
        beside = Path(name)
        # mkstemp makes the file private; a result belongs to whoever may read the folder.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): expected a folder that can be written and has "
            "room; choose another output folder."
        ) from error
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def write_beside(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step. Raises OutputError as `written_beside` does."""
    with written_beside(path) as beside:
        beside.write_bytes(content)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
