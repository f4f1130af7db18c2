"""A head as formulas with ten regions on each side at two levels, whose HU are known, on any grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers_bundles import make_bundle
from helpers_heads import AFFINE, SHAPE, head, rotation

# name: x (from the mid-line), y, z of the middle in mm, and half sizes; two levels, z 0 to 16 and 28 to 44
_REGIONS = {
    "caudate": (12, 28, 8, 6, 8, 8),
    "lentiform": (26, 8, 8, 7, 12, 8),
    "internal capsule": (14, 4, 8, 4, 12, 8),
    "insula": (37, 8, 8, 3, 14, 8),
    "M4": (30, 46, 36, 12, 12, 8),
    "M5": (38, 10, 36, 12, 18, 8),
    "M6": (32, -30, 36, 12, 14, 8),
    "M1": (30, 48, 8, 12, 8, 8),
    "M2": (48, 8, 8, 7, 14, 8),
    "M3": (44, -28, 8, 8, 14, 8),
}
SIDES = ("left", "right")
LABELS = {f"{name} {side}": 10 * number + n for number, side in enumerate(SIDES) for n, name in enumerate(_REGIONS, 1)}


def region_head(
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    dark: dict[str, float] | None = None,
    affine: np.ndarray = AFFINE,
    shape: tuple[int, int, int] = SHAPE,
    noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 HU and the label map (I, J, K).

    The nth region has 30 + n HU, left ones 1 HU more, and `dark` takes HU off a region. The head is asymmetric: the
    left regions are 2 mm wider.

    Args:
        angles: turn, tilt and nod in degrees.
        dark: region -> HU taken off.
        affine: (4, 4), index to RAS mm.
        shape: of the grid.
        noise: standard deviation in HU.
    """
    array, _ = head(*angles, affine=affine, shape=shape, lesion=False, noise=0.0)
    index = np.array(np.meshgrid(*map(np.arange, shape), indexing="ij"), float).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    x, y, z = rotation(*angles).T @ (world - np.array([4.0, 3.0, 2.0])[:, None])
    labels, hu = np.zeros(x.size, np.uint8), array.reshape(-1).astype(float)
    for number, side in enumerate(SIDES):
        sign = -1 if side == "left" else 1  # RAS: x grows to the patient's right
        for n, (name, (cx, cy, cz, a, b, c)) in enumerate(_REGIONS.items(), 1):
            wide = a + (1 if side == "left" else 0)
            own = (abs(x - sign * cx) < wide) & (abs(y - cy) < b) & (abs(z - cz) < c) & (labels == 0)
            labels[own] = 10 * number + n
            hu[own] = 30 + n + (side == "left") - (dark or {}).get(f"{name} {side}", 0.0)
    if noise:
        hu += np.random.default_rng(1).normal(0, noise, hu.shape)
    return hu.round().astype(np.int16).reshape(shape), labels.reshape(shape)


def region_bundle(folder: Path, name: str = "regions_ct_segmentation") -> Path:
    """Write a bundle of these labels without a network."""
    entries = [
        {"name": label, "code": code, "color": [60 + 8 * code, 200 - 5 * code, 120], "snomed": {"value": str(code)}}
        for label, code in LABELS.items()
    ]
    return make_bundle(folder, name, weights=None, labels=entries)
