"""What a training does beside its steps: go on where it was stopped, change the image size, follow its metric, stop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, EarlyStopping
from monai.data import MetaTensor
from monai.engines import default_prepare_batch
from torch.nn.functional import interpolate

from ctseg.allocation import keep_freed_memory
from ctseg.errors import ConfigError
from ctseg.files import remove_unfinished
from ctseg.history import History, stalled
from ctseg.partial import with_flags
from ctseg.schedules import stages_of
from ctseg.sentences import said_plainly
from ctseg.weights import LoadWeights, save_tensors


class StartFrom:
    """Handler that prepares a trainer when it starts.

    Args:
        items: what a checkpoint holds by name: model, optimizer, lr_scheduler; the trainer itself is added.
        ckpt_dir: folder of this training's checkpoints.
        resume: go on from the newest checkpoint in `ckpt_dir`, if there is one.
        pretrained: weights to start from (a state dict of tensors); not used when a checkpoint is resumed.
    """

    def __init__(
        self, items: Mapping[str, Any], ckpt_dir: str | Path, resume: bool = False, pretrained: str | None = None
    ) -> None:
        self.items = dict(items)
        self.ckpt_dir = Path(ckpt_dir)
        self.resume = resume
        self.pretrained = pretrained

    def attach(self, engine: Engine) -> None:
        """Prepare `engine` when it starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the checkpoint or the weights; what a killed training left half written goes."""
        device = getattr(engine.state, "device", None)
        if device is not None and torch.device(device).type == "cpu":
            keep_freed_memory()
        if idist.get_rank() == 0:
            remove_unfinished(self.ckpt_dir)
        newest = newest_checkpoint(self.ckpt_dir) if self.resume else None
        if newest is not None:
            checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
            epochs, length = engine.state.max_epochs, _length(self.items["lr_scheduler"])
            items = {name: item for name, item in self.items.items() if name != "history" or name in checkpoint}
            Checkpoint.load_objects(to_load={**items, "trainer": engine}, checkpoint=checkpoint)
            if (scaler := getattr(engine, "scaler", None)) is not None and "scaler" in checkpoint:
                scaler.load_state_dict(checkpoint["scaler"])
            # How long to train is the configuration's to say: a training can be resumed with more epochs.
            engine.state.max_epochs = epochs
            vars(self.items["lr_scheduler"]).update(length)
            engine.logger.info(f"Going on after epoch {engine.state.epoch} from {newest}.")
        elif self.pretrained:
            LoadWeights(self.pretrained, self.items["model"])(engine)
            engine.logger.info(f"Starting from the weights {self.pretrained}.")


def _length(scheduler: Any) -> dict[str, Any]:
    """What a scheduler keeps of the planned number of steps (OneCycleLR refuses to go beyond it)."""
    return {key: value for key, value in vars(scheduler).items() if key in ("total_steps", "_schedule_phases")}


class SaveEachEpoch:
    """Handler that keeps the newest epoch's whole state, so that a killed training can go on.

    The file is written beside and renamed, and only then the one before is taken away: a kill leaves one of the two.

    Args:
        items: what a checkpoint holds by name; the trainer itself is added (a configuration cannot name it here, since
            the trainer names its handlers).
        ckpt_dir: folder of this training's checkpoints.
    """

    def __init__(self, items: Mapping[str, Any], ckpt_dir: str | Path) -> None:
        self.items = dict(items)
        self.ckpt_dir = Path(ckpt_dir)

    def attach(self, engine: Engine) -> None:
        """Save after every epoch of `engine`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save now."""
        state = {name: _bare(item).state_dict() for name, item in {**self.items, "trainer": engine}.items()}
        if (scaler := getattr(engine, "scaler", None)) is not None:  # of mixed precision
            state["scaler"] = scaler.state_dict()
        path = self.ckpt_dir / f"checkpoint_epoch={engine.state.epoch}.pt"
        save_tensors(state, path)
        for old in self.ckpt_dir.glob("checkpoint_epoch=*.pt"):
            if old != path:
                old.unlink(missing_ok=True)
        engine.logger.info(f"Saved checkpoint at epoch: {engine.state.epoch}")


class SaveBest:
    """Handler of the validator that keeps the weights of the best validation as `model.pt`: tensors only.

    The best before an interruption is known from the history, so that a worse network does not win after it. Of equal
    ones the first is kept, but of those at 0 the last: where a coarse measure has not begun to tell, later has learnt
    more.

    Args:
        network: whose weights are kept.
        metric: the larger, the better; one that is no number is passed over.
        ckpt_dir: folder of this training's checkpoints.
        history: the training's epochs; `Record` adds one after its validation.
    """

    def __init__(self, network: torch.nn.Module, metric: str, ckpt_dir: str | Path, history: History) -> None:
        self.network = network
        self.metric = metric
        self.path = Path(ckpt_dir) / "model.pt"
        self.history = history

    def attach(self, engine: Engine) -> None:
        """Keep the best after each run of `engine`, the validator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save when this validation is the best."""
        value, best = float(engine.state.metrics[self.metric]), self.history.best(self.metric)
        if not math.isfinite(value):
            engine.logger.warning(f"{self.metric} has no value in this validation: no weights are kept of it.")
        elif best is None or value > best or value == best == 0 or not self.path.is_file():
            save_tensors(_bare(self.network).state_dict(), self.path)
            engine.logger.info(f"Kept the weights: {self.metric} {value:.4f} is the best so far.")


def _bare(item: Any) -> Any:
    """The network within the wrapper of a training on several processes."""
    return item.module if isinstance(item, torch.nn.parallel.DistributedDataParallel) else item


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the latest epoch in a folder (`*_epoch=N.pt`), or None; an unfinished file is none."""
    files = (path for path in folder.glob("*_epoch=*.pt") if not path.name.startswith("."))
    found = [(int(m[1]), path) for path in files if (m := re.search(r"_epoch=(\d+)", path.name))]
    return max(found)[1] if found else None


