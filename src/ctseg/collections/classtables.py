"""The class table that comes with masks: `_classes.csv` (a value and its class), `labelmap.txt` (a class, its colour).

The first is Roboflow's, beside its PNG masks; the second is CVAT's, with its masks in colours ("Segmentation mask").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.collections.listing import Layout
from ctseg.collections.outlined import structures_by
from ctseg.errors import InputError

VALUES, COLOURS = "_classes.csv", "labelmap.txt"
_BACKGROUND = ("background", "unlabeled", "unlabelled", "void")

Colour = tuple[int, int, int]


def read_class_table(source: Path, layout: Layout) -> tuple[dict[int, str], dict[str, Colour]]:
    """Return value -> structure and structure -> (r, g, b) of the tables below a folder; empty where there is none.

    A class that is called as a structure of the task, or is the only one, is that structure; others keep their names.

    Raises:
        InputError: two tables say different things, one cannot be read, or none of its classes is the structure.
    """
    values = _one([_values(path) for path in sorted(source.rglob(VALUES))], VALUES, source)
    colours = _one([_colours(path) for path in sorted(source.rglob(COLOURS))], COLOURS, source)
    names = structures_by(values, layout, values) if values else {}
    named = structures_by({name: name for name in colours}, layout, colours) if colours else {}
    return (
        {value: names.get(value, name) for value, name in values.items()},
        {named.get(name, name): colour for name, colour in colours.items()},
    )


def _one(tables: Sequence[dict[Any, Any]], name: str, source: Path) -> dict[Any, Any]:
    if any(table != tables[0] for table in tables):
        raise InputError(f"the files {name} below {source} differ: prepare its folders one by one with --add")
    return tables[0] if tables else {}


def _values(path: Path) -> dict[int, str]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(path.read_text(encoding="utf-8-sig").split("\n"))]
        known = {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdigit()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the class table {path} cannot be read ({error}); export it again") from error
    return {value: name for value, name in known.items() if value > 0 and name.lower() not in _BACKGROUND}


def _colours(path: Path) -> dict[str, Colour]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class table {path} cannot be read ({error}); export it again") from error
    found: dict[str, Colour] = {}
    for line in lines:
        match = re.match(r"([^#:][^:]*):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::|$)", line.strip())
        if match and match[1].lower() not in _BACKGROUND:
            found[match[1]] = (int(match[2]), int(match[3]), int(match[4]))
    return found
