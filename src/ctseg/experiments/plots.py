"""Pictures of several experiments: their curves together, a measure over the grid, one case as each predicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.curves import COLOURS, MARKS
from ctseg.evaluation.plots import png
from ctseg.experiments.findings import Run

_FEW = 12  # lines beyond this have no legend


def curves_of(runs: Sequence[Run], measure: str, words: str, title: str) -> bytes:
    """Return a PNG: a measure (left) and the validation loss (right) over the epochs, a line for each run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11.0, 4.4), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, text in zip(panels, (measure, "val_loss"), (words, "validation loss"), strict=True):
        for number, run in enumerate(runs):
            if name not in run.curves:
                continue
            epochs, values = zip(*run.curves[name], strict=True)
            mark = MARKS[number % len(MARKS)] if len(epochs) <= 40 else ""
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(epochs, values, marker=mark, markersize=4, linewidth=1.3, color=colour, label=run.short)
        axes.set(xlabel="epoch", title=text)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#d8d8d8", linewidth=0.6)
    panels[0].set_ylim(-0.02, 1.02)
    if len(runs) <= _FEW:
        panels[0].legend(fontsize=8)
    figure.suptitle(title)
    return png(figure)


def matrix(
    values: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str], words: Sequence[str]
) -> bytes:
    """Return a PNG of a measure over two axes, with the figures in the cells.

    Args:
        values: (row, column) -> value; missing ones are left white.
        rows: values of the first axis, from the top.
        columns: of the second.
        words: names of the first axis, the second axis and the measure.
    """
    from matplotlib.figure import Figure

    table = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows])
    figure = Figure(figsize=(2.6 + 1.1 * len(columns), 1.8 + 0.55 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(table, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns), rotation=20 if max(map(len, columns)) > 8 else 0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=words[1], ylabel=words[0])
    middle = float(np.nanmin(table) + np.nanmax(table)) / 2 if np.isfinite(table).any() else 0.0
    for (down, across), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = "white" if value < middle else "black"
            axes.text(across, down, f"{value:.3f}", ha="center", va="center", color=ink, fontsize=10)
    figure.colorbar(picture, label=words[2])
    return png(figure)


def line(points: Sequence[tuple[float, float]], words: Sequence[str]) -> bytes:
    """Return a PNG of a measure over one number; `words` names the number and the measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    across, up = zip(*sorted(points), strict=True)
    axes.plot(across, up, "o-", color=COLOURS[0])
    best = max(points, key=lambda point: point[1])
    axes.plot(*best, "D", color=COLOURS[1], markersize=9, label=f"best: {best[1]:.3f} at {best[0]:g}")
    axes.set(xlabel=words[0], ylabel=words[1])
    axes.grid(color="#d8d8d8", linewidth=0.6)
    axes.legend()
    return png(figure)


def side_by_side(pictures: Mapping[tuple[str, str], Path], rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """Return a PNG of one case over the grid: image and reference first, then the predictions.

    Args:
        pictures: (row, column) -> triptych of the case (`ctseg.evaluation.triptychs`).
        rows: values of the first axis, from the top.
        columns: of the second.
    """
    from matplotlib.figure import Figure

    first = _thirds(next(iter(pictures.values())))
    lead = 1 if len(rows) > 1 else 2  # one row has no second cell below the image for the reference
    width = lead + len(columns)
    figure = Figure(figsize=(1.9 * width, 2.0 * len(rows)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, words in enumerate(("image", "reference")):
        axes = grid[number % (3 - lead)][number // (3 - lead)]
        axes.imshow(first[number])
        axes.set_title(words, fontsize=9)
    for (row, column), file in pictures.items():
        axes = grid[rows.index(row)][lead + columns.index(column)]
        axes.imshow(_thirds(file)[2])
        axes.set_title(f"{row}\n{column}", fontsize=8)
    return png(figure)


def _thirds(path: Path) -> list[Any]:
    """Image, reference and prediction of a triptych."""
    from PIL import Image

    from ctseg.evaluation.triptychs import GAP

    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    width = (sheet.shape[1] - 2 * GAP) // 3
    return [sheet[:, n * (width + GAP) : n * (width + GAP) + width] for n in range(3)]
