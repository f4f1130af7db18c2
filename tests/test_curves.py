"""The history of a training: its table, its way through a checkpoint, its curves, and what survives an interruption."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from PIL import Image
from test_experiments import experiment

from ctseg.cli import main
from ctseg.curves import draw_curves, kind_of
from ctseg.errors import ConfigError, InputError
from ctseg.history import History, read_history, stalled
from ctseg.pooled import PooledOverlap
from ctseg.recording import Beside, Progress, Record
from ctseg.training import Monitor, SaveBest, SaveEachEpoch, StartFrom, newest_checkpoint
from ctseg.weights import read_weights


def history(epochs: int = 4) -> History:
    made = History()
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "seconds": 2.0, "train_loss": 1 / epoch, "lr": 1e-3 / epoch}
        made.add({**row, "val_mean_dice": 0.2 * epoch, "val_loss": 1.5 / epoch} if epoch % 2 == 0 else row)
    made.configuration = {"project": "liver", "run_name": "first", "epochs": epochs}
    made.versions = {"torch": "9"}
    return made


def test_rows_are_kept_in_order_and_an_epoch_that_is_run_again_replaces_what_followed() -> None:
    made = history(4)
    made.add({"epoch": 3, "train_loss": 9.0, "val_mean_dice": math.nan})
    assert [row["epoch"] for row in made.rows] == [1, 2, 3]
    assert made.rows[-1] == {"epoch": 3, "train_loss": 9.0}
    assert made.values("val_mean_dice") == [(2, 0.4)]
    assert made.best("val_mean_dice") == 0.4 and made.best("f1") is None
    assert made.seconds == 4.0


def test_the_table_has_a_column_for_each_value() -> None:
    rows = list(csv.DictReader(io.StringIO(history(2).as_csv())))
    assert list(rows[0]) == ["epoch", "seconds", "train_loss", "lr", "val_mean_dice", "val_loss"]
    assert rows[0]["val_loss"] == "" and float(rows[1]["val_mean_dice"]) == 0.4


def test_early_stop_counts_what_brought_nothing() -> None:
    assert [stalled(values) for values in ([], [1.0], [1.0, 1.0], [1.0, 0.5, 2.0], [2.0, 0.5, 1.0])] == [0, 0, 1, 0, 2]


def checkpoint(folder: Path, made: History) -> Path:
    path = folder / "checkpoint_epoch=4.pt"
    torch.save({"model": {"w": torch.zeros(3)}, "history": made.state_dict()}, path)
    return path


def test_curves_are_drawn_again_from_the_checkpoint_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path, history(4))
    assert main(["curves", str(path), "-o", str(tmp_path / "c.png"), "--csv", str(tmp_path / "h.csv")]) == 0
    assert "4 epochs, the last is 4, 8 s" in capsys.readouterr().out
    assert (tmp_path / "c.png").read_bytes() == draw_curves(history(4), "liver, first")
    assert (tmp_path / "h.csv").read_text() == history(4).as_csv()
    read = read_history(path)
    assert (read.configuration, read.versions) == (history(4).configuration, {"torch": "9"})


def test_the_picture_shows_every_value(tmp_path: Path) -> None:
    """Three panels; a curve's colour is there when its value is, and not before."""

    def colours(made: History) -> set[Any]:
        picture = Image.open(io.BytesIO(draw_curves(made))).convert("RGB")
        return {colour for _, colour in picture.getcolors(1 << 24)}

    orange = (0xD5, 0x5E, 0x00)  # the second curve of a panel: here val_loss
    assert Image.open(io.BytesIO(draw_curves(history()))).size == (1800, 540)
    assert orange in colours(history(4)) and orange not in colours(history(1))
    assert [kind_of(name) for name in ("train_loss", "lr_encoder", "lr", "val_f1")] == ["loss", "lr", "lr", "metric"]


