"""The training itself: the bundle's own train.json on the annotated studies, in MONAI Label's training process."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from app_train_options import TrainOptions

from ctseg.annotated import DATALIST, TrainingData
from ctseg.bundlecopy import copy_with_weights
from ctseg.errors import CtsegError, ResourceError
from ctseg.files import write_beside
from ctseg.registry import BundleInfo

logger = logging.getLogger(__name__)

STATS = "train_stats.json"
_HELPER = "monailabel.interfaces.utils.app"


class TrainingFailed(CtsegError):
    """A training ended without a network that could be used."""


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        bundle: whose train.json runs.
        data: the cases, and the folder that holds them and the runs.
        options: of the request.
        start: weights to start from; None starts from random ones.
    """

    bundle: BundleInfo
    data: TrainingData
    options: TrainOptions
    start: Path | None


def in_helper_process() -> bool:
    """Whether this is the process that MONAI Label starts for a training, and not the server."""
    return getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None) == _HELPER


def end_with_the_server(server: int | None) -> None:
    """End this process when the server has ended: a training must not live on, unseen, on the GPU.

    Args:
        server: the server's process id, this process's parent as long as it lives; None takes the parent of now.
    """
    parent = server or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def run_plan(plan: Plan) -> dict[str, Any]:
    """Train, and put the best network into a bundle of its own beside the run.

    Returns:
        The statistics of the training; `bundle` is the new bundle's folder.

    Raises:
        CtsegError: one sentence, when a case cannot be used, memory does not suffice, or nothing was saved.
    """
    run = _new_run(plan.data.folder)
    progress = Progress(plan, run)
    progress.write()
    _run_config(plan, run, progress)
    weights = run / "model.pt"
    if not weights.is_file() or progress.best is None:
        raise TrainingFailed(
            f"the training of {plan.bundle.name} ended without a network: no validation gave a Dice in "
            f"{plan.options.max_epochs} epochs; look at the labels of the validation cases "
            f"({', '.join(plan.data.cases['validation'])})"
        )
    cases = plan.data.cases
    begun = f"the weights of {plan.bundle.version}" if plan.start else "random weights"
    made = copy_with_weights(
        plan.bundle,
        weights,
        run / plan.bundle.name,
        version=f"{plan.bundle.version}+{run.name}",
        change=f"trained on {len(cases['train'])} studies annotated in a viewer, from {begun}",
        evidence=f"validation Dice {progress.best:.3f} on {len(cases['validation'])} case(s) that chose the epoch; "
        "not measured on test cases",
    )
    progress.finish(made.path)
    return progress.stats


def _new_run(folder: Path) -> Path:
    """Make the folder of this run, named by the time; a second one in the same second gets the next name."""
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        run = folder / "runs" / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        return run
    raise TrainingFailed(f"no new folder can be made in {folder / 'runs'}; clear it")


def _run_config(plan: Plan, run: Path, progress: Progress) -> None:
    import torch
    from monai.bundle import ConfigWorkflow

    options = plan.options
    try:
        flow = ConfigWorkflow(
            config_file=str(plan.bundle.path / "configs" / "train.json"),
            workflow_type="train",
            logging_file=False,
            dataset_dir=str(plan.data.folder),
            datalist=DATALIST,
            ckpt_dir=str(run),
            organs_from="either",  # viewers draw one organ; the others come from their own bundles
            device=options.device,
            pretrained=str(plan.start) if plan.start else None,
            resume=False,
            epochs=options.max_epochs,
            batch_size=options.train_batch_size,
            val_interval=options.val_interval,
            num_workers=options.num_workers,
        )
        flow.initialize()
        progress.attach(*(flow.parser.get_parsed_content(part) for part in ("train::trainer", "validate::evaluator")))
        flow.run()
        flow.finalize()
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"the memory of {options.device} does not suffice for train_batch_size {options.train_batch_size}; "
            "choose a smaller one"
        ) from error
    except (Exception, SystemExit) as error:
        raise _sentence_within(error) from error


def _sentence_within(error: BaseException) -> BaseException:
    """MONAI wraps what a transform raises, and a configuration's sentence comes as SystemExit: find it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, CtsegError):
            return inner
        if isinstance(inner, SystemExit):
            return TrainingFailed(str(inner.code).removeprefix("ctseg: "))
        inner = inner.__cause__ or inner.__context__
    return error


class Progress:
    """Keeps the statistics of a training in a file, where the server's `/info/` and the viewers find them.

    Attributes:
        stats: what is written; its keys are those that MONAI Label's viewers know, and some of ours.
        best: the best validation Dice so far, None while there is none.
    """

    def __init__(self, plan: Plan, run: Path) -> None:
        self._file = plan.data.folder / STATS
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
            "learnt_as_background": plan.data.partial,
            "run": str(run),
            "history": [],
        }

    def attach(self, trainer: Any, evaluator: Any) -> None:
        """Follow a training; the validation of an epoch has run before."""
        from ignite.engine import Events

        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self._step(engine))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self._epoch(engine, evaluator))

    def finish(self, bundle: Path) -> None:
        """Say where the network lies and how to use it."""
        self.stats |= {
            "total_time": self._passed(),
            "weights": str(bundle / "models" / "model.pt"),
            "bundle": str(bundle),
            "use": f"ctseg segment CT --task '{bundle}', or a server with --conf bundles '{bundle.parent}'; "
            "the weights in use before are still in use here",
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
        self.stats["history"].append({"epoch": epoch, "loss": loss, shown: dice})
        self.stats |= {"epoch": epoch, "current_time": self._passed()}
        self.stats["train"] = {"metrics": {"train_loss": loss}}
        if dice is not None and math.isfinite(dice) and (self.best is None or dice > self.best):
            self.best = self.stats["best_metric"] = dice
            self.stats["best_metric_epoch"] = epoch
        if validated:
            best = {"best_metric": self.best, "best_metric_epoch": self.stats.get("best_metric_epoch")}
            self.stats["eval"] = {"metrics": metrics, "key_metric_name": key, **best}
        self.write()
        said = f", validation {shown.capitalize()} {dice:.4f}" if dice is not None else ""
        logger.info("Epoch %d of %d: loss %.4f%s", epoch, self.stats["total_epochs"], loss, said)

    def _passed(self) -> str:
        return str(timedelta(seconds=int(time.time() - self._begin)))


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
