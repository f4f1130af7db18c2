"""A flat image and its mask side by side, whatever form the mask has: checked for size, or resized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.collections import Candidate
from ctseg.errors import GeometryError, InputError
from ctseg.files import written_beside
from ctseg.flat.items import FlatVolume
from ctseg.flat.shapes import Outlines, resized
from ctseg.flat.writing import write_flat_mask
from ctseg.items import volume_of
from ctseg.prepare.pairtypes import Pair
from ctseg.volume import Volume


def flat_pair(
    image: Volume, candidate: Candidate, item: Mapping[Any, Any], codes: Mapping[str, int], resize: bool
) -> Pair:
    """Return an image with its label map (H, W, 1).

    Args:
        image: read already.
        candidate: the case; its label is a mask's path, or outlines.
        item: the further keys of its datalist item.
        codes: structure -> value of a label map that is drawn.
        resize: bring a mask of another size to the image's.

    Raises:
        InputError: the mask cannot be read or drawn.
        GeometryError: it has another size.
    """
    if not isinstance(image, FlatVolume) or image.image is None:
        raise InputError(f"{candidate.image} is no flat image")
    size = image.image.size
    if isinstance(candidate.label, Outlines):
        labels = candidate.label.draw(size, codes, resize)
        changed = candidate.label.size not in (None, size)
        notes = (f"its outlines were drawn on {_said(candidate.label.size)}",) if changed else ()
        return Pair(image, labels[:, :, None], (*image.notes, *notes))
    if not isinstance(candidate.label, Path):
        raise InputError(f"{candidate.image} has masks of single structures; a flat image takes one picture of masks")
    mask = volume_of(candidate.label, item, "label")
    labels = mask.array[:, :, 0]
    if labels.shape == size:
        return Pair(image, mask.array, (*image.notes, *mask.notes))
    if not resize:
        raise GeometryError(
            f"its mask {candidate.label.name} has {_said(labels.shape)}, the image {_said(size)}: export the mask "
            "in the image's size, or pass --sizes resize"
        )
    note = f"its mask of {_said(labels.shape)} was brought to the image's {_said(size)}"
    return Pair(image, resized(labels, size)[:, :, None], (*image.notes, *mask.notes, note), changed=True)


def write_pair_labels(pair: Pair, codes: Mapping[str, int] | None, path: Path) -> Path:
    """Write a label map that was made here as PNG: by its codes, or (None) with the values that it has."""
    from PIL import Image

    labels = np.asarray(pair.labels[:, :, 0]).astype(np.uint8)
    if codes is not None:
        return write_flat_mask(labels, codes, path)
    with written_beside(path) as beside:
        Image.fromarray(labels).save(beside, format="PNG")
    return path


def _said(size: Any) -> str:
    return f"{size[0]} rows and {size[1]} columns"
