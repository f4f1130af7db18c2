"""NIfTI-1 and NIfTI-2 in one file (.nii, .nii.gz): every byte counted, the header kept as it is.

nibabel repairs a bad header in silence (a voxel size of zero becomes 1); here it is read unrepaired and judged.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import check_memory
from ctseg.errors import GeometryError, InputError
from ctseg.geometry import check_affine, check_spacing
from ctseg.sources import Loaded, scaled

_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_LONGEST_EXTENSIONS = 64 << 20
_BLOCK = 1 << 20
_FORM_DIFFERENCE_MM = 0.5


def read_nifti(path: Path) -> Loaded:
    """Read a NIfTI file of one volume.

    Args:
        path: an existing .nii or .nii.gz.

    Returns:
        The scaled voxels and the exact affine (sform, else qform, as nibabel chooses).

    Raises:
        InputError: not NIfTI, truncated or damaged, not one scalar 3D volume.
        GeometryError: a voxel size or affine that places nothing.
        ResourceError: the declared size does not fit in memory.
    """
    what = str(path)
    with _sound(what), _opened(path) as stream:
        return _read(stream, path, what)


def read_nifti_grid(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Read where the voxels of a NIfTI file lie, from its header alone.

    Returns:
        The shape (I, J, K), and the exact affine (4, 4), voxel index to RAS mm.

    Raises:
        InputError, GeometryError: as `read_nifti`, as far as the header tells.
    """
    what = str(path)
    with _sound(what), _opened(path) as stream:
        header = _header(stream.read(_HEADER_BYTES), what)
    shape, _ = _grid(header, what)
    return shape, _affine(header, shape, what)[0]


@dataclass(frozen=True)
class NiftiPlanes:
    """A NIfTI file whose header was read and judged, and whose voxels come plane by plane.

    Attributes:
        head: what the header says; its array holds no voxels.
        path: the file.
    """

    head: Loaded
    path: Path

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Read the file once: planes (I, J) in their order along K, scaled, of the file's type or float32.

        Raises:
            InputError: truncated or damaged.
        """
        what, header = str(self.path), self.head.header
        i, j, k = self.head.array.shape
        dtype, (slope, inter) = _voxel_type(header, what), _scaling(header)
        with _sound(what), _opened(self.path) as stream:
            _skip(stream, _offset(header, what))
            for index in range(k):
                raw = _voxels(stream, b"", 0, (i, j, 1), dtype, what, done=index, of=k)
                yield scaled(raw, slope, inter)[..., 0]
            _to_the_end(stream)


def nifti_planes(path: Path) -> NiftiPlanes:
    """Open a NIfTI file without reading its voxels.

    Raises:
        InputError, GeometryError: as `read_nifti`, as far as the header tells.
    """
    what = str(path)
    with _sound(what), _opened(path) as stream:
        header = _header(stream.read(_HEADER_BYTES), what)
    shape, notes = _grid(header, what)
    dtype = _voxel_type(header, what)
    affine, words = _affine(header, shape, what)
    _offset(header, what)
    head = Loaded(
        array=np.broadcast_to(np.zeros(1, dtype=np.int16), shape),
        affine=affine,
        format="nifti",
        header=header,
        notes=(*notes, *words),
        eight_bit=dtype == np.uint8 and _scaling(header) == (1.0, 0.0),
    )
    return NiftiPlanes(head, path)


@contextmanager
def _sound(what: str) -> Iterator[None]:
    """Turn what a damaged file raises into a sentence."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise InputError(f"{what} is truncated or damaged ({error}); copy or download it again") from error
    except gzip.BadGzipFile as error:
        raise InputError(f"{what} is no sound gzip file ({error}); a .nii.gz is needed here, copy it again") from error


