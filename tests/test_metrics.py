"""Overlap by patient against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from ctseg.errors import ConfigError
from ctseg.metrics import PatientOverlap


def pair(patient: str, prediction: list[int], reference: list[int]) -> tuple[torch.Tensor, MetaTensor]:
    return torch.tensor([prediction]), MetaTensor(torch.tensor([reference]), meta={"patient": patient})


# Patient a, two slices: label 1 has TP 2, P 4, R 3; label 2 has TP 1, P 1, R 2. Patient b: label 1 is only predicted.
PAIRS = [pair("a", [1, 1, 1, 0, 0], [1, 0, 0, 0, 2]), pair("a", [1, 2, 0, 0, 0], [1, 2, 1, 0, 0]), pair("b", [1], [0])]


def computed(**options: object) -> PatientOverlap:
    metric = PatientOverlap(labels=["liver", "gallbladder"], **options)  # type: ignore[arg-type]
    metric.update(PAIRS[:2])
    metric.update(PAIRS[2:])
    return metric


def test_slices_of_a_patient_are_pooled() -> None:
    table = computed().per_patient()
    assert table["a"] == {"liver": pytest.approx(4 / 7), "gallbladder": pytest.approx(2 / 3)}
    assert table["b"] == {"liver": 0.0, "gallbladder": None}


def test_mean_leaves_out_what_is_nowhere(tmp_path: Path) -> None:
    metric = computed(save_to=tmp_path / "dice.json")
    assert metric.compute() == pytest.approx((4 / 7 + 2 / 3 + 0) / 3)
    saved = json.loads((tmp_path / "dice.json").read_text())
    assert saved["patients"] == 2
    assert saved["values"]["b"]["gallbladder"] is None


def test_iou() -> None:
    assert computed(overlap="iou").per_patient()["a"] == {"liver": pytest.approx(2 / 5), "gallbladder": 0.5}


def test_reset_forgets() -> None:
    metric = computed()
    metric.reset()
    assert metric.per_patient() == {}


def test_unknown_overlap() -> None:
    with pytest.raises(ConfigError, match="expected dice or iou"):
        PatientOverlap(labels=["liver"], overlap="jaccard")
