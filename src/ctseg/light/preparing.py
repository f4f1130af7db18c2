"""What is done to an image before the network, as an exported network's description names it: NumPy in place of MONAI.

Each step takes and returns a `Placed`. Arithmetic is float32 as in PyTorch; positions are float64, where MONAI's are
float32, so that images agree to about 1e-3 of the window's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.tilt import straightened
from ctseg.errors import ConfigError, InputError
from ctseg.light import flatsteps
from ctseg.volume import Volume

Affine = NDArray[np.float64]

# Spacings nearer than this are the same (MONAI's AFFINE_TOL).
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Placed:
    """An image on a grid.

    Attributes:
        array: (C, I, J, K) float32.
        affine: (4, 4), index to RAS mm.
    """

    array: NDArray[Any]
    affine: Affine

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sizes of the grid."""
        return (self.array.shape[1], self.array.shape[2], self.array.shape[3])


def loaded(volume: Volume, steps: Sequence[Mapping[str, Any]] = ()) -> tuple[Placed, list[Mapping[str, Any]]]:
    """Return a volume as the first step sees it, a tilted series on its straight grid; and the steps that are left.

    Raises:
        InputError: a tilted series where ITK is not installed; no flat image where the first step is `load_flat`.
    """
    if steps and steps[0]["step"] == "load_flat":
        options = {key: value for key, value in steps[0].items() if key != "step"}
        return Placed(*flatsteps.brightness(volume, **options)), list(steps[1:])
    try:
        straight = straightened(volume)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{volume.source.name} is of a tilted gantry, which needs the package {error.name}: use ctseg segment"
        ) from error
    return Placed(np.asarray(straight.array)[None], np.asarray(straight.affine, dtype=np.float64)), list(steps)


def prepared(image: Placed, steps: Sequence[Mapping[str, Any]]) -> Placed:
    """Take the steps that change one image; those that need other networks are `ctseg.light.predicting`'s.

    Raises:
        ConfigError: for a step that is not known, or whose options do not fit.
    """
    for step in steps:
        image = prepare(image, step)
    return Placed(np.ascontiguousarray(image.array, dtype=np.float32), image.affine)


def prepare(image: Placed, step: Mapping[str, Any]) -> Placed:
    """Take one step.

    Raises:
        ConfigError: as `prepared`.
    """
    name = str(step["step"])
    if name not in STEPS:
        raise ConfigError(f"there is no step {name!r} of preprocessing: expected one of {', '.join(STEPS)}")
    options = {key: value for key, value in step.items() if key != "step"}
    try:
        return STEPS[name](image, **options)
    except TypeError as error:
        raise ConfigError(f"the step {name!r} of preprocessing does not take these options ({error})") from error


def _orientation(image: Placed, axcodes: str) -> Placed:
    """Turn the axes, so that they run towards the three letters; nothing is interpolated."""
    from nibabel import orientations as axes

    turn = axes.ornt_transform(axes.io_orientation(image.affine), axes.axcodes2ornt(axcodes))
    turned = np.stack([axes.apply_orientation(channel, turn) for channel in image.array])
    return Placed(turned, image.affine @ axes.inv_ornt_aff(turn, image.sizes))


def _spacing(
    image: Placed,
    mm: Sequence[float],
    keep_from_mm: Sequence[float | None] | None = None,
    keep_to_mm: Sequence[float | None] | None = None,
) -> Placed:
    """Interpolate linearly onto voxels of other sizes; an axis within `keep_from_mm` to `keep_to_mm` is kept."""
    own = np.linalg.norm(image.affine[:3, :3], axis=0)
    new = np.array([_wanted(own[axis], axis, mm, keep_from_mm, keep_to_mm) for axis in range(3)])
    affine = image.affine.copy()
    affine[:3, :3] *= new / own
    array = image.array.astype(np.float32, copy=False)
    for axis, size in sorted(enumerate(image.sizes), key=lambda pair: own[pair[0]] / new[pair[0]]):
        count = int(np.rint((size - 1) * own[axis] / new[axis] + 1))
        if count != size or own[axis] != new[axis]:
            array = _linear(array, axis + 1, np.arange(count) * (new[axis] / own[axis]))
    return Placed(array, affine)


def _to_grid(
    image: Placed,
    mm: Sequence[float],
    thick_slices: float | None = None,
    thickest: float | None = None,
    plane: str = "axial",
    crop_air: Mapping[str, float] | None = None,
) -> Placed:
    """Turn to a plane's axes, cut the air away where asked for, resample over the same field of view (`ToGridd`)."""
    from ctseg.grids.spacing import body_box, new_shape, oriented, regridded

    array, affine = oriented(image.array[0], image.affine, plane=plane)
    shape = new_shape(array.shape, affine, mm, thick_slices, thickest)
    box = body_box(array, affine, shape, **crop_air) if crop_air else None
    array, affine = regridded(array, affine, shape, "bilinear", box)
    return Placed(array[None], affine)


