"""A PNG slice as what it is: a volume of one slice with an orientation and a spacing, so that it can train with CTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.volume import Volume


def read_slice(path: str | Path, spacing: tuple[float, float, float]) -> Volume:
    """Read a grey 8- or 16-bit PNG in **radiological view** as a one-slice volume.

    In radiological view the image's left is the patient's right and its top is anterior, so columns run towards L and
    rows towards P: with the array as (column, row, slice) the axes are L, P and S.

    Args:
        path: the PNG.
        spacing: mm between columns, between rows, and the slice's thickness; a PNG does not know it.

    Returns:
        A volume of shape (columns, rows, 1) whose affine is in RAS mm; its origin is unknown and set to 0.

    Raises:
        InputError: when the file is missing, is no image, or has colours.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "I;16", "I"):
                raise InputError(
                    f"{path} is an image of mode {image.mode}, expected one grey channel: convert it to grey first."
                )
            rows_columns = np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as a PNG slice ({error}): expected a grey PNG; check it.") from error
    dtype = np.int16 if rows_columns.max(initial=0) <= np.iinfo(np.int16).max else np.int32
    array: NDArray[Any] = np.ascontiguousarray(rows_columns.T.astype(dtype))[:, :, None]
    affine = np.diag([-float(spacing[0]), -float(spacing[1]), float(spacing[2]), 1.0])
    return Volume(array=array, affine=affine, source_affine=affine.copy(), source=path, format="png")
