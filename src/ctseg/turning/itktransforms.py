"""Rigid and affine transforms as ITK, 3D Slicer and ITK-SNAP write them: text (.txt, .tfm), .mat and .h5.

The files are read by ITK's own readers. ITK's Python package does not know the kind `MatrixOffsetTransformBase`, which
ITK-SNAP writes; its parameters are those of `AffineTransform`, so the reader is given a copy that says this name.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError

Matrix = NDArray[np.float64]

ENDINGS = (".txt", ".tfm", ".mat", ".h5", ".hdf5", ".hdf", ".xfm")
READ = ENDINGS[:6]
_LARGEST = 1 << 20  # bytes; a matrix takes a few hundred, an .h5 file about 10,000
# Text files may hold six digits; 1e-3 is 0.06 degrees or 0.1 % of length, as in ctseg.geometry.
_RIGID_TOLERANCE = 1e-3
_SMALLEST_SCALE, _LARGEST_SCALE = 0.1, 10.0
_ROWS = 3
_SUPPORTED = "a rigid or affine transform in 3D"
_RENAMED = ("MatrixOffsetTransformBase", "AffineTransform")
_PLACES = ("double_3_3", "float_3_3")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class PointTransform:
    """A rigid or affine transform of points: from the turned (fixed) space to the scanner's (moving) one.

    ITK resamples by pulling: the turned image at y is the scanner's image at `matrix @ y`. So the mask that was drawn
    in the turned space at y belongs at `matrix @ y` on the scanner's image.

    Attributes:
        matrix: (4, 4) float64 in LPS mm, as the file means it; last row 0 0 0 1.
        kind: ITK's name of the transform, e.g. "AffineTransform_double_3_3".
        centre: LPS mm of the centre of rotation (FixedParameters); already within `matrix`.
        source: the file; None where it was computed.
    """

    matrix: Matrix
    kind: str = "AffineTransform_double_3_3"
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    source: Path | None = None

    @property
    def ras(self) -> Matrix:
        """The same (4, 4) between points in RAS mm."""
        ras: Matrix = _LPS @ self.matrix @ _LPS
        return ras

    @property
    def rigid(self) -> bool:
        """Whether lengths and angles are kept, within `_RIGID_TOLERANCE`."""
        linear = self.matrix[:3, :3]
        return bool(np.abs(linear.T @ linear - np.eye(3)).max() <= _RIGID_TOLERANCE)

    def inverse(self) -> PointTransform:
        """Return the transform from the scanner's to the turned space."""
        return dataclasses.replace(self, matrix=np.linalg.inv(self.matrix))

    @property
    def rotation(self) -> Matrix:
        """The (3, 3) rotation in LPS that is nearest to the linear part (polar decomposition)."""
        left, _, right = np.linalg.svd(self.matrix[:3, :3])
        nearest: Matrix = left @ right
        return nearest

    @property
    def euler_degrees(self) -> tuple[float, float, float]:
        """Angles about x (nod), y (towards a shoulder) and z (turn) in LPS, as ITK's Euler3DTransform has them.

        The rotation is Rz Rx Ry, `Euler3DTransform` without ComputeZYX.
        """
        rotation = self.rotation
        x = math.asin(max(-1.0, min(1.0, float(rotation[2, 1]))))
        if math.cos(x) > 1e-6:
            y = math.atan2(-rotation[2, 0], rotation[2, 2])
            z = math.atan2(-rotation[0, 1], rotation[1, 1])
        else:  # only the sum of the other two is defined
            y, z = math.atan2(rotation[1, 0], rotation[0, 0]), 0.0
        return (math.degrees(x), math.degrees(y), math.degrees(z))

    @property
    def turn_degrees(self) -> float:
        """The one angle by which the rotation turns about its own axis, 0 to 180."""
        cosine = (float(np.trace(self.rotation)) - 1) / 2
        return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))

    @property
    def scales(self) -> tuple[float, float, float]:
        """The three lengths that a unit length can become, largest first; all 1 where rigid."""
        a, b, c = np.linalg.svd(self.matrix[:3, :3], compute_uv=False)
        return (float(a), float(b), float(c))


def read_transform(path: str | Path) -> PointTransform:
    """Read the one transform of a file.

    Raises:
        InputError: no file, no transform file, several transforms, a kind that is not rigid or affine in 3D, numbers
            that are missing or not finite, a singular matrix, one that mirrors, or one that scales beyond reason.
    """
    path = Path(path)
    _check_file(path)
    transform = _the_one(_read_by_itk(path), path)
    kind = str(transform.GetTransformTypeAsString())
    if _RENAMED[0].encode() in path.read_bytes():
        kind = kind.replace(_RENAMED[1], _RENAMED[0])
    matrix = _matrix_of(transform, kind, path)
    centre = tuple(float(mm) for mm in list(transform.GetFixedParameters())[:3])
    centre = centre if len(centre) == _ROWS else (0.0, 0.0, 0.0)
    check_matrix(matrix, str(path))
    return PointTransform(matrix, kind, (centre[0], centre[1], centre[2]), path)


