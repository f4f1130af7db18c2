"""One picture of a result: three planes through the organ, its contour, its volume in the caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.files import written_beside
from ctseg.organs import Organ, measure_organs
from ctseg.views import View, views_through
from ctseg.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOFT_TISSUE = (400.0, 40.0)  # width and level in HU

_BLACK, _GREY, _WHITE = "#0b0d10", "#9aa4af", "#f2f4f6"
_FALLBACK_COLORS = ((221, 130, 101), (120, 190, 230), (150, 210, 120), (230, 200, 100), (200, 140, 220))
_DPI = 110
_WIDEST, _NARROWEST, _TALLEST = 14.0, 8.0, 6.5  # inches: the whole picture, the whole picture, one plane
_MARGIN, _GAP, _TITLE, _ROW = 0.15, 0.12, 0.34, 0.3  # inches: round everything, between planes, above them, of caption
_THINNEST = 0.04  # a plane thinner than this part of the longest side is a line, and is not shown
_RESERVED = 4.2  # inches that the window and the warning take
_LETTER = 0.108  # inches that a letter of the caption takes on average
_BAR_MM = 50.0

_Color = tuple[float, float, float]


def _bright(color: Sequence[int]) -> _Color:
    """Colour 0..255 as matplotlib wants it, lightened until it stands out on grey tissue."""
    values = np.asarray(color, dtype=np.float64)[:3] / 255.0
    luminance = float(values @ [0.2126, 0.7152, 0.0722])
    if luminance < 0.45:
        values = values + (1.0 - values) * (0.45 - luminance) / (1.0 - luminance)
    return (float(values[0]), float(values[1]), float(values[2]))


def organ_colors(
    labels: Mapping[str, int], colors: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, int, int]]:
    """Return (r, g, b) 0..255 of each label, light enough for grey tissue; a missing one gets one of ours."""
    drawn = {name: _bright(_color_of(name, number, colors or {})) for number, name in enumerate(labels)}
    return {name: (round(255 * r), round(255 * g), round(255 * b)) for name, (r, g, b) in drawn.items()}


def _color_of(name: str, number: int, colors: Mapping[str, Sequence[int]]) -> Sequence[int]:
    return colors.get(name, _FALLBACK_COLORS[number % len(_FALLBACK_COLORS)])


def _draw_contours(axes: Axes, view: View, colors: Mapping[int, _Color]) -> None:
    from matplotlib.collections import LineCollection
    from skimage.measure import find_contours

    down, across = view.pixel_mm
    for code, color in colors.items():
        # A rim of background closes the contour of an organ that the picture's edge cuts; it shifts indices by one,
        # and the centre of the first pixel lies half a pixel inside the picture.
        lines = find_contours(np.pad(view.mask == code, 1).astype(np.float32), 0.5)
        in_mm = [np.c_[(line[:, 1] - 0.5) * across, (line[:, 0] - 0.5) * down] for line in lines]
        axes.add_collection(LineCollection(in_mm, colors=[color], linewidths=1.2))


def _draw_letters(axes: Axes, view: View) -> None:
    from matplotlib.patheffects import withStroke

    left, right, top, bottom = view.letters
    if view.size_mm[0] < 0.12 * view.size_mm[1]:
        top = bottom = ""  # too flat for one above the other
    edge = [withStroke(linewidth=2.5, foreground=_BLACK)]  # readable over bone, too
    for letter, x, y, side, line in (
        (left, 0.012, 0.5, "left", "center"),
        (right, 0.988, 0.5, "right", "center"),
        (top, 0.5, 0.985, "center", "top"),
        (bottom, 0.5, 0.015, "center", "bottom"),
    ):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=side, va=line, color=_WHITE, fontsize=11)
        text.set(weight="bold", path_effects=edge)


def _draw_view(axes: Axes, view: View, window: tuple[float, float], colors: Mapping[int, _Color]) -> None:
    width, level = window
    height_mm, width_mm = view.size_mm
    axes.imshow(
        np.asarray(view.image, dtype=np.float32),
        cmap="gray",
        vmin=level - width / 2,
        vmax=level + width / 2,
        extent=(0.0, width_mm, height_mm, 0.0),
        interpolation="bilinear",
    )
    _draw_contours(axes, view, colors)
    _draw_letters(axes, view)
    axes.set(xlim=(0.0, width_mm), ylim=(height_mm, 0.0))
    axes.set_axis_off()
    axes.set_title(f"{view.name}   {view.number} / {view.count}", color=_GREY, fontsize=10, loc="left", pad=5)


def _draw_scale_bar(axes: Axes, view: View) -> None:
    height_mm, width_mm = view.size_mm
    if width_mm < 2 * _BAR_MM:
        return
    x, y = 0.03 * width_mm, height_mm - 0.03 * width_mm
    axes.plot([x, x + _BAR_MM], [y, y], color=_WHITE, linewidth=2, solid_capstyle="butt")
    axes.text(x, y - 0.012 * width_mm, f"{_BAR_MM / 10:g} cm", color=_WHITE, fontsize=9, ha="left", va="bottom")


def _caption(organ: Organ) -> str:
    name = organ.name.replace("_", " ")
    if not organ.voxels:
        return f"{name}: not found"
    cut = " (reaches the edge of the scan)" if organ.touches_edge else ""
    digits = 0 if organ.volume_ml >= 100 else 1
    return f"{name} {organ.volume_ml:.{digits}f} ml{cut}"


def _caption_places(organs: Sequence[Organ], width: float) -> list[tuple[int, float]]:
    """Row and left end in inches of each organ's caption, filling rows of a given width."""
    row, x, places = 0, _MARGIN, []
    for organ in organs:
        length = _LETTER * len(_caption(organ))
        if x > _MARGIN and x + length > width - _MARGIN:
            row, x = row + 1, _MARGIN
        places.append((row, x))
        x += length + 2 * _GAP
    return places


