"""What the learning curves of several experiments say: when each overfits, which learns fastest, which ends best."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.experiments.runs import FINISHED, read_state
from ctseg.experiments.table import read_rows

# The measure that is followed over the epochs: the first of these that every experiment has, and that is not 0 in all.
FOLLOWED = ("val_thresholded_iou_at_half", "val_mean_dice", "val_f1")
RISE = 0.05  # of the validation loss over its lowest value: from here on it is called overfitting
LEVEL = 0.9  # of the best value in a group: the level whose first epoch tells how fast a loss learns
LEARNT = 0.5  # what the best of a group must reach: to answer "everywhere" gives a Dice above 0 too
_LAST = 3  # epochs whose mean is the end of a curve


@dataclass(frozen=True)
class Run:
    """One experiment that was run.

    Attributes:
        name: "skin_lesion/segnet_bce".
        folder: of its run.
        row: its row of the table (`ctseg.experiments.table`).
        grid: where it stands in the grid, axis -> value; empty outside of one.
        curves: name -> (epoch, value) in order of epochs.
    """

    name: str
    folder: Path
    row: Mapping[str, Any]
    grid: Mapping[str, str]
    curves: Mapping[str, Sequence[tuple[int, float]]]

    @property
    def short(self) -> str:
        """Its values in the grid, else its name without the task."""
        return ", ".join(self.grid.values()) or self.name.partition("/")[2]


def read_runs(out: Path) -> list[Run]:
    """Return the finished experiments below a folder, in order of name.

    Raises:
        InputError: when the folder holds no experiment.
    """
    runs = []
    for row in read_rows(out):
        folder = out / str(row["experiment"])
        if row["status"] == FINISHED:
            grid = {str(key): str(value) for key, value in (read_state(folder).get("grid") or {}).items()}
            runs.append(Run(str(row["experiment"]), folder, row, grid, read_curves(folder / "history.csv")))
    return runs


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the columns of a `history.csv` that hold numbers, each with its epochs; empty when it cannot be read."""
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            for name, text in row.items():
                if name != "epoch" and text and math.isfinite(float(text)):
                    curves.setdefault(name, []).append((int(row["epoch"]), float(text)))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return curves


def followed(runs: Sequence[Run]) -> str | None:
    """Return the first measure that every run has over its epochs; one that is 0 in all of them says nothing."""
    shared = [name for name in FOLLOWED if runs and all(name in run.curves for run in runs)]
    telling = [name for name in shared if any(value > 0 for run in runs for _, value in run.curves[name])]
    return next(iter([*telling, *shared]), None)


def axes_of(runs: Sequence[Run]) -> list[str]:
    """Return the axes of the grid that all runs stand in, in their order; empty when they stand in none."""
    first = list(runs[0].grid) if runs else []
    return first if all(list(run.grid) == first for run in runs) else []


@dataclass(frozen=True)
class Overfitting:
    """How a validation loss went on after its lowest value.

    Attributes:
        epoch: of the lowest validation loss.
        last: epoch of the last validation.
        rise: of the loss over its lowest value at the end, as a part of it; the end is the mean of three validations.
        overfits: whether it rose by more than 5 % while the training loss fell further.
    """

    epoch: int
    last: int
    rise: float
    overfits: bool


def overfitting(run: Run) -> Overfitting | None:
    """Say from which epoch on a run overfits; None without losses."""
    losses, training = run.curves.get("val_loss"), dict(run.curves.get("train_loss", ()))
    if not losses:
        return None
    epoch, lowest = min(losses, key=lambda pair: (pair[1], pair[0]))
    end = statistics.fmean(value for _, value in losses[-_LAST:])
    rise = (end - lowest) / abs(lowest) if lowest else 0.0
    last = losses[-1][0]
    after = [value for number, value in training.items() if number > epoch]
    fell = bool(after) and min(after) < training.get(epoch, math.inf)
    return Overfitting(epoch, last, rise, rise > RISE and fell)


def first_at(run: Run, measure: str, level: float) -> int | None:
    """Return the first epoch at which a measure reaches a level, None when it does not."""
    return next((epoch for epoch, value in run.curves[measure] if value >= level), None)


@dataclass(frozen=True)
class Speed:
    """How fast one value of an axis learns.

    Attributes:
        value: of the axis, for example the name of a loss.
        epochs: group -> first epoch at the group's level, None where it is not reached.
        median: over the groups; infinite where most do not reach it.
    """

    value: str
    epochs: Mapping[str, int | None]
    median: float


def speeds(runs: Sequence[Run], measure: str, axis: str) -> list[Speed]:
    """Return how fast each value of an axis learns, the fastest first.

    Runs that differ only in this axis are a group (the losses of one network). The group's level is 90 % of the best
    value that any of them reaches; the first epoch at it counts. A group whose best stays below 0.5 has
    learnt too little to compare, and is left out.
    """
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        others = ", ".join(value for name, value in run.grid.items() if name != axis) or "all"
        groups.setdefault(others, {})[run.grid[axis]] = run
    found: dict[str, dict[str, int | None]] = {}
    for group, members in groups.items():
        best = max(value for run in members.values() for _, value in run.curves[measure])
        if best < LEARNT:
            continue
        for value, run in members.items():
            found.setdefault(value, {})[group] = first_at(run, measure, LEVEL * best)
    rows = []
    for value, epochs in found.items():
        counted = [math.inf if epoch is None else float(epoch) for epoch in epochs.values()]
        rows.append(Speed(value, epochs, statistics.median_high(counted)))
    return sorted(rows, key=lambda row: (row.median, row.value))


def at_the_end(runs: Sequence[Run], measure: str, axis: str) -> list[tuple[str, float]]:
    """Return for each value of an axis the mean over its runs of the last three validations, the best first."""
    ends: dict[str, list[float]] = {}
    for run in runs:
        ends.setdefault(run.grid[axis], []).append(statistics.fmean(v for _, v in run.curves[measure][-_LAST:]))
    return sorted(
        ((value, statistics.fmean(each)) for value, each in ends.items()), key=lambda pair: (-pair[1], pair[0])
    )
