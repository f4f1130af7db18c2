"""What is done to a label map after the network, as rules and on NumPy arrays: without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError

KEEP = ("all", "largest", "core")
HOLES = ("none", "3d", "axial")


@dataclass(frozen=True)
class Rules:
    """What is done to one organ, in this order.

    Attributes:
        keep: "all" pieces; the "largest" one, connected through faces in 3D; or the one with the largest "core",
            without what hangs on it by a thin bridge (`KeepLargestCored`).
        radius_mm: of "core": half of the width of a bridge that is cut.
        reach_mm: of "core": how far beyond the cut the organ is kept.
        fill_holes: "none"; "3d": background that the organ encloses on all sides; "axial": background that it encloses
            within an axial slice.
        min_ml: pieces smaller than this go, in ml.

    Raises:
        ConfigError: for a value that cannot work.
    """

    keep: str = "all"
    radius_mm: float = 6.0
    reach_mm: float = 15.0
    fill_holes: str = "none"
    min_ml: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("keep", self.keep, KEEP), ("fill_holes", self.fill_holes, HOLES)):
            if value not in known:
                raise ConfigError(f"The clean-up's {name} {value!r} is not known: expected one of {', '.join(known)}.")
        for name in ("radius_mm", "reach_mm", "min_ml"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ConfigError(f"The clean-up's {name} is {value!r}: expected a number, 0 or more; correct it.")


def rules_of(organ: str, options: Mapping[str, Any] | None) -> Rules:
    """Return an organ's rules from a configuration.

    Raises:
        ConfigError: for an unknown option, or a value that cannot work.
    """
    known = [field.name for field in fields(Rules)]
    if unknown := [name for name in options or {} if name not in known]:
        raise ConfigError(
            f"The clean-up of {organ} has no option {', '.join(unknown)}: expected one of {', '.join(known)}."
        )
    return Rules(**dict(options or {}))


def fill_holes(mask: NDArray[np.bool_], axis: int | None = None) -> NDArray[np.bool_]:
    """Return a mask with its holes filled, those that its own faces (in a slice: edges) close.

    MONAI's `FillHoles` knows no slices and looks at the whole grid; this works in the mask's own box.

    Args:
        mask: (I, J, K).
        axis: None for holes in 3D; else holes within each slice along this axis.
    """
    from scipy.ndimage import binary_fill_holes

    from ctseg.evaluation.scoring import bounding_box

    if not mask.any():
        return mask
    box = bounding_box(mask)
    result = mask.copy()
    if axis is None:
        result[box] = binary_fill_holes(mask[box])
    else:
        slices = np.moveaxis(mask[box], axis, 0)
        result[box] = np.moveaxis(np.stack([binary_fill_holes(one) for one in slices]), 0, axis)
    return result


def large_pieces(labels: NDArray[np.uint8], voxels: float) -> NDArray[np.uint8]:
    """Return a label map without the pieces of fewer voxels; each label's own, connected through faces."""
    from scipy.ndimage import label

    kept = np.zeros_like(labels)
    for code in np.unique(labels):
        if code:
            pieces, _ = label(labels == code)
            large = np.bincount(pieces.ravel()) >= voxels
            large[0] = False
            kept[large[pieces]] = code
    return kept