def _draw_caption(
    figure: Figure, organs: Sequence[Organ], colors: Mapping[int, _Color], window: tuple[float, float], rows: int
) -> None:
    width, height = figure.get_size_inches()
    for organ, (row, x) in zip(organs, _caption_places(organs, width), strict=True):
        y = _MARGIN + (rows - row - 0.5) * _ROW
        color = colors[organ.code] if organ.voxels else _GREY
        figure.text(x / width, y / height, _caption(organ), color=color, fontsize=13, weight="bold", va="center")
    said = f"W {window[0]:g}  L {window[1]:g} HU    research use only, not for diagnosis"
    figure.text(
        1 - _MARGIN / width, (_MARGIN + 0.5 * _ROW) / height, said, color=_GREY, fontsize=10, ha="right", va="center"
    )


def _shown(views: list[View]) -> list[View]:
    """The planes worth a look: those of a single slice seen from its side are lines."""
    longest = max(max(view.size_mm) for view in views)
    worth = [view for view in views if min(view.image.shape) > 1 and min(view.size_mm) >= _THINNEST * longest]
    return worth or [max(views, key=lambda view: view.size_mm[0] * view.size_mm[1])]


def _figure(
    views: list[View], organs: Sequence[Organ], colors: Mapping[int, _Color], window: tuple[float, float]
) -> Figure:
    """Lay the planes out in a row, all at the same scale."""
    from matplotlib.figure import Figure

    across_mm, down_mm = sum(view.size_mm[1] for view in views), max(view.size_mm[0] for view in views)
    room = _WIDEST - 2 * _MARGIN - _GAP * (len(views) - 1)
    inches = min(room / across_mm, _TALLEST / down_mm)  # for each mm
    used = across_mm * inches + _GAP * (len(views) - 1)
    width = max(used + 2 * _MARGIN, _NARROWEST)
    last_row, x = _caption_places(organs, width)[-1] if organs else (0, _MARGIN)
    beside = not organs or x + _LETTER * len(_caption(organs[-1])) < width - _RESERVED
    rows = last_row + (1 if beside else 2)  # the window and the warning stand at the right of the last row
    height = _MARGIN + rows * _ROW + _GAP + down_mm * inches + _TITLE
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BLACK)
    left = (width - used) / 2
    for view in views:
        tall, wide = (length * inches for length in view.size_mm)
        box = (left / width, (height - _TITLE - tall) / height, wide / width, tall / height)
        _draw_view(figure.add_axes(box), view, window, colors)
        left += wide + _GAP
    _draw_scale_bar(figure.axes[0], views[0])
    _draw_caption(figure, organs, colors, window, rows)
    return figure


def width_and_level(window: tuple[float, float]) -> tuple[float, float]:
    """Return width and level in HU of the window between two values, the first of them black and the second white."""
    low, high = window
    return high - low, (low + high) / 2


def write_preview(
    volume: Volume,
    label_map: NDArray[Any],
    labels: Mapping[str, int],
    path: Path,
    *,
    colors: Mapping[str, Sequence[int]] | None = None,
    window: tuple[float, float] = SOFT_TISSUE,
) -> Path:
    """Write one PNG: axial, coronal and sagittal plane through the organ, in radiological convention.

    The planes are those with the largest organ area, at the same scale, true to the spacing. No name, date or path is
    drawn or stored; the same input gives the same bytes.

    Args:
        volume: the CT.
        label_map: (I, J, K) integers on the volume's grid, 0 is background.
        labels: label names and their values; what is drawn and captioned, in this order.
        path: where to, written beside and renamed.
        colors: (r, g, b) 0..255 for each label name; None or a missing name takes a colour of our own.
        window: width and level in HU.

    Returns:
        `path`.

    Raises:
        GeometryError: the label map does not have the volume's shape.
        OutputError: the file cannot be written.
    """
    if label_map.shape != volume.shape:
        raise GeometryError(
            f"the label map has the shape {label_map.shape} and its volume {volume.shape}; "
            f"give the map on the volume's own grid"
        )
    given = colors or {}
    drawn = {code: _bright(_color_of(name, number, given)) for number, (name, code) in enumerate(labels.items())}
    views = _shown(views_through(volume.array, label_map, volume.source_affine, drawn))
    figure = _figure(views, measure_organs(label_map, labels, volume.source_affine), drawn, window)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", facecolor=_BLACK, metadata={"Software": None})
    return path