def test_what_has_no_curves_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    empty = checkpoint(tmp_path, History())
    for path, said in (
        (tmp_path / "nothing.pt", "there is no checkpoint"),
        (tmp_path / "model.pt", "holds no history of a training (KeyError)"),
        (tmp_path / "text.pt", "holds no history"),
        (empty, "has no epoch yet"),
    ):
        assert main(["curves", str(path), "-o", str(tmp_path / "c.png")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["curves", str(empty), "-o", str(tmp_path / "c.jpg")]) == 2
    with pytest.raises(InputError):
        draw_curves(History())


class Training:
    """A real trainer and validator of Ignite over one weight; the validation gives the values that it is told."""

    def __init__(self, folder: Path, values: list[float], patience: int | None = None, resume: bool = False) -> None:
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.5)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.history = History()
        self.trainer, self.validator = Engine(self._step), Engine(lambda engine, batch: batch)
        items = {
            "model": self.network, "optimizer": self.optimizer, "lr_scheduler": self.scheduler, "history": self.history,
        }  # fmt: skip
        StartFrom(items, folder, resume).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._validate)
        self.values = values
        Monitor(self.validator, "dice", ["dice"], patience, history=self.history).attach(self.trainer)
        Record(self.history, self.optimizer, self.validator).attach(self.trainer)
        SaveEachEpoch(items, folder).attach(self.trainer)
        Beside(self.history, folder).attach(self.trainer)
        SaveBest(self.network, "dice", folder, self.history).attach(self.validator)

    def _step(self, engine: Engine, batch: float) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.network.weight += 1
        self.optimizer.step()
        return {"loss": torch.tensor(batch)}

    def _validate(self, engine: Engine) -> None:
        self.validator.state.metrics["dice"] = self.values[engine.state.epoch - 1]
        self.validator.run([0])
        self.scheduler.step()

    def run(self, epochs: int) -> Training:
        self.trainer.run([1.0, 3.0], max_epochs=epochs)
        return self


def kept(folder: Path) -> float:
    return float(torch.load(folder / "model.pt", weights_only=True)["weight"])


def test_an_interrupted_training_goes_on_without_a_break(tmp_path: Path) -> None:
    values = [0.5, 0.9, 0.6, 0.7]
    Training(tmp_path, values).run(2)
    assert kept(tmp_path) == 4, "two steps an epoch; the second epoch is the best"
    again = Training(tmp_path, values, resume=True).run(4)
    assert kept(tmp_path) == 4, "a worse network does not win after an interruption"
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["dice"]) for row in rows] == values
    assert [float(row["lr"]) for row in rows] == [0.5, 0.25, 0.125, 0.0625]
    assert {float(row["train_loss"]) for row in rows} == {2.0}
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint_epoch=4.pt"]
    assert read_history(newest_checkpoint(tmp_path) or tmp_path).rows == again.history.rows
    assert (tmp_path / "curves.png").is_file()


def test_a_better_network_wins_after_an_interruption(tmp_path: Path) -> None:
    values = [0.5, 0.4, 0.6]
    Training(tmp_path, values).run(1)
    Training(tmp_path, values, resume=True).run(3)
    assert kept(tmp_path) == 6


def test_the_scale_of_mixed_precision_is_gone_on_with(tmp_path: Path) -> None:
    first = Training(tmp_path, [0.5, 0.6])
    first.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    first.trainer.scaler.scale(torch.ones(1))
    first.run(1)
    again = Training(tmp_path, [0.5, 0.6], resume=True)
    again.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    assert again.run(2).trainer.scaler.get_scale() == 8.0


def test_early_stop_counts_on_after_an_interruption(tmp_path: Path) -> None:
    values = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5]
    Training(tmp_path, values, patience=3).run(3)
    again = Training(tmp_path, values, patience=3, resume=True).run(6)
    assert again.trainer.state.epoch == 4


def test_a_validation_without_a_value_keeps_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path, [math.nan, 0.3]).run(1)
    assert not (tmp_path / "model.pt").exists() and "dice" not in training.history.rows[0]
    assert kept(Training(tmp_path, [math.nan, 0.3], resume=True).run(2) and tmp_path) == 4


