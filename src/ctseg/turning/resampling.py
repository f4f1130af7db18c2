"""Images and label maps from the scanner's space into a turned one and back, by a rigid or affine transform.

All of it is done between indices: what a grid's voxel is in the other grid follows from the two affines and the
transform, so no library has to be told about directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import AIR_HU
from ctseg.errors import ConfigError, GeometryError
from ctseg.grids.labels import Order, resample_labels
from ctseg.turning.itktransforms import PointTransform
from ctseg.volume import Volume

Affine = NDArray[np.float64]

DIRECTIONS = ("ct", "mask")
IMAGE_MODES = ("bspline", "linear")
LABEL_MODES = ("nearest", "gaussian", "linear")


def check_modes(direction: str = "ct", image: str = "bspline", label: str = "nearest") -> None:
    """Refuse a word that is not known.

    Raises:
        ConfigError: with the known ones.
    """
    for name, word, known in (
        ("direction", direction, DIRECTIONS),
        ("interpolation of the image", image, IMAGE_MODES),
        ("interpolation of labels", label, LABEL_MODES),
    ):
        if word not in known:
            raise ConfigError(f"The {name} {word!r} is not known: expected one of {', '.join(known)}; correct it.")


def turn_volume(
    volume: Volume,
    transform: PointTransform,
    to_affine: Affine | None = None,
    to_shape: Sequence[int] | None = None,
    mode: str = "bspline",
    outside: float = AIR_HU,
) -> Volume:
    """Resample an image into the turned space: its value at y is the source's at T(y).

    Args:
        volume: the scanner's image.
        transform: T, from the turned space to the scanner's.
        to_affine: (4, 4), index to RAS mm **of the turned space**, of the result; None takes the image's own numbers.
        to_shape: its size; None takes the image's.
        mode: "bspline" (cubic) or "linear".
        outside: value where the source has no voxel.

    Returns:
        A volume of the same type of voxels, that lies in the turned space. Cubic interpolation overshoots at the edge
        of bone; values are held within the source's range.

    Raises:
        ConfigError: an unknown mode.
    """
    affine = volume.affine if to_affine is None else np.asarray(to_affine, dtype=np.float64)
    shape = volume.shape if to_shape is None else tuple(int(size) for size in to_shape)
    array = resample_image(volume.array, volume.affine, transform.ras, affine, shape, mode, outside)
    return Volume(
        array=array,
        affine=affine,
        source_affine=affine.copy(),
        source=volume.source,
        format=volume.format,
        notes=volume.notes,
    )


def resample_image(
    array: NDArray[Any],
    from_affine: Affine,
    points: Affine,
    to_affine: Affine,
    to_shape: Sequence[int],
    mode: str = "bspline",
    outside: float = AIR_HU,
) -> NDArray[Any]:
    """Resample grey values by ITK: the target's voxel at y gets the value at `points @ y`.

    Args:
        array: (I, J, K), any shape and affine, also a sheared one.
        from_affine: (4, 4), its index to RAS mm.
        points: (4, 4), RAS mm of the target's space to RAS mm of the array's.
        to_affine: (4, 4), index of the target to RAS mm.
        to_shape: the target's size.
        mode: "bspline" or "linear".
        outside: value where the array has no voxel (beyond half a voxel from its outermost centres).

    Returns:
        (I', J', K') int16 where `array` holds integers, else float32.
    """
    check_modes(image=mode)
    import itk  # late: three seconds

    kind = itk.Image[itk.F, 3]
    interpolator = (
        itk.BSplineInterpolateImageFunction[kind, itk.D, itk.F].New(SplineOrder=3)
        if mode == "bspline" and min(array.shape) > 3  # ITK's coefficients need four voxels along each axis
        else itk.LinearInterpolateImageFunction[kind, itk.D].New()
    )
    source = np.ascontiguousarray(np.asarray(array, dtype=np.float32).T)
    result = _resampled(itk, source, kind, _indices(from_affine, points, to_affine), to_shape, interpolator, outside)
    low, high = min(float(source.min()), outside), max(float(source.max()), outside)
    np.clip(result, low, high, out=result)
    if array.dtype.kind in "biu":
        return np.rint(result).astype(np.int16)
    return result


def turn_labels(
    labels: NDArray[Any],
    affine: Affine,
    transform: PointTransform,
    to_affine: Affine,
    to_shape: Sequence[int],
    mode: str = "nearest",
) -> NDArray[np.uint8]:
    """Resample a label map into the turned space: its value at y is the source's at T(y).

    Args:
        labels: (I, J, K) integers 0..255.
        affine: (4, 4), its index to RAS mm.
        transform: T.
        to_affine: (4, 4), index of the target to RAS mm of the turned space.
        to_shape: the target's size.
        mode: "nearest"; "linear" (each label's indicator, decided at one half: `ctseg.grids.labels`); or "gaussian"
            (ITK's LabelImageGaussianInterpolateImageFunction, sigma one voxel).

    Raises:
        ConfigError: an unknown mode.
        GeometryError, ValueError: as `ctseg.grids.labels.resample_labels`.
    """
    check_modes(label=mode)
    if mode == "gaussian":
        return _gaussian(labels, _indices(affine, transform.ras, to_affine), to_shape)
    moved = np.linalg.inv(transform.ras) @ affine
    order: Order = "nearest" if mode == "nearest" else "linear"
    return resample_labels(labels, moved, np.asarray(to_affine, dtype=np.float64), to_shape, order)


def map_back(
    labels: NDArray[Any], affine: Affine, transform: PointTransform, volume: Volume, mode: str = "linear"
) -> NDArray[np.uint8]:
    """Bring a label map that was made in the turned space onto the scanner's image.

    Args:
        labels: (I, J, K) integers 0..255.
        affine: (4, 4), its index to RAS mm of the turned space.
        transform: T, by which the image was turned.
        volume: the scanner's image.
        mode: as for `turn_labels`.

    Returns:
        uint8, shape of `volume`, for `ctseg.outputs.writing.write_mask`.
    """
    return turn_labels(labels, affine, transform.inverse(), volume.affine, volume.shape, mode)


def _indices(from_affine: Affine, points: Affine, to_affine: Affine) -> Affine:
    """The (4, 4) from the target's index to the source's."""
    try:
        matrix: Affine = np.linalg.inv(np.asarray(from_affine, np.float64)) @ points @ np.asarray(to_affine, np.float64)
    except np.linalg.LinAlgError as error:
        raise GeometryError("the image's affine is singular, so it cannot be turned; correct its header") from error
    return matrix


def _resampled(
    itk: Any,
    source: NDArray[Any],
    kind: Any,
    indices: Affine,
    to_shape: Sequence[int],
    interpolator: Any,
    outside: float,
) -> NDArray[Any]:
    """Resample (K, J, I) between plain indices: spacing 1, origin 0, so that ITK's millimetres are indices."""
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(indices[:3, :3])))
    transform.SetOffset([float(number) for number in indices[:3, 3]])
    resample = itk.ResampleImageFilter[kind, kind].New()
    resample.SetInput(itk.image_view_from_array(source, ttype=kind))
    resample.SetTransform(transform)
    resample.SetInterpolator(interpolator)
    resample.SetSize([int(size) for size in to_shape])
    resample.SetDefaultPixelValue(outside)
    resample.Update()
    return np.array(itk.array_view_from_image(resample.GetOutput())).T


def _gaussian(labels: NDArray[Any], indices: Affine, to_shape: Sequence[int]) -> NDArray[np.uint8]:
    import itk

    kind = itk.Image[itk.UC, 3]
    interpolator = itk.LabelImageGaussianInterpolateImageFunction[kind, itk.D].New()
    interpolator.SetSigma([1.0, 1.0, 1.0])
    interpolator.SetAlpha(4.0)
    source = np.ascontiguousarray(np.asarray(labels, dtype=np.uint8).T)
    return np.ascontiguousarray(_resampled(itk, source, kind, indices, to_shape, interpolator, 0))
