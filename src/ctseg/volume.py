"""The one in-memory form of an image: an array on a grid that has a place in space."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ctseg.dicom.series import Slice


@dataclass(frozen=True)
class Volume:
    """A scalar 3D image with its place in the patient.

    Attributes:
        array: voxels, shape (I, J, K) in the stored order of the source, HU for a CT; int16 when the source holds
            integers that fit, else float32.
        affine: (4, 4) float64, voxel index to RAS millimetres, **cleaned**: its 3x3 part is orthonormal directions
            (polar decomposition) times the spacing. What transforms work with.
        source_affine: (4, 4) float64, voxel index to RAS millimetres exactly as the file states it. What is written.
        source: the path that the user gave.
        format: "nifti", "nrrd", "metaimage" or "dicom".
        header: the nibabel header of a NIfTI source, so that a mask repeats its sform and qform bit for bit.
        series_uid: SeriesInstanceUID of a DICOM source.
        notes: one sentence for each thing that was corrected or chosen on the way in.
        slices: of a DICOM source, what each file says of itself, in the order of the array's last axis; the files of a
            zip are gone by then, so only their UIDs and places count.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    source_affine: NDArray[np.float64]
    source: Path
    format: str
    header: Any = None
    series_uid: str | None = None
    notes: tuple[str, ...] = field(default=())
    slices: tuple[Slice, ...] = field(default=(), repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Grid size (I, J, K)."""
        i, j, k = self.array.shape
        return (i, j, k)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the axes (I, J, K)."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return (float(x), float(y), float(z))
