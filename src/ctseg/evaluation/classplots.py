"""The plots of an evaluation that go over classes, as PNG bytes: confusion matrix, training against test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.evaluation.plots import BLUE, GREY, INK, ORANGE, png
from ctseg.sides import partners

_CELL, _SMALLEST, _NAMES = 0.4, 3.2, 2.1  # inches: a class, the matrix, the room for names
_SHOWN = 0.5  # percent; smaller shares are drawn without a number
_DARK = 55.0  # percent from which on numbers are white


def confusion_plot(names: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Return the confusion matrix: each row a class of the reference, in percent of its voxels.

    A frame marks where a left class is taken for its right twin or the other way round.

    Args:
        names: of rows and columns, the background last.
        counts: of `ctseg.evaluation.confusion.confusion_counts`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    table = np.asarray(counts, dtype=np.float64)
    sums = table.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        percent = np.where(sums > 0, 100 * table / sums, np.nan)
    side = max(_SMALLEST, _CELL * len(names))
    figure = Figure(figsize=(side + _NAMES + 0.9, side + _NAMES), facecolor="white", layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", vmin=0, vmax=100)
    axes.set_facecolor("#e4e4e4")  # rows without a voxel in the reference
    size = 7.5 if len(names) > 6 else 10
    for row, column in np.argwhere(np.nan_to_num(percent) >= _SHOWN):
        value = percent[row, column]
        color = "white" if value > _DARK else INK
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=size, color=color)
    for left, right in partners(list(names)):
        for row, column in ((names.index(left), names.index(right)), (names.index(right), names.index(left))):
            frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=1.6)
            axes.add_patch(frame)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_title("rows: reference; columns: predicted as", fontsize=11, loc="left", color=INK)
    bar = figure.colorbar(shown, ax=axes, fraction=0.035, pad=0.02)
    bar.set_label("percent of the reference's voxels", fontsize=9)
    return png(figure)


def gap_plot(labels: Mapping[str, Mapping[str, Any]], figure_name: str, title: str) -> bytes:
    """Return bars of training and test cases for each class, with the gap in figures above them.

    Args:
        labels: of `ctseg.evaluation.traininggap.training_gap`.
        figure_name: "dice" or "iou".
        title: its name on the axis.
    """
    from matplotlib.figure import Figure

    names = list(labels)
    figure = Figure(figsize=(max(5.0, 1.6 + 0.52 * len(names)), 4.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for key, shift, color, hatch in (("training", -0.2, BLUE, ""), ("test", 0.2, ORANGE, "///")):
        values = [labels[name][figure_name][key] for name in names]
        places = [place + shift for place, value in enumerate(values) if value is not None]
        known = [value for value in values if value is not None]
        label = f"{key} cases"
        axes.bar(places, known, width=0.38, color=color, label=label, edgecolor="white", linewidth=0.0, hatch=hatch)
    for place, name in enumerate(names):
        row = labels[name][figure_name]
        if row["gap"] is not None:
            text = f"{row['gap']:+.2f}".replace("-", "\N{MINUS SIGN}")
            top = max(row["training"], row["test"])
            axes.text(place, top + 0.015, text, ha="center", va="bottom", fontsize=8.5, color=GREY)
    axes.set_ylim(0, 1.16)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=9)
    axes.set_ylabel(f"{title}, mean over cases", fontsize=11)
    axes.legend(fontsize=9, frameon=False, loc="upper left", ncols=2)
    return png(figure)