def check_matrix(matrix: Matrix, what: str) -> None:
    """Refuse a (4, 4) that turns no head.

    Raises:
        InputError: not finite, singular, mirroring, or scales outside of 0.1 to 10.
    """
    if not np.isfinite(matrix).all():
        raise InputError(f"{what} has NaN or infinite numbers, but a transform needs finite ones; export it again")
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if scales[-1] <= 1e-6 * max(float(scales[0]), 1e-300):
        raise InputError(
            f"{what} has a singular matrix (it flattens space, so nothing could be mapped back), but one that can be "
            "inverted is needed; export it again"
        )
    if np.linalg.det(matrix[:3, :3]) < 0:
        raise InputError(
            f"{what} mirrors (its determinant is below 0), which would exchange left and right; a rotation is needed, "
            "export it again without a flip"
        )
    if scales[0] > _LARGEST_SCALE or scales[-1] < _SMALLEST_SCALE:
        raise InputError(
            f"{what} scales lengths by {scales[-1]:.3g} to {scales[0]:.3g}, but {_SMALLEST_SCALE:g} to "
            f"{_LARGEST_SCALE:g} is expected of one patient's head; check that it is the right file"
        )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no transform file {path}; check the path")
    if not path.name.lower().endswith(READ):
        raise InputError(f"{path} has a name that tells no ITK transform; expected one that ends in {', '.join(READ)}")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty; copy or export the transform again")
    if size > _LARGEST:
        raise InputError(
            f"{path} has {size} bytes, far more than {_SUPPORTED} takes (a displacement field?); export the rigid one"
        )
    if path.suffix.lower() in (".txt", ".tfm"):
        _check_text(path)


def _check_text(path: Path) -> None:
    """Judge the two lines that ITK's text reader takes as they come."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no text, but an ITK transform's {path.suffix} is; export the transform again"
        ) from error
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise InputError(
            f"{path} is no ITK transform: its first line does not say '#Insight Transform File V1.0'; export it as an "
            "ITK transform"
        )
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("Transform:")]
    if not named:
        raise InputError(f"{path} names no transform (a line 'Transform: ...' is missing); export it again")
    if len(named) > 1 and not named[0].startswith("Composite"):
        raise _several(path, len(named))
    for key in ("Parameters", "FixedParameters"):
        found = [line.partition(":")[2].split() for line in lines if line.startswith(f"{key}:")]
        if len(found) < len(named) - named[0].startswith("Composite"):
            raise InputError(f"{path} lacks its line '{key}: ...', so what it turns is not known; export it again")
        if bad := next((word for words in found for word in words if not _finite(word)), None):
            raise InputError(f"{path} has {bad!r} among its {key}, but finite numbers are needed; export it again")
    if named[0].rpartition("Base_")[0] and not _is_sound(lines):
        raise InputError(
            f"{path} holds a {named[0]} without its 12 parameters and 3 fixed parameters (the centre); export it again"
        )


def _is_sound(lines: list[str]) -> bool:
    counts = {key: len(text.split()) for key, _, text in (line.partition(":") for line in lines)}
    return counts.get("Parameters") == 12 and counts.get("FixedParameters") == _ROWS


def _finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _several(path: Path, number: int) -> InputError:
    return InputError(
        f"{path} holds {number} transforms, but one is needed (which would be meant?); save the one of this case alone"
    )


def _read_by_itk(path: Path) -> list[Any]:
    import itk  # late: three seconds

    content = path.read_bytes()
    for place in _PLACES:
        old, new = (f"{name}_{place}".encode() for name in _RENAMED)
        # As long as before: in .mat and .h5 the lengths stand before the names, which end at the first zero.
        pad = b" " if path.suffix.lower() in (".txt", ".tfm") else b"\0"
        content = content.replace(old, new.ljust(len(old), pad))
    with tempfile.TemporaryDirectory(prefix="ctseg-") as folder:
        copy = Path(folder) / f"transform{path.suffix.lower()}"
        copy.write_bytes(content)
        try:
            return list(itk.transformread(str(copy)))
        except (RuntimeError, KeyError, AttributeError, TypeError) as error:
            text = str(error)
            named = text.partition('instance of "')[2].partition('"')[0]
            if named:
                raise _wrong_kind(path, named) from error
            raise InputError(
                f"{path} cannot be read as an ITK transform (damaged, or not one); export the transform again"
            ) from error


def _wrong_kind(path: Path, kind: str) -> InputError:
    return InputError(f"{path} holds a {kind}, but {_SUPPORTED} is needed; export the rigid or affine one")


def _the_one(transforms: list[Any], path: Path) -> Any:
    if len(transforms) == 1 and str(transforms[0].GetTransformTypeAsString()).startswith("Composite"):
        composite = transforms[0]
        transforms = [composite.GetNthTransform(number) for number in range(composite.GetNumberOfTransforms())]
        import itk

        transforms = [itk.down_cast(transform) for transform in transforms]
    if not transforms:
        raise InputError(f"{path} holds no transform; export it again")
    if len(transforms) > 1:
        raise _several(path, len(transforms))
    return transforms[0]


def _matrix_of(transform: Any, kind: str, path: Path) -> Matrix:
    matrix = np.eye(4)
    plain = kind.partition("_")[0]
    if not kind.endswith("_3_3"):
        raise _wrong_kind(path, kind)
    if hasattr(transform, "GetMatrix") and hasattr(transform, "GetOffset"):
        matrix[:3, :3] = np.asarray(transform.GetMatrix())
        matrix[:3, 3] = [float(mm) for mm in transform.GetOffset()]
    elif plain == "TranslationTransform":
        matrix[:3, 3] = [float(mm) for mm in transform.GetOffset()]
    elif plain != "IdentityTransform":
        raise _wrong_kind(path, kind)
    return matrix
