"""Pictures of single cases: the planes where prediction and reference differ most, both outlined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import CtsegError
from ctseg.evaluation.pairing import on_grid_of, read_pair
from ctseg.evaluation.plots import png
from ctseg.outputs.preview import SOFT_TISSUE
from ctseg.views import View, views_through

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE, PREDICTION = "#56B4E9", "#E69F00"
_BLACK, _WHITE, _GREY = "#0b0d10", "#f2f4f6", "#9aa4af"
_MISSED, _EXTRA, _COMMON, _OTHER = 1, 2, 3, 4
_PAINTS = {_MISSED: (86, 180, 233), _EXTRA: (230, 159, 0), _COMMON: (120, 128, 136), _OTHER: (213, 60, 140)}
_FILLS = {0: (11, 13, 16), _MISSED: (35, 90, 125), _EXTRA: (125, 85, 5), _COMMON: (110, 118, 126)}
_MARGIN_MM = 25.0
_HEIGHT, _WIDEST = 3.6, 12.0  # inches: a plane, the whole picture
_TOP = 0.34  # inches above a plane, for its title
_THINNEST = 0.1  # a plane thinner than this part of the longest side is hardly more than a line


def case_picture(
    paths: tuple[Path, Path], values: tuple[int, int], image: Path | None
) -> tuple[bytes, list[str], str | None]:
    """Draw one organ of one case: axial, coronal and sagittal slice with the largest area of disagreement.

    Args:
        paths: prediction and reference.
        values: the organ's value in each.
        image: the CT, or None for the masks alone.

    Returns:
        The PNG; for each plane its name and number; and why the image is not shown, None when it is or none was given.

    Raises:
        CtsegError: when the pair cannot be read again.
    """
    volume, predicted_map = read_pair(*paths, values)
    predicted, reference = predicted_map == values[0], volume.array == values[1]
    states = np.zeros(volume.shape, np.uint8)
    states[reference & ~predicted], states[predicted & ~reference] = _MISSED, _EXTRA
    states[predicted & reference] = _COMMON
    array, word = _image(image, volume)
    differ = (_MISSED, _EXTRA) if (predicted != reference).any() else (_COMMON,)
    views = views_through(states if array is None else array, states, volume.source_affine, differ)
    zoomed = [_zoomed(view) for view in views]
    longest = max(max(view.size_mm) for view in zoomed)
    shown = [view for view in zoomed if min(view.size_mm) >= _THINNEST * longest] or zoomed[:1]
    return _draw(shown, plain=array is None), [f"{v.name} {v.number} of {v.count}" for v in shown], word


def errors_picture(
    paths: tuple[Path, Path], values: Sequence[tuple[int, int]], image: Path | None
) -> tuple[bytes, list[str], str | None]:
    """Draw the errors of all classes of one case, in the slices that have most of them.

    Args:
        paths: prediction and reference.
        values: of each class in the prediction and in the reference.
        image: the CT under the errors, or None for the masks alone.

    Returns:
        As `case_picture`.

    Raises:
        CtsegError: when the pair cannot be read again.
    """
    volume, predicted_map = read_pair(*paths)
    states = error_states(predicted_map, volume.array, values)
    array, word = _image(image, volume)
    wrong = np.isin(states, (_MISSED, _EXTRA, _OTHER))
    shown_states = (_MISSED, _EXTRA, _OTHER) if wrong.any() else (_COMMON,)
    views = views_through(states if array is None else array, states, volume.source_affine, shown_states)
    zoomed = [_zoomed(view) for view in views]
    longest = max(max(view.size_mm) for view in zoomed)
    shown = [view for view in zoomed if min(view.size_mm) >= _THINNEST * longest] or zoomed[:1]
    colors = np.array([_FILLS[0], *(_PAINTS[state] for state in range(1, 5))], dtype=np.float64)
    painted = [_painted(view, colors, plain=array is None) for view in shown]
    return _draw(painted, plain=True), [f"{v.name} {v.number} of {v.count}" for v in shown], word


def _painted(view: View, colors: NDArray[np.float64], *, plain: bool) -> View:
    """A plane as colours (rows, columns, 3): the errors over the CT, half transparent where the CT is shown."""
    share = np.where(view.mask == 0, 0.0, np.where(view.mask == _COMMON, 0.25, 0.6))[..., None]
    window, level = SOFT_TISSUE
    grey = np.clip((np.asarray(view.image, dtype=np.float64) - level) / window + 0.5, 0, 1)[..., None] * 255
    below = colors[np.zeros_like(view.mask)] if plain else np.repeat(grey, 3, axis=2)
    share = np.where(view.mask[..., None] == 0, 0.0, 1.0) if plain else share
    picture = below * (1 - share) + colors[view.mask] * share
    return dataclasses.replace(view, image=picture.round().astype(np.uint8))


def _image(path: Path | None, like: Any) -> tuple[NDArray[Any] | None, str | None]:
    if path is None:
        return None, None
    from ctseg.items import volume_of
    from ctseg.reading import read_volume

    try:
        flat = like.format == "flat"
        found = volume_of(path, {"flat": True, "spacing": like.spacing[:2]}, "image") if flat else read_volume(path)
        return on_grid_of(found, like), None
    except CtsegError as error:
        text = " ".join(str(error).split())
        for known in (path, like.source):
            text = text.replace(str(known), known.name)
        return None, text


def _zoomed(view: View) -> View:
    """Cut a plane to the organ and a margin; the number of the slice stays."""
    box = []
    for axis, length in enumerate(view.pixel_mm):
        hits = np.flatnonzero(view.mask.any(axis=1 - axis))
        margin = max(2, round(_MARGIN_MM / length))
        first, last = (int(hits[0]), int(hits[-1])) if hits.size else (0, view.mask.shape[axis] - 1)
        box.append(slice(max(0, first - margin), last + margin + 1))
    return dataclasses.replace(view, image=view.image[tuple(box)], mask=view.mask[tuple(box)])


def _draw(views: list[View], *, plain: bool) -> bytes:
    from matplotlib.figure import Figure

    widths = [_HEIGHT * view.size_mm[1] / view.size_mm[0] for view in views]
    scale = min(1.0, (_WIDEST - 0.1 * (len(views) + 1)) / sum(widths))
    tall, total = _HEIGHT * scale, sum(widths) * scale + 0.1 * (len(views) + 1)
    figure = Figure(figsize=(total, tall + _TOP), facecolor=_BLACK)
    left = 0.1
    for view, width in zip(views, widths, strict=True):
        wide = width * scale
        _draw_view(figure.add_axes((left / total, 0, wide / total, tall / (tall + _TOP))), view, plain=plain)
        left += wide + 0.1
    return png(figure)


def _draw_view(axes: Axes, view: View, *, plain: bool) -> None:
    from matplotlib.patheffects import withStroke

    height, width = view.size_mm
    window, level = SOFT_TISSUE
    painted = view.image.ndim == 3  # colours already: nothing is outlined
    picture: NDArray[Any] = view.image if painted else np.asarray(view.image, dtype=np.float32)
    if plain and not painted:
        picture = np.array([_FILLS[state] for state in range(4)], np.uint8)[view.mask]
    axes.imshow(
        picture,
        cmap="gray",
        vmin=level - window / 2,
        vmax=level + window / 2,
        extent=(0.0, width, height, 0.0),
        interpolation="nearest" if plain else "bilinear",
    )
    if not painted:
        _contour(axes, view, (_MISSED, _COMMON), REFERENCE, "solid")
        _contour(axes, view, (_EXTRA, _COMMON), PREDICTION, "dashed")
    for letter, x, y in zip(view.letters, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.96, 0.04), strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", color=_WHITE, fontsize=10)
        text.set(weight="bold", path_effects=[withStroke(linewidth=2.5, foreground=_BLACK)])
    axes.set(xlim=(0.0, width), ylim=(height, 0.0))
    axes.set_axis_off()
    axes.set_title(f"{view.name} {view.number} / {view.count}", color=_GREY, fontsize=10, loc="left", pad=4)


def _contour(axes: Axes, view: View, states: tuple[int, ...], color: str, style: str) -> None:
    from matplotlib.collections import LineCollection
    from skimage.measure import find_contours

    down, across = view.pixel_mm
    # A rim of background closes a contour at the picture's edge; pixel centres lie half a pixel inside the picture.
    lines = find_contours(np.pad(np.isin(view.mask, states), 1).astype(np.float32), 0.5)
    in_mm = [np.c_[(line[:, 1] - 0.5) * across, (line[:, 0] - 0.5) * down] for line in lines]
    axes.add_collection(LineCollection(in_mm, colors=[color], linewidths=1.6, linestyles=[style]))


def error_states(
    predicted: NDArray[Any], reference: NDArray[Any], values: Sequence[tuple[int, int]]
) -> NDArray[np.uint8]:
    """Return 1 missed, 2 drawn where nothing is, 3 right, 4 another class, 0 background for each voxel.

    Args:
        predicted: (I, J, K) integers.
        reference: (I, J, K) integers.
        values: of each class in the prediction and in the reference.
    """
    right = np.zeros(reference.shape, dtype=bool)
    for own, other in values:
        right |= (predicted == own) & (reference == other)
    in_one, in_other = np.isin(predicted, [p for p, _ in values]), np.isin(reference, [r for _, r in values])
    states = np.zeros(reference.shape, dtype=np.uint8)
    states[in_other & ~in_one], states[in_one & ~in_other] = _MISSED, _EXTRA
    states[in_one & in_other] = _OTHER
    states[right] = _COMMON
    return states
