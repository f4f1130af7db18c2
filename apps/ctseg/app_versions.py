"""Every label that was ever saved, numbered, beside the ones in use: nothing is lost when a label is replaced.

    STUDIES/ctseg/versions/<tag>/<case>/000001.nii.gz    the label as it was sent
    STUDIES/ctseg/versions/<tag>/<case>/000001.json      who, when, its sha256, and what was saved with it
    STUDIES/ctseg/versions/pending.json                  a save that had begun when the server was killed

The current label of a case is `STUDIES/labels/<tag>/<case>.*`: a copy of its newest version, unless somebody put
another file there by hand. A save writes the version first, then this copy, then the index; `pending.json` names the
version that must be made current after a crash. All callers hold the datastore's lock.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctseg.files import file_sha256, write_beside, written_beside

_PENDING = "pending.json"


@dataclass(frozen=True)
class Version:
    """One saved label.

    Attributes:
        tag: its tag.
        case: the image's id.
        number: from 1.
        extension: of its file, such as ".nii.gz".
        sha256: of its file.
        info: what was saved with it.
    """

    tag: str
    case: str
    number: int
    extension: str
    sha256: str
    info: dict[str, Any]


class Versions:
    """The folder of all versions."""

    def __init__(self, root: Path, mode: int) -> None:
        """Name the folder; nothing is made yet.

        Args:
            root: the folder.
            mode: rights of the files.
        """
        self._root = root
        self._mode = mode

    def file(self, version: Version) -> Path:
        """Return where a version's label lies."""
        return self._folder(version.tag, version.case) / f"{version.number:06d}{version.extension}"

    def of(self, tag: str, case: str) -> list[Version]:
        """Return a case's versions, oldest first; one without its note was never complete and is not among them."""
        folder = self._folder(tag, case)
        notes = sorted(folder.glob("[0-9]*.json")) if folder.is_dir() else []
        return [version for note in notes if (version := _read(note)) is not None]

    def newest(self, tag: str, case: str) -> Version | None:
        """Return a case's newest version, or None."""
        return next(reversed(self.of(tag, case)), None)

    def keep(self, tag: str, case: str, label: Path, extension: str, info: dict[str, Any]) -> Version:
        """Keep a label as a new version, durably; it is not current yet.

        Raises:
            OutputError: it cannot be written; nothing of it is left.
        """
        taken = [int(path.name[:6]) for path in self._folder(tag, case).glob("[0-9]*") if path.name[:6].isdecimal()]
        version = Version(tag, case, max(taken, default=0) + 1, extension, file_sha256(label), info)
        target = self.file(version)
        copy_durably(label, target, self._mode)
        try:
            write_beside(_note(target), _text(version), mode=self._mode)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return version

    def drop(self, version: Version) -> None:
        """Take back a version whose save failed."""
        target = self.file(version)
        _note(target).unlink(missing_ok=True)
        target.unlink(missing_ok=True)

    @contextmanager
    def being_made_current(self, version: Version) -> Iterator[None]:
        """Note that a version is being made current; the note goes when the block ends well, and stays otherwise."""
        note = self._root / _PENDING
        write_beside(note, _text(version), mode=self._mode)
        yield
        note.unlink(missing_ok=True)

    def forget_pending(self) -> None:
        """Take the note away: nothing has to be finished."""
        (self._root / _PENDING).unlink(missing_ok=True)

    def pending(self) -> Version | None:
        """Return the version that was being made current when the process ended, or None."""
        version = _read(self._root / _PENDING)
        return version if version is not None and self.file(version).is_file() else None

    def _folder(self, tag: str, case: str) -> Path:
        return self._root / tag / case


def copy_durably(source: Path, target: Path, mode: int) -> None:
    """Copy a file beside its target and rename it, so that the target is the old or the new file, never half of one.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    with written_beside(target) as beside:
        shutil.copyfile(source, beside)
        beside.chmod(mode)


def _note(label: Path) -> Path:
    return label.with_name(f"{label.name[:6]}.json")


def _text(version: Version) -> bytes:
    return (json.dumps(asdict(version), indent=2, default=str) + "\n").encode()


def _read(note: Path) -> Version | None:
    try:
        return Version(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
