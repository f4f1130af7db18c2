"""What a training says of itself while it runs: a file that the server's `/info/` and the viewers read."""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.annotation.versions import Version
from ctseg.errors import InputError
from ctseg.files import write_beside
from ctseg.history import read_history
from ctseg.training import newest_checkpoint

if TYPE_CHECKING:
    from app_train_run import Plan

logger = logging.getLogger(__name__)

STATS = "train_stats.json"


class Progress:
    """Keeps the statistics of a training in a file, where the server's `/info/` and the viewers find them.

    Attributes:
        stats: what is written; its keys are those that MONAI Label's viewers know, and some of ours.
        best: the best validation Dice so far, None while there is none.
    """

    def __init__(self, plan: Plan, run: Path, resumed: bool = False) -> None:
        self._file = plan.data.folder / STATS
        earlier = read_stats(plan.data.folder) if resumed else {}
        self._begin = time.time()
        self._losses: list[float] = []
        self.best: float | None = None
        self.stats: dict[str, Any] = {
            "epoch": 0,
            "total_epochs": plan.options.max_epochs,
            "start_ts": int(self._begin),
            "device": plan.options.device,
            "pretrained": str(plan.start) if plan.start else None,
            "cases": {split: len(cases) for split, cases in plan.data.cases.items()},
            "left_out": plan.data.left_out,
            "not_annotated": plan.data.partial,
            "run": str(run),
            "history": _going_on(run, earlier.get("history", []) if earlier.get("run") == str(run) else []),
            "resumed": resumed,
        }
        for entry in self.stats["history"]:
            measured = [value for name, value in entry.items() if name not in ("epoch", "loss")]
            self._better(measured[0] if measured else None, entry["epoch"])

    def attach(self, trainer: Any, evaluator: Any) -> None:
        """Follow a training; the validation of an epoch has run before."""
        from ignite.engine import Events

        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self._step(engine))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self._epoch(engine, evaluator))

    def finish(self, bundle: Path, version: Version) -> None:
        """Say where the network lies and whether it is in use now."""
        self.stats |= {
            "total_time": self._passed(),
            "weights": str(bundle / "models" / "model.pt"),
            "bundle": str(bundle),
            "version": version.version,
            "published": version.accepted,
            "verdict": version.verdict,
        }
        self.stats.pop("current_time", None)
        self.write()

    def write(self) -> None:
        """Write the file in one step."""
        write_beside(self._file, (json.dumps(_jsonable(self.stats), indent=2) + "\n").encode())

    def _step(self, engine: Any) -> None:
        output = engine.state.output
        self._losses.append(float((output[0] if isinstance(output, list) else output)["loss"]))

    def _epoch(self, trainer: Any, evaluator: Any) -> None:
        epoch, loss = trainer.state.epoch, sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        validated = evaluator.state.epoch == epoch
        metrics = {name: float(value) for name, value in evaluator.state.metrics.items()} if validated else {}
        key = getattr(evaluator.state, "key_metric_name", None) or "val_mean_dice"
        shown = "dice" if key == "val_mean_dice" else str(key).removeprefix("val_")
        dice = metrics.get(key)
        self.stats["history"] = [entry for entry in self.stats["history"] if entry["epoch"] < epoch]
        self.stats["history"].append({"epoch": epoch, "loss": loss, shown: dice})
        self.stats |= {"epoch": epoch, "current_time": self._passed()}
        self.stats["train"] = {"metrics": {"train_loss": loss}}
        self._better(dice, epoch)
        if validated:
            best = {"best_metric": self.best, "best_metric_epoch": self.stats.get("best_metric_epoch")}
            self.stats["eval"] = {"metrics": metrics, "key_metric_name": key, **best}
        self.write()
        said = f", validation {shown.capitalize()} {dice:.4f}" if dice is not None else ""
        logger.info("Epoch %d of %d: loss %.4f%s", epoch, self.stats["total_epochs"], loss, said)

    def _better(self, dice: float | None, epoch: int) -> None:
        if dice is not None and math.isfinite(dice) and (self.best is None or dice > self.best):
            self.best = self.stats["best_metric"] = dice
            self.stats["best_metric_epoch"] = epoch

    def _passed(self) -> str:
        return str(timedelta(seconds=int(time.time() - self._begin)))


def _going_on(run: Path, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a training told before it was interrupted, with the epochs that only its checkpoint knows.

    A kill may come when an epoch's checkpoint is written and its line of the statistics is not.
    """
    newest = newest_checkpoint(run)
    try:
        rows = read_history(newest).rows if newest is not None else []
    except InputError:
        rows = []
    known = {
        int(row["epoch"]): {"epoch": int(row["epoch"]), "loss": row.get("train_loss"), "dice": row.get("val_mean_dice")}
        for row in rows
    }
    known |= {entry["epoch"]: entry for entry in told}
    return [known[epoch] for epoch in sorted(known)]


def read_stats(folder: Path) -> dict[str, Any]:
    """Return the statistics of the newest training in a data folder; empty when there was none."""
    try:
        stats = json.loads((folder / STATS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}


def _jsonable(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
