"""The mask as the file that a client asked for: NIfTI by the library's writer, or NRRD on the same grid."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, GeometryError
from ctseg.outputs.writing import write_mask
from ctseg.volume import Volume

EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32")


def wanted_extension(request: Mapping[str, Any]) -> str:
    """Return the result's file extension: as asked for, else the image's own, else `.nii.gz`.

    Raises:
        ConfigError: an extension that is not written here.
    """
    asked = request.get("result_extension")
    if not asked:
        image = str(request["image"]).lower()
        return next((known for known in EXTENSIONS if image.endswith(known)), EXTENSIONS[0])
    extension = "." + str(asked).lower().lstrip(".")
    if extension not in EXTENSIONS:
        raise ConfigError(f"masks are not written as {asked!r}: expected one of {', '.join(EXTENSIONS)}")
    return extension


def wanted_dtype(request: Mapping[str, Any]) -> str:
    """Return the voxel type asked for, "uint8" by default.

    Raises:
        ConfigError: a type that a label map is not written in.
    """
    dtype = str(request.get("result_dtype") or DTYPES[0])
    if dtype not in DTYPES:
        raise ConfigError(f"masks are not written in {dtype!r}: expected one of {', '.join(DTYPES)}")
    return dtype


def write_result(label_map: NDArray[np.uint8], volume: Volume, folder: Path, request: Mapping[str, Any]) -> Path:
    """Write a label map for a client.

    Args:
        label_map: label codes, shape (I, J, K) of the volume.
        volume: the image it belongs to; its source's grid is written.
        folder: where to; the name is random, since a file's name may be a patient's.
        request: `result_extension`, `result_dtype` (NRRD only: a NIfTI mask is always uint8) and `result_compress`.

    Raises:
        ConfigError: an extension or type that is not written here.
        GeometryError: the map does not lie on the volume's grid.
    """
    path = folder / f"mask-{secrets.token_hex(8)}{wanted_extension(request)}"
    dtype = wanted_dtype(request)
    if path.suffix != ".nrrd":
        return write_mask(label_map, volume, path)
    write_nrrd(label_map.astype(dtype, copy=False), volume, path, compress=request.get("result_compress") is True)
    return path


def write_nrrd(label_map: NDArray[Any], volume: Volume, path: Path, compress: bool = False) -> None:
    """Write a NRRD whose directions and origin are the source's own numbers, turned from RAS to LPS.

    pynrrd prints 17 digits, which give each float64 back exactly. MONAI Label's ITK writer takes the spacing out of the
    directions and multiplies it in again, which moves the last digits.

    Raises:
        GeometryError: the map does not lie on the volume's grid.
    """
    import nrrd

    if label_map.shape != volume.shape:
        raise GeometryError(
            f"the mask has {label_map.shape} voxels and its image {volume.shape}: expected the same grid; "
            "this is an error in ctseg, please report it"
        )
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.source_affine
    header = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": lps[:3, :3].T,  # one row for each array axis
        "space origin": lps[:3, 3],
        "encoding": "gzip" if compress else "raw",
    }
    nrrd.write(str(path), label_map, header, index_order="F")
