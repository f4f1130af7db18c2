"""Stages of image size, the monitored metric with early stop, and training on what holds an organ only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import write_nifti
from ignite.engine import Engine, Events

from ctseg.errors import ConfigError
from ctseg.organslices import KeepOrganSlicesd, chosen
from ctseg.training import FollowStages, Monitor, PrepareBatch

STAGES = [{"epochs": 2, "size": [4, 4]}, {"epochs": 1, "size": [8, 8]}, {"epochs": 1}]


def test_the_size_follows_the_epochs() -> None:
    prepare = PrepareBatch(STAGES, epochs=4)
    trainer = Engine(lambda engine, batch: tuple(prepare(batch)[0].shape[2:]))
    FollowStages(prepare).attach(trainer)
    seen: list[Any] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
    batch = {"image": torch.rand(1, 1, 16, 16), "label": torch.zeros(1, 1, 16, 16)}
    trainer.run([batch], max_epochs=4)
    assert seen == [(4, 4), (4, 4), (8, 8), (16, 16)]


def test_images_are_averaged_and_labels_keep_their_classes() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1.0
    label = torch.zeros(1, 1, 8, 8)
    label[..., 4:, :] = 3.0
    small, classes = PrepareBatch([{"epochs": 1, "size": [4, 4]}], 1)({"image": image, "label": label})
    assert small[0, 0, 0, 0] == 0 and small[0, 0, 0, 3] == 1
    assert classes.tolist() == [[[[0.0] * 4] * 2 + [[3.0] * 4] * 2]]


def test_a_volume_is_resized_too() -> None:
    batch = {"image": torch.ones(2, 1, 4, 4, 4), "label": torch.ones(2, 1, 4, 4, 4)}
    image, label = PrepareBatch([{"epochs": 1, "size": [8, 6, 4]}], 1)(batch)
    assert image.shape == label.shape == (2, 1, 8, 6, 4)


def test_without_stages_a_batch_is_left_as_it_is() -> None:
    batch = {"image": torch.rand(1, 1, 5, 7), "label": torch.rand(1, 1, 5, 7)}
    image, label = PrepareBatch(None, 10)(batch)
    assert torch.equal(image, batch["image"]) and torch.equal(label, batch["label"])


def test_early_stop_and_the_schedule_follow_the_metric() -> None:
    values = [0.1, 0.2, 0.2, 0.2, 0.3]
    validator = Engine(lambda engine, batch: None)
    validator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(iou=values[trainer.state.epoch - 1])
    )
    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: validator.run([0]))

    class Schedule:
        told: list[float] = []  # noqa: RUF012

        def measure(self, value: float) -> None:
            self.told.append(value)

    Monitor(validator, "iou", ["dice", "iou"], patience=2, lr_scheduler=Schedule()).attach(trainer)
    trainer.run([0], max_epochs=5)
    assert trainer.state.epoch == 4, "two validations without a better value"
    assert Schedule.told == [0.1, 0.2, 0.2, 0.2]


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'f1' is not known: expected one of dice, iou"):
        Monitor(Engine(lambda engine, batch: None), "f1", ["dice", "iou"])


def test_only_slices_with_the_organ_are_kept() -> None:
    label = torch.zeros(1, 2, 2, 5)
    label[0, 1, 0, [1, 3]] = 1
    item = {"image": torch.arange(5.0).expand(1, 2, 2, 5), "label": label}
    kept = KeepOrganSlicesd(["image", "label"])(item)
    assert kept["image"][0, 0, 0].tolist() == [1, 3]
    assert kept["label"].shape == (1, 2, 2, 2)
    assert KeepOrganSlicesd(["image", "label"], enabled=False)(item)["image"].shape == (1, 2, 2, 5)
    empty = {"image": item["image"], "label": torch.zeros(1, 2, 2, 5)}
    assert KeepOrganSlicesd(["image", "label"])(empty)["image"].shape == (1, 2, 2, 5)


def test_only_cases_with_the_organ_are_chosen(tmp_path: Path) -> None:
    cases = []
    for number, value in enumerate((0, 2, 7)):
        label = np.zeros((4, 4, 4), np.uint8)
        label[1, 1, 1] = value
        path = write_nifti(tmp_path / f"{number}.nii.gz", label, np.eye(4))
        cases.append({"case_id": number, "label": str(path), "mask_values": {"2": "liver", "7": "spleen"}})
    assert [case["case_id"] for case in chosen(cases, ["liver"], True)] == [1]
    assert [case["case_id"] for case in chosen(cases, ["liver"], False)] == [0, 1, 2]
    with pytest.raises(SystemExit, match="None of the 1 training cases holds liver"):
        chosen(cases[:1], ["liver"], True)
