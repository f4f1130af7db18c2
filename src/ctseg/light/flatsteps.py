"""The steps of flat images, on NumPy arrays: brightness, the ultrasound's sector, resizing, smoothing, standard scores.

Each does what the transform of `ctseg.transforms` does that its docstring names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError
from ctseg.flat.items import FlatVolume
from ctseg.flat.reading import GREY, RGB, FlatImage
from ctseg.heat import heat
from ctseg.volume import Volume

Affine = NDArray[np.float64]
Pair = tuple[NDArray[np.float32], Affine]


def brightness(volume: Volume, colours: str = RGB, window: Sequence[float] | None = None) -> Pair:
    """Return a flat image (C, H, W, 1) from 0 (black) to 1 (white), and its affine (`LoadFlatd`).

    Raises:
        InputError: the volume is no flat image.
        ConfigError: other colours than grey and rgb.
    """
    if not isinstance(volume, FlatVolume) or volume.image is None:
        raise InputError(f"{volume.source.name} is a volume, but this network looks at flat images; give one")
    if colours not in (GREY, RGB):
        raise ConfigError(f"there are no colours {colours!r}: expected {GREY} or {RGB}")
    image = volume.image
    limits = None if window is None else (float(window[0]), float(window[1]))
    shown = FlatImage(image.brightness(limits), image.spacing, image.kind, 1.0, image.source)
    array = shown.grey()[None] if colours == GREY else np.broadcast_to(shown.array, (3, *shown.size))
    return np.array(array, dtype=np.float32)[..., None], volume.affine


def crop_sector(
    array: NDArray[np.float32],
    affine: Affine,
    level: float = 0.01,
    smallest: float = 0.1,
    margin: int = 0,
    blank: bool = True,
) -> Pair:
    """Cut an ultrasound picture to its sector, and make the rest black (`CropSectord`)."""
    from ctseg.flat.sectors import find_sector

    brightest = array.max(axis=0)
    frames = int(np.argmin(brightest.shape))
    found = find_sector(brightest.max(axis=frames), level, smallest)
    if found is None:  # no sector: the picture is kept whole
        return array, affine
    mask = np.broadcast_to(np.expand_dims(found, frames), brightest.shape)
    if blank:
        array = np.where(mask[None], array, np.float32(0))
    box = [slice(None)]  # all channels
    for axis, size in enumerate(mask.shape):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(where[0]) - margin), min(size, int(where[-1]) + 1 + margin)))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box[1:]], dtype=np.float64)
    return array[tuple(box)], moved


def resize(array: NDArray[np.float32], affine: Affine, size: Sequence[int], mode: str = "bilinear") -> Pair:
    """Bring slices to a size, whatever their proportions (`ResizeSlicesd`)."""
    array = array.astype(np.float32, copy=False)
    low, high = array.min(), array.max()
    scale = np.eye(4)
    for axis, wanted in enumerate(size):
        old, new = array.shape[axis + 1], int(wanted)
        if tuple(array.shape[1:3]) != tuple(int(one) for one in size) and old != new:
            array = along(array, axis + 1, weights(old, new, mode))
        scale[axis, axis], scale[axis, 3] = old / new, (old / new - 1) / 2
    if mode in ("bilinear", "bicubic"):
        array = np.clip(array, low, high)
    return array, affine @ scale


def along(array: NDArray[np.float32], axis: int, shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an array whose pixels along an axis are weighted means of the old ones."""
    moved = np.moveaxis(array, axis, 0)
    rows = (shares @ moved.reshape(len(moved), -1)).reshape(len(shares), *moved.shape[1:])
    return np.ascontiguousarray(np.moveaxis(rows, 0, axis), dtype=np.float32)


def weights(old: int, new: int, mode: str = "bilinear") -> NDArray[np.float32]:
    """Return (new, old): the share of each old pixel in each new one; an edge stays where it was.

    "bilinear" and "bicubic" (a = -0.5) widen their kernel to the size of a larger pixel, as torch's `antialias`.

    Raises:
        ConfigError: an unknown mode.
    """
    step = old / new
    edges, numbers = np.arange(new)[:, None], np.arange(old)[None, :]
    if mode == "area":
        first, last = np.floor(edges * step), np.ceil((edges + 1) * step)
        shares = ((numbers >= first) & (numbers < last)).astype(np.float64)
    elif mode == "nearest":
        shares = (numbers == np.minimum(old - 1, np.floor((edges + 0.5) * step))).astype(np.float64)
    elif mode in ("bilinear", "bicubic"):
        distance = np.abs(numbers + 0.5 - (edges + 0.5) * step) / max(1.0, step)
        shares = np.clip(1 - distance, 0, None) if mode == "bilinear" else _cubic(distance)
    else:
        raise ConfigError(f"there is no interpolation {mode!r}: expected bilinear, bicubic, area or nearest")
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(distance: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    """Keys' kernel, "Cubic convolution interpolation for digital image processing" (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def diffuse(array: NDArray[np.float32], affine: Affine, time: float) -> Pair:
    """Smooth each slice of each channel by isotropic diffusion (`Diffused`), for a time in square pixels."""
    from ctseg.evaluation.pairing import axial_axis

    moved = np.moveaxis(array, 1 + axial_axis(affine), 1)
    smooth = np.stack([heat(one, time) for one in moved.reshape(-1, *moved.shape[-2:])]).reshape(moved.shape)
    return np.moveaxis(smooth, 1, 1 + axial_axis(affine)), affine


def standardise(
    array: NDArray[np.float32],
    affine: Affine,
    subtrahend: Any = None,
    divisor: Any = None,
    channel_wise: bool = False,
) -> Pair:
    """Subtract a number and divide by one, by default mean and standard deviation (MONAI's `NormalizeIntensityd`)."""
    parts = [array[index : index + 1] for index in range(len(array))] if channel_wise else [array]
    done = []
    for number, part in enumerate(parts):
        middle = part.mean() if subtrahend is None else np.float32(_of(subtrahend, number, channel_wise))
        spread = part.std() if divisor is None else np.float32(_of(divisor, number, channel_wise))
        done.append((part - middle) / (spread if spread != 0 else np.float32(1)))
    return np.concatenate(done).astype(np.float32), affine


def _of(value: Any, number: int, channel_wise: bool) -> float:
    return float(value[number] if channel_wise and isinstance(value, list | tuple) else value)
