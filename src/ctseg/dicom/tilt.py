"""A tilted gantry: its slices lie askew in their stack. Straightened on the way in; the mask goes back by the affine.

Each slice of the straight grid lies in the plane of a slice of the series, so voxels are only shifted within their
plane, and nothing is interpolated between slices. The grid is widened until the whole series fits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import AIR_HU
from ctseg.geometry import SHEAR_TOLERANCE, clean_affine
from ctseg.turning.resampling import resample_image
from ctseg.volume import Volume


def tilt_degrees(affine: NDArray[np.float64]) -> float:
    """Return the angle between the third axis of a grid and the normal of its first two, 0 for a straight grid."""
    row, column, step = np.asarray(affine, dtype=np.float64)[:3, :3].T
    normal = np.cross(row, column)
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(normal) * np.linalg.norm(step))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def slice_distance(affine: NDArray[np.float64]) -> float:
    """Return the distance of the slices' planes in mm: below the third spacing where the gantry was tilted."""
    row, column, step = np.asarray(affine, dtype=np.float64)[:3, :3].T
    normal = np.cross(row, column)
    return abs(float(normal @ step)) / float(np.linalg.norm(normal))


def is_tilted(affine: NDArray[np.float64]) -> bool:
    """Whether a grid is sheared by more than a header's noise."""
    return tilt_degrees(affine) > float(np.degrees(SHEAR_TOLERANCE))


def straightened(volume: Volume) -> Volume:
    """Return a tilted volume on a straight grid; any other as it is.

    The affine of the result is straight; where the source lies is still said by `source` of `volume` alone, so a mask
    is brought back with `ctseg.grids.labels.resample_labels` onto `volume.affine` (`RestoreGridd` does).
    """
    if not is_tilted(volume.affine):
        return volume
    tilted = volume.affine
    row, column, step = tilted[:3, :3].T
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    straight = np.eye(4)
    straight[:3, 0], straight[:3, 1], straight[:3, 2] = row, column, normal * float(normal @ step)
    straight[:3, 3] = tilted[:3, 3]
    # how far the last slice is moved within its plane, in voxels along I and J
    moved = np.linalg.solve(straight[:3, :3], step)[:2] * (volume.shape[2] - 1)
    before = np.ceil(np.maximum(0, -moved)).astype(int)
    behind = np.ceil(np.maximum(0, moved)).astype(int)
    straight[:3, 3] -= straight[:3, :2] @ before
    straight = clean_affine(straight)
    i, j = (int(n) for n in np.asarray(volume.shape[:2]) + before + behind)
    array = resample_image(volume.array, tilted, np.eye(4), straight, (i, j, volume.shape[2]), "linear", AIR_HU)
    return dataclasses.replace(volume, array=array, affine=straight)
