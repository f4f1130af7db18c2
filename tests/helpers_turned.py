"""A head-like asymmetric phantom that was turned before its mask was drawn, and transforms written by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers_phantoms import oblique_affine, write_nifti

SPACING = (1.0, 1.25, 2.0)
SHAPE = (44, 40, 22)
CENTRE_RAS = (2.0, -3.0, 5.0)
LEFT, RIGHT = 1, 2
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def euler(degrees: tuple[float, float, float] = (9.0, -6.0, 14.0), shift=(1.5, -2.0, 1.0), centre=(1.0, 2.0, 3.0)):
    import SimpleITK as sitk

    return sitk.Euler3DTransform(centre, *(float(np.radians(angle)) for angle in degrees), shift)


def ras_matrix(transform) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(4, 4) in RAS of a SimpleITK transform, from where it sends four points."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - origin
    matrix[:3, 3] = origin
    return LPS @ matrix @ LPS


def centred(affine: np.ndarray, shape=SHAPE) -> np.ndarray:
    """The same grid, moved so that its middle lies at `CENTRE_RAS`."""
    affine = affine.copy()
    affine[:3, 3] += np.array(CENTRE_RAS) - (affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3])
    return affine


def places(affine: np.ndarray, shape=SHAPE) -> np.ndarray:
    """RAS mm (3, I, J, K) of every voxel."""
    index = np.array(np.meshgrid(*map(np.arange, shape), indexing="ij"), float)
    return np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def labels_at(points: np.ndarray) -> np.ndarray:
    """The truth in the turned space: two blocks of different size, `LEFT` at negative x (RAS)."""
    x, y, z = points - np.array(CENTRE_RAS).reshape(3, 1, 1, 1)
    labels = np.zeros(points.shape[1:], np.uint8)
    labels[(x > -14) & (x < -4) & (abs(y - 2) < 8) & (abs(z) < 9)] = LEFT
    labels[(x > 3) & (x < 11) & (abs(y + 3) < 6) & (abs(z - 3) < 8)] = RIGHT
    return labels


def head_at(points: np.ndarray) -> np.ndarray:
    """HU in the turned space: air, a skull, brain of 30 HU, the two blocks at 45 and 60 HU."""
    x, y, z = points - np.array(CENTRE_RAS).reshape(3, 1, 1, 1)
    radius = np.sqrt((x / 18) ** 2 + (y / 20) ** 2 + (z / 18) ** 2)
    head = np.full(points.shape[1:], -1000.0)
    head[radius < 1.15] = 800
    head[radius < 1.0] = 30
    labels = labels_at(points)
    head[labels == LEFT], head[labels == RIGHT] = 45, 60
    return head.astype(np.int16)


def scanner_image(transform, affine: np.ndarray, shape=SHAPE) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The head as the scanner saw it: what lies at y in the turned space lies at T(y) on the scanner."""
    back = np.linalg.inv(ras_matrix(transform))
    points = places(affine, shape)
    return head_at(np.tensordot(back[:3, :3], points, 1) + back[:3, 3].reshape(3, 1, 1, 1))


def sitk_image(array: np.ndarray, affine: np.ndarray):  # type: ignore[no-untyped-def]
    import SimpleITK as sitk

    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_case(folder: Path, name: str, degrees=(9.0, -6.0, 14.0), seed: int = 0) -> np.ndarray:
    """Write `name.nii.gz`, `name.txt` (as ITK-SNAP does) and `name-seg.nii.gz`; return the affine of the CT."""
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    transform = euler(degrees)
    ct_affine = centred(oblique_affine(SPACING))
    mask_affine = centred(oblique_affine(SPACING, degrees=(0, 0, 0)))
    ct = scanner_image(transform, ct_affine)
    ct = ct + np.random.default_rng(seed).integers(-3, 4, ct.shape).astype(np.int16)
    write_nifti(folder / f"{name}.nii.gz", ct, ct_affine)
    write_nifti(folder / f"{name}-seg.nii.gz", labels_at(places(mask_affine)), mask_affine)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(transform.GetMatrix())
    affine.SetCenter(transform.GetCenter())
    affine.SetTranslation(transform.GetTranslation())
    sitk.WriteTransform(affine, str(folder / f"{name}.tfm"))
    text = (folder / f"{name}.tfm").read_text().replace("AffineTransform", "MatrixOffsetTransformBase")
    (folder / f"{name}.tfm").unlink()
    (folder / f"{name}.txt").write_text(text)
    return ct_affine
