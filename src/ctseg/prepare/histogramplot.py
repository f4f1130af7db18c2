"""The histograms of a data folder's cases as one picture: the median, those that deviate, the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctseg.evaluation.plots import BLUE, GREY, INK, ORANGE, png
from ctseg.prepare.histograms import LOWEST, CaseCounts, Deviation, Found, quantiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BIN_HU = 5
_MOST_NAMES = 8
_STYLES = ("-", "--", ":", "-.")  # with the colour, so that none tells them apart alone


def histogram_plot(found: Found) -> bytes:
    """Return the picture as PNG bytes: left the image without air, right what is labelled, with the window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 4.8), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, found.cases, lambda case: case.image, found.image, "the image without air")
    _lines(right, found.cases, lambda case: case.labelled, found.labels, "labelled voxels")
    if found.window is not None:
        right.axvspan(*found.window, color=BLUE, alpha=0.09, zorder=0)
        right.set_title(
            f"labelled voxels; shaded: proposed window {found.window[0]:g} to {found.window[1]:g} HU",
            fontsize=11,
            color=INK,
            loc="left",
        )
    if found.own is not None:
        for number, bound in enumerate(found.own):
            label = None if number else f"the task's window {found.own[0]:g} to {found.own[1]:g} HU"
            right.axvline(bound, color=INK, linewidth=1, linestyle=(0, (1, 2)), label=label)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=2)
    return png(figure)


def _lines(
    axes: Axes,
    cases: Sequence[CaseCounts],
    of: Callable[[CaseCounts], NDArray[np.int64]],
    judged: Sequence[Deviation],
    title: str,
) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10, colors=INK)
    axes.set_xlabel("HU", fontsize=11)
    axes.set_ylabel(f"percent of voxels in {_BIN_HU} HU", fontsize=11)
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    shares, named = [], 0
    for case, one in zip(cases, judged, strict=True):
        counts = of(case)
        if not counts.any():
            continue
        share = _binned(counts)
        shares.append(share)
        if one.deviates:
            style = _STYLES[named % len(_STYLES)]
            label = f"{case.case} ({one.distance:.0f} HU away)" if named < _MOST_NAMES else None
            axes.plot(_places(), share, color=ORANGE, linewidth=1.6, linestyle=style, label=label, zorder=3)
            named += 1
        else:
            axes.plot(_places(), share, color=GREY, linewidth=0.7, alpha=0.45, zorder=2)
    if not shares:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=GREY)
        return
    middle = np.median(shares, axis=0)
    axes.plot(_places(), middle, color=BLUE, linewidth=2, label=f"median of {len(shares)} cases", zorder=4)
    ends = np.array([quantiles(of(case), np.array([0.002, 0.998])) for case in cases if of(case).any()])
    room = 0.03 * (ends[:, 1].max() - ends[:, 0].min()) + _BIN_HU
    axes.set_xlim(ends[:, 0].min() - room, ends[:, 1].max() + room)
    axes.set_ylim(bottom=0)


def _binned(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    sums = np.pad(counts, (0, -len(counts) % _BIN_HU)).reshape(-1, _BIN_HU).sum(axis=1)
    return np.asarray(100 * sums / sums.sum())


def _places() -> NDArray[np.float64]:
    from ctseg.prepare.histograms import BINS

    return LOWEST + _BIN_HU * (np.arange(-(-BINS // _BIN_HU)) + 0.5)
