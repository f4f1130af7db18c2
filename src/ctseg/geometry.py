"""Where a grid lies in space: affines checked, cleaned, and turned between RAS and LPS.

An affine here is (4, 4) float64 and maps a voxel index (i, j, k), taken at the voxel's centre, to millimetres in RAS
(x grows to the patient's right, y to the front, z to the head). ITK and DICOM speak LPS: x and y
change sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError

Affine = NDArray[np.float64]

# Cosine between two axes of one grid: 0.001 is 0.06 degrees, or 0.3 mm over a stack of 300 mm. Header noise of float32
# stays below 1e-6, rounding to four decimals below 2e-4; a tilted gantry starts at 0.5 degrees (0.009).
SHEAR_TOLERANCE = 1e-3
# Directions nearer than this to the scanner's axes are the scanner's axes: 0.006 degrees, 0.05 mm over 500 mm.
AXIS_TOLERANCE = 1e-4
# Voxels outside of this range of mm are no patient's; most often the unit is not mm.
SPACING_RANGE_MM = (0.005, 100.0)
_COSINE_DECIMALS = 6
_SPACING_DECIMALS = 6
_ORIGIN_DECIMALS = 4
_LPS_SIGNS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])


def ras_from_lps(affine: Affine) -> Affine:
    """Turn an affine that ends in LPS millimetres into one that ends in RAS millimetres."""
    turned: Affine = _LPS_SIGNS @ np.asarray(affine, dtype=np.float64)
    return turned


def lps_from_ras(affine: Affine) -> Affine:
    """Turn an affine that ends in RAS millimetres into one that ends in LPS millimetres."""
    return ras_from_lps(affine)  # the same two signs


def affine_from_lps_parts(directions: Any, spacing: Sequence[float], origin: Sequence[float]) -> Affine:
    """Build the RAS affine of an ITK grid.

    Args:
        directions: (3, 3), **columns** are the unit directions of the index axes in LPS, as ITK keeps them.
        spacing: mm along each index axis.
        origin: LPS mm of the centre of voxel (0, 0, 0).
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)
    return ras_from_lps(affine)


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the voxel size in mm along the three index axes."""
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return (float(x), float(y), float(z))


def check_spacing(spacing: Sequence[float], what: str) -> None:
    """Refuse a voxel size that is not finite, not positive, or outside of `SPACING_RANGE_MM`.

    Raises:
        GeometryError: with the size found.
    """
    shown = " x ".join(f"{size:g}" for size in spacing)
    if not all(np.isfinite(size) for size in spacing):
        raise GeometryError(f"{what} states a voxel size of {shown} mm, which is no number; export the image again")
    if any(size <= 0 for size in spacing):
        raise GeometryError(
            f"{what} states a voxel size of {shown} mm, but each must be above zero; correct the header or export again"
        )
    low, high = SPACING_RANGE_MM
    if any(not low <= size <= high for size in spacing):
        raise GeometryError(
            f"{what} states a voxel size of {shown} mm, but {low:g} to {high:g} mm is expected; "
            "check that its unit is millimetres"
        )


def check_affine(affine: Affine, what: str) -> None:
    """Refuse an affine that does not place a grid of right-angled voxels in space.

    Args:
        affine: (4, 4), voxel index to mm, RAS or LPS.
        what: the image's name in the sentence.

    Raises:
        GeometryError: wrong shape, NaN or infinite numbers, zero spacing, axes that fall together (singular), or axes
            that are not at right angles within `SHEAR_TOLERANCE` (gantry tilt); the sentence says by how much.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise GeometryError(f"{what} has an affine that is not 4 x 4 with the last row 0 0 0 1; export the image again")
    if not np.isfinite(matrix).all():
        raise GeometryError(f"{what} has NaN or infinite numbers in its affine, so it lies nowhere; export it again")
    spacing = spacing_of(matrix)
    check_spacing(spacing, what)
    directions = matrix[:3, :3] / np.asarray(spacing)
    if abs(np.linalg.det(directions)) < SHEAR_TOLERANCE:
        raise GeometryError(
            f"{what} has a singular affine (its axes lie in one plane), but three independent axes are needed; "
            "correct the header or export it again"
        )
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > SHEAR_TOLERANCE:
        angle = float(np.degrees(np.arcsin(min(cosines.max(), 1.0))))
        raise GeometryError(
            f"{what} is sheared by {angle:.2f} degrees (a tilted gantry?), but axes at right angles are needed; "
            "resample it to a straight grid first"
        )


def clean_affine(affine: Affine) -> Affine:
    """Remove the noise of a header: orthonormal directions times the spacing, in float64.

    The directions are the nearest orthonormal ones (polar decomposition of the unit columns). Those within
    `AXIS_TOLERANCE` of the scanner's axes become exactly these. Cosines and spacing are rounded to 1e-6 and the origin
    to 1e-4 mm, so that one scan kept as NIfTI (float32), NRRD and MetaImage (text) lies on one grid, bit for bit but
    for a number that happens to lie on the edge of two roundings. A voxel is moved by less than 0.001 mm by rounding.

    Args:
        affine: (4, 4), voxel index to mm, which `check_affine` lets pass.

    Returns:
        (4, 4) float64, in the same world (RAS stays RAS).
    """
    matrix = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = _nearest_orthonormal(matrix[:3, :3] / spacing)
    straight = np.round(directions)
    if np.abs(directions - straight).max() < AXIS_TOLERANCE:
        directions = straight
    else:
        directions = _nearest_orthonormal(np.round(directions, _COSINE_DECIMALS))
    cleaned = np.eye(4)
    cleaned[:3, :3] = directions * _rounded_spacing(spacing)
    cleaned[:3, 3] = np.round(matrix[:3, 3], _ORIGIN_DECIMALS)
    return cleaned + 0.0  # no negative zeros


def _nearest_orthonormal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    left, _, right = np.linalg.svd(matrix)
    nearest: NDArray[np.float64] = left @ right
    return nearest


def _rounded_spacing(spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 1/1024 mm where that is meant (a field of view over 512 pixels: 0.7421875), else to 1e-6 mm."""
    binary = np.round(spacing * 1024) / 1024
    return np.where(np.abs(spacing - binary) < 2e-7, binary, np.round(spacing, _SPACING_DECIMALS))
