"""Masks of flat images: 0/255, 0/1, label values, colours by a table, and what JPEG left of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.flat.reading import DICOM, open_picture, read_flat

_LOG = logging.getLogger(__name__)
_BETWEEN = 0.1  # share of pixels near the middle between black and white, beyond which a picture is no mask
_NEAR = 64  # grey values from black or white that are still noise of JPEG
_APART = 60.0  # distance in red, green and blue beyond which a pixel has no colour of the table
_SHOWN = 5


def read_mask(
    path: str | Path,
    values: Mapping[int, str] | None = None,
    colours: Mapping[str, Sequence[int]] | None = None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Read a mask.

    With one value that is 1 or 255, every mask of 0 and 1 or of 0 and 255 is understood, and one that JPEG or smoothing
    blurred is thresholded at the middle, with a warning.

    Args:
        path: the mask's file.
        values: value -> structure; None takes the mask as it is, and black and white as 0 and 1.
        colours: structure -> (r, g, b); the mask is read by its colours, black is background unless it is in the table,
            and the value of a structure is its place in the table, from 1.

    Returns:
        (H, W) uint8, and a sentence for each thing that was changed.

    Raises:
        InputError: it cannot be read, is no mask, or has a colour that the table does not name.
    """
    source = Path(path)
    if colours:
        return _by_colour(source, colours)
    grey = _grey_values(source)
    given = set(values or {})
    found = np.unique(grey)
    if not given and found.max(initial=0) in (255, 65535):
        given = {1}
    if given <= {1, 255} and len(given) == 1:
        return _binary(grey, found, given.pop(), source)
    if found.max(initial=0) > 255:
        raise InputError(f"{source} has the value {found.max()}, but a mask's values are 0 to 255; export it again")
    return grey.astype(np.uint8), ()


def colour_values(colours: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Return value -> structure of masks that are read by colours; black is 0 whatever its name."""
    return {number: name for number, (name, colour) in enumerate(colours.items(), start=1) if any(colour)}


def _grey_values(source: Path) -> NDArray[Any]:
    """(H, W) integers: the values of a grey mask, the indices of a palette, or what three equal channels hold."""
    if source.name.lower().endswith(DICOM):
        return np.rint(read_flat(source).grey()).astype(np.int64)
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(open_picture(source))
    if picture.mode == "P" and not _is_grey_palette(picture):
        return np.asarray(picture).astype(np.int64)
    if picture.mode in ("P", "PA", "RGBA", "RGB", "LA", "CMYK"):
        pixels = np.asarray(picture.convert("RGB")).astype(np.int64)
        spread = pixels.max(axis=-1) - pixels.min(axis=-1)
        if (spread > _NEAR // 2).mean() > 0.0001:
            raise InputError(
                f"{source} is a mask in colours, and no table says what they mean: name them with "
                "--color NAME=R,G,B (in a datalist, mask_colors)"
            )
        return pixels[..., 0]
    return np.asarray(picture.convert("L") if picture.mode == "1" else picture).astype(np.int64)


def _is_grey_palette(picture: Any) -> bool:
    table = np.asarray(picture.getpalette() or [], dtype=int)
    table = table[: len(table) // 3 * 3].reshape(-1, 3)
    used = np.unique(np.asarray(picture))
    used = used[used < len(table)]
    return bool(len(used) and (np.ptp(table[used], axis=1) == 0).all() and table[used].max() > used.max())


def _binary(
    grey: NDArray[Any], found: NDArray[Any], value: int, source: Path
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    if set(found.tolist()) <= {0, 1} or set(found.tolist()) <= {0, 255} or set(found.tolist()) <= {0, 65535}:
        return np.where(grey > 0, value, 0).astype(np.uint8), ()
    largest = 255 if found.max() <= 255 else 65535
    if found.max() <= largest / 2 or (len(found) == 2 and found[0] == 0):  # label values, each of its own meaning
        return np.clip(grey, 0, 255).astype(np.uint8), ()
    near = _NEAR * (largest // 255)
    doubtful = float(((grey > near) & (grey < largest - near)).mean())
    if doubtful > _BETWEEN:
        raise InputError(
            f"{source} is no mask: {len(found)} grey values from {found.min()} to {found.max()}, {doubtful:.0%} of its "
            "pixels near the middle; expected black and white (0 and 255, or 0 and 1)"
        )
    note = (
        f"its mask {source.name} has {len(found)} grey values, as JPEG or smoothing leaves them: above {largest // 2} "
        "is taken as inside"
    )
    _LOG.warning(note)
    return np.where(grey > largest // 2, value, 0).astype(np.uint8), (note,)


def _by_colour(source: Path, colours: Mapping[str, Sequence[int]]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(open_picture(source))
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    table = np.asarray(list(colours.values()), dtype=np.int32).reshape(-1, 3)
    numbers = np.arange(1, len(table) + 1, dtype=np.uint8)
    black = (table == 0).all(axis=1)
    numbers[black] = 0
    if not black.any():
        table, numbers = np.vstack([table, [[0, 0, 0]]]), np.append(numbers, np.uint8(0))
    used, where = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    apart = np.sqrt(((used[:, None].astype(np.float64) - table[None]) ** 2).sum(axis=-1))
    nearest, distance = apart.argmin(axis=1), apart.min(axis=1)
    counts = np.bincount(where.ravel(), minlength=len(used))
    unknown = distance > _APART
    if counts[unknown].sum() > 0.001 * counts.sum():
        worst = sorted(zip(counts[unknown], used[unknown].tolist(), strict=True), reverse=True)[:_SHOWN]
        shown = ", ".join(f"({','.join(map(str, colour))}) {count} pixels" for count, colour in worst)
        known = ", ".join(f"{name} ({','.join(map(str, colour))})" for name, colour in colours.items())
        raise InputError(f"{source} has colours that the table does not name: {shown}; known are {known}")
    notes: tuple[str, ...] = ()
    changed = int(counts[distance > 0].sum())
    if changed:
        notes = (
            f"{changed} pixels of its mask {source.name} have no exact colour of the table: the nearest was taken",
        )
        _LOG.warning(notes[0])
    return numbers[nearest][where.ravel()].reshape(pixels.shape[:2]), notes
