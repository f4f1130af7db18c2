"""A tiny drawn atlas of two levels and a tiny head template, in the layout of the real ones; all of it ellipses."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

MM = 4.0
SHAPE = (46, 54, 44)
AFFINE = np.array([[-MM, 0, 0, 90.0], [0, MM, 0, -108.0], [0, 0, MM, -80.0], [0, 0, 0, 1]])  # LAS, as the real one
GANGLIA, ABOVE = 4.0, 24.0  # mm: where the levels lie in the template


def _world() -> tuple[np.ndarray, ...]:
    index = np.meshgrid(*[np.arange(n, dtype=float) for n in SHAPE], indexing="ij")
    return tuple(AFFINE[a, a] * index[a] + AFFINE[a, 3] for a in range(3))


def ventricles(x: np.ndarray, y: np.ndarray, z: float | np.ndarray) -> np.ndarray:
    """Horns in front at the level of the ganglia, long bodies at the one above."""
    lower = np.hypot((np.abs(x) - 14) / 7, (y - 20) / 14) < 1
    upper = np.hypot((np.abs(x) - 16) / 8, (y + 5) / 40) < 1
    return (lower & (np.abs(z - GANGLIA) < 9)) | (upper & (np.abs(z - ABOVE) < 9))


def write_template(folder: Path) -> Path:
    """Grey rim, white inside, ventricles, skull: scgrey, scwhite, sccsf, and scct in Cormack units."""
    x, y, z = _world()
    radius = np.sqrt((x / 64) ** 2 + (y / 82) ** 2 + ((z - 5) / 66) ** 2)
    brain, inner = radius < 1, radius < 0.8
    fluid = ventricles(x, y, z) & brain
    hu = np.where(radius < 1.25, 40.0, -1000.0)
    hu[(radius >= 1.02) & (radius < 1.17)] = 700
    hu[brain] = 35
    units = np.where(hu < -100, hu + 1000, np.where(hu <= 100, (hu + 1000) * 11 - 9000, hu + 3000))
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("scgrey", brain & ~inner & ~fluid),
        ("scwhite", inner & ~fluid),
        ("sccsf", fluid),
        ("scct", units),
    ):
        nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINE), folder / f"{name}.nii.gz")
    return folder


def write_atlas(folder: Path, groups: tuple[str, ...] = ("10_29", "30_49")) -> Path:
    """Two pictures for each group at 2 mm, in LPS as the real ones; both hemispheres share a label."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, -2.0, 1.0, 1.0])
    affine[:2, 3] = 100.0
    i, j = np.meshgrid(np.arange(101.0), np.arange(101.0), indexing="ij")
    x, y = 100 - 2 * i, 100 - 2 * j
    for group in groups:
        for level, z in (("subcortical", GANGLIA), ("cortical", ABOVE)):
            radius = np.sqrt((x / 64) ** 2 + (y / 82) ** 2 + ((z - 5) / 66) ** 2)
            image = np.where(radius < 1, np.where(radius < 0.8, 30, 37), 0)
            image[ventricles(x, y, z) & (radius < 1)] = 6
            labels = np.zeros(image.shape, np.uint8)
            outer = (radius < 1) & (np.abs(x) > 42)
            first = 5 if level == "subcortical" else 8
            for number, (low, high) in enumerate(((25, 90), (-20, 25), (-60, -20))):
                labels[outer & (y >= low) & (y < high)] = first + number
            if level == "subcortical":
                away = np.abs(x)
                labels[(np.hypot(away - 10, y - 2) < 6)] = 1
                labels[(np.hypot(away - 27, y - 2) < 7)] = 2
                labels[(np.abs(away - 19) < 2) & (np.abs(y - 2) < 12)] = 3
                labels[(np.abs(away - 37) < 2) & (np.abs(y - 2) < 14)] = 4
            for what, array in (("image", image), ("label", labels)):
                picture = nib.Nifti1Image(array.astype(np.uint8), affine)
                nib.save(picture, folder / f"{level}_{what}_{group}.nii.gz")
    return folder
