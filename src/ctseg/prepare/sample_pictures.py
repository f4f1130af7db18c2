"""Small pictures of images with their labels drawn, and the choice of cases worth a look."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.views import View, views_through
from ctseg.volume import Volume

SOFT_TISSUE = (-160.0, 240.0)  # HU
COLORS = ((221, 130, 101), (120, 190, 230), (150, 210, 120), (230, 200, 100), (200, 140, 220))
_HEIGHT = 240  # pixels of the tallest plane
_FILL = 0.25  # how much of the colour lies over the organ
_THINNEST = 0.04  # a plane thinner than this part of the longest side is a line, and is not shown
_GAP = 4


def choose_samples(voxels: Sequence[Mapping[str, int]], number: int) -> list[int]:
    """Return indices of the cases to look at: the extremes of every structure first, then evenly spread ones.

    The smallest and the largest of a structure, and a case without it, are where a wrong value or a swapped mask shows.

    Args:
        voxels: for each case, structure -> voxels.
        number: how many at most.
    """
    chosen: dict[int, None] = {}
    names = dict.fromkeys(name for counts in voxels for name in counts)
    for name in names:
        order = sorted((counts.get(name, 0), index) for index, counts in enumerate(voxels))
        present = [index for count, index in order if count]
        absent = [index for count, index in order if not count]
        for group in (present[:1], present[-1:], absent[:1]):
            chosen.update(dict.fromkeys(group))
    spread = np.linspace(0, len(voxels) - 1, num=min(number, len(voxels))).round().astype(int)
    chosen.update(dict.fromkeys(int(index) for index in spread))
    return sorted(list(chosen)[:number])


def draw_sample(
    image: Volume,
    labels: NDArray[Any],
    colors: Mapping[int, tuple[int, int, int]],
    window: tuple[float, float] | None = SOFT_TISSUE,
) -> bytes:
    """Return a PNG of the planes with the largest structure, in radiological convention, with outlines.

    Args:
        image: the image.
        labels: (I, J, K) label map on its grid.
        colors: value -> (r, g, b); other values are not drawn.
        window: smallest and largest value shown; None takes the 1st and 99th percentile of each plane.
    """
    from PIL import Image

    views = views_through(image.array, labels, image.affine, list(colors))
    longest = max(max(view.size_mm) for view in views)
    shown = [v for v in views if min(v.image.shape) > 1 and min(v.size_mm) >= _THINNEST * longest] or views[:1]
    scale = _HEIGHT / max(view.size_mm[0] for view in shown)
    planes = [_draw_plane(view, colors, window, scale) for view in shown]
    width = sum(plane.width for plane in planes) + _GAP * (len(planes) - 1)
    sheet = Image.new("RGB", (width, max(plane.height for plane in planes)), (11, 13, 16))
    left = 0
    for plane in planes:
        sheet.paste(plane, (left, 0))
        left += plane.width + _GAP
    content = io.BytesIO()
    sheet.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _draw_plane(
    view: View, colors: Mapping[int, tuple[int, int, int]], window: tuple[float, float] | None, scale: float
) -> Any:
    from PIL import Image, ImageDraw

    low, high = window or tuple(np.percentile(view.image, (1, 99)))
    grey = np.clip((np.asarray(view.image, np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    size = (max(1, round(view.size_mm[1] * scale)), max(1, round(view.size_mm[0] * scale)))
    picture = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    mask = np.asarray(_resized(view.mask, size))
    pixels = np.repeat(np.asarray(picture, np.float32)[:, :, None], 3, axis=2)
    for value, color in colors.items():
        found = mask == value
        pixels[found] = pixels[found] * (1 - _FILL) + np.asarray(color, np.float32) * _FILL
        pixels[outline(found)] = color
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    left, right, top, bottom = view.letters
    middle = (size[0] // 2, size[1] // 2)
    for letter, place, anchor in (
        (left, (4, middle[1]), "lm"),
        (right, (size[0] - 4, middle[1]), "rm"),
        (top, (middle[0], 3), "ma"),
        (bottom, (middle[0], size[1] - 3), "md"),
    ):
        pen.text(place, letter, fill=(255, 255, 255), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    return drawn


def _resized(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Nearest neighbour by index, for label values of any type."""
    rows = np.minimum((np.arange(size[1]) + 0.5) * mask.shape[0] / size[1], mask.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(size[0]) + 0.5) * mask.shape[1] / size[0], mask.shape[1] - 1).astype(int)
    return np.asarray(mask)[np.ix_(rows, columns)]


def outline(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that touch what is not region, over an edge; the picture's border counts as outside."""
    inside = np.pad(found, 1)
    within = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return found & ~within
