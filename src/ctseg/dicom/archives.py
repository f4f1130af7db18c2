"""DICOM files out of a zip, safely: into a private folder, under names of our own, within a limit."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctseg.dicom.files import looks_like_dicom
from ctseg.errors import InputError, ResourceError

# The largest CT studies have some 10,000 slices of 0.5 MiB; a zip that claims more is no study.
LARGEST_UNPACKED_BYTES = 16 << 30
MOST_FILES = 100_000
_BLOCK = 1 << 20
_GIB = float(1 << 30)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give a private temporary folder with the archive's DICOM files, removed at the end.

    Names inside the archive are never used, so none can point outside of the folder; other files are not unpacked.

    Raises:
        InputError: no zip, damaged, or locked with a password.
        ResourceError: it unpacks to more than `LARGEST_UNPACKED_BYTES`, `MOST_FILES`, or the free disk.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="ctseg-") as folder:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_size(entries, Path(folder), path)
            for number, entry in enumerate(entries):
                _extract(archive, entry, Path(folder) / f"{number:06d}")
            yield Path(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path} is no sound zip file ({error}); copy or pack it again") from error


def _check_size(entries: list[zipfile.ZipInfo], folder: Path, path: Path) -> None:
    if any(entry.flag_bits & 1 for entry in entries):
        raise InputError(f"{path} is locked with a password; unpack it and give the folder")
    size = sum(entry.file_size for entry in entries)
    limit = min(LARGEST_UNPACKED_BYTES, shutil.disk_usage(folder).free)
    if size > limit or len(entries) > MOST_FILES:
        raise ResourceError(
            f"{path} unpacks to {len(entries)} files and {size / _GIB:.1f} GiB, but {MOST_FILES} files and "
            f"{limit / _GIB:.1f} GiB can be taken; unpack it elsewhere and give the folder of one series"
        )


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Copy one entry if it looks like DICOM; zipfile never gives more bytes than the size that was counted."""
    with archive.open(entry) as stream:
        block = stream.read(_BLOCK)
        if not looks_like_dicom(block):
            return
        with target.open("xb") as file:
            while block:
                file.write(block)
                block = stream.read(_BLOCK)
