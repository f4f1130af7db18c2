"""How a classifier is scored: counts and rates worked out by hand, wrong slices named, the report of a bundle's run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import stats

from ctseg.errors import ConfigError
from ctseg.presence.scores import PresenceScore, SliceResult, confusion, presence_report, rates, write_presence_report

# case, patient, slice, present, probability: at the threshold 0.5 hit, miss, hit, false alarm, quiet, miss
ROWS = [
    ("a", "p1", 3, True, 0.9),
    ("a", "p1", 4, True, 0.4),
    ("a", "p1", 5, True, 0.5),
    ("b", "p2", 1, False, 0.7),
    ("b", "p2", 2, False, 0.1),
    ("b", "p2", 3, True, 0.49),
]
RESULTS = [SliceResult(case, patient, k, "liver", present, p) for case, patient, k, present, p in ROWS]


def test_counts_and_rates_by_hand() -> None:
    assert confusion(RESULTS, 0.5) == {"tp": 2, "fp": 1, "fn": 2, "tn": 1}
    found = rates(2, 1, 2, 1)
    assert found == pytest.approx({"f1": 4 / 7, "recall": 0.5, "precision": 2 / 3, "accuracy": 0.5, "specificity": 0.5})
    assert stats.hmean([found["recall"], found["precision"]]) == pytest.approx(found["f1"])  # the textbook's F1
    # A lower threshold finds more: 0.9, 0.4, 0.5, 0.49 of the organ, and the same false alarm.
    assert confusion(RESULTS, 0.4) == {"tp": 4, "fp": 1, "fn": 0, "tn": 1}


def test_what_is_not_defined_is_null() -> None:
    assert rates(0, 0, 0, 5) == {"f1": None, "recall": None, "precision": None, "accuracy": 1.0, "specificity": 1.0}
    assert rates(0, 0, 2, 0) == {"f1": 0.0, "recall": 0.0, "precision": None, "accuracy": 0.0, "specificity": None}


def test_report_names_missed_slices_and_counts_by_patient(tmp_path: Path) -> None:
    report = write_presence_report(RESULTS, ["liver"], 0.5, tmp_path, "test")
    assert (report["threshold"], report["split"]) == (0.5, "test")
    liver = report["labels"]["liver"]
    assert (liver["support"], liver["slices"], liver["cases"], liver["patients"]) == (4, 6, 2, 2)
    assert [(row["case"], row["slice"]) for row in report["missed"]] == [("a", 4), ("b", 3)]
    assert [(row["case"], row["slice"]) for row in report["false_alarms"]] == [("b", 1)]
    assert report["patients"]["liver"]["p1"]["recall"] == pytest.approx(2 / 3)
    assert report["patients"]["liver"]["p2"]["tn"] == 1
    assert json.loads((tmp_path / "presence.json").read_text()) == report
    missed = list(csv.DictReader(io.StringIO((tmp_path / "missed_slices.csv").read_text())))
    assert [(row["case"], row["slice"], row["probability"]) for row in missed] == [
        ("a", "4", "0.40000"), ("b", "3", "0.49000"),
    ]  # fmt: skip
    every = list(csv.DictReader(io.StringIO((tmp_path / "presence_slices.csv").read_text())))
    assert [(row["present"], row["found"]) for row in every] == [
        ("1", "1"), ("1", "0"), ("1", "1"), ("0", "1"), ("0", "0"), ("1", "0"),
    ]  # fmt: skip


def test_organs_are_scored_apart() -> None:
    both = [*RESULTS, *(SliceResult("a", "p1", k, "gallbladder", k == 4, 0.2) for k in (3, 4, 5))]
    labels = presence_report(both, ["liver", "gallbladder"], 0.5)["labels"]
    assert labels["liver"]["tp"] == 2 and labels["gallbladder"] == {
        "slices": 3, "support": 1, "cases": 1, "patients": 1, "tp": 0, "fp": 0, "fn": 1, "tn": 2,
        "f1": 0.0, "recall": 0.0, "precision": None, "accuracy": 2 / 3, "specificity": 1.0,
    }  # fmt: skip


def answered(case: str, numbers: list[int], present: list[int], probability: list[float]) -> tuple[torch.Tensor, ...]:
    meta = {"patient": f"of {case}", "case_id": case, "slice_index": torch.tensor(numbers) - 1}
    return torch.tensor([probability]), MetaTensor(torch.tensor([present]).float(), meta=meta)


def test_metric_of_a_run_pools_slices_and_keeps_their_numbers(tmp_path: Path) -> None:
    pairs = [
        answered("a", [5, 4, 3], [1, 1, 1], [0.5, 0.4, 0.9]),
        answered("b", [1, 2, 3], [0, 0, 1], [0.7, 0.1, 0.49]),
    ]
    values = {}
    for score in ("f1", "recall", "precision", "accuracy", "specificity"):
        metric = PresenceScore(["liver"], score, save_to=tmp_path / score, split="validation")
        metric.update(pairs[:1])
        metric.update(pairs[1:])
        values[score] = metric.compute()
    assert values == pytest.approx(rates(2, 1, 2, 1))
    report = json.loads((tmp_path / "recall" / "presence.json").read_text())
    assert [(row["case"], row["patient"], row["slice"]) for row in report["missed"]] == [
        ("a", "of a", 4), ("b", "of b", 3),
    ]  # fmt: skip
    metric.reset()
    assert np.isnan(metric.compute())


def test_an_undefined_score_is_0_for_a_training_that_follows_it() -> None:
    metric = PresenceScore(["liver"], "precision")
    metric.update([answered("a", [1, 2], [1, 1], [0.1, 0.2])])
    assert metric.compute() == 0.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"score 'dice' is not known: expected one of f1, recall"):
        PresenceScore(["liver"], "dice")
    with pytest.raises(ConfigError, match="expected a probability"):
        PresenceScore(["liver"], threshold=50)
