"""Overlap pooled over a data set and averaged over its slices: counted by hand, and by NumPy on random masks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from ctseg.errors import ConfigError
from ctseg.pooled import PooledOverlap, class_map, slice_counts


def volume(*slices: list[int], patient: str = "a") -> MetaTensor:
    """A volume (1, 1, 4, S) of slices of four pixels each."""
    return MetaTensor(torch.tensor(slices).T[None, None], meta={"patient": patient})


# Slice by slice, prediction and reference. Common, predicted, reference pixels of class 1:
PREDICTION = volume([1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0])
REFERENCE = volume([1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0])
# 2,2,4 -> IoU 1/2; 1,4,1 -> IoU 1/4; 0,0,0 -> says nothing; 0,3,0 -> no organ there: IoU 0 if all slices count.


def measured(pairs: list[tuple[Any, Any]] | None = None, **options: Any) -> float:
    metric = PooledOverlap(["liver"], **options)
    metric.update(pairs or [(PREDICTION, REFERENCE)])
    return metric.compute()


def test_worked_by_hand() -> None:
    assert measured() == pytest.approx(3 / (6 + 5 - 3))
    assert measured(overlap="dice") == pytest.approx(2 * 3 / (6 + 5))
    assert measured(over="image") == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert measured(over="image", overlap="dice") == pytest.approx((4 / 6 + 2 / 5) / 2)
    assert measured(only_with_organ=False) == pytest.approx(3 / (9 + 5 - 3))
    assert measured(over="image", only_with_organ=False) == pytest.approx((1 / 2 + 1 / 4 + 0) / 3)


def test_slices_one_by_one_are_the_same_as_their_volume() -> None:
    one_by_one = [(PREDICTION[..., i], REFERENCE[..., i]) for i in range(4)]
    for over in ("dataset", "image"):
        assert measured(one_by_one, over=over) == pytest.approx(measured(over=over))


def test_a_large_organ_outweighs_a_small_one_only_when_pooled() -> None:
    """A patient of 100 pixels that is right and one of 1 that is missed: 100/101 against 1/2."""
    large = torch.ones(1, 10, 10)
    small = torch.zeros(1, 10, 10)
    small[0, 0, 0] = 1
    pairs = [(large, large), (torch.zeros(1, 10, 10), small)]
    assert measured(pairs) == pytest.approx(100 / 101)
    assert measured(pairs, over="image") == pytest.approx(1 / 2)


def test_agrees_with_numpy_on_random_masks_of_two_classes() -> None:
    rng = np.random.default_rng(3)
    p, r = rng.integers(0, 3, (2, 5, 1, 6, 7, 4))
    r[..., 1] = 0
    metric = PooledOverlap(["a", "b"])
    metric.update([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(p, r, strict=True)])
    values = []
    for label in (1, 2):
        slices = [(x[0, ..., k] == label, y[0, ..., k] == label) for x, y in zip(p, r, strict=True) for k in range(4)]
        kept = [(x, y) for x, y in slices if y.any()]
        values.append(sum((x & y).sum() for x, y in kept) / sum((x | y).sum() for x, y in kept))
    assert metric.compute() == pytest.approx(np.mean(values))


def test_the_report_says_over_what(tmp_path: Path) -> None:
    metric = PooledOverlap(["liver", "spleen"], save_to=tmp_path / "pooled.json")
    metric.update([(PREDICTION, REFERENCE), (PREDICTION, volume([1, 0, 0, 0], *[[0] * 4] * 3, patient="b"))])
    metric.compute()
    report = json.loads((tmp_path / "pooled.json").read_text())
    assert report["values"] == {"liver": pytest.approx(4 / (8 + 6 - 4)), "spleen": None}
    assert report["mean"] == report["values"]["liver"]
    assert report["patients"] == 2
    assert report["counts"]["liver"] == {"common": 4, "predicted": 8, "reference": 6, "slices": 3}
    assert report["slices"] == "that have the organ"


def test_nothing_measured_is_no_number_and_reset_forgets() -> None:
    metric = PooledOverlap(["liver"])
    assert math.isnan(metric.compute())
    metric.update([(PREDICTION, REFERENCE)])
    metric.reset()
    assert math.isnan(metric.compute())


def test_on_an_engine() -> None:
    engine = Engine(lambda engine, batch: [{"pred": PREDICTION, "label": REFERENCE}])
    PooledOverlap(["liver"]).attach(engine, "iou")
    engine.run([0, 1])
    assert engine.state.metrics["iou"] == pytest.approx(3 / 8)


def test_logits_become_classes() -> None:
    assert class_map(torch.tensor([[[-1.0, 0.0, 2.0]]])).tolist() == [[[0, 0, 1]]]
    assert class_map(torch.tensor([[[3.0, 0.0]], [[1.0, 2.0]], [[0.0, 5.0]]])).tolist() == [[[0, 2]]]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="overlap 'dise': expected iou or dice"):
        PooledOverlap(["liver"], overlap="dise")
    with pytest.raises(ConfigError, match="over 'patient': expected dataset or image"):
        PooledOverlap(["liver"], over="patient")
    with pytest.raises(ConfigError, match=r"\(1, 4, 4\) and a reference \(1, 4, 5\)"):
        slice_counts(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), 1)