def _opened(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _read(stream: IO[bytes], path: Path, what: str) -> Loaded:
    start = stream.read(_HEADER_BYTES)
    header = _header(start, what)
    shape, notes = _grid(header, what)
    dtype = _voxel_type(header, what)
    affine, words = _affine(header, shape, what)
    check_memory(shape, what)
    offset = _offset(header, what)
    raw = _voxels(stream, start, offset, shape, dtype, what)
    _to_the_end(stream)
    slope, inter = _scaling(header)
    return Loaded(
        array=scaled(raw, slope, inter),
        affine=affine,
        format="nifti",
        header=header,
        notes=(*notes, *words),
        eight_bit=dtype == np.uint8 and (slope, inter) == (1.0, 0.0),
    )


def _header(start: bytes, what: str) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if not start:
        raise InputError(f"{what} is empty; copy or download it again")
    kind: Any
    if start[344:348] == b"n+1\0":
        kind = Nifti1Header
    elif start[4:8] == b"n+2\0":
        kind = Nifti2Header
    else:
        raise InputError(f"{what} is no NIfTI file (its header does not say so); give a .nii or .nii.gz image")
    if len(start) < kind.sizeof_hdr:
        raise InputError(f"{what} is truncated inside its header; copy or download it again")
    return kind(start[: kind.sizeof_hdr], check=False)


def _grid(header: Any, what: str) -> tuple[tuple[int, int, int], list[str]]:
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise InputError(f"{what} declares {rank} dimensions, but 3 are needed; its header is damaged")
    sizes = [int(size) for size in header["dim"][1 : rank + 1]]
    shown = " x ".join(str(size) for size in sizes)
    if rank < 3:
        raise InputError(f"{what} is a {rank}D image ({shown}), but a 3D volume is needed; give the whole volume")
    if rank >= 5 and any(size > 1 for size in sizes[4:]):
        raise InputError(f"{what} holds several numbers per voxel ({shown}), but one is needed; give the CT itself")
    if rank >= 4 and any(size > 1 for size in sizes[3:]):
        raise InputError(f"{what} is a 4D image of {sizes[3]} frames ({shown}), but one is needed; save a single frame")
    notes = [f"the image is {rank}D with one frame ({shown}): read as 3D"] if rank > 3 else []
    return (sizes[0], sizes[1], sizes[2]), notes


def _voxel_type(header: Any, what: str) -> np.dtype[Any]:
    from nibabel.spatialimages import HeaderDataError

    code = int(header["datatype"])
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (KeyError, HeaderDataError) as error:
        raise InputError(f"{what} declares an unknown type of voxel (datatype {code}); export it again") from error
    if dtype.fields is not None:
        raise InputError(f"{what} is a colour image, but one grey value per voxel is needed; give the CT itself")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{what} has voxels of type {dtype}, but integers or floats are needed; give the CT itself")
    return dtype


def _offset(header: Any, what: str) -> int:
    offset = float(header["vox_offset"])
    if not offset <= _LONGEST_EXTENSIONS:
        raise InputError(f"{what} declares its voxels to begin at byte {offset:g}; its header is damaged")
    return max(int(offset), int(header.single_vox_offset))


def _scaling(header: Any) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 or NaN means none (NIfTI-1 standard, `scl_slope`)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def _affine(header: Any, shape: tuple[int, int, int], what: str) -> tuple[NDArray[np.float64], list[str]]:
    check_spacing([float(size) for size in header["pixdim"][1:4]], what)
    usable = header.copy()
    if usable["pixdim"][0] not in (-1, 1):  # the standard reads any other value as 1
        usable["pixdim"][0] = 1
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    try:
        affine = np.asarray(usable.get_best_affine(), dtype=np.float64)
        other = np.asarray(usable.get_qform(), dtype=np.float64) if sform and qform else affine
    except ValueError as error:
        if not sform:
            raise GeometryError(f"{what} has a qform that is no rotation ({error}); export the image again") from error
        affine, other = np.asarray(usable.get_sform(), dtype=np.float64), None
    check_affine(affine, what)
    notes = []
    if not sform and not qform:
        notes.append("the file states no orientation (sform and qform codes are 0): left and right may be swapped")
    elif other is None or not _same_place(affine, other, shape):
        notes.append("sform and qform disagree by more than 0.5 mm: the sform was taken")
    return affine, notes


def _same_place(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]) -> bool:
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], dtype=float)
    distance = np.abs((one - other) @ corners.T)
    return bool(np.nanmax(distance) <= _FORM_DIFFERENCE_MM and np.isfinite(distance).all())


def _voxels(
    stream: IO[bytes],
    start: bytes,
    offset: int,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    what: str,
    done: int = 0,
    of: int = 1,
) -> NDArray[Any]:
    """Read exactly the declared voxels; `done` of `of` such pieces were read before."""
    raw: NDArray[Any] = np.empty(shape, dtype=dtype, order="F")
    target = raw.reshape(-1, order="F").view(np.uint8)
    already = start[offset:]
    if already:
        already = already[: target.size]
        target[: len(already)] = np.frombuffer(already, dtype=np.uint8)
    else:
        _skip(stream, offset - len(start))
    view, filled = memoryview(cast("Any", target)), len(already)
    while filled < target.size:
        count = stream.readinto(view[filled : filled + _BLOCK])  # type: ignore[attr-defined]
        if not count:
            raise InputError(
                f"{what} is truncated: its header declares {target.size * of} bytes of voxels, but "
                f"{target.size * done + filled} are there; copy or download it again"
            )
        filled += count
    if not dtype.isnative:
        raw.byteswap(inplace=True)
        raw = raw.view(dtype.newbyteorder("="))
    return raw


def _to_the_end(stream: IO[bytes]) -> None:
    """Read what follows the voxels, so that gzip's checksum is verified."""
    if isinstance(stream, gzip.GzipFile):
        while stream.read(_BLOCK):
            pass


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        block = stream.read(min(count, _BLOCK))
        if not block:
            return
        count -= len(block)
