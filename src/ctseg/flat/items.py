"""A flat image as a volume of one slice, so that it goes the way of every other image: (H, W, 1), rows first.

Its first index runs down the rows, its second along the columns. Where no millimetres are known a pixel counts 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError
from ctseg.flat.images import FlatImage
from ctseg.flat.masks import read_mask
from ctseg.flat.reading import SUPPORTED, is_flat_path, read_flat
from ctseg.volume import Volume

FLAT = "flat"  # the key of an item whose image and mask are flat


@dataclass(frozen=True)
class FlatVolume(Volume):
    """A flat image on its grid; `array` is its grey (H, W, 1), `image` the picture itself; None for a mask."""

    image: FlatImage | None = None


def flat_affine(spacing: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return (4, 4), index (row, column, 0) to RAS mm: rows run to P and columns to L, as on a radiological slice.

    Args:
        spacing: mm between rows and columns; None counts pixels.
    """
    rows, columns = spacing or (1.0, 1.0)
    affine = np.zeros((4, 4))
    affine[1, 0], affine[0, 1], affine[2, 2], affine[3, 3] = -rows, -columns, 1.0, 1.0
    return affine


def flat_volume(image: FlatImage) -> FlatVolume:
    """Return a flat image as a volume of one slice."""
    affine = flat_affine(image.spacing)
    return FlatVolume(
        array=np.ascontiguousarray(image.grey())[:, :, None],
        affine=affine,
        source_affine=affine.copy(),
        source=image.source,
        format=FLAT,
        notes=image.notes,
        image=image,
    )


def flat_item(source: Any, item: Mapping[Hashable, Any], modality: str) -> FlatVolume:
    """Return what an item with `flat` names: the image, or (modality "label") the mask.

    Args:
        source: a path.
        item: `frame` chooses a frame; `spacing` gives mm between rows and columns where the file has none;
            `mask_values` and `mask_colors` say what a mask's values and colours mean (`ctseg.flat.masks`).
        modality: "label" for a mask.

    Raises:
        InputError: as `read_flat` and `read_mask`.
    """
    given = item.get("spacing")
    if given is not None and (len(given) != 2 or not min(map(float, given)) > 0):
        raise ConfigError(f"the item of {source} has the spacing {given}: expected two lengths in mm above 0")
    spacing = (float(given[0]), float(given[1])) if given is not None else None
    if modality != "label":
        image = read_flat(source, item.get("frame"))
        if spacing is not None:
            image = FlatImage(**{**vars(image), "spacing": spacing})
        return flat_volume(image)
    values = {int(value): str(name) for value, name in (item.get("mask_values") or {}).items()}
    labels, notes = read_mask(source, values or None, item.get("mask_colors"))
    affine = flat_affine(spacing)
    return FlatVolume(labels[:, :, None], affine, affine.copy(), Path(source), FLAT, notes=notes)


def images_of(image: str | None, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Return the items of an inference run: one flat image, else every one of a folder; called from a configuration.

    Raises:
        SystemExit: with a sentence, when there is nothing to read.
    """
    try:
        return [{"image": str(path), FLAT: True} for path in (flat_files(Path(image or dataset_dir)))]
    except InputError as error:
        raise SystemExit(f"ctseg: {error}") from error


def flat_files(source: Path) -> list[Path]:
    """Return a flat image, or the flat images of a folder by name.

    Raises:
        InputError: there is none.
    """
    if source.is_file():
        return [source]
    found = sorted(path for path in source.iterdir() if is_flat_path(path)) if source.is_dir() else []
    if not found:
        raise InputError(f"there is no flat image in {source}: name one, or a folder of {SUPPORTED}")
    return found
