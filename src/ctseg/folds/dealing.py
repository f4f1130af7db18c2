"""Folds: a collection's patients dealt into k groups, each held out once; drawn from the ledger, frozen in a file.

The test patients of the collection's ledger are in no fold. What a fold trains on is a data folder of its own, with
a datalist that names no other patient and a ledger that says who of them trains, chooses the epoch, and is held out: so
the bundle's own training cannot see a slice of a held-out patient.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctseg.datalist import DATALIST, LEDGER, read_cases
from ctseg.errors import ConfigError, InputError
from ctseg.files import write_beside
from ctseg.ledger import Ledger

FOLDS = "folds.json"
SCHEMA = "ctseg-folds/1"
CHOOSERS = ("inner", "held-out")
INNER_SHARE = 0.15  # of a fold's training patients, who choose the epoch


@dataclass(frozen=True)
class Fold:
    """One fold.

    Attributes:
        number: from 1 on.
        held_out: patients that are measured and never trained on.
        choosing: patients that choose the epoch and stop the training; those held out where these choose.
        training: patients that are trained on.
    """

    number: int
    held_out: tuple[str, ...]
    choosing: tuple[str, ...]
    training: tuple[str, ...]

    @property
    def name(self) -> str:
        """ "fold_3"."""
        return f"fold_{self.number}"

    @property
    def measured(self) -> str:
        """The split of the fold's own ledger that holds the held-out patients."""
        return "validation" if set(self.choosing) == set(self.held_out) else "test"


def draw_folds(patients: Sequence[str], k: int, seed: int = 0, choosers: str = "inner") -> list[Fold]:
    """Deal patients into folds; the same patients, k and seed give the same folds, in whatever order they come.

    Args:
        patients: ids; repeated ones count once.
        k: number of folds; as many as patients leaves one out in each.
        seed: of the shuffling.
        choosers: who chooses the epoch: "inner" takes 15 % of a fold's training patients (one at least), "held-out"
            the held-out ones, whose figures then flatter.

    Raises:
        ConfigError: for a k that cannot be, or an unknown chooser.
    """
    if choosers not in CHOOSERS:
        raise ConfigError(f"the epoch cannot be chosen by {choosers!r}: expected {' or '.join(CHOOSERS)}")
    order = sorted(set(patients))
    if not 2 <= k <= len(order):
        raise ConfigError(
            f"{k} folds of {len(order)} patients cannot be: expected from 2 to as many as there are patients outside "
            "the test; choose another --k, or add patients"
        )
    random.Random(seed).shuffle(order)
    folds = []
    for number in range(1, k + 1):
        held_out = order[number - 1 :: k]
        rest = [patient for patient in order if patient not in set(held_out)]
        choosing = held_out if choosers == "held-out" else _inner(rest, seed, number)
        training = [patient for patient in rest if patient not in set(choosing)]
        if not training:
            raise ConfigError(
                f"fold {number} of {k} has nobody left to train on, since one of its {len(rest)} patients chooses the "
                "epoch: take more folds, add patients, or let the held-out ones choose (--epoch-by held-out)"
            )
        folds.append(Fold(number, *(tuple(sorted(group)) for group in (held_out, choosing, training))))
    return folds


def _inner(patients: Sequence[str], seed: int, number: int) -> list[str]:
    count = max(1, round(INNER_SHARE * len(patients)))
    return random.Random(f"{seed} {number}").sample(list(patients), count)


def patients_for_folds(data: Path, datalist: str = DATALIST, no_test: bool = False) -> list[str]:
    """Return the patients of a collection that are not in its test; those the ledger does not know are drawn first.

    Args:
        data: the data folder.
        datalist: file name of the datalist in it.
        no_test: patients that the ledger does not know all go to its training instead of being drawn.

    Raises:
        InputError, LedgerError: when datalist or ledger cannot be read.
    """
    patients = {case["patient"] for case in read_cases(data, datalist)}
    ledger = Ledger(data / LEDGER)
    if any(ledger.split_of(patient) is None for patient in patients):
        ledger.draw(patients, {"train": 1.0} if no_test else None)
    return sorted(patient for patient in patients if ledger.split_of(patient) != "test")


def frozen_folds(out: Path, drawn: Sequence[Fold], about: Mapping[str, Any]) -> list[Fold]:
    """Return the folds of a folder of runs: those that lie there, else the drawn ones, which are then written.

    Args:
        out: folder of the runs.
        drawn: the folds of today's patients.
        about: what they were drawn with: bundle, data, k, seed and so on.

    Raises:
        ConfigError: when the folder's folds are others: folds never change under a run.
    """
    file = out / FOLDS
    content = {"schema": SCHEMA, **about, "folds": [asdict(fold) for fold in drawn]}
    content = json.loads(json.dumps(content))  # as it will be read again
    if file.is_file():
        known = read_folds_file(out)
        other = [key for key in content if known.get(key) != content[key]]
        if other:
            raise ConfigError(
                f"the folds in {file} were drawn with another state of {', '.join(other)}: folds never change under a "
                "run; give the same options and patients to go on, or name another --out"
            )
        return folds_of(known)
    write_beside(file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return list(drawn)


def read_folds_file(out: Path) -> dict[str, Any]:
    """Return the content of a folder's `folds.json`.

    Raises:
        InputError: when there is none, or it is something else.
    """
    file = out / FOLDS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"there are no folds in {out} ({type(error).__name__}: {error}); name the --out of a ctseg folds run"
        ) from error
    return dict(content)


def folds_of(content: Mapping[str, Any]) -> list[Fold]:
    """Return the folds of a `folds.json`."""
    groups = ("held_out", "choosing", "training")
    return [Fold(int(one["number"]), *(tuple(map(str, one[group])) for group in groups)) for one in content["folds"]]


def write_fold_data(fold: Fold, cases: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the data folder of one fold: datalist and ledger, only of its own patients.

    Args:
        fold: the fold.
        cases: of the whole collection, with absolute paths.
        folder: for the two files.

    Raises:
        InputError: when the fold's groups share a patient.
        LedgerError: when a ledger lies there that says otherwise.
    """
    if fold.measured == "test":
        split = {"test": fold.held_out, "validation": fold.choosing, "train": fold.training}
    else:
        split = {"validation": fold.held_out, "train": fold.training}
    given = {patient: name for name, group in split.items() for patient in group}
    if len(given) < sum(len(group) for group in split.values()):
        raise InputError(f"{fold.name} has a patient in two of its groups; restore {FOLDS}, or name another --out")
    own = [case for case in cases if case["patient"] in given]
    folder.mkdir(parents=True, exist_ok=True)
    Ledger(folder / LEDGER).assign(given)
    text = json.dumps({"cases": own}, indent=1, ensure_ascii=False) + "\n"
    write_beside(folder / DATALIST, text.encode())
