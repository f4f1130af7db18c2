"""What a training does before its first step: go on where it was stopped, or start from given weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.handlers import CheckpointSaver

from ctseg.weights import LoadWeights


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
        """Load the checkpoint or the weights."""
        newest = newest_checkpoint(self.ckpt_dir) if self.resume else None
        if newest is not None:
            checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
            epochs, length = engine.state.max_epochs, _length(self.items["lr_scheduler"])
            Checkpoint.load_objects(to_load={**self.items, "trainer": engine}, checkpoint=checkpoint)
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
        saver = CheckpointSaver(
            save_dir=str(self.ckpt_dir), save_dict={**self.items, "trainer": engine}, save_interval=1, n_saved=1
        )
        saver.attach(engine)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the latest epoch in a folder (`*_epoch=N.pt`), or None."""
    found = [(int(m[1]), path) for path in folder.glob("*_epoch=*.pt") if (m := re.search(r"_epoch=(\d+)", path.name))]
    return max(found)[1] if found else None
