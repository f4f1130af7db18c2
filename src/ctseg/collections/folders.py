"""Which side of a split a folder stands for: `train/`, `valid/`, `test/`, or ISIC's `ISIC-2017_Training_Data`."""

from __future__ import annotations

import re
from pathlib import Path

_WORDS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def side_of_folder(name: str, within: bool = False) -> str | None:
    """Return "train", "validation", "test", or None.

    Args:
        name: of the folder.
        within: the word may stand among others; else it is the whole name.
    """
    words = re.split(r"[^a-z]+", name.lower()) if within else [name.lower()]
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def side_of_path(path: Path, source: Path, within: bool = False) -> str | None:
    """Return the side of the deepest folder below `source` that stands for one, or None."""
    if not path.is_relative_to(source):
        return None
    sides = (side_of_folder(part, within) for part in reversed(path.relative_to(source).parts[:-1]))
    return next((side for side in sides if side is not None), None)


def side_folders(source: Path) -> list[Path]:
    """Return the folders right below `source` that are called as a side."""
    return sorted(path for path in source.iterdir() if path.is_dir() and side_of_folder(path.name) is not None)