def _wanted(
    own: float,
    axis: int,
    mm: Sequence[float],
    lowest: Sequence[float | None] | None,
    highest: Sequence[float | None] | None,
) -> float:
    target = float(mm[axis])
    low = lowest[axis] if lowest is not None else None
    high = highest[axis] if highest is not None else None
    low, high = min(target if low is None else low, target), max(target if high is None else high, target)
    return float(own) if low - _SAME_MM <= own <= high + _SAME_MM else target


def _linear(array: NDArray[np.float32], axis: int, places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate along one axis; beyond the ends the outermost values hold."""
    last = array.shape[axis] - 1
    places = np.clip(places, 0, last)
    lower = np.floor(places).astype(np.intp)
    weights = (places - lower).astype(np.float32).reshape([-1 if one == axis else 1 for one in range(array.ndim)])
    below = array.take(lower, axis=axis)
    step = array.take(np.minimum(lower + 1, last), axis=axis)
    step -= below
    step *= weights
    below += step
    return below


def _pixel_spacing(image: Placed, mm: Sequence[float]) -> Placed:
    """Put each slice onto larger or smaller pixels, smoothed as far as larger ones need it; the field of view stays."""
    own = np.linalg.norm(image.affine[:3, :2], axis=0)
    array = image.array.astype(np.float32, copy=False)
    scale = np.eye(4)
    for axis in (0, 1):
        size = array.shape[axis + 1]
        new = max(1, int(np.rint(size * own[axis] / float(mm[axis]))))
        if new != size:
            array = flatsteps.along(array, axis + 1, flatsteps.weights(size, new))
        scale[axis, axis], scale[axis, 3] = size / new, (size / new - 1) / 2
    return Placed(array, image.affine @ scale)


def _intensity(
    image: Placed, lowest: float, highest: float, to: Sequence[float] = (0.0, 1.0), clip: bool = True
) -> Placed:
    """Bring values from `lowest`..`highest` (HU for a CT) to `to`, cut off there or not."""
    array = (image.array.astype(np.float32) - np.float32(lowest)) / np.float32(highest - lowest)
    array *= np.float32(to[1] - to[0])
    array += np.float32(to[0])
    return Placed(np.clip(array, to[0], to[1], out=array) if clip else array, image.affine)


def _padded(image: Placed, sizes: Sequence[int]) -> Placed:
    """Pad with 0 on both sides, one voxel more behind where the number is odd."""
    before = [max(0, int(new) - old) // 2 for new, old in zip(sizes, image.sizes, strict=True)]
    width = [
        (front, max(0, int(new) - old) - front) for front, new, old in zip(before, sizes, image.sizes, strict=True)
    ]
    if not any(map(any, width)):
        return image
    return Placed(np.pad(image.array, [(0, 0), *width]), _moved(image.affine, [-front for front in before]))


def _moved(affine: Affine, voxels: Sequence[int]) -> Affine:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(voxels, dtype=np.float64)
    return moved


def _pad_to_multiple(image: Placed, of: Sequence[int]) -> Placed:
    return _padded(
        image, [-(-size // int(k)) * int(k) if int(k) > 1 else size for size, k in zip(image.sizes, of, strict=True)]
    )


def _pad_to(image: Placed, size: Sequence[int]) -> Placed:
    return _padded(
        image, [own if int(new) < 0 else max(own, int(new)) for own, new in zip(image.sizes, size, strict=True)]
    )


def _fit(image: Placed, size: Sequence[int]) -> Placed:
    """Pad or cut round the middle to a size; -1 keeps an axis."""
    image = _pad_to(image, size)
    kept = [own if int(new) < 0 else int(new) for own, new in zip(image.sizes, size, strict=True)]
    starts = [max(0, own // 2 - new // 2) for own, new in zip(image.sizes, kept, strict=True)]
    box = (slice(None), *(slice(start, start + new) for start, new in zip(starts, kept, strict=True)))
    return Placed(image.array[box], _moved(image.affine, starts))


def _flat(step: Callable[..., flatsteps.Pair]) -> Callable[..., Placed]:
    return lambda image, **options: Placed(*step(image.array, image.affine, **options))


STEPS: dict[str, Callable[..., Placed]] = {
    "orientation": _orientation,
    "spacing": _spacing,
    "to_grid": _to_grid,
    "pixel_spacing": _pixel_spacing,
    "intensity": _intensity,
    "pad_to_multiple": _pad_to_multiple,
    "pad_to": _pad_to,
    "fit": _fit,
    "crop_sector": _flat(flatsteps.crop_sector),
    "resize": _flat(flatsteps.resize),
    "diffuse": _flat(flatsteps.diffuse),
    "standardise": _flat(flatsteps.standardise),
}
