"""The training itself: the bundle's own train.json on the annotated studies, in MONAI Label's training process."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from app_train_options import TrainOptions
from app_train_progress import Progress
from app_train_versions import validation_value

from ctseg.annotation.annotated import DATALIST, TrainingData
from ctseg.annotation.versions import Version, Versions
from ctseg.bundlecopy import copy_with_weights
from ctseg.errors import CtsegError, ResourceError
from ctseg.files import file_sha256, write_beside
from ctseg.registry import BundleInfo
from ctseg.training import newest_checkpoint

logger = logging.getLogger(__name__)

SIGNATURE = "plan.json"
WEIGHTS = "model.pt"
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
        versions: the networks that there are; the new one is entered there.
    """

    bundle: BundleInfo
    data: TrainingData
    options: TrainOptions
    start: Path | None
    versions: Versions

    @property
    def metric(self) -> str:
        """What networks are compared by: the key metric of the bundle's kind."""
        return "F1" if self.bundle.classifies else "Dice"

    def signature(self) -> dict[str, Any]:
        """What must be the same for a killed training to go on: the bundle, the cases, the start and the options."""
        return {
            "bundle": self.bundle.version,
            "start": file_sha256(self.start) if self.start else None,
            "datalist": file_sha256(self.data.folder / DATALIST),
            "cases": self.data.cases,
            "options": asdict(self.options),
        }


def in_helper_process() -> bool:
    """Whether this is the process that MONAI Label starts for a training, and not the server."""
    return getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None) == _HELPER


def end_with_sentence(sentence: str) -> NoReturn:
    """End the training's process with one sentence, as the last line of what it says.

    MONAI Label reads the lines only as long as the process lives: what is written just before its end may be lost.
    """
    print(f"ctseg: {sentence}", file=sys.stderr, flush=True)
    time.sleep(1.0)
    raise SystemExit(1)


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
    """Train, put the best network into a bundle of its own beside the run, and take it into use if it is not worse.

    Returns:
        The statistics of the training; `bundle` is the new bundle's folder, `published` what became of it.

    Raises:
        CtsegError: one sentence, when a case cannot be used, memory does not suffice, or nothing was saved.
    """
    with plan.versions.being_trained() as free:
        if not free:
            raise TrainingFailed(
                f"another training of {plan.bundle.name} is running in {plan.data.folder}; wait for its end, or stop it"
            )
        return _run(plan)


def _run(plan: Plan) -> dict[str, Any]:
    run, resumed = _run_folder(plan)
    progress = Progress(plan, run, resumed)
    progress.write()
    _run_config(plan, run, progress, resumed)
    weights = run / WEIGHTS
    if not weights.is_file() or progress.best is None:
        raise TrainingFailed(
            f"the training of {plan.bundle.name} ended without a network: no validation gave a value in "
            f"{plan.options.max_epochs} epochs; look at the labels of the validation cases "
            f"({', '.join(plan.data.cases['validation'])})"
        )
    progress.finish(*_publish(plan, run, weights))
    return progress.stats


def _publish(plan: Plan, run: Path, weights: Path) -> tuple[Path, Version]:
    """Measure the new network and the one in use on the same validation cases, and enter the new one."""
    cases, device, in_use = plan.data.cases, plan.options.device, plan.versions.current()
    before = None
    if in_use.ready and in_use.weights is not None:
        before = validation_value(in_use, in_use.weights, plan.data.folder, run / "in_use_before", device)
    after = validation_value(plan.bundle, weights, plan.data.folder, run / "validation", device)
    begun = "given weights" if plan.start else "random weights"
    made = copy_with_weights(
        plan.bundle,
        weights,
        run / plan.bundle.name,
        version=f"{plan.bundle.version}+{run.name}",
        change=f"trained on {len(cases['train'])} studies annotated in a viewer, from {begun}",
        evidence=f"validation {plan.metric} {'unknown' if after is None else f'{after:.3f}'} on "
        f"{len(cases['validation'])} case(s) that chose the epoch; not measured on test cases",
    )
    count = len(cases["validation"])
    version = plan.versions.add(made, after, before, count, plan.options.tolerance, plan.metric)
    logger.info("%s %s: %s", plan.bundle.name, version.version, version.verdict)
    return made.path, version


def _run_folder(plan: Plan) -> tuple[Path, bool]:
    """Return the folder of this run, and whether it goes on with one that was killed: the newest, if of this plan."""
    signature = plan.signature()
    runs = sorted((plan.data.folder / "runs").glob("*/" + SIGNATURE), key=lambda file: file.stat().st_mtime)
    if runs and plan.options.resume:
        newest = runs[-1].parent
        same = json.loads(runs[-1].read_text(encoding="utf-8")) == json.loads(json.dumps(signature))
        if same and newest_checkpoint(newest) is not None and not (newest / plan.bundle.name).exists():
            return newest, True
    run = _new_run(plan.data.folder)
    write_beside(run / SIGNATURE, json.dumps(signature, indent=2).encode())
    return run, False


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


def _run_config(plan: Plan, run: Path, progress: Progress, resumed: bool) -> None:
    import torch
    from monai.bundle import ConfigWorkflow

    options = plan.options
    try:
        flow = ConfigWorkflow(
            config_file=str(plan.bundle.path / "configs" / "train.json"),
            workflow_type="train",
            logging_file=False,
            bundle_root=str(plan.bundle.path),
            dataset_dir=str(plan.data.folder),
            datalist=DATALIST,
            ckpt_dir=str(run),
            cache_dir=str(plan.data.folder / "prepared"),  # for all runs: a study is prepared anew when it changes
            organs_from="either",  # viewers draw one organ; the others come from their own bundles
            track=[options.tracking] if options.tracking else None,
            track_dir=str(plan.data.folder / "tracking"),  # one for all runs, to be compared
            progress=False,
            device=options.device,
            pretrained=str(plan.start) if plan.start else None,
            resume=resumed,
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
