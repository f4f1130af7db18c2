"""Whether a file is a label map of its image: it opens, lies on the image's grid, and every value has a name.

What a viewer, a person or an archive hands in as a label is checked here before it is kept: a mask of another shape or
place, a text file, interpolated values and values that nobody named would each be learnt as the truth later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.geometry import clean_affine
from ctseg.items import check_same_grid
from ctseg.prepare.pairchecks import value_counts
from ctseg.reading import read_volume
from ctseg.volume import Volume

_SHOWN = 6
_LARGEST = 65535  # as many as an unsigned 16-bit label map can hold


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: voxels (I, J, K).
        affine: (4, 4) float64, voxel index to RAS mm, cleaned as in `Volume.affine`.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def grid_of(image: Path | Volume) -> Grid:
    """Return the grid of an image; of a NIfTI file only the header is read.

    Args:
        image: a volume, or a path that `ctseg.reading.read_volume` takes.

    Raises:
        InputError, GeometryError, ResourceError: as `read_volume`.
    """
    if isinstance(image, Volume):
        return Grid(image.shape, image.affine)
    if image.name.lower().endswith((".nii", ".nii.gz")) and image.is_file():
        from ctseg.nifti import read_nifti_grid

        try:
            shape, affine = read_nifti_grid(image)
        except OSError as error:
            raise InputError(f"{image} cannot be read: {error.strerror or error}; check the file") from error
        return Grid(shape, clean_affine(affine))
    volume = read_volume(image, "label")  # any modality: grey values are not judged here
    return Grid(volume.shape, volume.affine)


def check_label(label: Path, image: Path | Volume | Grid, names: Mapping[int, str]) -> dict[int, int]:
    """Refuse a file that is no label map of an image.

    Args:
        label: the file: NIfTI, NRRD or MetaImage.
        image: what it must fit: the image, or its grid.
        names: value -> name of each value that may occur; 0 is background and needs none.

    Returns:
        Value -> voxels; a label without any voxel above 0 is a statement too (the organ is not there) and passes.

    Raises:
        InputError: no image, not 3D, NaN, interpolated values, or a value without a name.
        GeometryError: another shape, or another place than the image's.
        ResourceError: the declared size does not fit in memory.
    """
    grid = image if isinstance(image, Grid) else grid_of(image)
    own = grid_of(label)  # before its voxels: a header may declare any size
    check_same_grid(grid.shape, grid.affine, own.shape, own.affine, label.name)
    volume = read_volume(label, "label")
    if any("NaN" in note for note in volume.notes):
        raise InputError(f"the label {label.name} holds NaN or infinite values, not whole numbers; export it again")
    try:
        counts = value_counts(volume.array)
    except InputError as error:
        raise InputError(f"the label {label.name} cannot be used: {error}") from error
    _check_names(counts, names, label.name)
    return counts


def check_label_array(array: NDArray[Any], grid: Grid, names: Mapping[int, str], name: str) -> dict[int, int]:
    """Refuse an array that is no label map, where its grid is the image's by construction (read from DICOM SEG).

    Args:
        array: (I, J, K) whole numbers.
        grid: of the image.
        names: as for `check_label`.
        name: the label's name in the sentence.

    Raises:
        InputError, GeometryError: as `check_label`.
    """
    check_same_grid(grid.shape, grid.affine, array.shape, grid.affine, name)
    counts = value_counts(array)
    _check_names(counts, names, name)
    return counts


def _check_names(counts: Mapping[int, int], names: Mapping[int, str], label: str) -> None:
    unknown = sorted(value for value in counts if value != 0 and value not in names)
    if not unknown and all(0 <= value <= _LARGEST for value in counts):
        return
    unknown = unknown or [value for value in counts if not 0 <= value <= _LARGEST]
    shown = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:_SHOWN])
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    known = ", ".join(f"{value} {name}" for value, name in sorted(names.items())[:_SHOWN] if value) or "none"
    raise InputError(
        f"the label {label} has values that nobody named: {shown}{more}; the named ones are: {known}; "
        "save it again with a name for each value"
    )
