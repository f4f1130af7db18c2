"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) through ITK.

ITK speaks LPS and its NumPy view is (K, J, I); both are turned here, once. ITK reads a NaN in a MetaImage header as 0
and a negative spacing as a flip, so the few lines of text that place the image are looked at first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import check_memory
from ctseg.errors import GeometryError, InputError
from ctseg.geometry import affine_from_lps_parts, check_affine, check_spacing
from ctseg.sources import Loaded, scaled

_LONGEST_HEADER = 1 << 20
_META_PLACE = ("offset", "position", "origin", "transformmatrix", "rotation", "orientation", "elementspacing")
_NRRD_PLACE = ("space origin", "space directions", "spacings")
_KNOWN_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
# The smallest ITK pixel type that keeps every value; what is not named here is read as float32.
_READ_AS = {
    "char": "SS", "unsigned_char": "SS", "short": "SS", "unsigned_short": "US", "int": "SI", "unsigned_int": "UI",
    "long": "SLL", "long_long": "SLL", "unsigned_long": "ULL", "unsigned_long_long": "ULL",
}  # fmt: skip


def read_itk(path: Path, kind: str) -> Loaded:
    """Read an NRRD or MetaImage file of one scalar volume.

    Args:
        path: an existing file.
        kind: "nrrd" or "metaimage".

    Raises:
        InputError: not of that kind, truncated, its data file missing, not one scalar 3D volume.
        GeometryError: a header that places nothing, or a sheared grid.
        ResourceError: the declared size does not fit in memory.
    """
    what = str(path)
    fields = _header_fields(path, kind, what)
    import itk  # late: three seconds

    io = (itk.NrrdImageIO if kind == "nrrd" else itk.MetaImageIO).New()
    io.SetFileName(str(path))
    try:
        io.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{what} cannot be read: {_reason(error)}; export the image again") from error
    shape, notes = _grid(io, what)
    affine = _affine(io, what)
    check_memory(shape, what)
    if kind == "nrrd" and fields.get("space", "").lower() not in _KNOWN_SPACES:
        notes.append("the file names no patient space: its axes were taken as left, posterior, superior")
    if kind == "metaimage":
        _check_local_size(path, fields, what)
    component = io.GetComponentTypeAsString(io.GetComponentType())
    return Loaded(
        array=_voxels(itk, io, path, component, what),
        affine=affine,
        format=kind,
        notes=tuple(notes),
        eight_bit=component == "unsigned_char",
    )


def _header_fields(path: Path, kind: str, what: str) -> dict[str, str]:
    """Return the text header as lower-case key -> value, after judging the numbers that place the image."""
    with path.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
    if not start:
        raise InputError(f"{what} is empty; copy or download it again")
    name, separator = ("NRRD", ":") if kind == "nrrd" else ("MetaImage", "=")
    fields: dict[str, str] = {}
    read = 0
    for number, line in enumerate(start.split(b"\n")):
        read += len(line) + 1
        text = line.decode("latin-1").strip()
        if kind == "nrrd" and number > 0 and not text:
            break
        key, found, value = text.partition(separator)
        if found:
            fields.setdefault(key.strip().lower(), value.strip())
            if key.strip().lower() == "elementdatafile":
                break
        if kind == "metaimage" and not found:
            break
    fields["header bytes"] = str(read)
    sound = start.startswith(b"NRRD000") if kind == "nrrd" else {"ndims", "elementdatafile"} <= fields.keys()
    if not sound:
        raise InputError(f"{what} is no {name} file (its header does not say so); give the image itself")
    for key in _NRRD_PLACE if kind == "nrrd" else _META_PLACE:
        for token in fields.get(key, "").replace("(", " ").replace(")", " ").replace(",", " ").split():
            _check_number(token, key, what)
    return fields


def _check_number(token: str, key: str, what: str) -> None:
    if token == "none":  # NRRD's word for an axis without a direction
        return
    try:
        finite = math.isfinite(float(token))
    except ValueError:
        finite = False
    if not finite:
        raise GeometryError(f"{what} states {token!r} in its {key!r}, but a finite number is needed; export it again")


def _grid(io: Any, what: str) -> tuple[tuple[int, int, int], list[str]]:
    rank = int(io.GetNumberOfDimensions())
    sizes = [int(io.GetDimensions(axis)) for axis in range(rank)]
    shown = " x ".join(str(size) for size in sizes)
    components = int(io.GetNumberOfComponents())
    pixel = io.GetPixelTypeAsString(io.GetPixelType())
    if components != 1 or pixel != "scalar":
        raise InputError(f"{what} has {components} numbers per voxel ({pixel}), but one grey value is needed")
    if rank < 3:
        raise InputError(f"{what} is a {rank}D image ({shown}), but a 3D volume is needed; give the whole volume")
    if any(size > 1 for size in sizes[3:]):
        raise InputError(f"{what} is a {rank}D image ({shown}), but one 3D frame is needed; save a single frame")
    notes = [f"the image is {rank}D with one frame ({shown}): read as 3D"] if rank > 3 else []
    return (sizes[0], sizes[1], sizes[2]), notes


def _affine(io: Any, what: str) -> NDArray[np.float64]:
    spacing = [float(io.GetSpacing(axis)) for axis in range(3)]
    check_spacing(spacing, what)
    directions = np.array([tuple(io.GetDirection(axis))[:3] for axis in range(3)], dtype=np.float64).T
    affine = affine_from_lps_parts(directions, spacing, [float(io.GetOrigin(axis)) for axis in range(3)])
    check_affine(affine, what)
    return affine


def _check_local_size(path: Path, fields: dict[str, str], what: str) -> None:
    """Refuse an uncompressed MetaImage that is shorter than it says; MetaIO would print to the terminal."""
    widths = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
    width = widths.get(fields.get("elementtype", "").upper().removeprefix("MET_"))
    local = fields.get("elementdatafile", "").upper() == "LOCAL"
    if width is None or not local or fields.get("compresseddata", "False").lower() == "true":
        return
    declared = math.prod(int(size) for size in fields["dimsize"].split()) * width
    if path.stat().st_size < declared + int(fields["header bytes"]):
        raise InputError(
            f"{what} is truncated: its header declares {declared} bytes of voxels, but the file with its header has "
            f"{path.stat().st_size}; copy or download it again"
        )


def _voxels(itk: Any, io: Any, path: Path, component: str, what: str) -> NDArray[Any]:
    pixel = getattr(itk, _READ_AS.get(component, "F"))
    reader = itk.ImageFileReader[itk.Image[pixel, 3]].New()
    reader.SetFileName(str(path))
    reader.SetImageIO(io)
    try:
        reader.Update()
    except RuntimeError as error:
        raise InputError(
            f"{what} cannot be read to its end (truncated, or its data file is missing; {_reason(error)}); "
            "copy or download it again"
        ) from error
    return scaled(np.asarray(itk.array_from_image(reader.GetOutput())).T)


def _reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Reason: Success" not in line]
    return lines[-1].rstrip(".:") if lines else "no reason given"
