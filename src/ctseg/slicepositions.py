"""Where the slices of a prepared image lie on the grid of its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from monai.data import MetaTensor


def slice_positions(image: MetaTensor) -> tuple[int, NDArray[np.float64]]:
    """Return which axis of its source a prepared image's slices follow, and where on it each slice lies.

    Args:
        image: (C, I, J, S) as `ctseg.transforms.LoadVolumed` reads it and MONAI's transforms turn and resample it.

    Returns:
        The axis (0, 1 or 2), and (S,) float64 indices along it, in the order of the image's slices.
    """
    source = np.asarray(image.meta["original_affine"], dtype=np.float64).reshape(4, 4)
    to_source = np.linalg.inv(source) @ np.asarray(image.affine, dtype=np.float64)
    axis = int(np.abs(to_source[:3, 2]).argmax())
    _, i, j, count = image.shape
    centres = np.array([[(i - 1) / 2, (j - 1) / 2, k, 1.0] for k in range(count)])
    return axis, centres @ to_source[axis]
