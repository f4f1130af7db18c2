"""Losses measured beside the one that is trained on: values by hand, and a row of the history that has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from ctseg.curves import kind_of
from ctseg.errors import ConfigError
from ctseg.history import History
from ctseg.otherlosses import OtherLosses
from ctseg.partial import ANNOTATED
from ctseg.recording import Record

WANTED: list[Any] = ["cross_entropy", {"name": "tversky", "alpha": 0.85, "beta": 0.15, "smooth_nr": 0, "smooth_dr": 0}]


def test_values_by_hand() -> None:
    """Three classes that are equally probable: cross-entropy ln 3. Tversky of class c with n of 6 voxels: TP n/3,
    FP (6 - n)/3, FN 2n/3."""
    label = torch.tensor([0, 0, 0, 1, 1, 2]).view(1, 1, 2, 3)
    found = OtherLosses(WANTED).of(torch.zeros(1, 3, 2, 3), label)
    assert found["cross_entropy"] == pytest.approx(math.log(3))
    index = [(n / 3) / (n / 3 + 0.85 * (6 - n) / 3 + 0.15 * 2 * n / 3) for n in (3, 2, 1)]
    assert found["tversky"] == pytest.approx(1 - sum(index) / 3)
    # class 2 was not drawn: its share belongs to the background
    drawn = label.masked_fill(label == 2, 0)
    setattr(drawn, ANNOTATED, torch.tensor([[1.0, 0.0]]))
    found = OtherLosses(["cross_entropy"]).of(torch.zeros(1, 3, 2, 3), drawn)
    assert found["cross_entropy"] == pytest.approx(-(4 * math.log(2 / 3) + 2 * math.log(1 / 3)) / 6)


def test_the_history_has_a_column_for_each() -> None:
    """Two batches: certain and right (0), and undecided between two classes (ln 2). A validation of two slices."""
    right = torch.tensor([[[[50.0]], [[0.0]]]])
    label = torch.zeros(1, 1, 1, 1)
    made = History()

    def step(engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        engine.state.output = {"pred": batch, "label": label, "loss": torch.tensor(1.0)}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        return engine.state.output

    trainer = Engine(step)
    trainer.register_events(*IterationEvents)
    validator = Engine(lambda engine, batch: None)
    validator.register_events(*IterationEvents)
    record = Record(
        made, torch.optim.SGD([torch.zeros(1)], lr=0.1), validator, lambda p, r: p.sum() * 0, dimensions=2,
        log_losses=["cross-entropy"],
    )  # fmt: skip
    record.attach(trainer)
    trainer.run([right, torch.zeros(1, 2, 1, 1)], max_epochs=1)
    row = made.rows[0]
    assert row["train_cross_entropy_loss"] == pytest.approx(math.log(2) / 2) and row["train_loss"] == 1
    assert kind_of("train_cross_entropy_loss") == "loss"
    validator.run([0], max_epochs=1)
    volume = torch.zeros(1, 2, 1, 1, 10)
    volume[:, 0, ..., :5] = 15.0
    record._validation_loss(volume, torch.zeros(1, 1, 1, 1, 10))
    assert record._validation_others.row("val")["val_cross_entropy_loss"] == pytest.approx(math.log(2) / 2, abs=1e-5)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="is not known: expected one of"):
        OtherLosses(["crossentropy"])
    with pytest.raises(ConfigError, match="twice"):
        OtherLosses(["dice", {"name": "dice"}])
    with pytest.raises(ConfigError, match="use bce"):
        OtherLosses(["cross_entropy"]).of(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
