"""The sector of an ultrasound picture: the fan or rectangle that the probe saw, without the black and text outside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError


def find_sector(picture: NDArray[np.generic], level: float = 0.01, smallest: float = 0.1) -> NDArray[np.bool_] | None:
    """Return where the sector is: the convex hull of the largest region that is mostly bright.

    Bright is what exceeds `level` of the range from the darkest value to the 99th percentile. A region is mostly bright
    where more than half of a small window is, which bridges speckle and cuts off letters and rulers. The hull takes in
    dark cysts and shadows; of a curved probe it takes in the black between arc and chord too.

    Args:
        picture: grey values (H, W), any scale; the surroundings dark.
        level: 0 up to below 1.
        smallest: share of the picture below which a region is no sector.

    Returns:
        (H, W), or None when there is no such region: a black picture, or one of text only.

    Raises:
        ConfigError: for a value that cannot work.
    """
    from scipy import ndimage
    from skimage.morphology import convex_hull_image

    if not 0 <= level < 1 or not 0 < smallest < 1:
        raise ConfigError(
            f"The sector finder got level {level} and smallest {smallest}: expected 0 up to below 1, and above 0 up to "
            "below 1."
        )
    values = np.asarray(picture, dtype=np.float32)
    low, high = float(values.min()), float(np.percentile(values, 99))
    if not high > low:
        return None
    bright = values > low + level * (high - low)
    window = max(3, min(values.shape) // 48 | 1)
    mostly = ndimage.uniform_filter(bright.astype(np.float32), window) > 0.5
    regions, count = ndimage.label(mostly)
    if not count:
        return None
    sizes = np.bincount(regions.ravel())[1:]
    region = regions == 1 + int(sizes.argmax())
    # The window rounds corners off: the bright pixels within half a window of the region belong to it.
    region |= bright & ndimage.binary_dilation(region, iterations=window // 2)
    sector = np.asarray(convex_hull_image(region), dtype=bool)
    return sector if sector.mean() >= smallest else None
