"""A head CT drawn from a labelled template: anatomy bent, tissue given HU, scanned at any turn, with noise.

The way of SynthSeg (Billot et al., Medical Image Analysis 86:102789, 2023) for CT: the image is made out of the labels,
so the labels are exact, whatever is varied. Here the HU of tissue are drawn from what head CTs show, not at random.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.heads.atlas import Array, Template

Affine = NDArray[np.float64]

_BENDS_MM = ((40.0, 3.0), (14.0, 1.2))  # distance of the control points, standard deviation of their move
_DEEP_GREY = (1, 2, 11, 12)  # caudate and lentiform nuclei
_CAPSULE = (3, 13)


@dataclass(frozen=True)
class Head:
    """What is drawn at random for one head; angles in degrees, lengths in mm, tissue in HU.

    Attributes:
        turn, tilt, nod: of the head in the scanner, about the axes to the top, to the front and to the right.
        gantry: inclination of the whole stack of slices.
        size: of the head along x, y, z, times the template's.
        pixel, slice_mm: of the grid.
        grey, white, csf, bone, fat: tissue; `deep` is added to the deep grey nuclei.
        noise: standard deviation.
        atrophy: factor of fluid.
        infarct, bleed: HU added within a ball, 0 for none; `place` its middle in the template, `radius` its size.
    """

    turn: float
    tilt: float
    nod: float
    gantry: float
    size: tuple[float, float, float]
    pixel: float
    slice_mm: float
    grey: float
    white: float
    csf: float
    bone: float
    fat: float
    deep: float
    noise: float
    atrophy: float
    infarct: float
    bleed: float
    place: tuple[float, float, float]
    radius: float

    def told(self) -> dict[str, Any]:
        """Return the values rounded, for a report."""
        return {
            name: [round(one, 3) for one in value] if isinstance(value, tuple) else round(float(value), 3)
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Limits:
    """How far heads vary: the largest angles in degrees, and the sizes of voxels in mm to choose from."""

    turn: float = 20.0
    tilt: float = 12.0
    nod: float = 12.0
    gantry: float = 20.0
    pixels: tuple[float, float] = (0.8, 1.2)
    slices: tuple[float, ...] = (1.25, 2.5, 3.0, 5.0)


def draw_head(rng: np.random.Generator, limits: Limits) -> Head:
    """Draw what a head is like."""
    white = rng.uniform(24, 31)
    side = rng.choice([-1.0, 1.0])
    ill = rng.random()
    return Head(
        turn=rng.uniform(-limits.turn, limits.turn),
        tilt=rng.uniform(-limits.tilt, limits.tilt),
        nod=rng.uniform(-limits.nod, limits.nod),
        gantry=rng.uniform(0, limits.gantry) * float(rng.random() < 0.5),
        size=(rng.uniform(0.92, 1.08), rng.uniform(0.92, 1.08), rng.uniform(0.92, 1.08)),
        pixel=rng.uniform(*limits.pixels),
        slice_mm=float(rng.choice(limits.slices)),
        grey=white + rng.uniform(4, 10),
        white=white,
        csf=rng.uniform(2, 12),
        bone=rng.uniform(700, 1400),
        fat=rng.uniform(-60, 30),
        deep=rng.uniform(-1, 3),
        noise=rng.uniform(2, 7),
        atrophy=rng.uniform(0.6, 1.5),
        infarct=-rng.uniform(4, 14) if ill < 0.25 else 0.0,
        bleed=rng.uniform(20, 35) if ill > 0.9 else 0.0,
        place=(side * rng.uniform(15, 55), rng.uniform(-50, 30), rng.uniform(-10, 35)),
        radius=rng.uniform(8, 25),
    )


def draw_ct(
    head: Head, template: Template, labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Affine]:
    """Scan a head.

    Args:
        head: what it is like.
        template: the average head.
        labels: (X, Y, Z) on the template's grid (`ctseg.heads.atlas.label_template`).
        rng: for the bends and the noise.

    Returns:
        int16 HU (I, J, K), labels on the same grid, and the affine, index (LPS order) to RAS mm; oblique with a gantry.
    """
    from scipy import ndimage

    affine, shape = _grid(head, template)
    index = _template_index(head, template, affine, shape, rng)
    thick = max(1, round(head.slice_mm / template.affine[2, 2]))

    def sampled(array: Array) -> Array:
        # a thick slice shows the mean over its thickness
        seen = ndimage.uniform_filter1d(array, thick, axis=2) if thick > 1 else array
        found: Array = ndimage.map_coordinates(seen, index, order=1, mode="constant", cval=float(array.min()))
        return found

    hu = sampled(_tissue(head, template, labels))
    hu += _shading(shape, rng) * (hu > -200)
    hu += ndimage.gaussian_filter(rng.normal(0, 1, shape).astype(np.float32), (0.6, 0.6, 0)) * (head.noise / 0.42)
    found = ndimage.map_coordinates(labels, index, order=0, mode="constant", cval=0)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), found.astype(np.uint8), affine


def _tissue(head: Head, template: Template, labels: NDArray[np.uint8]) -> Array:
    """HU of the head on the template's grid: shares of tissue within the brain, the average head round it."""
    fluid = np.clip(template.csf * head.atrophy, 0, 1)
    rest = np.maximum(template.grey + template.white, 1e-3)
    solid = (1 - fluid) / rest
    grey, white = template.grey * solid, template.white * solid
    brain = grey * head.grey + white * head.white + fluid * head.csf
    # the maps blur the deep nuclei; the labels say where they are
    brain = np.where(np.isin(labels, _DEEP_GREY), head.grey + head.deep, brain)
    brain = np.where(np.isin(labels, _CAPSULE), head.white + 1, brain)
    if head.infarct or head.bleed:
        brain += (head.infarct + head.bleed) * _ball(head, template) * (template.grey + template.white > 0.5)
    inside = np.clip((template.grey + template.white + template.csf) * 1.6 - 0.3, 0, 1)
    # the average skull is blurred: its HU say how much bone, skin or air there is
    bone = np.clip((template.head - 120) / 200, 0, 1) * (inside < 0.5)
    skin = np.clip((template.head + 800) / 500, 0, 1)
    outer = bone * head.bone + (1 - bone) * (skin * head.fat + (1 - skin) * -1000)
    found: Array = (inside * brain + (1 - inside) * outer).astype(np.float32)
    return found


