"""Running the folds of a bundle: each is an experiment of its own for `ctseg.experiments.runs`, on its own patients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ctseg.datalist import DATALIST, LEDGER, read_cases
from ctseg.errors import ConfigError
from ctseg.experiments.files import Experiment, bundle_of, read_experiment
from ctseg.experiments.runs import FINISHED, Plan, Say, read_state, run_experiments
from ctseg.files import file_sha256, write_beside
from ctseg.folds.dealing import Fold, draw_folds, frozen_folds, patients_for_folds, write_fold_data
from ctseg.ledger import Ledger
from ctseg.registry import BundleInfo

USUAL_K = 5


@dataclass(frozen=True)
class FoldPlan:
    """How the folds of a bundle are run.

    Attributes:
        bundle: what is trained.
        data: the data folder, with datalist and ledger.
        out: folder for the folds, the runs and the tables.
        k: number of folds; None leaves one patient out in each.
        datalist: file name of the datalist.
        seed: of the folds.
        choosers: who chooses the epoch, as for `ctseg.folds.dealing.draw_folds`.
        no_test: as for `ctseg.folds.dealing.patients_for_folds`.
        over: an experiment's file laid over the training; None for none.
        device: "cpu", "cuda:1"; None leaves it to the bundle, which insists on a GPU.
        epochs: instead of the bundle's or experiment's own.
        early_stop: validations without a better value until a fold's training ends; None leaves it to the bundle.
        overrides: settings by their place in the configuration.
        only: numbers of the folds to run now; empty for all.
    """

    bundle: BundleInfo
    data: Path
    out: Path
    k: int | None = USUAL_K
    datalist: str = DATALIST
    seed: int = 0
    choosers: str = "inner"
    no_test: bool = False
    over: Path | None = None
    device: str | None = None
    epochs: int | None = None
    early_stop: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    only: Sequence[int] = ()


def run_folds(plan: FoldPlan, say: Say) -> list[Fold]:
    """Draw the folds or take up those that were drawn, and run what is left of them.

    What one fold meets does not stop the others; its state in its folder says why (`ctseg.experiments.runs`).

    Returns:
        All folds, those too that were not asked for.

    Raises:
        ConfigError: for folds that cannot be, that were drawn otherwise before, or a bundle that cannot be trained.
        InputError, LedgerError: when datalist or ledger cannot be read.
    """
    base = _base(plan)
    cases = read_cases(plan.data.resolve(), plan.datalist)
    patients = patients_for_folds(plan.data, plan.datalist, plan.no_test)
    drawn = draw_folds(patients, len(patients) if plan.k is None else plan.k, plan.seed, plan.choosers)
    folds = frozen_folds(plan.out, drawn, _about(plan))
    if unknown := [number for number in plan.only if not 1 <= number <= len(folds)]:
        raise ConfigError(f"there is no fold {', '.join(map(str, unknown))}: expected 1 to {len(folds)}")
    held = set(Ledger(plan.data / LEDGER).patients("test"))
    for fold in folds:
        if seen := held.intersection(fold.training, fold.choosing, fold.held_out):
            raise ConfigError(f"{len(seen)} patients of {fold.name} are in the test of {plan.data / LEDGER} by now")
        if plan.only and fold.number not in plan.only:
            continue
        write_fold_data(fold, cases, data_of(plan.out, fold))
        experiment = _experiment(plan, fold, base)
        own = Plan(
            data_of(plan.out, fold), plan.out, DATALIST, plan.device, plan.epochs, fold.measured,
            plan.overrides, plan.bundle.path.parent,
        )  # fmt: skip
        say(f"{fold.name} of {len(folds)}: {len(fold.training)} patients train, {len(fold.held_out)} are held out")
        run_experiments([experiment], own, say)
    return folds


def folds_wanted(over: Path | None) -> int:
    """Return how many folds an experiment asks for (`experiment: {folds: {k: 5}}`), else the usual number.

    Raises:
        ConfigError: for another entry than a number.
    """
    wanted = (read_experiment(over).content["experiment"].get("folds") or {}) if over is not None else {}
    k = wanted.get("k", USUAL_K) if isinstance(wanted, dict) else wanted
    if not isinstance(k, int):
        raise ConfigError(f"the experiment {over} asks for the folds {wanted!r}; expected {{k: 5}}")
    return k


def data_of(out: Path, fold: Fold) -> Path:
    """Return the data folder of a fold."""
    return out.resolve() / "data" / fold.name


def run_of(out: Path, bundle: BundleInfo, fold: Fold) -> Path:
    """Return the folder of a fold's training and measurement."""
    return out.resolve() / bundle.task / fold.name


def is_finished(out: Path, bundle: BundleInfo, fold: Fold) -> bool:
    """Whether a fold was trained and measured to its end."""
    return read_state(run_of(out, bundle, fold)).get("status") == FINISHED


def _base(plan: FoldPlan) -> dict[str, Any]:
    """What all folds have laid over the bundle's training."""
    content: dict[str, Any] = {}
    if plan.over is not None:
        over = read_experiment(plan.over)
        if over.task != plan.bundle.task:
            raise ConfigError(
                f"the experiment {plan.over} is about the task {over.task}, but bundle {plan.bundle.name} is of "
                f"{plan.bundle.task}; name one of that task"
            )
        content = dict(over.content)
    content["experiment"] = {"task": plan.bundle.task, **content.get("experiment", {})}
    if plan.early_stop is not None:
        content["early_stop"] = plan.early_stop
    found = bundle_of(Experiment(plan.out, content), plan.bundle.path.parent)
    if found.path != plan.bundle.path:
        raise ConfigError(
            f"two bundles beside each other are of the task {plan.bundle.task}, {found.name} and {plan.bundle.name}; "
            "move one of them elsewhere"
        )
    return content


def _experiment(plan: FoldPlan, fold: Fold, base: Mapping[str, Any]) -> Experiment:
    path = data_of(plan.out, fold) / f"{fold.name}.yaml"
    text = yaml.safe_dump(dict(base), sort_keys=False).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_beside(path, text)
    return read_experiment(path)


def _about(plan: FoldPlan) -> dict[str, Any]:
    """What the folds were drawn with; another value of these is another experiment."""
    return {
        "bundle": plan.bundle.name,
        "data": str(plan.data.resolve()),
        "datalist": plan.datalist,
        "datalist_sha256": file_sha256(plan.data / plan.datalist),
        "k": plan.k if plan.k is not None else "leave one out",
        "seed": plan.seed,
        "epoch_by": plan.choosers,
        "over": None if plan.over is None else json.loads(json.dumps(dict(read_experiment(plan.over).content))),
    }
