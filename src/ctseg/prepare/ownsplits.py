"""The split that a collection brings along in its folders, as far as a split by patient can keep it."""

from __future__ import annotations

from collections.abc import Sequence

from ctseg.collections import Candidate
from ctseg.ledger import SPLITS, Ledger


def own_split(named: Sequence[tuple[Candidate, str]], ledger: Ledger) -> tuple[dict[str, str], list[str]]:
    """Return patient -> side by the folders of the patient's images, and sentences on what was done.

    A patient with images on several sides is trained on: whoever was trained on anywhere is never tested. A patient
    whom the ledger knows stays where he is. A collection with a single side has no split, and one is drawn.

    Args:
        named: each case with its patient.
        ledger: of the data folder.
    """
    sides: dict[str, set[str]] = {}
    for candidate, patient in named:
        if candidate.side is not None:
            sides.setdefault(patient, set()).add(candidate.side)
    if len({side for found in sides.values() for side in found}) < 2:
        return {}, []
    mixed = [patient for patient, found in sides.items() if len(found) > 1]
    wanted = {patient: "train" if len(found) > 1 else next(iter(found)) for patient, found in sides.items()}
    elsewhere = [patient for patient, side in wanted.items() if ledger.split_of(patient) not in (None, side)]
    taken = {patient: side for patient, side in wanted.items() if patient not in elsewhere}
    counts = ", ".join(f"{sum(one == side for one in taken.values())} {side}" for side in SPLITS)
    notes = [f"the split of its folders was taken over, by patient: {counts}"]
    if mixed:
        notes.append(f"{len(mixed)} patients have images on several sides and are trained on: {_some(mixed)}")
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} patients are on another side in {ledger.path} and stay there: {_some(elsewhere)}"
        )
    return taken, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
