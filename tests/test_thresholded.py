"""The thresholded IoU by hand: its steps, empty images, the logit that masks are cut at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from ctseg.errors import ConfigError
from ctseg.history import History
from ctseg.thresholded import ThresholdedIou, thresholded
from ctseg.training import SaveBest


def test_the_steps() -> None:
    ious = [0.0, 0.5, 0.5001, 0.55, 0.551, 0.7, 0.76, 0.95, 0.951, 1.0]
    expected = [0.0, 0.0, 0.1, 0.1, 0.2, 0.4, 0.6, 0.9, 1.0, 1.0]
    assert thresholded(torch.tensor(ious, dtype=torch.float64)).tolist() == pytest.approx(expected)


def item(logits: list[float], label: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(logits).reshape(1, 1, -1), torch.tensor(label).reshape(1, 1, -1)


def test_by_hand(tmp_path: Path) -> None:
    # IoU at 0: 3/4, 1 (empty union), 0; at a logit of 0.5: 2/3, 1, 1 (nothing predicted in the empty image)
    pairs = [
        item([2.0, 2.0, 0.2, 0.3, -1.0], [1, 1, 1, 0, 0]),
        item([-2.0, -1.0, -0.1], [0, 0, 0]),
        item([0.4, -1.0, -1.0], [0, 0, 0]),
    ]
    for logit, steps in ((0.0, [0.5, 1.0, 0.0]), (0.5, [0.4, 1.0, 1.0])):
        file = tmp_path / f"{logit}.json"
        metric = ThresholdedIou(["lesion"], logit, file)
        metric.update(pairs)
        assert metric.compute() == pytest.approx(sum(steps) / 3)
        assert json.loads(file.read_text())["images"] == 3
    metric.reset()
    assert math.isnan(metric.compute())


def test_slices_of_a_volume_are_images_and_classes_have_means() -> None:
    logits = torch.zeros(3, 1, 2, 2)  # background, a, b; two slices of two pixels
    logits[1, 0, :, 0] = 5.0  # a everywhere on the first slice
    logits[2, 0, 0, 1] = 5.0  # b on one pixel of the second
    label = torch.zeros(1, 1, 2, 2)
    label[0, 0, 0, 0] = 1  # a: IoU 1/2 -> 0 and an empty slice -> 1
    label[0, 0, :, 1] = 2  # b: empty -> 1 and IoU 1/2 -> 0
    metric = ThresholdedIou(["a", "b"])
    metric.update([(logits, label)])
    assert metric.compute() == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="expected 3 channels, or 1 of one label, on the same grid"):
        metric.update([(logits[:1], label)])


def test_while_it_is_0_the_latest_network_is_kept(tmp_path: Path) -> None:
    network, history = torch.nn.Linear(1, 1, bias=False), History()
    validator = Engine(lambda engine, batch: None)
    save = SaveBest(network, "m", tmp_path, history)
    kept = []
    for epoch, value in enumerate([0.0, 0.0, 0.3, 0.3, 0.0], start=1):
        torch.nn.init.constant_(network.weight, float(epoch))
        validator.state.metrics = {"m": value}
        save(validator)
        history.add({"epoch": epoch, "m": value})
        kept.append(torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item())
    assert kept == [1.0, 2.0, 3.0, 3.0, 3.0]
