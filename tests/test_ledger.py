"""The split ledger: drawn once, by patient, nobody moves, conflicting hand edits are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctseg.errors import LedgerError
from ctseg.ledger import SPLITS, Ledger


def sides(ledger: Ledger) -> dict[str, str]:
    return {patient: split for split in SPLITS for patient in ledger.patients(split)}


def test_shares_are_kept_and_the_draw_repeats(tmp_path: Path) -> None:
    patients = [f"p{n:02d}" for n in range(20)]
    ledgers = [Ledger(tmp_path / name) for name in ("a.csv", "b.csv")]
    ledgers[0].draw(patients)
    ledgers[1].draw(reversed(patients))
    assert {split: len(ledgers[0].patients(split)) for split in SPLITS} == {"train": 14, "validation": 3, "test": 3}
    assert sides(ledgers[0]) == sides(ledgers[1])


def test_new_cases_are_added_and_none_moves(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    Ledger(path).draw(f"p{n}" for n in range(10))
    before = sides(Ledger(path))
    again = Ledger(path)
    again.draw(f"p{n}" for n in range(40))
    after = sides(Ledger(path))
    assert len(after) == 40
    assert {patient: after[patient] for patient in before} == before
    assert len(again.patients("train")) == 28


def test_three_patients_fill_three_sides(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "split.csv")
    ledger.draw(["a", "b", "c"])
    assert sorted(sides(ledger).values()) == ["test", "train", "validation"]


def test_a_given_split_is_taken_over_and_then_frozen(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "split.csv")
    ledger.assign({"10084": "train", "10085": "validation"})
    ledger.assign({"10085": "validation"})
    with pytest.raises(LedgerError, match=r"10085 is in validation .* never changes side"):
        ledger.assign({"10086": "test", "10085": "train"})
    assert Ledger(ledger.path).split_of("10086") is None


def test_a_side_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    Ledger(path).assign({"a": "test", "b": "train"})
    path.write_text(path.read_text().replace("a,test", "a,train"))
    with pytest.raises(LedgerError, match=r"Patient a was moved to train by hand in line 2"):
        Ledger(path)


def test_a_patient_on_two_sides_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    Ledger(path).assign({"a": "test"})
    path.write_text(path.read_text() + "a,train,,\n")
    with pytest.raises(LedgerError, match=r"Patient a is both test and train"):
        Ledger(path)


def test_a_line_added_by_hand_is_accepted_and_sealed(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    Ledger(path).assign({"a": "test"})
    path.write_text(path.read_text() + "b,validation,,\n")
    ledger = Ledger(path)
    assert ledger.split_of("b") == "validation"
    ledger.draw(["c"])
    path.write_text(path.read_text().replace("b,validation", "b,train"))
    with pytest.raises(LedgerError, match="Patient b was moved"):
        Ledger(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("patient,split\na,tset\n", r"'tset' of patient a .*: expected one of train, validation, test"),
        ("patient,split\n,train\n", r"patient is missing in line 2"),
        ("name;side\na;train\n", r"has the columns name;side, expected patient, split"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(LedgerError, match=sentence):
        Ledger(path)
