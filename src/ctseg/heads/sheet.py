"""The regions of a head on one sheet: two levels in radiological convention, and a table of mean HU left and right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctseg.files import written_beside
from ctseg.heads.levels import PIXEL_MM, Level, Levels, short_names
from ctseg.heads.regions import Region, Regions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW = (80.0, 40.0)  # width and level in HU: a brain window
CONVENTION = "radiological convention: image left (R) is the patient's right, up is the front"
NO_DIAGNOSIS = "RESEARCH ONLY - not for diagnosis; no ASPECTS score is given"
MINUS = "\N{MINUS SIGN}"

_BLACK, _GREY, _WHITE = "#0b0d10", "#9aa4af", "#f2f4f6"
_PLAIN, _MARKED = "#56B4E9", "#E69F00"  # Okabe and Ito: told apart by colour-blind readers; the marked are hatched too
_DPI = 110
_PANEL, _TABLE, _TOP, _FOOT = 5.0, 5.9, 0.42, 0.78  # inches
_TITLES = ("Lower level (ganglionic)", "Upper level (supraganglionic)")


def write_sheet(levels: Levels, found: Regions, path: Path) -> Path:
    """Write the sheet as PNG; it holds no name, date or path, and the same input gives the same bytes.

    Args:
        levels: of `ctseg.heads.levels.find_levels`.
        found: of `ctseg.heads.regions.measure_regions`, of the same mask.
        path: where to.

    Returns:
        `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    tall = max(_PANEL * level.image.shape[0] / level.image.shape[1] for level in levels.levels)
    width = _PANEL * len(levels.levels) + _TABLE
    height = max(tall + _TOP, 0.27 * (len(_rows(found)) + 4)) + _FOOT
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BLACK)
    marked = {*found.below(), *found.darker()}
    for number, level in enumerate(levels.levels):
        part = _PANEL * level.image.shape[0] / level.image.shape[1]
        place = (number * _PANEL / width, (height - _TOP - part) / height, 0.985 * _PANEL / width, part / height)
        title = _TITLES[number] if len(levels.levels) == 2 else "Level"
        _draw_level(figure.add_axes(place), level, found, marked, title)
    left = _PANEL * len(levels.levels) / width
    _draw_table(figure, found, marked, left)
    _draw_foot(figure, levels, found)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", facecolor=_BLACK, metadata={"Software": None})
    return path


def _draw_level(axes: Axes, level: Level, found: Regions, marked: set[str], title: str) -> None:
    width, middle = WINDOW
    rows, columns = level.image.shape
    extent = (0.0, columns * PIXEL_MM, rows * PIXEL_MM, 0.0)
    low, high = middle - width / 2, middle + width / 2
    axes.imshow(level.image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    twins = {name: pair.name for pair in found.twins for name in (pair.left.name, pair.right.name)}
    short = short_names(list(dict.fromkeys(twins.get(one.name, one.name) for one in found.regions)))
    for one in sorted(found.regions, key=lambda region: region.name in marked):  # the marked ones on top
        mask = level.labels == one.value
        if mask.any():
            _draw_region(axes, mask, one, short[twins.get(one.name, one.name)], one.name in marked)
    for letter, x, y in (("R", 0.03, 0.5), ("L", 0.97, 0.5), ("A", 0.5, 0.975), ("P", 0.5, 0.025)):
        axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", **_written(_WHITE, 12))
    axes.set(xlim=extent[:2], ylim=extent[2:])
    axes.set_axis_off()
    axes.set_title(title, color=_WHITE, fontsize=12, loc="left", pad=6)


def _draw_region(axes: Axes, mask: Any, region: Region, short: str, marked: bool) -> None:
    from matplotlib.patches import Polygon
    from scipy import ndimage
    from skimage.measure import find_contours

    color = _MARKED if marked else _PLAIN
    for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        points = (line[:, ::-1] - 0.5) * PIXEL_MM
        axes.add_patch(
            Polygon(
                points, fill=False, edgecolor=color, linewidth=2.0 if marked else 1.1, hatch="////" if marked else None
            )
        )
    deepest = np.unravel_index(int(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].argmax()), mask.shape)
    x, y = ((float(deepest[axis]) + 0.5) * PIXEL_MM for axis in (1, 0))
    axes.text(x, y, short, ha="center", va="center", **_written(color, 9))


def _written(color: str, size: int) -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=2.5, foreground=_BLACK)]  # readable over bone, too
    return {"color": color, "fontsize": size, "weight": "bold", "path_effects": edge}


def _rows(found: Regions) -> list[tuple[str, Region | None, Region | None, str, str]]:
    """Name, right, left, difference and its spread; regions without a twin stand under their own side."""
    paired = {name for pair in found.twins for name in (pair.left.name, pair.right.name)}
    short = short_names([pair.name for pair in found.twins])
    rows: list[tuple[str, Region | None, Region | None, str, str]] = []
    for pair in found.twins:
        name = short[pair.name]
        name = name if name.lower() == pair.name.lower() else f"{name}  {pair.name}"  # no "M4  m4"
        rows.append((name, pair.right, pair.left, hu(pair.difference, signed=True), hu(pair.spread)))
    for one in found.regions:
        if one.name not in paired:
            rows.append((one.name, one if one.side == "right" else None, None if one.side == "right" else one, "", ""))
    return rows


def hu(value: float | None, *, signed: bool = False) -> str:
    """Return HU with one decimal, a dash for none."""
    if value is None:
        return "–"
    return (f"{value:+.1f}" if signed else f"{value:.1f}").replace("-", MINUS)


def _draw_table(figure: Figure, found: Regions, marked: set[str], left: float) -> None:
    width, height = figure.get_size_inches()
    places = [left + inches / width for inches in (0.15, 2.75, 3.75, 4.75, 5.55)]
    line = 0.27 / height
    y = 1 - 0.6 * _TOP / height
    heads = ("mean HU of the region", "right", "left", f"L {MINUS} R", "spread")
    for x, text, side in zip(places, heads, ("left", *["right"] * 4), strict=True):
        figure.text(x, y, text, color=_GREY, fontsize=11, ha=side, va="center")
    for name, right, own_left, difference, spread in _rows(found):
        y -= line
        figure.text(places[0], y, name, color=_WHITE, fontsize=11, ha="left", va="center")
        for x, one in ((places[1], right), (places[2], own_left)):
            if one is not None:
                color = _MARKED if one.name in marked else _WHITE
                signs = "*" * (one.name in found.below()) + "†" * (one.name in found.darker())
                figure.text(x, y, hu(one.mean), color=color, fontsize=11, ha="right", va="center")
                figure.text(x + 0.05 / width, y, signs, color=color, fontsize=11, ha="left", va="center")
        figure.text(places[3], y, difference, color=_WHITE, fontsize=11, ha="right", va="center")
        figure.text(places[4], y, spread, color=_GREY, fontsize=11, ha="right", va="center")
    for text in _below_table(found):
        y -= line
        figure.text(places[0], y, text, color=_GREY, fontsize=10, ha="left", va="center")


def _below_table(found: Regions) -> list[str]:
    over = found.over_twins()
    lines = []
    if over["pairs"]:
        lines.append(
            f"over {over['pairs']} pairs: mean L {MINUS} R {hu(over['mean'], signed=True)}, SD {hu(over['sd'])} HU"
        )
    if found.threshold is not None:
        lines.append(f"* mean below {found.threshold:g} HU")
    if found.darker_by is not None:
        lines.append(f"† darker than its twin by {found.darker_by:g} HU or more")
    return lines


def _draw_foot(figure: Figure, levels: Levels, found: Regions) -> None:
    width, height = figure.get_size_inches()
    counted = f"; counted {found.hu_range[0]:g} to {found.hu_range[1]:g} HU" if found.hu_range else ""
    said = f"{CONVENTION}; W {WINDOW[0]:g} L {WINDOW[1]:g} HU{counted}; head straightened by {levels.degrees:.1f}° here"
    figure.text(0.15 / width, 0.28 / height, said, color=_GREY, fontsize=10, ha="left", va="center")
    figure.text(0.15 / width, 0.56 / height, NO_DIAGNOSIS, color=_MARKED, fontsize=12, weight="bold", va="center")