def _ball(head: Head, template: Template) -> Array:
    axes = [template.affine[a, 3] + template.affine[a, a] * np.arange(n) for a, n in enumerate(template.head.shape)]
    x, y, z = np.meshgrid(*[axis - middle for axis, middle in zip(axes, head.place, strict=True)], indexing="ij")
    found: Array = np.clip(2 * (1 - np.sqrt(x * x + y * y + z * z) / head.radius), 0, 1).astype(np.float32)
    return found


def _grid(head: Head, template: Template) -> tuple[Affine, tuple[int, int, int]]:
    """The scanner's grid round the middle of the head: rows to the left, columns to the back, slices upwards."""
    width = np.abs(np.diag(template.affine)[:3]) * template.head.shape * head.size + 40.0
    spacing = np.array([head.pixel, head.pixel, head.slice_mm])
    shape = np.ceil(width / spacing).astype(int)
    axes = rotation(0.0, 0.0, head.gantry) @ np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return affine, (int(shape[0]), int(shape[1]), int(shape[2]))


def _template_index(
    head: Head, template: Template, affine: Affine, shape: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """For each voxel of the scan, its index in the template (3, I, J, K): turned, scaled and bent."""
    middle = template.affine[:3, :3] @ ((np.asarray(template.head.shape) - 1) / 2) + template.affine[:3, 3]
    back = np.diag(1 / np.asarray(head.size)) @ rotation(head.turn, head.tilt, head.nod).T
    to_index = np.linalg.inv(template.affine)
    matrix = to_index[:3, :3] @ back @ affine[:3, :3]
    shift = to_index[:3, :3] @ (back @ affine[:3, 3] + middle) + to_index[:3, 3]
    voxel = [np.arange(n, dtype=np.float32) for n in shape]
    index = np.empty((3, *shape), np.float32)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for axis in range(3):
        i, j, k = (matrix[axis, a] * voxel[a] for a in range(3))
        index[axis] = i[:, None, None] + j[None, :, None] + k[None, None, :] + shift[axis]
        for distance, deviation in _BENDS_MM:
            index[axis] += _bend(shape, spacing, distance, deviation / template.affine[axis, axis], rng)
    return index


def _bend(
    shape: tuple[int, int, int],
    spacing: NDArray[np.float64],
    distance: float,
    deviation: float,
    rng: np.random.Generator,
) -> Array:
    """A smooth random field: random values at control points, linear or cubic between them."""
    from scipy import ndimage

    points = [max(4, int(np.ceil(n * mm / distance)) + 1) for n, mm in zip(shape, spacing, strict=True)]
    field = rng.normal(0, deviation, points).astype(np.float32)
    for axis, n in enumerate(shape):  # one axis after the other: a tenth of the work of all at once
        factor = [1.0, 1.0, 1.0]
        factor[axis] = n / field.shape[axis]
        field = ndimage.zoom(field, factor, order=3 if axis == 0 else 1, mode="nearest")
    return np.asarray(field)


def _shading(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """What beam hardening leaves: a few HU that change slowly."""
    return _bend(shape, np.ones(3), max(shape) / 2, 1.5, rng)


def rotation(turn: float, tilt: float, nod: float) -> NDArray[np.float64]:
    """Return (3, 3) in RAS: nod about x, then tilt about y, then turn about z, in degrees."""
    x, y, z = np.radians([nod, tilt, turn])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
