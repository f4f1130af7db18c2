"""The studies below a folder, and the name of each that stays the same in every run.

What a study is: every NIfTI, NRRD or MetaImage file, every zip, and every folder that has DICOM files directly in it
(with its sub-folders and whatever else lies there). Hidden files and folders are passed over.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctseg.cases import VOLUME_ENDINGS, case_name
from ctseg.dicom.files import may_be_dicom
from ctseg.errors import InputError

_DETACHED_HEADERS = (".mhd", ".nhdr")
_LONGEST_NAME = 150  # bytes; file systems take 255, and others are to be able to add to it
_RESERVED = ("manifest.csv", "manifest.json")


@dataclass(frozen=True)
class CohortStudy:
    """One study of a cohort.

    Attributes:
        id: twelve hexadecimal digits made from `relative`; what logs say in its place.
        name: of its result folder, unique in the cohort and kept from run to run.
        source: what `ctseg.reading.read_volume` takes.
        relative: the source below the cohort's folder, with "/"; "." where the folder is the study itself.
    """

    id: str
    name: str
    source: Path
    relative: str


def find_sources(folder: Path, leave_out: Path, only: str | None = None) -> list[str]:
    """Return the studies below a folder by their relative paths, sorted.

    Args:
        folder: the cohort's folder.
        leave_out: a folder that is not looked into: where the results go.
        only: a pattern of shell style that the relative path must match, such as "*/ct.nii.gz"; None takes all.

    Raises:
        InputError: there is no such folder, or no study in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name one with a study in each file or sub-folder")
    try:
        found = sorted(_below(folder, folder, leave_out.resolve(), set()))
    except OSError as error:
        raise InputError(
            f"a folder below {folder} cannot be looked into: {error.strerror}; check its rights, or take it out"
        ) from error
    wanted = [path for path in found if only is None or fnmatch.fnmatchcase(path, only)]
    if not wanted:
        how = f"{counted(len(found))}, but none that matches {only!r}" if found else "no study"
        raise InputError(
            f"{folder} holds {how}; expected NIfTI, NRRD or MetaImage files, zips, or folders of DICOM files"
        )
    return wanted


def _below(folder: Path, top: Path, leave_out: Path, seen: set[tuple[int, int]]) -> Iterable[str]:
    state = folder.stat()
    if (state.st_dev, state.st_ino) in seen or folder.resolve() == leave_out:
        return  # a link that leads back, or the results
    seen.add((state.st_dev, state.st_ino))
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.is_file()]
    if any(_is_dicom(file) for file in files):
        yield folder.relative_to(top).as_posix()
        return
    for file in files:
        if file.name.lower().endswith(VOLUME_ENDINGS):
            yield file.relative_to(top).as_posix()
    for entry in entries:
        if entry.is_dir():
            yield from _below(entry, top, leave_out, seen)


def _is_dicom(file: Path) -> bool:
    """Whether a file may be an image of a series; a DICOMDIR lists what lies below it and is none."""
    if file.name.upper() == "DICOMDIR" or file.name.lower().endswith(VOLUME_ENDINGS):
        return False
    return may_be_dicom(file)


def counted(studies: int) -> str:
    """Return "1 study", "2 studies"."""
    return f"{studies} {'study' if studies == 1 else 'studies'}"


def study_id(relative: str) -> str:
    """Return the id of a study: the first 48 bits of its relative path's sha256."""
    return hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def name_studies(
    folder: Path, sources: Iterable[str], earlier: Mapping[str, str], by_id: bool = False
) -> list[CohortStudy]:
    """Give every source its name: that of an earlier run, else its path without the ending, "__" for each "/".

    Where two new ones would have the same name, or an earlier one has it, their ids are added. So a study that is added
    later renames none.

    Args:
        folder: the cohort's folder.
        sources: from `find_sources`.
        earlier: relative path -> name, of earlier runs.
        by_id: name new ones by their id alone, where paths may say whose study it is.
    """
    sources = list(sources)
    plain = {path: study_id(path) if by_id else _plain_name(folder, path) for path in sources}
    claims = Counter(name.casefold() for path, name in plain.items() if path not in earlier)
    taken = {name.casefold() for name in (*earlier.values(), *_RESERVED)}
    studies = []
    for path in sources:
        name = earlier.get(path, plain[path])
        if path not in earlier and (claims[name.casefold()] > 1 or name.casefold() in taken):
            name = f"{name}-{study_id(path)}"
        studies.append(CohortStudy(study_id(path), name, folder if path == "." else folder / path, path))
    return studies


def _plain_name(folder: Path, relative: str) -> str:
    path = folder.resolve().name if relative == "." else relative
    *above, last = path.split("/")
    name = "__".join([*above, last if (folder / relative).is_dir() else case_name(last)]) or study_id(relative)
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        return f"{name[: _LONGEST_NAME // 4]}-{study_id(relative)}"  # a character has four bytes at most
    return name


def source_state(source: Path) -> list[list[object]]:
    """Return name, size in bytes and time of the last change in ns of every file of a study, sorted by name.

    Of a detached header (.mhd, .nhdr) the files beside it that begin with its name count too.

    Raises:
        OSError: a file cannot be looked at.
    """
    if source.is_dir():
        files = [Path(folder) / name for folder, _, names in os.walk(source) for name in names]
    elif source.name.lower().endswith(_DETACHED_HEADERS):
        files = [file for file in source.parent.iterdir() if file.name.startswith(f"{case_name(source)}.")]
    else:
        files = [source]
    states = [(file.relative_to(source.parent).as_posix(), file.stat()) for file in sorted(files)]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]
