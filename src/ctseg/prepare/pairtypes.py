"""An image with its labels, as a preparation checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ctseg.volume import Volume


@dataclass(frozen=True)
class Pair:
    """An image with its label map, both read, on one grid.

    Attributes:
        image: the image.
        labels: (I, J, K) integers, the values of the data source.
        notes: what was corrected or is unusual, one sentence each.
        changed: the labels are not those of the file, which must not be trained on.
    """

    image: Volume
    labels: NDArray[Any]
    notes: tuple[str, ...]
    changed: bool = False
