"""A split that exists already, read from a file, so that it can be taken over into the ledger.

Known are nnU-Net's `splits_final.json` (a list of folds, each with `train` and `val`), a JSON or YAML file with a list
of names or numbers for each side, and a CSV with a column `split` (TotalSegmentator's `meta.csv` is one).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, InputError, LedgerError

_SIDES = {"train": "train", "val": "validation", "test": "test"}  # beginning of a key -> side
_NAME_COLUMNS = ("patient", "patient_id", "case", "case_id", "image_id", "name", "id", "ct", "number")


@dataclass(frozen=True)
class GivenSplit:
    """Names or numbers of patients or cases, each on a side.

    Attributes:
        sides: name -> "train", "validation" or "test".
        saw: what was read, in a few words.
    """

    sides: Mapping[str, str]
    saw: str

    def side_of(self, case_id: str, patient: str) -> str | None:
        """Return the side of a case: by its name, its patient, or the only number in its patient's name."""
        for name in (case_id, patient):
            if name in self.sides:
                return self.sides[name]
        numbers = re.findall(r"\d+", patient)
        if len(numbers) != 1:
            return None
        return next(
            (side for name, side in self.sides.items() if name.isdigit() and int(name) == int(numbers[0])), None
        )

    def patients(self, cases: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return patient -> side for (case_id, patient) pairs; patients that the split does not name are left out.

        Raises:
            LedgerError: when the cases of one patient stand on different sides.
        """
        sides: dict[str, str] = {}
        first: dict[str, str] = {}
        for case_id, patient in cases:
            side = self.side_of(case_id, patient)
            if side is None:
                continue
            if sides.setdefault(patient, side) != side:
                raise LedgerError(
                    f"the given split has case {first[patient]} in {sides[patient]} and case {case_id} in {side}, but "
                    f"both are of patient {patient}: a patient stands on one side; correct the split, or --patient"
                )
            first.setdefault(patient, case_id)
        return sides


def read_split(path: Path, fold: int = 0) -> GivenSplit:
    """Read a given split.

    Args:
        path: .json, .yaml, .yml or .csv.
        fold: which fold, where the file holds several.

    Raises:
        InputError: when the file cannot be read.
        ConfigError: when it holds no split, there is no such fold, or a name stands on two sides.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the split {path} cannot be read ({error}); name a JSON, YAML or CSV file") from error
    if path.suffix.lower() == ".csv":
        return GivenSplit(_of_table(text, path), f"the column split of {path.name}")
    content = _parsed(text, path)
    saw = f"{path.name}"
    if isinstance(content, list):
        if not 0 <= fold < len(content) or not isinstance(content[fold], Mapping):
            raise ConfigError(f"{path} holds {len(content)} folds and none has number {fold}; choose with --fold N")
        content, saw = content[fold], f"fold {fold} of the {len(content)} folds of {path.name}"
    return GivenSplit(_of_lists(content, path), saw)


def _parsed(text: str, path: Path) -> Any:
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        import yaml

        return yaml.safe_load(text)
    except Exception as error:  # yaml's and json's errors share no base
        raise InputError(f"the split {path} is neither JSON nor YAML ({error}); correct it") from error


def _of_lists(content: Any, path: Path) -> dict[str, str]:
    lists = content if isinstance(content, Mapping) else {}
    sides: dict[str, str] = {}
    for key, names in lists.items():
        side = next((side for start, side in _SIDES.items() if str(key).lower().startswith(start)), None)
        if side is None or not isinstance(names, list):
            continue
        for name in names:
            _put(sides, _plain(name), side, path)
    if not sides:
        raise ConfigError(f"{path} holds no split: expected lists of names or numbers under train, validation and test")
    return sides


def _of_table(text: str, path: Path) -> dict[str, str]:
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
    columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {})}
    name_column = next((columns[name] for name in _NAME_COLUMNS if name in columns), None)
    if name_column is None or "split" not in columns:
        raise ConfigError(f"{path} holds no split: expected the columns split and one of {', '.join(_NAME_COLUMNS)}")
    sides: dict[str, str] = {}
    for row in rows:
        said = (row[columns["split"]] or "").strip().lower()
        side = next((side for start, side in _SIDES.items() if said.startswith(start)), None)
        if side is None:
            raise ConfigError(f"{path} has the split {said!r} for {row[name_column]}: expected train, val or test")
        _put(sides, (row[name_column] or "").strip(), side, path)
    return sides


def _put(sides: dict[str, str], name: str, side: str, path: Path) -> None:
    if sides.setdefault(name, side) != side:
        raise ConfigError(f"{path} has {name} in {sides[name]} and in {side}: each stands on one side; correct it")


def _plain(name: Any) -> str:
    """A case's name as text, without the endings of a file."""
    from ctseg.cases import case_name

    return case_name(str(name))
