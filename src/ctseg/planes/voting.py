"""Several opinions on one image joined: the class that enough of them agree on, else background.

Reference system B has a network for each plane (axial, coronal, sagittal) and keeps what two of three agree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError


@dataclass(frozen=True)
class Agreement:
    """Label maps joined, and how far they agreed.

    Attributes:
        labels: uint8, the consensus; 0 where too few agree.
        counts: how many label maps agree -> voxels where that many, and no more, hold one same label above 0.
        lost: voxels that some label map labels and the consensus does not.
    """

    labels: NDArray[np.uint8]
    counts: dict[int, int]
    lost: int


def consensus(masks: Sequence[NDArray[Any]], least: int = 2) -> Agreement:
    """Join label maps: a voxel gets the label that at least `least` of them hold there, else 0 (background).

    Args:
        masks: two or more of one shape, integers 0 to 255; 0 is background and a vote like any other.
        least: how many must agree; more than half of them, so that no two labels can both win.

    Raises:
        ConfigError: fewer than two masks, shapes that differ, values that are no labels, or a `least` that cannot be.
    """
    if len(masks) < 2 or len({mask.shape for mask in masks}) > 1:
        shapes = ", ".join(str(mask.shape) for mask in masks)
        raise ConfigError(f"a consensus got label maps of shapes {shapes or 'none'}: expected two or more of one shape")
    if not len(masks) / 2 < least <= len(masks):
        raise ConfigError(
            f"a consensus of {least} out of {len(masks)} cannot work: expected more than half of them and at most all"
        )
    for mask in masks:
        if mask.dtype.kind not in "biu" or (mask.size and (mask.min() < 0 or mask.max() > 255)):
            raise ConfigError("a consensus got values that are no labels: expected whole numbers from 0 to 255")
    most = np.zeros(masks[0].shape, dtype=np.uint8)  # of the voxel's best label, how many hold it
    labels = np.zeros(masks[0].shape, dtype=np.uint8)
    for mask in masks:
        votes = np.zeros(mask.shape, dtype=np.uint8)
        for other in masks:
            votes += mask == other
        better = (mask > 0) & (votes > most)
        labels[better], most[better] = mask[better], votes[better]
    counts = {number: int((most == number).sum()) for number in range(1, len(masks) + 1)}
    labels[most < least] = 0
    lost = int(((most > 0) & (labels == 0)).sum())
    return Agreement(labels, counts, lost)
