"""Whether an image and its label can be trained on: they open, lie on one grid, and every value has a name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.collections import Candidate
from ctseg.collections.turned import TRANSFORM
from ctseg.errors import GeometryError, InputError
from ctseg.flat.shapes import Outlines
from ctseg.items import check_same_grid, volume_of
from ctseg.prepare.pairtypes import Pair
from ctseg.turning.itktransforms import read_transform
from ctseg.volume import Volume

_SHOWN_VALUES = 6
_LOST_SHARE = 0.05  # of a turned mask's volume: resampling alone changes less


@dataclass(frozen=True)
class Measured:
    """What is said of a pair in the report.

    Attributes:
        shape: voxels (I, J, K).
        spacing: mm along the axes.
        image_range: smallest and largest value of the image.
        voxels: structure -> voxels that have it.
        voxel_ml: volume of a voxel in ml.
        digest: of the image's voxels, to find the same image twice.
        notes: sentences.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    image_range: tuple[float, float]
    voxels: dict[str, int]
    voxel_ml: float
    digest: str
    notes: tuple[str, ...]


def read_pair(
    candidate: Candidate, item: Mapping[Any, Any], modality: str, codes: Mapping[str, int], resize: bool = False
) -> Pair:
    """Read an image and its label and put them side by side, as training would.

    Args:
        candidate: the case.
        item: the further keys of its datalist item (`slice_spacing`, `slice_orientation`, `itk_transform`: the label
            lies in a turned space and is brought onto the image).
        modality: of the image.
        codes: structure -> value in the label map that is made where each structure has a file of its own.
        resize: bring a flat mask of another size to its image's.

    Raises:
        InputError: a file is missing or cannot be read.
        GeometryError: they do not lie on one grid.
    """
    image = volume_of(candidate.image, item, modality)
    if item.get("flat"):
        from ctseg.flat.pairs import flat_pair

        return flat_pair(image, candidate, item, codes, resize)
    if isinstance(candidate.label, Outlines):
        raise InputError("outlines are drawn on flat images only: prepare it with the kind that it has")
    if isinstance(candidate.label, Path):
        label = volume_of(candidate.label, item, "label")
        if item.get(TRANSFORM):
            return _turned_back(image, label, Path(str(item[TRANSFORM])))
        check_same_grid(image.shape, image.affine, label.shape, label.affine, candidate.label.name)
        return Pair(image, label.array, image.notes)
    combined, notes = _combined(image, candidate.label, codes)
    return Pair(image, combined, (*image.notes, *notes))


def measure_pair(
    pair: Pair, values: Mapping[int, str], present: Mapping[str, bool], *, others: bool = False
) -> Measured:
    """Count the voxels of each structure.

    Args:
        pair: image and label.
        values: value -> structure; every other value but 0 is unknown.
        present: structure -> whether its data source says it is there; checked.
        others: let unknown values pass as background.

    Raises:
        InputError: an unknown value, one that is no whole number, or a presence flag that the label contradicts.
    """
    counts = value_counts(pair.labels)
    unknown = sorted(value for value in counts if value and value not in values)
    if unknown and not others:
        shown = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:_SHOWN_VALUES])
        more = f" and {len(unknown) - _SHOWN_VALUES} more" if len(unknown) > _SHOWN_VALUES else ""
        known = ", ".join(f"{value} {name}" for value, name in list(values.items())[:_SHOWN_VALUES])
        raise InputError(
            f"its label has the unknown values {shown}{more}, known are 0 background, {known}: "
            "name them with --label NAME=VALUE, or pass --ignore-other-labels to count them as background"
        )
    voxels = dict.fromkeys(dict.fromkeys(values.values()), 0)
    for value, name in values.items():
        voxels[name] += counts.get(value, 0)
    wrong = [name for name, flag in present.items() if name in voxels and flag != (voxels[name] > 0)]
    if wrong:
        said = "; ".join(
            f"{name} is {'present' if present[name] else 'absent'} in the table but has {voxels[name]} voxels"
            for name in wrong
        )
        raise InputError(f"{said}: correct the table or the mask, or pass --flags masks to trust the masks")
    notes = pair.notes if any(voxels.values()) else (*pair.notes, "its label is empty")
    array = pair.image.array
    return Measured(
        shape=pair.image.shape,
        spacing=pair.image.spacing,
        image_range=(float(array.min()), float(array.max())),
        voxels=voxels,
        voxel_ml=abs(float(np.linalg.det(pair.image.source_affine[:3, :3]))) / 1000,
        digest=_digest(array),
        notes=notes,
    )


