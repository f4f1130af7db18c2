"""The plots of an evaluation as PNG bytes: spread over cases, agreement of volumes, a run beside its baseline.

Colours are Okabe and Ito's, which people with colour blindness tell apart; none carries a meaning alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#595959", "#1b1b1b"
FEWEST_FOR_A_BOX = 5
OUTSIDE_LIMITS = 1.96  # standard deviations: 95 % of differences that are normally distributed
_DPI = 110
_PARTS = ("dice", "iou", "precision", "recall", "f_beta", "nsd")
_LENGTHS = ("hd95_mm", "hd_mm")

Rows = Sequence[Mapping[str, Any]]


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return stream.getvalue()


def _figure(width: float, height: float, columns: int, ratios: Sequence[float] | None = None) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    grid = figure.subplots(1, columns, width_ratios=ratios, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11, colors=INK)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, grid


def box_plot(rows: Rows, names: Mapping[str, str]) -> bytes:
    """Return the spread of the metrics over cases: parts of 1 at the left, lengths in mm at the right.

    Args:
        rows: the values of one organ, one for each case.
        names: metric -> its name on the axis.
    """
    figure, (left, right) = _figure(10.5, 4.2, 2, [len(_PARTS), len(_LENGTHS)])
    _boxes(left, rows, _PARTS, names)
    left.set_ylim(-0.03, 1.03)
    left.set_ylabel("0 to 1, higher is better", fontsize=11)
    _boxes(right, rows, _LENGTHS, names)
    right.set_ylim(bottom=0)
    right.set_ylabel("mm, lower is better", fontsize=11)
    return png(figure)


def _boxes(axes: Axes, rows: Rows, metrics: Sequence[str], names: Mapping[str, str]) -> None:
    for place, metric in enumerate(metrics, start=1):
        values = [row[metric] for row in rows if row[metric] is not None]
        if len(values) >= FEWEST_FOR_A_BOX:
            axes.boxplot(
                values,
                positions=[place],
                widths=0.55,
                showfliers=False,
                medianprops={"color": INK, "linewidth": 2},
                boxprops={"color": BLUE},
                whiskerprops={"color": BLUE},
                capprops={"color": BLUE},
            )
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.scatter(place + spread, values, s=22, color=ORANGE, alpha=0.75, linewidths=0, zorder=3)
    axes.set_xlim(0.4, len(metrics) + 0.6)
    axes.set_xticks(range(1, len(metrics) + 1), [names[metric] for metric in metrics])


def bland_altman(rows: Rows) -> dict[str, float] | None:
    """Return bias and limits of agreement of volumes: mean and standard deviation of prediction minus reference, in ml.

    Cases with the organ in neither mask are left out; None with fewer than two others.
    """
    differences = [row["predicted_ml"] - row["reference_ml"] for row in rows if row["found"] != "neither"]
    if len(differences) < 2:
        return None
    bias, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    return {
        "n": len(differences),
        "bias_ml": bias,
        "deviation_ml": deviation,
        "low_ml": bias - OUTSIDE_LIMITS * deviation,
        "high_ml": bias + OUTSIDE_LIMITS * deviation,
    }


def volume_plot(rows: Rows) -> bytes:
    """Return volumes of prediction against reference, and their difference against their mean (Bland and Altman)."""
    shown = [row for row in rows if row["found"] != "neither"]
    one, other = (np.array([row[key] for row in shown]) for key in ("predicted_ml", "reference_ml"))
    figure, (left, right) = _figure(10.5, 4.4, 2)
    top = 1.08 * max(1e-3, float(max(one.max(), other.max())))
    left.plot([0, top], [0, top], color=GREY, linewidth=1.2)
    left.annotate("equal", (0.97 * top, 0.97 * top), ha="right", va="bottom", color=GREY, fontsize=10, rotation=0)
    left.scatter(other, one, s=34, color=ORANGE, edgecolors=INK, linewidths=0.5, zorder=3)
    left.set(xlim=(0, top), ylim=(0, top))
    left.set_xlabel("reference, ml", fontsize=11)
    left.set_ylabel("prediction, ml", fontsize=11)
    right.scatter((one + other) / 2, one - other, s=34, color=ORANGE, edgecolors=INK, linewidths=0.5, zorder=3)
    right.axhline(0, color=GREY, linewidth=1)
    if agreement := bland_altman(rows):
        for key, style, word in (("bias_ml", "-", "mean"), ("low_ml", "--", "95 %"), ("high_ml", "--", "95 %")):
            right.axhline(agreement[key], color=BLUE, linestyle=style, linewidth=1.5)
            right.annotate(
                f"{word} {agreement[key]:+.1f}",
                (1, agreement[key]),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=BLUE,
                fontsize=10,
            )
    right.margins(x=0.12, y=0.2)
    right.set_xlabel("mean of both, ml", fontsize=11)
    right.set_ylabel("prediction - reference, ml", fontsize=11)
    return png(figure)


def change_plot(rows: Rows) -> bytes:
    """Return a line for each case from its Dice in the baseline to its Dice now; a fall is dashed.

    Args:
        rows: `cases` of one label of `ctseg.evaluation.comparison.compare`.
    """
    figure, (axes,) = _figure(5.5, 4.4, 1)
    for row in rows:
        dice = row["dice"]
        if dice["difference"] is None:
            continue
        fell = dice["difference"] < 0
        axes.plot(
            [0, 1],
            [dice["before"], dice["now"]],
            marker="o",
            markersize=5,
            color=ORANGE if fell else BLUE,
            linestyle="--" if fell else "-",
            linewidth=1.4,
        )
    axes.set_xlim(-0.25, 1.25)
    axes.set_xticks([0, 1], ["baseline", "this run"])
    axes.set_ylabel("Dice of each case", fontsize=11)
    return png(figure)
