"""Masks of several organs become one label map; where two overlap, the one named first wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, GeometryError
from ctseg.labelcodes import check_codes


def merge(masks: Sequence[tuple[str, NDArray[Any]]], codes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Merge masks of organs into one label map, in order of priority.

    Args:
        masks: name and mask of each organ, the most important first; the masks are arrays of one shape on one grid,
            where everything but 0 (or False) is the organ.
        codes: organ name -> its value in the label map, 1 to 255; more names than masks are fine.

    Returns:
        The label map, of the masks' shape: in each voxel the code of the first organ in the list that holds it, else 0.

    Raises:
        ConfigError: there is no mask, an organ comes twice, has no code, or its code cannot stand in a mask.
        GeometryError: the masks have different shapes.
    """
    names = [name for name, _ in masks]
    if not names:
        raise ConfigError("There is no mask to merge: expected at least one organ; name one.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)} is named more than once: the order says who wins, so name each once.")
    if missing := [name for name in names if name not in codes]:
        raise ConfigError(f"There is no code for {', '.join(missing)}: expected one of {', '.join(codes)}.")
    check_codes({name: codes[name] for name in names}, "the codes to merge with")
    shape = masks[0][1].shape
    for name, mask in masks[1:]:
        if mask.shape != shape:
            raise GeometryError(
                f"The mask of {name} has the grid {mask.shape}, that of {names[0]} has {shape}: expected one grid; "
                "bring both to the image's own grid before merging."
            )
    merged = np.zeros(shape, dtype=np.uint8)
    for name, mask in reversed(masks):  # the first one is written last, over all others
        merged[np.asarray(mask) != 0] = codes[name]
    return merged
