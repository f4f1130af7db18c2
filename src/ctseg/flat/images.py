"""The in-memory form of a flat image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GREY, RGB, HU = "grey", "rgb", "hu"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"


@dataclass(frozen=True)
class FlatImage:
    """One picture.

    Attributes:
        array: (C, H, W) float32, rows from the top, columns from the left; C is 1, or 3 for red, green, blue.
        spacing: mm between rows and between columns; None where the file does not say it.
        kind: "grey", "rgb", or "hu": Hounsfield units of a CT slice.
        white: the value of full brightness, 255 or 65535 or what the bits of a DICOM image allow; None for "hu".
        source: the path.
        frame: which frame of a film or a multi-frame file, from 0.
        frames: how many there are; 1 for a picture.
        notes: one sentence for each thing that was chosen or changed on the way in.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, float] | None
    kind: str
    white: float | None
    source: Path
    frame: int = 0
    frames: int = 1
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.array.shape[1], self.array.shape[2])

    def brightness(self, window: tuple[float, float] | None = None) -> NDArray[np.float32]:
        """Return (C, H, W) float32 from 0 (black) to 1 (white).

        Args:
            window: HU that become 0 and 1, of a CT slice; None takes 0 to 80, a brain window. Not used otherwise.
        """
        low, high = (window or (0.0, 80.0)) if self.white is None else (0.0, self.white)
        scaled: NDArray[np.float32] = np.clip((self.array - np.float32(low)) / np.float32(high - low), 0, 1)
        return scaled

    def grey(self) -> NDArray[np.float32]:
        """Return (H, W) float32 of the array's own values: the luminance where there are colours."""
        if len(self.array) == 1:
            return self.array[0]
        weighted: NDArray[np.float32] = np.tensordot(np.array(LUMINANCE, np.float32), self.array, axes=1)
        return weighted
