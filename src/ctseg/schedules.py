"""Learning rates over a training: a schedule by name for each parameter group, starting anew at each stage.

The schedules are torch's (and one of MONAI's). What is ours: each parameter group has its own, counted in epochs or in
iterations as suits it, and a training may have stages (of image size), at each of which all start anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.optimizers import WarmupCosineSchedule
from torch.optim import lr_scheduler as of_torch

from ctseg.errors import ConfigError
from ctseg.sentences import look_up, options_of, said_plainly

OURS = ("name", "per", "optimizer", "last_epoch", "verbose", "total_steps", "epochs", "steps_per_epoch")


@dataclass(frozen=True)
class _Kind:
    """A schedule: torch's class, what it is counted in, its option for the whole length, and our own defaults."""

    make: Any
    per: str = "epoch"
    length: str | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)


def _constant(optimizer: torch.optim.Optimizer) -> of_torch.LRScheduler:
    return of_torch.LambdaLR(optimizer, lambda _: 1.0)


SCHEDULES: dict[str, _Kind] = {
    "constant": _Kind(_constant),
    "step": _Kind(of_torch.StepLR),
    "multi_step": _Kind(of_torch.MultiStepLR),
    "exponential": _Kind(of_torch.ExponentialLR),
    "linear": _Kind(of_torch.LinearLR),
    "polynomial": _Kind(of_torch.PolynomialLR, length="total_iters"),
    "cosine": _Kind(of_torch.CosineAnnealingLR, length="T_max"),
    "cosine_restarts": _Kind(of_torch.CosineAnnealingWarmRestarts),
    "warmup_cosine": _Kind(WarmupCosineSchedule, "iteration", "t_total"),
    # The momentum stays with the optimiser.
    "one_cycle": _Kind(of_torch.OneCycleLR, "iteration", "total_steps", {"cycle_momentum": False}),
    "cyclic": _Kind(of_torch.CyclicLR, "iteration", None, {"cycle_momentum": False}),
    "plateau": _Kind(of_torch.ReduceLROnPlateau, "validation", None, {"mode": "max"}),
}


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Args:
        epochs: how long it is.
        size: what images are resized to in it (H, W) or (I, J, K); None leaves them as they are.
        lr: the learning rate that it starts with: one for all groups, or by group name; None for that of the optimiser.
    """

    epochs: int
    size: Sequence[int] | None = None
    lr: float | Mapping[str, float] | None = None


def stages_of(stages: Sequence[Mapping[str, Any]] | None, epochs: int) -> list[Stage]:
    """Return the stages of a training: as given, or one of all its epochs.

    Raises:
        ConfigError: when a stage has an unknown entry, or they do not add up to the epochs.
    """
    if not stages:
        return [Stage(epochs)]
    try:
        made = [Stage(**stage) for stage in stages]
    except TypeError as error:
        raise ConfigError(f"A stage has entries other than epochs, size and lr, or no epochs ({error}).") from error
    total = sum(stage.epochs for stage in made)
    if min(stage.epochs for stage in made) < 1 or total != epochs:
        raise ConfigError(
            f"The stages have {' + '.join(str(stage.epochs) for stage in made)} = {total} epochs and the training has "
            f"{epochs}: expected the same, and at least one a stage; correct `epochs` or the stages."
        )
    return made


class _GroupSchedule:
    """One parameter group's schedule: a scheduler of torch over a parameter that stands in for the group."""

    def __init__(self, recipe: Mapping[str, Any], lr: float, stage: Stage, steps_per_epoch: int) -> None:
        kind = look_up("schedule", recipe["name"], SCHEDULES)
        options = {key: value for key, value in recipe.items() if key not in ("name", "per")}
        known = options_of(kind.make, OURS)
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ConfigError(
                f"The schedule {recipe['name']} has no option {', '.join(unknown)}: expected {', '.join(known)}."
            )
        self.per = kind.per if kind.per == "validation" else recipe.get("per", kind.per)
        if self.per not in ("epoch", "iteration", "validation"):
            raise ConfigError(
                f"The schedule {recipe['name']} is counted per {self.per!r}: expected epoch or iteration."
            )
        self.steps_per_epoch = steps_per_epoch
        if kind.length is not None:
            steps = stage.epochs * (steps_per_epoch if self.per == "iteration" else 1)
            options.setdefault(kind.length, steps)
        if recipe["name"] == "one_cycle":
            options.setdefault("max_lr", lr)
        self.shadow = torch.optim.SGD([torch.zeros(1)], lr=lr)
        try:
            self.scheduler = kind.make(self.shadow, **{**kind.ours, **options})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"The schedule {recipe['name']} does not take the options {options}: {error}") from error
        self.shadow.step()  # torch warns when a scheduler goes before its optimiser

    @property
    def lr(self) -> float:
        return float(self.shadow.param_groups[0]["lr"])

    def step(self, count: int) -> None:
        """Go on to iteration `count` of the stage."""
        if self.per == "iteration" or (self.per == "epoch" and count % self.steps_per_epoch == 0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                self.scheduler.step()

    def measure(self, metric: float) -> None:
        """Tell a schedule that follows a metric how the last validation went."""
        if self.per == "validation":
            self.scheduler.step(metric)


class Schedule:
    """The learning rates of an optimiser's groups, set before each iteration; a trainer calls `step` after each.

    Its state is what it has counted, so a resumed training follows the schedule of the configuration that it is resumed
    with (more epochs stretch a schedule that knows its length).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        recipe: Mapping[str, Any],
        epochs: int,
        steps_per_epoch: int,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.names = [str(group.get("name", number)) for number, group in enumerate(optimizer.param_groups)]
        unknown = sorted(set(groups or {}) - set(self.names))
        if unknown:
            raise ConfigError(
                f"There is no parameter group {', '.join(unknown)}: expected one of {', '.join(self.names)}; the "
                "encoder is a group when the optimiser has encoder_lr."
            )
        self.recipes = [(groups or {}).get(name, recipe) for name in self.names]
        self.stages = stages_of(stages, epochs)
        self.steps_per_epoch = steps_per_epoch
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self.metrics: list[tuple[int, float]] = []
        self._begin(0)

    def _begin(self, number: int) -> None:
        self.stage, self.begun = number, self.steps
        stage = self.stages[number]
        self.schedules = [
            _GroupSchedule(recipe, self._start(stage, name, lr), stage, self.steps_per_epoch)
            for recipe, name, lr in zip(self.recipes, self.names, self.base_lrs, strict=True)
        ]
        self._set()

    @staticmethod
    def _start(stage: Stage, name: str, lr: float) -> float:
        if isinstance(stage.lr, Mapping):
            return float(stage.lr.get(name, lr))
        return lr if stage.lr is None else float(stage.lr)

    def _set(self) -> None:
        for group, schedule in zip(self.optimizer.param_groups, self.schedules, strict=True):
            group["lr"] = schedule.lr

    def step(self) -> None:
        """Count one iteration and set the learning rates of the next."""
        self.steps += 1
        last = self.stage == len(self.stages) - 1
        if not last and self.steps - self.begun == self.stages[self.stage].epochs * self.steps_per_epoch:
            self._begin(self.stage + 1)
            return
        for schedule in self.schedules:
            schedule.step(self.steps - self.begun)
        self._set()

    def measure(self, metric: float) -> None:
        """Tell the schedules that follow a metric (plateau) what a validation gave."""
        self.metrics.append((self.steps, float(metric)))
        for schedule in self.schedules:
            schedule.measure(float(metric))
        self._set()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [schedule.lr for schedule in self.schedules]

    _last_lr = property(get_last_lr)  # where MONAI's LrScheduleHandler looks when it prints

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted and measured."""
        return {"steps": self.steps, "metrics": list(self.metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where the state was, by the schedules of this configuration."""
        self._reset()
        for at, metric in [*state["metrics"], (state["steps"], None)]:
            while self.steps < at:
                self.step()
            if metric is not None:
                self.measure(metric)


@said_plainly
def make_schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps_per_epoch: int,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    stages: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Schedule:
    """Return the schedule of a training.

    Args:
        name: one of `SCHEDULES`, for the groups that have none of their own.
        optimizer: whose learning rates are set.
        epochs: of the whole training.
        steps_per_epoch: iterations of an epoch.
        groups: schedules of some groups by their name, each {name: ..., and its options}.
        stages: list of {epochs, size, lr}; all schedules start anew at each, from its `lr` if it has one.
        options: those of torch's scheduler, for example step_size and gamma of step; `per`: epoch or iteration, what it
            is counted in.

    Raises:
        ConfigError: for an unknown name, option or group, or stages that do not fit the epochs.
    """
    return Schedule(optimizer, {"name": name, **options}, epochs, steps_per_epoch, groups, stages)
