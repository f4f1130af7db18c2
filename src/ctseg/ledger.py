"""The split ledger: which patient trains, validates or tests, drawn once and never changed.

A CSV file beside the data, one line a patient: `patient,split,drawn,check`. The check is a short digest of patient and
split, so that a split changed by hand is noticed; a line added by hand may leave it empty.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

from ctseg.errors import LedgerError
from ctseg.files import write_beside

SPLITS = ("train", "validation", "test")
FIELDS = ["patient", "split", "drawn", "check"]


class Ledger:
    """The split of a collection by patient.

    Args:
        path: the CSV file; it need not exist yet.

    Raises:
        LedgerError: when the file cannot be read, names a patient twice on different sides, names an unknown split, or
            holds a line whose split was changed after it was drawn.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: dict[str, dict[str, str]] = {}
        if self.path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def split_of(self, patient: str) -> str | None:
        """Return "train", "validation" or "test", or None for a patient the ledger does not know."""
        row = self._rows.get(str(patient))
        return row["split"] if row else None

    def patients(self, split: str) -> list[str]:
        """Return the patients of one split, sorted."""
        return sorted(p for p, row in self._rows.items() if row["split"] == split)

    def assign(self, given: Mapping[str, str]) -> None:
        """Take over a given split (patient -> split) and save.

        Raises:
            LedgerError: when a patient is known already on another side: nobody ever moves.
        """
        for patient, split in given.items():
            known = self.split_of(patient)
            if known not in (None, split):
                raise LedgerError(
                    f"Patient {patient} is in {known} in {self.path}, but {split} was asked for: "
                    "a patient never changes side; keep the ledger's split, or start a new ledger for a new experiment."
                )
            self._check_split(split, patient)
        for patient, split in given.items():
            if self.split_of(patient) is None:
                self._add(str(patient), split)
        self._save()

    def draw(self, patients: Iterable[str], fractions: Mapping[str, float] | None = None, seed: int = 0) -> None:
        """Draw a side for every patient not known yet and save; the known ones stay.

        Each new patient, in an order shuffled by `seed`, goes to a side that has nobody yet, else to the one that is
        farthest below its share: three patients fill three sides, and the shares hold for the whole ledger however many
        times cases are added.

        Args:
            patients: ids, repeated ones count once.
            fractions: share of each split; default 0.7 train, 0.15 validation, 0.15 test.
            seed: of the shuffling.
        """
        fractions = dict(fractions or {"train": 0.7, "validation": 0.15, "test": 0.15})
        for split in fractions:
            self._check_split(split, "a draw")
        new = sorted({str(p) for p in patients} - set(self._rows))
        random.Random(seed).shuffle(new)
        for patient in new:
            held = {split: len(self.patients(split)) for split in fractions}
            empty = [split for split in fractions if not held[split] and fractions[split] > 0]
            lack = {split: fractions[split] * (len(self) + 1) - held[split] for split in empty or fractions}
            self._add(patient, max(lack, key=lambda split: lack[split]))
        if new:
            self._save()

    def _add(self, patient: str, split: str) -> None:
        drawn = date.today().isoformat()
        self._rows[patient] = {"patient": patient, "split": split, "drawn": drawn, "check": _digest(patient, split)}

    def _check_split(self, split: str, whose: str) -> None:
        if split not in SPLITS:
            raise LedgerError(f"The split {split!r} of {whose} is not known: expected one of {', '.join(SPLITS)}.")

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            rows = list(csv.DictReader(io.StringIO(text)))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise LedgerError(f"The split ledger {self.path} cannot be read ({error}): restore it.") from error
        if rows and not {"patient", "split"} <= set(rows[0]):
            raise LedgerError(
                f"The split ledger {self.path} has the columns {', '.join(map(str, rows[0]))}, "
                f"expected {', '.join(FIELDS)}: restore it from your backup or delete it to draw anew."
            )
        for number, row in enumerate(rows, start=2):
            self._take(row, number)

    def _take(self, row: dict[str, str], number: int) -> None:
        patient, split = (row.get("patient") or "").strip(), (row.get("split") or "").strip()
        where = f"line {number} of {self.path}"
        if not patient:
            raise LedgerError(f"The patient is missing in {where}: give its id, or remove the line.")
        self._check_split(split, f"patient {patient} ({where})")
        check = (row.get("check") or "").strip()
        if check and check != _digest(patient, split):
            raise LedgerError(
                f"Patient {patient} was moved to {split} by hand in {where}: a patient never changes side, "
                "since it may have been trained on; put the split back."
            )
        known = self._rows.get(patient)
        if known and known["split"] != split:
            raise LedgerError(f"Patient {patient} is both {known['split']} and {split} ({where}): keep the first line.")
        drawn = (row.get("drawn") or "").strip()
        self._rows.setdefault(patient, {"patient": patient, "split": split, "drawn": drawn, "check": check})

    def _save(self) -> None:
        for patient, row in self._rows.items():
            row["check"] = row["check"] or _digest(patient, row["split"])
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[p] for p in sorted(self._rows))
        write_beside(self.path, text.getvalue().encode())


def _digest(patient: str, split: str) -> str:
    return hashlib.sha256(f"{patient}\n{split}".encode()).hexdigest()[:8]
