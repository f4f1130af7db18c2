"""Masks onto exactly the grid of the image they belong to."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.tilt import is_tilted
from ctseg.errors import GeometryError, OutputError
from ctseg.files import written_beside
from ctseg.volume import Volume

# What places a grid; nothing else of a source's header is taken over: no scaling, no description, no extension.
_PLACE_FIELDS = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_AFFINE_TOLERANCE_MM = 1e-2
_GZIP_LEVEL = 6
_SLAB = 32  # slices that are turned into the file's order at once


def write_mask(
    label_map: NDArray[Any], volume: Volume, path: str | Path, affine: NDArray[np.float64] | None = None
) -> Path:
    """Write a label map as unsigned 8-bit NIfTI on the grid of its source; the same input gives the same bytes.

    A NIfTI source's sform, qform and their codes are repeated bit for bit (NIfTI-2 for a NIfTI-2 source). Any other
    source gets both forms from `source_affine`, rounded to NIfTI-1's float32 (relative 6e-8: 0.00003 mm at 500 mm).

    Args:
        label_map: (I, J, K) integers 0..255 or bool, on the volume's grid.
        volume: what the mask belongs to.
        path: ends in .nii or .nii.gz; missing folders are made, an earlier file is replaced in one step.
        affine: the mask's own index-to-RAS affine where the caller has one; it must be the volume's.

    Returns:
        The path.

    Raises:
        GeometryError: another shape or affine than the source's.
        OutputError: values that are no labels 0..255, another suffix, or a place that cannot be written.
    """
    path = Path(path)
    labels = _checked(label_map, volume, path, affine)
    header = _header(volume, labels.shape)
    with written_beside(path) as beside, beside.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # Neither the time nor a name in gzip's header: two runs give the same bytes.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as stream:
                _write(cast("IO[bytes]", stream), header, labels)
        else:
            _write(file, header, labels)
    return path


def _checked(
    label_map: NDArray[Any], volume: Volume, path: Path, affine: NDArray[np.float64] | None
) -> NDArray[np.uint8]:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path} is no name for a mask; it must end in .nii or .nii.gz")
    labels = np.asarray(label_map)
    if labels.shape != volume.shape:
        raise GeometryError(
            f"the mask has {_shown(labels.shape)} voxels, but its image {volume.source} has {_shown(volume.shape)}; "
            "bring it to the image's grid first"
        )
    if affine is not None and not _same_grid(np.asarray(affine, dtype=np.float64), volume):
        raise GeometryError(
            f"the mask lies elsewhere than its image {volume.source} (their affines differ by more than "
            f"{_AFFINE_TOLERANCE_MM:g} mm); bring it to the image's grid first"
        )
    if labels.dtype.kind not in "biu":
        raise OutputError(f"the mask for {path} holds {labels.dtype} values, but labels are integers 0 to 255")
    if labels.dtype not in (np.uint8, np.bool_) and labels.size and (labels.min() < 0 or labels.max() > 255):
        raise OutputError(f"the mask for {path} holds {labels.min()} to {labels.max()}, but labels are 0 to 255")
    return labels.astype(np.uint8, order="K", copy=False)


def _same_grid(affine: NDArray[np.float64], volume: Volume) -> bool:
    """Compare where the corners of the grid lie, against the exact and the cleaned affine."""
    i, j, k = volume.shape
    corners = np.array([[a, b, c, 1] for a in (0, i) for b in (0, j) for c in (0, k)], dtype=np.float64).T
    return affine.shape == (4, 4) and any(
        np.abs((affine - known) @ corners).max() <= _AFFINE_TOLERANCE_MM
        for known in (volume.source_affine, volume.affine)
    )


def _header(volume: Volume, shape: tuple[int, ...]) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    source = volume.header
    header = Nifti2Header() if isinstance(source, Nifti2Header) else Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    if volume.format == "nifti" and source is not None:
        for field in _PLACE_FIELDS:
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
    else:
        header.set_xyzt_units("mm")
        # A quaternion cannot hold the shear of a tilted gantry; then the sform alone says where the mask lies.
        header.set_qform(volume.source_affine, code=0 if is_tilted(volume.source_affine) else 1)
        header.set_sform(volume.source_affine, code=1)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = b"ctseg label map"
    return header


def _write(stream: IO[bytes], header: Any, labels: NDArray[np.uint8]) -> None:
    stream.write(header.binaryblock)
    stream.write(b"\0" * (int(header.single_vox_offset) - len(header.binaryblock)))  # no extension follows
    i, j, k = labels.shape  # NIfTI keeps I fastest
    if labels.flags.f_contiguous:
        for start in range(0, k, _SLAB):
            stream.write(labels[:, :, start : start + _SLAB].tobytes(order="F"))
        return
    # Of an array that keeps K fastest only the part with labels is turned, some slices together: one by one takes many
    # times as long.
    hit = labels.max(axis=0, initial=0) > 0
    columns, planes = np.flatnonzero(hit.any(axis=1)), hit.any(axis=0)
    part = slice(columns[0], columns[-1] + 1) if columns.size else slice(0)
    turned = np.zeros((i, j, min(_SLAB, k)), dtype=np.uint8, order="F")
    for start in range(0, k, _SLAB):
        stop = min(k, start + _SLAB)
        turned[:, part, : stop - start] = labels[:, part, start:stop] if planes[start:stop].any() else 0
        stream.write(turned[:, :, : stop - start].T.reshape(-1).data)


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
