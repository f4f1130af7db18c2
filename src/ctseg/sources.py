"""What every reader hands over, and the one rule for the numbers' type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ctseg.dicom.series import Slice

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Loaded:
    """A file's content before the checks of values.

    Attributes:
        array: (I, J, K) in stored order, int16 or float32.
        affine: (4, 4) float64, index to RAS mm exactly as the file states it; passed by `geometry.check_affine`.
        format: "nifti", "nrrd", "metaimage" or "dicom".
        header: nibabel header of a NIfTI file, untouched.
        series_uid: SeriesInstanceUID of a DICOM series.
        notes: one sentence for each thing that was corrected or chosen.
        eight_bit: the file keeps unsigned 8-bit values without scaling.
        slices: what the files of a DICOM series say of themselves, in the order of the last axis.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    format: str
    header: Any = None
    series_uid: str | None = None
    notes: tuple[str, ...] = ()
    eight_bit: bool = False
    slices: tuple[Slice, ...] = ()


def scaled(raw: NDArray[Any], slope: float = 1.0, inter: float = 0.0) -> NDArray[Any]:
    """Apply value * slope + inter; int16 when integers stay integers that fit, else float32.

    Computed in float64 slab by slab along the last axis, so that the peak is the result and one slab. The array itself
    is returned where nothing has to change.

    Args:
        raw: (I, J, K) of any real type.
        slope: as the file states it.
        inter: as the file states it.
    """
    plain = slope == 1.0 and inter == 0.0
    if raw.dtype.kind in "iu" and float(slope).is_integer() and float(inter).is_integer():
        ends = sorted(int(end) * int(slope) + int(inter) for end in (raw.min(), raw.max()))
        if ends[0] >= _INT16.min and ends[1] <= _INT16.max:
            if plain:
                return raw.astype(np.int16, order="K", copy=False)
            if raw.dtype == np.int16 and slope == 1.0 and _INT16.min <= inter <= _INT16.max:
                return np.add(raw, np.int16(inter))  # the ends fit, so nothing in between overflows
            return _converted(raw, slope, inter, np.dtype(np.int16))
    if plain and raw.dtype == np.float32 and raw.dtype.isnative:
        return raw
    return _converted(raw, slope, inter, np.dtype(np.float32))


def _converted(raw: NDArray[Any], slope: float, inter: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    result = np.empty_like(raw, dtype=dtype, order="K")
    for index in range(raw.shape[-1]):
        result[..., index] = raw[..., index].astype(np.float64) * slope + inter
    return result
