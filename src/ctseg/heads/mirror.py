"""The mirror plane of a head, found from the image, and the rotation that straightens the head by it.

A head looks nearly the same in the mirror. The plane is the one for which the image and its mirror image correlate best
(the idea of Ardekani et al., IEEE TMI 1997, for MR): a coarse search over two angles and a shift, then a simplex
search. A mirror plane says how far a head is turned and tilted towards a shoulder; how far it nods it cannot say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.heads.brain import AIR_BELOW, coarse, head_region
from ctseg.turning.itktransforms import PointTransform

Affine = NDArray[np.float64]

REACH_DEGREES = 40
_STEP_DEGREES = 10
_SHIFTS_MM = (-12.0, -4.0, 4.0, 12.0)
_LEVELS_MM = (8.0, 4.0)
_SHOWN_HU = (-200.0, 300.0)  # the surface and the skull count, not how dense the bone is
_OVERLAP = 0.5  # of the head's points must have a mirror point within the image
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class MirrorPlane:
    """The plane between left and right.

    Attributes:
        normal: unit vector in RAS, towards the patient's right (x > 0).
        point: RAS mm of its point nearest to the middle of the head.
        score: correlation of the image with its mirror image, -1 to 1; 0.9 and more in a whole head.
    """

    normal: tuple[float, float, float]
    point: tuple[float, float, float]
    score: float

    @property
    def turn_degrees(self) -> float:
        """Rotation of the head about the axis that runs to the head's top; positive turns R towards A."""
        return math.degrees(math.atan2(self.normal[1], self.normal[0]))

    @property
    def tilt_degrees(self) -> float:
        """Inclination of the normal: rotation towards a shoulder; positive lifts the right side."""
        return math.degrees(math.asin(max(-1.0, min(1.0, self.normal[2]))))

    def straightening(self) -> PointTransform:
        """Return the smallest rotation, about `point`, from the straightened head's space to the scanner's.

        In the straightened space the plane is x = `point[0]`.
        """
        normal, x = np.asarray(self.normal), np.array([1.0, 0.0, 0.0])
        axis, cosine = np.cross(x, normal), float(normal[0])
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        rotation = np.eye(3) + cross + cross @ cross / (1 + cosine)  # Rodrigues; the cosine is above 0
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = np.asarray(self.point) - rotation @ np.asarray(self.point)
        return PointTransform(_LPS @ matrix @ _LPS, kind="Euler3DTransform_double_3_3")

    def degrees_to(self, normal: NDArray[np.float64]) -> float:
        """Return the angle between this plane and one of another normal, 0 to 90."""
        cosine = abs(float(np.dot(self.normal, normal)) / float(np.linalg.norm(normal)))
        return math.degrees(math.acos(min(1.0, cosine)))


def find_mirror_plane(array: NDArray[Any], affine: Affine) -> MirrorPlane:
    """Find the mirror plane of a head that is turned and tilted by at most `REACH_DEGREES`.

    Args:
        array: (I, J, K) HU.
        affine: (4, 4), index to RAS mm, of any orientation.

    Returns:
        The best plane; its `score` says how well it mirrors. An image without any tissue has score 0.
    """
    from scipy import optimize

    levels = [_Level(array, affine, mm) for mm in _LEVELS_MM]
    if not levels[0].points.size:
        middle = affine @ [*((np.asarray(array.shape) - 1) / 2), 1.0]
        return MirrorPlane((1.0, 0.0, 0.0), (float(middle[0]), float(middle[1]), float(middle[2])), 0.0)
    centre = levels[-1].points.mean(axis=1)
    angles = range(-REACH_DEGREES, REACH_DEGREES + 1, _STEP_DEGREES)
    starts = [(float(turn), float(tilt), shift) for turn in angles for tilt in angles for shift in _SHIFTS_MM]
    ranked = sorted(starts, key=lambda start: -levels[0].score(start, centre))
    found = [
        optimize.minimize(
            lambda values: -levels[0].score(values, centre),
            start,
            method="Nelder-Mead",
            options={"initial_simplex": _simplex(start, 4.0), "xatol": 0.2, "fatol": 1e-5, "maxiter": 80},
        )
        for start in ranked[:3]
    ]
    best = min(found, key=lambda result: float(result.fun)).x
    last = optimize.minimize(
        lambda values: -levels[-1].score(values, centre),
        best,
        method="Nelder-Mead",
        options={"initial_simplex": _simplex(best, 1.5), "xatol": 0.02, "fatol": 1e-7, "maxiter": 150},
    )
    normal = _normal(last.x)
    point = centre + last.x[2] * normal
    return MirrorPlane(
        (float(normal[0]), float(normal[1]), float(normal[2])),
        (float(point[0]), float(point[1]), float(point[2])),
        -float(last.fun),
    )


class _Level:
    """The head at one size of cubes."""

    def __init__(self, array: NDArray[Any], affine: Affine, mm: float) -> None:
        image, self.place = coarse(array, affine, mm)
        inside = head_region(image, mm) if (image > AIR_BELOW).any() else np.zeros(image.shape, dtype=bool)
        low, high = _SHOWN_HU
        shown = np.where(inside, np.clip(image, low, high), low)
        from scipy import ndimage

        self.image: NDArray[np.float32] = ndimage.gaussian_filter(shown, 0.7).astype(np.float32)
        index = np.argwhere(ndimage.binary_dilation(inside)).T
        self.values = self.image[tuple(index)]
        self.points = self.place[:3, :3] @ index + self.place[:3, 3:]

    def score(self, values: Any, centre: NDArray[np.float64]) -> float:
        """Correlation of the head with its mirror image at (turn, tilt, shift along the normal)."""
        from scipy import ndimage

        if max(abs(float(values[0])), abs(float(values[1]))) > REACH_DEGREES:
            return -1.0  # beyond, the planes between front and back and between top and bottom would win
        normal = _normal(values)
        distance = normal @ (self.points - centre[:, None]) - values[2]
        mirrored = self.points - 2 * np.outer(normal, distance)
        index = (mirrored - self.place[:3, 3:]) / self.place[0, 0]
        shape = np.asarray(self.image.shape)[:, None]
        within = ((index >= 0) & (index <= shape - 1)).all(axis=0)
        if within.mean() < _OVERLAP:
            return -1.0
        other = ndimage.map_coordinates(self.image, index[:, within], order=1, mode="nearest")
        own = self.values[within]
        own, other = own - own.mean(), other - other.mean()
        length = float(np.sqrt((own * own).sum() * (other * other).sum()))
        return float((own * other).sum()) / length if length > 0 else -1.0


def _normal(values: Any) -> NDArray[np.float64]:
    turn, tilt = math.radians(float(values[0])), math.radians(float(values[1]))
    return np.array([math.cos(turn) * math.cos(tilt), math.sin(turn) * math.cos(tilt), math.sin(tilt)])


def _simplex(start: Any, size: float) -> NDArray[np.float64]:
    return np.asarray(start, dtype=np.float64) + np.vstack([np.zeros(3), np.eye(3) * size])
