"""What a replay of annotation shows: learning curves with intervals, and each strategy against chance."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctseg.curves import COLOURS, MARKS
from ctseg.files import write_beside

if TYPE_CHECKING:
    from ctseg.annotation.simulating import Round

CURVES, TABLE = "curves.png", "strategies.csv"


@dataclass(frozen=True)
class Curve:
    """A strategy's learning curve over its replays.

    Attributes:
        strategy: its name.
        labelled: patients with a label at each round.
        mean: Dice at each round, mean over the replays.
        half: half of the 95 % interval of that mean (Student's t); NaN for a single replay.
        area: mean Dice over the rounds, one number a replay.
    """

    strategy: str
    labelled: tuple[int, ...]
    mean: tuple[float, ...]
    half: tuple[float, ...]
    area: tuple[float, ...]


def curves_of(rounds: Sequence[Round]) -> list[Curve]:
    """Return a curve for each strategy, of the replays that are complete."""
    last = max(one.round for one in rounds)
    found = []
    for strategy in dict.fromkeys(one.strategy for one in rounds):
        own = [one for one in rounds if one.strategy == strategy]
        seeds = [seed for seed in sorted({one.seed for one in own}) if sum(o.seed == seed for o in own) == last + 1]
        if not seeds:
            continue
        table = np.asarray(
            [[o.dice for o in sorted(own, key=lambda one: one.round) if o.seed == seed] for seed in seeds]
        )
        labelled = tuple(len(o.labelled) for o in sorted(own, key=lambda one: one.round) if o.seed == seeds[0])
        half = tuple(half_width(column) for column in table.T)
        areas = tuple(float(value) for value in table.mean(axis=1))
        found.append(Curve(strategy, labelled, tuple(float(v) for v in table.mean(axis=0)), half, areas))
    return found


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t; NaN for fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def rows_of(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """Return a row for each strategy: last Dice, area, and the difference of the areas to random's, seed by seed."""
    chance = next((curve for curve in curves if curve.strategy == "random"), None)
    rows = []
    for curve in curves:
        row = {
            "strategy": curve.strategy,
            "replays": str(len(curve.area)),
            "last_dice": f"{curve.mean[-1]:.4f}",
            "last_half_interval": f"{curve.half[-1]:.4f}",
            "mean_dice_over_rounds": f"{np.mean(curve.area):.4f}",
        }
        if chance is not None and curve is not chance and len(chance.area) == len(curve.area):
            differences = np.asarray(curve.area) - np.asarray(chance.area)
            row["against_random"] = f"{differences.mean():+.4f}"
            row["against_random_half_interval"] = f"{half_width(differences):.4f}"
            row["verdict"] = _verdict(float(differences.mean()), half_width(differences))
        rows.append(row)
    return rows


def _verdict(difference: float, half: float) -> str:
    if half != half or abs(difference) <= half:  # NaN: one replay shows nothing
        return "no difference shown"
    return "better than random" if difference > 0 else "worse than random"


def write_simulation(rounds: Sequence[Round], out: Path, title: str) -> list[dict[str, str]]:
    """Write `curves.png` and `strategies.csv`; return the table's rows."""
    curves = curves_of(rounds)
    rows = rows_of(curves)
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(rows)
    write_beside(out / TABLE, text.getvalue().encode())
    write_beside(out / CURVES, _drawn(curves, title))
    return rows


def _drawn(curves: Sequence[Curve], title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 5.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        x, mean, half = (np.asarray(values, dtype=float) for values in (curve.labelled, curve.mean, curve.half))
        colour = COLOURS[number % len(COLOURS)]
        style = "--" if curve.strategy == "random" else "-"
        axes.plot(x, mean, style, marker=MARKS[number % len(MARKS)], color=colour, label=curve.strategy)
        if np.isfinite(half).all():
            axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("patients with a label")
    axes.set_ylabel("mean Dice over the validation patients")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    replays = max((len(curve.area) for curve in curves), default=0)
    axes.legend(title=f"{replays} replays; band: 95 % of the mean" if replays > 1 else "one replay", fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
