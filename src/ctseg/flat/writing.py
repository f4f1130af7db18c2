"""Masks of flat images as PNG: one structure in black and white, several as an indexed picture in their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import OutputError
from ctseg.files import written_beside

WHITE = 255


def write_flat_mask(
    labels: NDArray[Any],
    codes: Mapping[str, int],
    path: Path,
    colours: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write a label map as PNG; the same map gives the same bytes.

    Args:
        labels: (H, W), values of `codes` or 0.
        codes: structure -> value. A single structure is written as 255; of several the values are palette indices.
        path: where to, written beside and renamed.
        colours: (r, g, b) of structures, for the palette.

    Raises:
        OutputError: values that are no labels, or the file cannot be written.
    """
    from PIL import Image

    if labels.ndim != 2 or labels.dtype.kind not in "biu" or (labels.size and (labels.min() < 0 or labels.max() > 255)):
        raise OutputError(
            f"the mask for {path} has {labels.dtype} of shape {labels.shape}; expected labels 0 to 255, 2D"
        )
    if len(codes) == 1:
        picture = Image.fromarray(np.where(labels > 0, WHITE, 0).astype(np.uint8))
    else:
        picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
        picture.putpalette(_palette(codes, colours or {}))
    with written_beside(path) as beside:
        picture.save(beside, format="PNG", optimize=False)
    return path


def _palette(codes: Mapping[str, int], colours: Mapping[str, Sequence[int]]) -> list[int]:
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for number, (name, code) in enumerate(codes.items()):
        table[code] = colours.get(name, ((number * 97 + 120) % 256, (number * 57 + 60) % 256, 200))
    return [int(value) for value in table.ravel()]