def test_a_checkpoint_from_before_histories_is_gone_on_from(tmp_path: Path) -> None:
    Training(tmp_path, [0.5, 0.6]).run(1)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    content = torch.load(path, weights_only=True)
    del content["history"]
    torch.save(content, path)
    assert [row["epoch"] for row in Training(tmp_path, [0.5, 0.6], resume=True).run(2).history.rows] == [2]


def test_the_overlap_of_the_training_images_and_the_loss_of_the_validation() -> None:
    """One image of four pixels, two of the three predicted ones right: IoU 2/3. The validation's loss is by slice."""
    logits, label = torch.tensor([[[1.0, 1.0, 1.0, -1.0]]]), torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    trainer = Engine(lambda engine, batch: [{"pred": logits, "label": label, "loss": torch.tensor(0.5)}])
    validator = Engine(lambda engine, batch: None)
    validator.register_events(*IterationEvents)
    made = History()
    seen = []

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(prediction.shape), float(prediction.min())))
        return (prediction - target).mean()

    record = Record(made, torch.optim.SGD([torch.zeros(1)], lr=0.1), validator, loss, dimensions=2)
    record.attach(trainer)
    trainer.run([0], max_epochs=1)
    assert made.rows[0]["train_image_iou"] == made.rows[0]["train_pooled_iou"] == pytest.approx(2 / 3)
    volume = torch.full((1, 1, 2, 2, 10), torch.finfo(torch.float32).min)  # nothing was run
    assert record._validation_loss(volume, torch.zeros(1, 1, 2, 2, 10)) == -15.0
    assert seen == [((8, 1, 2, 2), -15.0), ((2, 1, 2, 2), -15.0)]
    presence = torch.zeros(1, 1, 3)
    assert record._validation_loss(presence, presence + 1) == -1.0
    metric = PooledOverlap(["liver"])
    metric.update([((logits > 0).long(), label)])
    assert metric.compute() == pytest.approx(2 / 3)


def test_each_group_has_its_rate() -> None:
    groups = [{"params": [torch.zeros(1)], "name": "encoder", "lr": 1e-5}, {"params": [torch.zeros(1)], "name": "rest"}]
    made = History()
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    Record(made, torch.optim.SGD(groups, lr=1e-3)).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert (made.rows[0]["lr_encoder"], made.rows[0]["lr_rest"]) == (1e-5, 1e-3)


def test_a_bar_is_shown_when_it_is_wanted_only(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (None, False, True):  # no terminal here
        trainer = Engine(lambda engine, batch: {"loss": torch.tensor(0.25)})
        Progress(wanted=wanted).attach(trainer)
        trainer.run([0] * 3, max_epochs=1)
        assert ("loss=0.25" in capsys.readouterr().err) == (wanted is True)


def test_an_unknown_metric_is_still_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected one of dice"):
        Monitor(Engine(lambda engine, batch: None), "f1", ["dice"], history=History())


def trained(tiny_dataset: Path, folder: Path, **overrides: Any) -> History:
    run = experiment("unet_resnet18_bce_sgd", tiny_dataset, folder, epochs=1, patch=[32, 32], **overrides)
    run.initialize()
    run.run()
    return read_history(folder / "checkpoint_epoch=1.pt")


def test_a_seed_gives_the_same_training_and_another_another(tiny_dataset: Path, tmp_path: Path) -> None:
    one, same, other = (
        trained(tiny_dataset, tmp_path / name, seed=seed).rows[0]["train_loss"]
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert one == same != other


def test_starts_from_the_weights_of_a_checkpoint(tiny_dataset: Path, tmp_path: Path) -> None:
    trained(tiny_dataset, tmp_path / "first", seed=3)
    checkpoint = tmp_path / "first" / "checkpoint_epoch=1.pt"
    history = trained(tiny_dataset, tmp_path / "second", pretrained=str(checkpoint), **{"optimizer#lr": 0.0})
    assert [row["epoch"] for row in history.rows] == [1], "it begins anew, with the weights only"
    before, after = (read_weights(tmp_path / name / "checkpoint_epoch=1.pt") for name in ("first", "second"))
    learnt = [name for name in before if name.endswith("weight")]
    assert learnt and all(torch.equal(before[name], after[name]) for name in learnt), "with a rate of 0"
