"""A slice as what it is: a volume of one slice with an orientation and a spacing, so that it can train with CTs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError
from ctseg.volume import Volume

RADIOLOGICAL = "radiological"
ARRAY = "array"
# Where the two axes of a slice in array order run to when nobody says it: as in a NIfTI image in RAS, the convention
# of the format itself.
ARRAY_AXES = "RA"
_TOWARDS = {"R": (0, 1.0), "L": (0, -1.0), "A": (1, 1.0), "P": (1, -1.0)}  # letter -> axis and sign in RAS


def read_slice(path: str | Path, spacing: tuple[float, float, float], orientation: str = RADIOLOGICAL) -> Volume:
    """Read a grey 8- or 16-bit PNG, or a 2D array from an .npy file, as a one-slice volume.

    In **radiological view** the picture's left is the patient's right and its top is anterior, so columns run towards L
    and rows towards P: with the array as (column, row, slice) the axes are L, P and S. In **array order** the slice is
    `ct[:, :, k]` of a NIfTI image's raw array: its first index i and second index j are the image's own, and run
    towards the two letters that the orientation names.

    Args:
        path: the PNG or .npy.
        spacing: mm along the axes of the volume that is returned, which a slice does not know: between columns, between
            rows and the thickness for a radiological view; along i, along j and the thickness for array order.
        orientation: "radiological", "array" (i towards R, j towards A) or "array:XY" with one letter of R, L and one
            of A, P in the order of the axes, e.g. "array:LP".

    Returns:
        A volume of shape (columns, rows, 1) or (i, j, 1) whose affine is in RAS mm; its origin is unknown and set to 0.

    Raises:
        InputError: when the file is missing, is no image, has colours, or is no 2D array of numbers.
        ConfigError: when the orientation is none of the above.
    """
    path = Path(path)
    axes = axes_of(orientation)
    array = _read_npy(path) if path.name.lower().endswith(".npy") else _read_png(path)
    if orientation == RADIOLOGICAL:
        array = array.T
    affine = np.diag([0.0, 0.0, float(spacing[2]), 1.0])
    for index, letter in enumerate(axes):
        axis, sign = _TOWARDS[letter]
        affine[axis, index] = sign * float(spacing[index])
    return Volume(
        array=np.ascontiguousarray(array)[:, :, None],
        affine=affine,
        source_affine=affine.copy(),
        source=path,
        format=path.suffix[1:].lower(),
    )


def axes_of(orientation: str) -> str:
    """Return where the first and second axis of a slice's volume run to, e.g. "LP".

    Raises:
        ConfigError: when the orientation is unknown.
    """
    if orientation == RADIOLOGICAL:
        return "LP"
    if orientation == ARRAY:
        return ARRAY_AXES
    match = re.fullmatch(rf"{ARRAY}:([RL][AP]|[AP][RL])", orientation)
    if match is None:
        raise ConfigError(
            f"{orientation!r} is no orientation of a slice: expected {RADIOLOGICAL}, {ARRAY}, or {ARRAY}:XY with where "
            f"the first and the second axis run to, one of R, L and one of A, P, for example {ARRAY}:LP"
        )
    return match[1]


def _read_png(path: Path) -> NDArray[Any]:
    """Return (rows, columns) as int16 where the values fit, else int32."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "I;16", "I"):
                raise InputError(
                    f"{path} is an image of mode {image.mode}, expected one grey channel: convert it to grey first."
                )
            pixels = np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as a PNG slice ({error}): expected a grey PNG; check it.") from error
    return _narrowed(pixels)


def _read_npy(path: Path) -> NDArray[Any]:
    """Return the 2D array of an .npy: integers as int16 where they fit, else int32; floats as float32."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as an .npy slice ({error}): expected a 2D array of numbers; save it with "
            "numpy.save(path, array, allow_pickle=False)."
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "biuf" or not array.size:
        found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {found}: expected a 2D array of numbers; save each slice by itself.")
    if array.dtype.kind != "f":
        return _narrowed(array)
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds values that are no finite numbers: export the slice again.")
    return array.astype(np.float32)


def _narrowed(integers: NDArray[Any]) -> NDArray[Any]:
    limits = np.iinfo(np.int16)
    fits = integers.max(initial=0) <= limits.max and integers.min(initial=0) >= limits.min
    return integers.astype(np.int16 if fits else np.int32)
