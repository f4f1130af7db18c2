"""Handlers that write down what a training does: its history, the table and picture beside the checkpoints, a bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from ctseg.history import History, write_table
from ctseg.otherlosses import MeanLosses, OtherLosses
from ctseg.pooled import Overlap, class_map, slice_counts
from ctseg.settings import flat_settings, parser_in_use, versions

TABLE, PICTURE = "history.csv", "curves.png"
CERTAIN = 15.0  # a logit; the infinite ones of slices that were not run would drown all others
CHUNK = 8  # slices at once
DRAWING = 19  # seconds between two pictures for each second that one takes


class Record:
    """Handler of the trainer that adds a row to the history after each epoch (and its validation, if it had one).

    A row has the seconds, the mean loss, the learning rate of each parameter group when the epoch began, the IoU of the
    (augmented) training images per image and over the data set, and of a validation its loss and every metric of it.
    The row's numbers become the trainer's `state.metrics`, where every logger finds them. On several processes it
    belongs on the first: loss and IoU of the training are then those of its share.

    Args:
        history: takes the rows.
        optimizer: whose learning rates are written down.
        validator: the engine whose metrics are taken; None for none.
        loss: of the validation; None leaves the validation's loss out.
        dimensions: of the network; 2 gives a loss of volumes slice by slice.
        log_losses: further losses, measured and not trained on, as `ctseg.otherlosses.OtherLosses` takes them: columns
            `train_NAME_loss` and `val_NAME_loss`.
    """

    def __init__(
        self,
        history: History,
        optimizer: torch.optim.Optimizer,
        validator: Engine | None = None,
        loss: Any = None,
        dimensions: int = 3,
        log_losses: Sequence[str | Mapping[str, Any]] = (),
    ) -> None:
        self.history = history
        self.optimizer = optimizer
        self.validator = validator
        self.loss = loss
        self.dimensions = dimensions
        self.others = OtherLosses(log_losses or ())
        self._parser = parser_in_use()
        self._measured: dict[str, float] | None = None

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, the trainer; other handlers that read the row come after this one."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        if self.others.wanted:  # before a batch is taken apart: its label tells what was annotated
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._other_losses)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._begin_validation)
            self.validator.add_event_handler(Events.COMPLETED, self._end_validation)
            if self.loss is not None:
                self.validator.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._validation_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _started(self, engine: Engine) -> None:
        if self._parser is not None:
            self.history.configuration = flat_settings(self._parser)
        self.history.versions = versions(getattr(engine.state, "device", None))

    def _begin(self, engine: Engine) -> None:
        self._time = time.perf_counter()
        self._rates = _rates(self.optimizer)
        self._losses: list[torch.Tensor] = []
        self._overlaps: list[Overlap] = []
        self._others = MeanLosses()
        self._measured = None

    def _other_losses(self, engine: Engine) -> None:
        output: Any = engine.state.output
        prediction, label = output["pred"].detach(), output["label"]
        self._others.add(self.others.of(prediction, label))

    def _step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        items = output if isinstance(output, list) else [output]
        self._losses.append(torch.as_tensor(items[0]["loss"]).detach().float().mean())
        if isinstance(output, list):
            for item in output:
                self._count(item)

    def _count(self, item: Mapping[str, Any]) -> None:
        prediction, label = item.get("pred"), item.get("label")
        if prediction is None or label is None or label.ndim < 3 or prediction.shape[1:] != label.shape[1:]:
            return  # not a mask: a classifier has no overlap
        classes = max(1, prediction.shape[0] - 1)
        counts = slice_counts(class_map(prediction.detach()), label.round().long(), classes)
        self._overlaps = self._overlaps or [Overlap() for _ in range(classes)]
        for number, overlap in enumerate(self._overlaps):
            overlap.add(counts[:, number], only_with_organ=True)

    def _begin_validation(self, engine: Engine) -> None:
        self._validation: list[float] = []
        self._validation_others = MeanLosses()

    def _validation_step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        if isinstance(output, Mapping) and "pred" in output and "label" in output:
            found = self._validation_loss(output["pred"], output["label"])
            if found is not None:
                self._validation.append(found)

    def _validation_loss(self, prediction: torch.Tensor, label: torch.Tensor) -> float | None:
        """Return the loss of a batch: the mean over its slices for a 2D network on volumes."""
        prediction, label = (t.as_tensor() if hasattr(t, "as_tensor") else t for t in (prediction, label))
        if prediction.shape[2:] != label.shape[2:]:
            return None
        prediction = prediction.detach().clamp(-CERTAIN, CERTAIN)
        if self.dimensions == 2 and prediction.ndim == 5:
            prediction, label = (t.movedim(-1, 1).flatten(0, 1) for t in (prediction, label))
        total = 0.0
        for part, reference in zip(prediction.split(CHUNK), label.split(CHUNK), strict=True):
            with torch.no_grad():
                total += float(self.loss(part, reference)) * len(part)
            if self.others.wanted:
                self._validation_others.add(self.others.of(part, reference), len(part) / len(prediction))
        return total / len(prediction)

    def _end_validation(self, engine: Engine) -> None:
        self._measured = {name: float(value) for name, value in engine.state.metrics.items()}
        if self._validation:
            self._measured["val_loss"] = sum(self._validation) / len(self._validation)
            self._measured |= self._validation_others.row("val")

    def _end(self, engine: Engine) -> None:
        numbers: dict[str, float] = {"train_loss": float(torch.stack(self._losses).mean())} if self._losses else {}
        numbers |= self._others.row("train")
        for over, name in (("image", "train_image_iou"), ("dataset", "train_pooled_iou")):
            found = [overlap.value("iou", over) for overlap in self._overlaps]
            values = [value for value in found if value is not None]
            if values:
                numbers[name] = sum(values) / len(values)
        numbers |= self._rates | (self._measured or {})
        seconds = round(time.perf_counter() - self._time, 3)
        self.history.add({"epoch": engine.state.epoch, "seconds": seconds, **numbers})
        engine.state.metrics.clear()
        engine.state.metrics.update(numbers)


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    groups = optimizer.param_groups
    if len(groups) == 1:
        return {"lr": float(groups[0]["lr"])}
    return {f"lr_{group.get('name', number)}": float(group["lr"]) for number, group in enumerate(groups)}


class Beside:
    """Handler that keeps the history as a table and its curves as a picture beside the checkpoints.

    The table is written after each epoch, the picture after a validation and at the end; each anew, so that an
    interruption leaves no gap and no epoch twice. Where validations come so fast that drawing would take more than a
    twentieth of the time, some go without a picture.

    Args:
        history: what `Record` fills; it comes before this handler.
        folder: of the checkpoints.
        title: of the picture.
    """

    def __init__(self, history: History, folder: str | Path, title: str = "") -> None:
        self.history = history
        self.folder = Path(folder)
        self.title = title
        self._next = 0.0  # the time from which on a picture is due
        self._drawn = 0  # epochs in the last one

    def attach(self, engine: Engine) -> None:
        """Write after the epochs of `engine`, the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _epoch(self, engine: Engine) -> None:
        write_table(self.history, self.folder / TABLE)
        if any(name.startswith("val_") for name in self.history.rows[-1]) and time.perf_counter() >= self._next:
            self._draw(engine)

    def _draw(self, engine: Engine) -> None:
        from ctseg.curves import write_curves

        if len(self.history.rows) == self._drawn:
            return
        begun = time.perf_counter()
        write_curves(self.history, self.folder / PICTURE, self.title)
        ended = time.perf_counter()
        self._next, self._drawn = ended + DRAWING * (ended - begun), len(self.history.rows)


class Progress:
    """Handler that shows a bar on a terminal: of the epoch's iterations with their loss, and of each validation.

    Elsewhere it shows nothing: the log has a line for each epoch then.

    Args:
        validator: the engine that validates; None for none.
        wanted: true, false, or None to show it when the error stream is a terminal.
    """

    def __init__(self, validator: Engine | None = None, wanted: bool | None = None) -> None:
        self.validator = validator
        self.wanted = sys.stderr.isatty() if wanted is None else wanted

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, the trainer."""
        if not self.wanted:
            return
        from ignite.handlers import ProgressBar

        bar = ProgressBar(persist=False, desc="training")
        bar.attach(engine, output_transform=lambda output: {"loss": _loss_of(output)})
        if self.validator is not None:
            ProgressBar(persist=False, desc="validation").attach(self.validator)


def _loss_of(output: Any) -> float:
    return float(torch.as_tensor((output[0] if isinstance(output, list) else output)["loss"]).float().mean())