class PrepareBatch:
    """Take image and label out of a batch, to the device, and resized to the size of the training's stage.

    Images are interpolated linearly (in 2D with the smoothing that a smaller size needs), labels by the nearest voxel,
    so that they stay class indices. Validation and inference see images as they are.

    Args:
        stages: list of {epochs, size, lr}; None leaves every image as it is.
        epochs: of the whole training.
    """

    def __init__(self, stages: Sequence[Mapping[str, Any]] | None, epochs: int) -> None:
        self.stages = said_plainly(stages_of)(stages, epochs)
        self.epoch = 1

    @property
    def size(self) -> Sequence[int] | None:
        """The size of the present epoch; None for that of the images."""
        left = self.epoch
        for stage in self.stages:
            if left <= stage.epochs:
                return stage.size
            left -= stage.epochs
        return self.stages[-1].size

    def __call__(
        self, batchdata: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch's image and label."""
        batch: Any = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        # Plain tensors: what MONAI does to carry an image's place along costs time in every operation of the network.
        image, label = (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor for tensor in batch)
        size = self.size
        if size is None or tuple(size) == tuple(image.shape[2:]):
            return image, with_flags(label, batchdata)
        new = [int(n) for n in size]
        if image.ndim == 4:
            image = interpolate(image, new, mode="bilinear", antialias=True)
        else:
            image = interpolate(image, new, mode="trilinear")
        return image, with_flags(interpolate(label.float(), new, mode="nearest-exact").to(label.dtype), batchdata)


class FollowStages:
    """Handler that tells a trainer's `PrepareBatch` which epoch it is; another way of preparing is left alone."""

    def __init__(self, prepare_batch: Any) -> None:
        self.prepare_batch = prepare_batch

    def attach(self, engine: Engine) -> None:
        """Follow the epochs of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Tell the epoch."""
        if isinstance(self.prepare_batch, PrepareBatch):
            self.prepare_batch.epoch = engine.state.epoch


class Monitor:
    """Handler of the trainer that follows a metric of the validator: for early stop, and for a schedule like plateau.

    Args:
        validator: the engine that has the metric.
        metric: its name.
        known: the metrics that there are.
        patience: validations without a better value until training stops; None never stops it.
        lr_scheduler: told each value when it wants them (`measure`).
        history: the epochs before an interruption; early stop counts on from them.

    Raises:
        SystemExit: naming the known ones, when the metric is not among them; a ConfigError outside a run.
    """

    def __init__(
        self,
        validator: Engine,
        metric: str,
        known: Sequence[str],
        patience: int | None = None,
        lr_scheduler: Any = None,
        history: History | None = None,
    ) -> None:
        said_plainly(_check_metric)(metric, known)
        self.validator = validator
        self.metric = metric
        self.patience = patience
        self.history = history
        self.measure: Callable[[float], None] | None = getattr(lr_scheduler, "measure", None)

    def attach(self, engine: Engine) -> None:
        """Follow the validator on behalf of `engine`, the trainer."""
        measure = self.measure
        if measure is not None:
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, lambda found: measure(self._value(found)))
        if self.patience is not None:
            # Ignite's own: MONAI's wrapper of it calls it in a way that it warns of.
            stop = EarlyStopping(self.patience, self._value, trainer=engine)
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, stop)
            engine.add_event_handler(Events.STARTED, lambda _: self._go_on(stop))

    def _go_on(self, stop: EarlyStopping) -> None:
        """Count on from the validations before an interruption."""
        values = [value for _, value in self.history.values(self.metric)] if self.history is not None else []
        if values:
            stop.best_score, stop.counter = max(values), stalled(values)

    def _value(self, engine: Engine) -> float:
        return float(engine.state.metrics[self.metric])


def _check_metric(metric: str, known: Sequence[str]) -> None:
    if metric not in known:
        raise ConfigError(f"The metric {metric!r} is not known: expected one of {', '.join(known)}; correct `monitor`.")
