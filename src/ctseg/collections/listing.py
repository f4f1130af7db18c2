"""What every layout hands over: its cases, the ones it cannot use with the reason, and what it says about values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.cases import SLICE_ENDINGS, VOLUME_ENDINGS, case_name
from ctseg.flat.shapes import Outlines

ENDINGS = VOLUME_ENDINGS + SLICE_ENDINGS


@dataclass(frozen=True)
class Candidate:
    """One case as a collection names it, not opened yet.

    Attributes:
        case_id: its name, unique in the collection.
        image: the image's file or DICOM folder.
        label: one label map, a binary mask for each structure by name, or outlines to be drawn.
        patient: whom the collection says it belongs to; None takes the pattern or the case's name.
        present: structure -> whether the collection says it is in the image; empty where it says nothing.
        keys: further keys of its item in the datalist.
        raw: what it was called before an annotation service renamed it; "" where none did.
        side: of a split, "train", "validation" or "test", as its folder says; None where it says nothing.
    """

    case_id: str
    image: Path
    label: Path | Mapping[str, Path] | Outlines
    patient: str | None = None
    present: Mapping[str, bool] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    raw: str = ""
    side: str | None = None


@dataclass(frozen=True)
class Refusal:
    """A case that is not taken, and why."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """A collection as listed.

    Attributes:
        kind: one of `ctseg.collections.KINDS`.
        saw: one sentence on what was found, for the user.
        candidates: the cases to open, by name.
        refused: the ones that need not be opened.
        values: value in the label maps -> structure, as far as the collection says so itself.
        notes: sentences on what was left out.
        colors: structure -> (r, g, b) in flat masks, as far as the collection says so itself.
    """

    kind: str
    saw: str
    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...] = ()
    values: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What the user says about a layout where its files do not.

    Attributes:
        structures: names of the structures wanted, where each has a file of its own.
        columns: meaning (case, image, mask, patient, or a structure) -> column of a slice table.
        flags: a slice table's presence flags: "check" compares them with the masks, "masks" overrules them.
        masks: name of the folder of flat masks; "" finds it.
        suffix: what a flat mask is called beyond its image; "" takes _mask.
        values: class of an annotation service -> structure.
        pictures: folder of the images that were sent to be outlined, in place of the service's copies.
    """

    structures: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    flags: str = "check"
    suffix: str = ""
    masks: str = ""
    values: Mapping[int, str] = field(default_factory=dict)
    pictures: Path | None = None


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted: files by their ending and folders (of DICOM); hidden ones left out."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.is_dir() or path.name.lower().endswith(ENDINGS))


def by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return case name -> its files: more than one means the name is not unique."""
    named: dict[str, list[Path]] = {}
    for path in paths:
        named.setdefault(case_name(path), []).append(path)
    return named


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return "1 case", "2 cases"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