def value_counts(labels: NDArray[Any]) -> dict[int, int]:
    """Return value -> voxels, slice by slice, so that no sorted copy of a big volume is made.

    Raises:
        InputError: a value that is no whole number.
    """
    counts: dict[int, int] = {}
    for k in range(labels.shape[-1]):
        values, numbers = _unique(labels[..., k])
        for value, number in zip(values, numbers, strict=True):
            if value != int(value):
                raise InputError(
                    f"its label has the value {value:g}, but labels are whole numbers: "
                    "it was perhaps resampled without nearest neighbour; export it again"
                )
            counts[int(value)] = counts.get(int(value), 0) + number
    return counts


def _unique(plane: NDArray[Any]) -> tuple[list[float], list[int]]:
    if plane.dtype.kind in "iu" and plane.min() >= 0:  # counting is ten times faster than sorting
        numbers = np.bincount(plane.ravel())
        values: NDArray[Any] = np.flatnonzero(numbers)
        return values.tolist(), numbers[values].tolist()
    values, numbers = np.unique(plane, return_counts=True)
    return values.tolist(), numbers.tolist()


def _turned_back(image: Volume, label: Volume, path: Path) -> Pair:
    """Bring a mask of the turned head onto its image; what falls outside is said."""
    from ctseg.turning.resampling import map_back

    transform = read_transform(path)
    value_counts(label.array)
    labels = map_back(label.array, label.affine, transform, image, "nearest")
    notes = [f"its mask was turned by {transform.turn_degrees:.1f} degrees onto the image"]
    size = [float(np.linalg.det(volume.affine[:3, :3])) for volume in (image, label)]
    drawn = float((label.array != 0).sum()) * abs(size[1] * np.linalg.det(transform.matrix[:3, :3]))
    kept = float((labels != 0).sum()) * abs(size[0])
    if drawn and abs(kept / drawn - 1) > _LOST_SHARE:
        notes.append(f"{kept / drawn:.0%} of its volume is on the image afterwards: is the transform the right one?")
    return Pair(image, labels, (*image.notes, *notes))


def _combined(
    image: Volume, masks: Mapping[str, Path], codes: Mapping[str, int]
) -> tuple[NDArray[np.uint8], Sequence[str]]:
    """Put binary masks into one label map; of two that claim a voxel the first in order of `codes` has it."""
    combined = np.zeros(image.shape, dtype=np.uint8)
    notes = []
    for name, code in codes.items():
        mask = volume_of(masks[name], {}, "label")
        try:
            check_same_grid(image.shape, image.affine, mask.shape, mask.affine, masks[name].name)
        except GeometryError as error:
            raise GeometryError(f"the mask of {name} does not fit: {error}") from error
        found = mask.array != 0
        shared = int((found & (combined != 0)).sum())
        if shared:
            notes.append(f"{shared} voxels of {name} belong to an earlier structure too and stay with that one")
        combined[found & (combined == 0)] = code
    return combined, notes


def _digest(array: NDArray[Any]) -> str:
    digest = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=16)
    for k in range(array.shape[-1]):
        digest.update(np.ascontiguousarray(array[..., k]).tobytes())
    return digest.hexdigest()
