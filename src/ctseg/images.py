"""Images of other programs as a `Volume`: arrays, and images of ITK, SimpleITK, nibabel and MONAI.

An array's axes are never reordered: the mask has them as the array had. What is turned, and only for the library's own
use, is ITK's habit of two orders: its index is (I, J, K), the array that it gives out is (K, J, I), and its
world is LPS where ours is RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import AIR_HU, check_hounsfield, check_memory, replace_not_finite
from ctseg.errors import GeometryError, InputError
from ctseg.geometry import affine_from_lps_parts, check_affine, check_spacing, clean_affine, ras_from_lps, spacing_of
from ctseg.sources import scaled
from ctseg.volume import Volume

# Unit steps in RAS of the letters that say where an axis runs to.
_STEPS = {"R": (0, 1.0), "L": (0, -1.0), "A": (1, 1.0), "P": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
_FORMS = (
    "a path, a 3D array of NumPy or torch with affine (or spacing and orientation), or an image of ITK, SimpleITK, "
    "nibabel or MONAI"
)


@dataclass(frozen=True)
class Placed:
    """An image as a volume, and how its mask goes back into the form of the image's own array.

    Attributes:
        volume: (I, J, K).
        shape: of the image's own array; that of its mask.
        reversed_axes: the image's own array is (K, J, I), as ITK gives it out.
    """

    volume: Volume
    shape: tuple[int, ...]
    reversed_axes: bool = False

    def own(self, mask: NDArray[Any]) -> NDArray[Any]:
        """Return a mask (I, J, K) in the axes of the image's own array."""
        return np.ascontiguousarray(mask.T if self.reversed_axes else mask).reshape(self.shape)


def orientation_affine(orientation: str, spacing: Sequence[float], what: str = "the array") -> NDArray[np.float64]:
    """Return the RAS affine of a grid along the body's axes, with its first voxel at the origin.

    Args:
        orientation: three letters, where the first, second and third axis run to, as in "LPS" (the index grows towards
            the patient's left, back and head).
        spacing: mm along the same three axes.
        what: the image's name in the sentence.

    Raises:
        GeometryError: no such orientation, or a spacing that is none.
    """
    letters = str(orientation).upper()
    if len(letters) != 3 or sorted(_STEPS.get(letter, (9,))[0] for letter in letters) != [0, 1, 2]:
        raise GeometryError(
            f"{what} has the orientation {orientation!r}, but three letters are expected that say where its axes run "
            "to, one each of R or L, A or P, S or I, for example LPS"
        )
    steps = _three(spacing, what)
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for axis, letter in enumerate(letters):
        row, sign = _STEPS[letter]
        affine[row, axis] = sign * steps[axis]
    return affine


def volume_of_image(
    image: Any,
    *,
    affine: Any = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    space: str = "RAS",
    modality: str = "CT",
) -> Placed:
    """Take an image of another program in.

    Args:
        image: an array of NumPy or torch, an image of ITK, SimpleITK or nibabel, or a MONAI `MetaTensor`. It is never
            changed.
        affine: of an array: (4, 4), index **of the array's own axes** to mm of `space`, at voxel centres.
        spacing: of an array: mm along its axes; needs an orientation, or must agree with the affine.
        orientation: of an array without affine: where its axes run to, e.g. "LPS".
        space: "RAS" or "LPS", the world of `affine`.
        modality: "CT" checks that the values are Hounsfield units.

    Raises:
        InputError: no such kind of image, not one scalar 3D volume, or plainly no CT in Hounsfield units.
        GeometryError: no spacing, or a place in space that is none.
        ResourceError: it does not fit in memory.
    """
    kind, module = type(image).__name__, type(image).__module__
    given = {"affine": affine, "spacing": spacing, "orientation": orientation}
    if module.startswith("SimpleITK"):
        what, raw, matrix, flip = "the SimpleITK image", *_from_simpleitk(image), True
    elif module.startswith("itk"):
        what, raw, matrix, flip = "the ITK image", *_from_itk(image), True
    elif hasattr(image, "dataobj") and hasattr(image, "affine"):
        what, raw, matrix, flip = "the nibabel image", *_from_nibabel(image), False
    elif kind == "MetaTensor":
        what, raw, matrix, flip = "the MONAI image", *_from_monai(image), False
    elif isinstance(image, np.ndarray) or module.startswith("torch"):
        what, raw, flip = "the array", as_numpy(image), False
        matrix = _affine_of_array(affine, spacing, orientation, space, what)
        given = {}
    else:
        raise InputError(f"a {module}.{kind} is no image that can be read: give {_FORMS}")
    for name, value in given.items():
        if value is not None:
            raise GeometryError(f"{what} has a place of its own: leave {name} out, or give the bare array with it")
    voxels = _one_volume(raw, what)
    volume = volume_of_array(voxels.T if flip else voxels, matrix, what, modality)
    return Placed(volume, raw.shape, flip)


