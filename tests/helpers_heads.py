"""A small head as formulas, so that it can be scanned at any turn without interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

AFFINE = np.array([[-2.5, 0, 0, 110.0], [0, -2.2, 0, 105.0], [0, 0, 4.0, -70.0], [0, 0, 0, 1]])  # LPS order, mm
SHAPE = (88, 96, 45)


def rotation(turn: float, tilt: float, nod: float = 0.0) -> np.ndarray:
    """(3, 3) in RAS: nod about x, then tilt about y, then turn about z, in degrees."""
    x, y, z = np.radians([nod, tilt, turn])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def head(
    turn: float = 0.0,
    tilt: float = 0.0,
    nod: float = 0.0,
    shift: tuple[float, float, float] = (4.0, 3.0, 2.0),
    affine: np.ndarray = AFFINE,
    shape: tuple[int, int, int] = SHAPE,
    lesion: bool = True,
    noise: float = 5.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 HU, and the truth of the brain (bool): a head with nose, neck, ventricles, a one-sided bleed."""
    index = np.array(np.meshgrid(*map(np.arange, shape), indexing="ij"), float).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    x, y, z = rotation(turn, tilt, nod).T @ (world - np.array(shift)[:, None])
    hu = np.full(index.shape[1], -1000.0)

    def ellipsoid(cx: float, cy: float, cz: float, a: float, b: float, c: float) -> np.ndarray:
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2

    neck = (np.hypot(x, y + 20) < 50) & (z < -20)
    hu[(ellipsoid(0, 5, 0, 76, 95, 88) < 1) | neck] = 40  # scalp and neck
    hu[(ellipsoid(0, 92, -35, 10, 22, 18) < 1)] = 30  # nose
    hu[ellipsoid(0, 5, 0, 70, 89, 82) < 1] = 900  # skull
    brain = ellipsoid(0, 5, 0, 63, 82, 75) < 1
    hu[brain] = 32
    for side in (-1, 1):
        hu[ellipsoid(side * 12, 5, 8, 7, 30, 10) < 1] = 8  # ventricles
        hu[(ellipsoid(side * 30, 75, -45, 14, 14, 12) < 1)] = 5  # eyes, through the skull
    if lesion:
        hu[ellipsoid(35, -10, 15, 15, 18, 12) < 1] = 70
    hu[(np.hypot(x, y + 20) < 14) & (z < -40) & ~brain] = 35  # the canal of the spine
    wx, wy, _ = world
    hu[(wy < -100) & (wy > -104) & (abs(wx) < 70)] = -50  # a headrest, which does not turn with the head
    hu += np.random.default_rng(0).normal(0, noise, hu.shape)
    return hu.reshape(shape).round().astype(np.int16), brain.reshape(shape)


def template(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The head template at 2 mm, from Cormack units back to HU, and its affine (RAS mm).

    Cormack units stretch -100..100 HU by 11 (Rorden et al., NeuroImage 2012): 0..900 is HU + 1000, 900..3100 is
    -100..100 HU, above it HU + 3000.
    """
    import nibabel as nib
    import pytest

    path = shared_data / "head_ct_template" / "scct.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    image = nib.load(path)
    units = np.asarray(image.dataobj, float)
    hu = np.where(units <= 900, units - 1000, np.where(units <= 3100, (units + 9000) / 11 - 1000, units - 3000))
    return hu.round().astype(np.int16), np.asarray(image.affine, float)


def turned_affine(affine: np.ndarray, shape: tuple[int, ...], turn: float, tilt: float, nod: float) -> np.ndarray:
    """The affine of the same voxels, with the patient turned about the middle of the image: no interpolation."""
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    move = np.eye(4)
    move[:3, :3] = rotation(turn, tilt, nod)
    move[:3, 3] = middle - move[:3, :3] @ middle
    return move @ affine
