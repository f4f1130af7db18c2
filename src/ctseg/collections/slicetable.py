"""A table with a row a slice: case number, the `.npy` of the image and of the mask, and what is on the slice.

Columns are known by common names, upper and lower case alike, or named by the user. A column called as a structure
(`liver`, or `liver_present`, `has_liver`, `is_liver`) holds 1 where the slice shows it and 0 where it does not.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ctseg.cases import case_name
from ctseg.collections.listing import Candidate, Collection, Layout, Refusal, counted
from ctseg.errors import ConfigError, InputError

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "case": ("ct", "ct_number", "ct_num", "ct_no", "ct_id", "number", "case", "case_id", "patient", "patient_id"),
    "image": ("image", "image_path", "img", "img_path", "slice", "slice_path", "ct_path", "path"),
    "mask": ("mask", "mask_path", "label", "label_path", "seg", "seg_path", "segmentation"),
}
_FLAGS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


def find_table(source: Path) -> Path | None:
    """Return the first CSV of a folder that has the three columns, or None."""
    for path in sorted(source.glob("*.csv")):
        try:
            header, _ = read_rows(path)
        except InputError:
            continue
        if not _missing(_columns(header, {})):
            return path
    return None


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a CSV with commas, semicolons or tabs.

    Raises:
        InputError: when it cannot be read as text, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        rows = [{str(key).strip(): str(value or "").strip() for key, value in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table {path} cannot be read ({error}); save it as CSV in UTF-8") from error
    if not rows:
        raise InputError(f"the table {path} has no row; expected one for each slice")
    return [str(name).strip() for name in reader.fieldnames or ()], rows


def list_cases(source: Path, layout: Layout) -> Collection:
    """List the slices of a table.

    Raises:
        InputError: when there is no table with the columns needed.
        ConfigError: when a column that the user named is not there.
    """
    table = source if source.is_file() else find_table(source)
    if table is None and source.is_dir():  # a table whose columns only the user can name
        table = next(iter(sorted(source.glob("*.csv"))), None)
    if table is None:
        raise InputError(f"{source} holds no CSV table; name the table of slices or its folder")
    header, rows = read_rows(table)
    columns = _columns(header, layout.columns)
    if missing := _missing(columns):
        raise InputError(
            f"{table} has the columns {', '.join(header)}, of which none is known as {', '.join(missing)}: "
            f"say which with --column {missing[0]}=NAME"
        )
    flags = {name: column for name in layout.structures if (column := _flag_column(header, name, layout.columns))}
    names = _case_names(rows, columns)
    candidates, refused = [], []
    for number, (row, name) in enumerate(zip(rows, names, strict=True), start=2):
        where = f"line {number} of {table.name}"
        present, problem = _present(row, flags)
        if not row[columns["image"]] or not row[columns["mask"]] or not row[columns["case"]]:
            refused.append(Refusal(name or where, f"{where} names no case, image or mask"))
        elif problem:
            refused.append(Refusal(name, f"{where} {problem}"))
        else:
            image, mask = (table.parent / row[columns[key]] for key in ("image", "mask"))
            candidates.append(Candidate(name, image, mask, row[columns["case"]], present))
    cases = len({candidate.patient for candidate in candidates})
    said = f", presence flags for {', '.join(flags)}" if flags else ""
    saw = f"a slice table {table.name}, {counted(len(candidates), 'slice')} of {counted(cases, 'case')}{said}"
    return Collection("slices", saw, tuple(candidates), tuple(refused))


def _columns(header: list[str], named: Mapping[str, str]) -> dict[str, str]:
    """Return meaning -> column for case, image and mask, as far as they are there."""
    for meaning, column in named.items():
        if column not in header:
            raise ConfigError(f"the table has no column {column!r} for {meaning}; it has {', '.join(header)}")
    lower = {name.lower(): name for name in header}
    found = {
        meaning: next((lower[name] for name in names if name in lower), None) for meaning, names in COLUMNS.items()
    }
    return {**{k: v for k, v in found.items() if v is not None}, **{k: v for k, v in named.items() if k in COLUMNS}}


def _missing(columns: Mapping[str, str]) -> list[str]:
    return [meaning for meaning in COLUMNS if meaning not in columns]


def _flag_column(header: list[str], structure: str, named: Mapping[str, str]) -> str | None:
    if structure in named:
        return named[structure]
    lower = {name.lower(): name for name in header}
    plain = re.sub(r"\W+", "_", structure.lower())
    spellings = (plain, f"{plain}_present", f"has_{plain}", f"is_{plain}", f"{plain}_presence")
    return next((lower[name] for name in spellings if name in lower), None)


def _case_names(rows: list[dict[str, str]], columns: Mapping[str, str]) -> list[str]:
    """The image's name where it is unique, else with the case's number before it."""
    names = [case_name(row[columns["image"]]) for row in rows]
    if len(set(names)) == len(names):
        return names
    return [f"{row[columns['case']]}_{name}" for row, name in zip(rows, names, strict=True)]


def _present(row: Mapping[str, str], flags: Mapping[str, str]) -> tuple[dict[str, bool], str]:
    present = {}
    for structure, column in flags.items():
        text = row.get(column, "").lower()
        if text not in _FLAGS:
            return {}, f"has {text!r} in the column {column}: expected 1 or 0"
        present[structure] = _FLAGS[text]
    return present, ""