def volume_of_array(array: NDArray[Any], affine: NDArray[np.float64], what: str, modality: str = "CT") -> Volume:
    """Return a checked volume of a 3D array.

    Args:
        array: (I, J, K), any real type; not changed.
        affine: (4, 4), index to RAS mm.
        what: the image's name in the sentences.
        modality: "CT" checks that the values are Hounsfield units.

    Raises:
        InputError, GeometryError, ResourceError: as `volume_of_image`.
    """
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} has voxels of type {array.dtype}, but integers or floats are needed; give HU values")
    check_memory(array.shape, what)
    matrix = np.array(affine, dtype=np.float64)
    check_affine(matrix, what)
    view = scaled(array).view()
    view.flags.writeable = False  # the caller's memory: whoever wants to write makes a copy first
    is_ct = modality.upper() == "CT"
    values, word = replace_not_finite(view, AIR_HU if is_ct else 0, what)
    cleaned = clean_affine(matrix)
    words = [word]
    if is_ct:
        words.append(check_hounsfield(values, spacing_of(cleaned), what, array.dtype == np.uint8))
    return Volume(
        array=values,
        affine=cleaned,
        source_affine=matrix,
        source=Path(what.removeprefix("the ").replace(" ", "-")),
        format="array",
        notes=tuple(word for word in words if word),
    )


def as_numpy(image: Any) -> NDArray[Any]:
    """Return a NumPy or torch array as NumPy, sharing its memory where it can."""
    return image if isinstance(image, np.ndarray) else np.asarray(image.detach().cpu().numpy())


def _one_volume(raw: NDArray[Any], what: str) -> NDArray[Any]:
    """Drop a channel axis of one; refuse every other rank."""
    shown = " x ".join(str(size) for size in raw.shape)
    if raw.ndim == 4 and raw.shape[0] == 1:
        return raw[0]
    if raw.ndim != 3 or not raw.size:
        raise InputError(
            f"{what} has the shape {shown or '()'}, but one volume of three axes is needed (a leading channel axis of "
            "1 may be there); for slices there is segment_slice"
        )
    return raw


def _affine_of_array(
    affine: Any, spacing: Sequence[float] | None, orientation: str | None, space: str, what: str
) -> NDArray[np.float64]:
    if space not in ("RAS", "LPS"):
        raise GeometryError(f"the space {space!r} is not known: expected RAS or LPS, in which the affine's mm are")
    if affine is None:
        if spacing is None:
            raise GeometryError(
                f"{what} comes without a voxel size: give its affine (4 x 4, index to mm), or its spacing in mm and "
                "orientation"
            )
        if orientation is None:
            raise GeometryError(
                f"{what} comes with a spacing but does not say where its axes run to, so left and right are unknown: "
                "give orientation, for example LPS, or an affine"
            )
        return orientation_affine(orientation, spacing, what)
    if orientation is not None:
        raise GeometryError(f"{what} comes with an affine and an orientation: leave the orientation out")
    matrix = np.asarray(as_numpy(affine) if hasattr(affine, "detach") else affine, dtype=np.float64)
    check_affine(matrix, what)
    if spacing is not None and not np.allclose(_three(spacing, what), spacing_of(matrix), rtol=1e-3):
        sizes = " x ".join(f"{size:g}" for size in spacing_of(matrix))
        raise GeometryError(
            f"{what} comes with the spacing {tuple(spacing)} mm, but its affine has {sizes} mm: correct one, or leave "
            "the spacing out"
        )
    return matrix if space == "RAS" else ras_from_lps(matrix)


def _three(spacing: Sequence[float], what: str) -> list[float]:
    try:
        steps = [float(step) for step in spacing]
    except (TypeError, ValueError):
        steps = []
    if len(steps) != 3:
        raise GeometryError(f"{what} comes with the spacing {spacing!r}, but mm along each of three axes are needed")
    check_spacing(steps, what)
    return steps


def _from_itk(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import itk

    parts = int(image.GetNumberOfComponentsPerPixel())
    _check_itk(int(image.GetImageDimension()), parts, "the ITK image")
    directions = np.asarray(itk.array_from_matrix(image.GetDirection()))
    affine = affine_from_lps_parts(directions, list(image.GetSpacing()), list(image.GetOrigin()))
    return np.asarray(itk.array_from_image(image)), affine  # a copy: a view dies with the image


def _from_simpleitk(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK as sitk

    _check_itk(int(image.GetDimension()), int(image.GetNumberOfComponentsPerPixel()), "the SimpleITK image")
    directions = np.reshape(image.GetDirection(), (3, 3))
    affine = affine_from_lps_parts(directions, image.GetSpacing(), image.GetOrigin())
    return np.asarray(sitk.GetArrayFromImage(image)), affine


def _check_itk(rank: int, components: int, what: str) -> None:
    if rank != 3 or components != 1:
        raise InputError(
            f"{what} has {rank} axes and {components} number(s) per voxel, but one grey volume of three axes is needed"
        )


def _from_nibabel(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if image.affine is None:
        raise GeometryError("the nibabel image has no affine, so it lies nowhere: give it one")
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)


def _from_monai(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    affine = np.asarray(as_numpy(image.affine), dtype=np.float64)
    space = str(getattr(image.meta.get("space", "RAS"), "value", image.meta.get("space", "RAS"))).upper()
    if space not in ("RAS", "LPS"):
        raise GeometryError(f"the MONAI image says that its affine is in {space!r}: expected RAS or LPS")
    if affine.shape != (4, 4):
        raise GeometryError(f"the MONAI image has an affine of shape {affine.shape}: expected one of 4 x 4")
    return as_numpy(image.as_tensor()), affine if space == "RAS" else ras_from_lps(affine)
