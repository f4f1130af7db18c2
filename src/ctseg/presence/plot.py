"""The picture of a classifier's answer: the body from the front, and beside it how likely each organ is at each height.

Slices run from bottom to top as in the body, head up, so that a height in the picture is a height in the patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ctseg.files import written_beside
from ctseg.outputs.preview import SOFT_TISSUE
from ctseg.presence.slices import SliceTable, runs_of
from ctseg.presence.table import summary_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Heights = NDArray[np.float64]  # (S,): where each slice is drawn, in mm

_INK, _QUIET, _ABSENT = "#20262d", "#6b7580", "#b9c1c9"
_DEFAULT_COLOR = (221, 130, 101)
_DPI = 110
_HEIGHT, _BODY, _PANEL = 6.4, 6.0, 4.4  # inches: of the picture, of the body's width at most, of one organ's panel
_FLATTEST = 0.3  # a body lower than this part of its width shows nothing


def write_presence_plot(
    found: SliceTable, path: Path, colors: Mapping[str, tuple[int, int, int]] | None = None
) -> Path:
    """Draw probability against slice for each organ, with threshold, slice number and height in mm.

    Args:
        found: the answer.
        path: the PNG.
        colors: organ -> (r, g, b), 0..255; another colour for those without.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = _heights(found)
    body = _from_the_front(found)
    wide = min(_BODY, max(1.0, 0.78 * _HEIGHT * body[0].shape[1] * body[1] / _span(heights))) if body else 0.0
    widths = [wide] * bool(body) + [_PANEL] * len(found.labels)
    figure = Figure(figsize=(sum(widths) + 1.6, _HEIGHT), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths})[0]
    if body:
        _draw_body(panels[0], body, heights)
    for panel, column in zip(panels[bool(body) :], range(len(found.labels)), strict=True):
        label = found.labels[column]
        color = tuple(value / 255 for value in (colors or {}).get(label, _DEFAULT_COLOR))
        _draw_organ(panel, found, column, heights, color)
        if body:
            _mark_body(panels[0], found, column, heights, color)
    _name_heights(panels[0], panels[-1], found, heights)
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    figure.text(0.01, 0.012, "Research use only: not a medical device, not for diagnosis.", color=_QUIET, fontsize=8)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})
    return path


def _heights(found: SliceTable) -> Heights:
    """Where each slice is drawn, in mm from the lowest: up is towards the head."""
    heights = found.positions_mm
    # A stack across the body (sagittal or coronal slices) has no heights: its slices are drawn in their own order.
    step = np.linalg.norm(np.asarray(found.volume.affine)[:3, found.axis])
    if len(heights) > 1 and np.ptp(heights) < 0.5 * step * (len(heights) - 1):
        return np.asarray(found.positions * step)
    return np.asarray(heights)


def _span(heights: Heights) -> float:
    return float(np.ptp(heights)) or 1.0


def _from_the_front(found: SliceTable) -> tuple[NDArray[Any], float] | None:
    """The middle coronal plane, rows from the feet up, columns from the patient's right; and mm between columns."""
    affine = np.asarray(found.volume.affine, dtype=np.float64)
    flips = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
    )
    across, _, up = (int(np.flatnonzero(flips[:, 0] == axis)[0]) for axis in range(3))
    if up != found.axis:
        return None
    array = nib.orientations.apply_orientation(found.volume.array, flips)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    plane = array[:, array.shape[1] // 2, :].T
    if plane.shape[0] * lengths[up] < _FLATTEST * plane.shape[1] * lengths[across] or plane.shape[0] < 4:
        return None
    return plane, float(lengths[across])


def _edges(heights: Heights) -> tuple[float, float]:
    half = _span(heights) / max(len(heights) - 1, 1) / 2
    return float(heights.min() - half), float(heights.max() + half)


def _draw_body(axes: Axes, body: tuple[NDArray[Any], float], heights: Heights) -> None:
    plane, column_mm = body
    width, level = SOFT_TISSUE
    bottom, top = _edges(heights)
    axes.imshow(
        plane.astype(np.float32),
        cmap="gray",
        vmin=level - width / 2,
        vmax=level + width / 2,
        origin="lower",
        extent=(0.0, plane.shape[1] * column_mm, bottom, top),
        aspect="auto",
        interpolation="bilinear",
    )
    axes.set_title("from the front", fontsize=10, color=_QUIET, loc="left")
    axes.set_xticks([])
    for letter, x in (("R", 0.03), ("L", 0.97)):
        axes.text(x, 0.5, letter, transform=axes.transAxes, color="white", weight="bold", ha="center", va="center")
    axes.text(0.5, 0.975, "head", transform=axes.transAxes, color="white", fontsize=9, ha="center", va="top")


def _spans(found: SliceTable, column: int, heights: Heights) -> list[tuple[float, float]]:
    """Lower and upper end in mm of each run of present slices."""
    order = np.argsort(heights)
    half = _span(heights) / max(len(heights) - 1, 1) / 2
    runs = runs_of(np.arange(len(order)), found.present[order, column])
    return [(float(heights[order[a]] - half), float(heights[order[b]] + half)) for a, b in runs]


def _mark_body(axes: Axes, found: SliceTable, column: int, heights: Heights, color: Sequence[float]) -> None:
    for low, high in _spans(found, column, heights):
        axes.axhspan(low, high, color=tuple(color), alpha=0.22, linewidth=0)


def _draw_organ(axes: Axes, found: SliceTable, column: int, heights: Heights, color: Sequence[float]) -> None:
    label, present = found.labels[column], found.present[:, column]
    thick = 0.92 * _span(heights) / max(len(heights) - 1, 1)
    fills = [tuple(color) if here else _ABSENT for here in present]
    axes.barh(heights, found.probability[:, column], height=thick, color=fills, linewidth=0)
    axes.axvline(found.threshold, color=_INK, linestyle="--", linewidth=1.2)
    for low, high in _spans(found, column, heights):
        axes.plot([1.045, 1.045], [low, high], color=tuple(color), linewidth=6, solid_capstyle="butt")
    axes.set(xlim=(0.0, 1.08), ylim=_edges(heights))
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlabel(
        f"probability; dashed: threshold {found.threshold:g}; coloured: present, grey: absent", fontsize=9, color=_INK
    )
    axes.set_title(_wrapped(summary_line(found, label)), fontsize=10, color=_INK, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _wrapped(line: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(line, 52, max_lines=3, placeholder=" ..."))


def _name_heights(left: Axes, right: Axes, found: SliceTable, heights: Heights) -> None:
    """Slice numbers at the left, mm at the right, at the same heights."""
    count = len(heights)
    step = next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count / n <= 14), 1000)
    rows = [row for row, number in enumerate(found.numbers) if number == 1 or number % step == 0]
    left.set_yticks([float(heights[row]) for row in rows], [str(found.numbers[row]) for row in rows])
    left.set_ylabel(f"slice number (of {count})", fontsize=10, color=_INK)
    other = right.secondary_yaxis("right")
    other.set_yticks([float(heights[row]) for row in rows], [f"{found.positions_mm[row]:.0f}" for row in rows])
    other.set_ylabel("height in mm, growing to the head", fontsize=9, color=_QUIET)
    other.tick_params(colors=_QUIET, labelsize=8)
