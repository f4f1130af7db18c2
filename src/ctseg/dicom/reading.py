"""DICOM series through ITK's GDCM: found, chosen, checked slice by slice, stacked.

The grid is computed from ImagePositionPatient and ImageOrientationPatient of every slice (PS3.3, C.7.6.2), never from
file names or instance numbers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.checks import check_memory
from ctseg.dicom.archives import unpacked
from ctseg.dicom.files import holds_its_pixels, is_ct_image, is_whole, may_be_dicom
from ctseg.dicom.series import Slice, choose_series, stack
from ctseg.dicom.tilt import is_tilted
from ctseg.errors import InputError
from ctseg.geometry import clean_affine
from ctseg.sources import Loaded
from ctseg.volume import Volume

_INT16 = np.iinfo(np.int16)
_UNREADABLE = "DICOM file without a readable image"
_DAMAGED = "damaged CT image"


def read_dicom(path: Path, modality: str = "CT") -> Loaded:
    """Read the largest series of a modality from a folder (with its sub-folders), a zip, or one DICOM file.

    Args:
        path: existing folder, .zip or DICOM file.
        modality: of the series to take, as in DICOM's Modality (0008,0060).

    Returns:
        The voxels with RescaleSlope and RescaleIntercept applied, shape (columns, rows, slices), slices in ascending
        order along the normal of the image plane.

    Raises:
        InputError: no image of the modality, a damaged file, frames of several images in one file.
        GeometryError: mixed series, missing or uneven slices, several images at one place, a tilted gantry.
        ResourceError: the series does not fit in memory, or the zip not on disk.
    """
    if path.is_file() and path.name.lower().endswith(".zip"):
        with unpacked(path) as folder:
            return _read_folder(folder, str(path), modality)
    return _read_folder(path, str(path), modality)


def read_dicom_grid(path: Path, modality: str = "CT") -> Volume:
    """Read where a series lies without its pixels: everything of a volume but the voxels, which are all 0.

    Args:
        path: a folder or one DICOM file.
        modality: as for `read_dicom`.

    Raises:
        InputError, GeometryError: as `read_dicom`, except for what only the pixels show.
    """
    ordered, affine, notes = _series_of(path, str(path), modality)
    nothing = np.broadcast_to(np.int16(0), (ordered[0].columns, ordered[0].rows, len(ordered)))
    return Volume(
        array=nothing,
        affine=affine.copy() if is_tilted(affine) else clean_affine(affine),
        source_affine=affine,
        source=path,
        format="dicom",
        series_uid=ordered[0].series_uid,
        notes=tuple(notes),
        slices=tuple(ordered),
    )


def _read_folder(path: Path, what: str, modality: str) -> Loaded:
    ordered, affine, notes = _series_of(path, what, modality)
    if ordered[0].series_number:
        what = f"{what} (series {ordered[0].series_number})"
    check_memory((ordered[0].columns, ordered[0].rows, len(ordered)), what)
    return Loaded(
        array=_voxels(ordered, what),
        affine=affine,
        format="dicom",
        series_uid=ordered[0].series_uid,
        notes=tuple(notes),
        eight_bit=all(image.bits <= 8 and not image.rescaled for image in ordered),
        slices=tuple(ordered),
    )


def _series_of(path: Path, what: str, modality: str) -> tuple[list[Slice], NDArray[np.float64], list[str]]:
    """Return the slices of the largest series in order, their affine, and the notes."""
    images, passed_over = scan(path, modality.upper())
    if passed_over[_DAMAGED] and modality.upper() == "CT":
        # Left out, the first or last slice of a series would be missed by nobody.
        raise InputError(
            f"{what} holds {passed_over[_DAMAGED]} damaged CT images that cannot be read (truncated?), so a series may "
            "be incomplete; copy or export it again"
        )
    if not images:
        found = ", ".join(f"{count} {reason}" for reason, count in sorted(passed_over.items())) or "no DICOM file"
        raise InputError(
            f"{what} holds no {modality} image (found: {found}); give a folder or zip of a {modality} series"
        )
    series, notes = choose_series(images, modality)
    if path.is_file():
        notes.append("a single DICOM file was given, so one slice was read; give the folder for the whole series")
    notes += [f"{n} files were passed over: {why}" for why, n in sorted(passed_over.items()) if _worth_a_note(why)]
    if series[0].series_number:
        what = f"{what} (series {series[0].series_number})"
    ordered, affine, words = stack(series, what)
    return ordered, affine, [*notes, *words]


def scan(path: Path, modality: str) -> tuple[list[Slice], Counter[str]]:
    """Read the header of every DICOM file.

    Returns:
        The images of the modality that have a place in space, and how many files were passed over for which reason.
    """
    files = [path] if path.is_file() else sorted(Path(folder) / name for folder, names in _walk(path) for name in names)
    images: list[Slice] = []
    passed_over: Counter[str] = Counter()
    candidates = [file for file in files if may_be_dicom(file)]
    if empty := sum(file.is_file() and file.stat().st_size == 0 for file in files):
        passed_over["empty file"] = empty
    if not candidates:
        return images, passed_over
    import itk  # late: four seconds

    for file in candidates:
        tags = _tags(itk, file) if is_whole(file) else None
        if tags is None:
            passed_over[_DAMAGED if is_ct_image(file) else _UNREADABLE] += 1
            continue
        found, reason = Slice.from_tags(file, tags, modality)
        if found is None:
            # A file cut inside its header loses its modality, but not what its first bytes say.
            cut = not tags.get("0008|0060") and is_ct_image(file)
            passed_over[_DAMAGED if cut else reason] += 1
        else:
            images.append(found)
    return images, passed_over


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Walk over a folder past its hidden ones: `ctseg serve` keeps copies of the series in one."""
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, names


def _worth_a_note(reason: str) -> bool:
    return not reason.startswith("of modality")


def _tags(itk: Any, file: Path) -> dict[str, str] | None:
    """Return the header as "gggg|eeee" -> text, or None where GDCM finds no image."""
    io = itk.GDCMImageIO.New()
    io.SetFileName(str(file))
    try:
        io.ReadImageInformation()
    except RuntimeError:
        return None
    dictionary = io.GetMetaDataDictionary()
    return {key: str(dictionary[key]).strip(" \0") for key in Slice.TAGS if dictionary.HasKey(key)}


def dicom_planes(ordered: Sequence[Slice], what: str) -> Iterator[NDArray[np.float32]]:
    """Read slice by slice: planes (columns, rows), rescaled, in the order given.

    Raises:
        InputError: an image is damaged.
    """
    import itk

    reader_type = itk.ImageFileReader[itk.Image[itk.F, 3]]
    for index, image in enumerate(ordered):
        reader = reader_type.New()
        reader.SetFileName(str(image.path))
        reader.SetImageIO(itk.GDCMImageIO.New())
        try:
            if not holds_its_pixels(image.path, image.rows * image.columns * (image.bits // 8)):
                raise RuntimeError("fewer bytes than pixels")
            reader.Update()
        except RuntimeError as error:
            raise InputError(
                f"{what} is damaged: the image of slice {index + 1} of {len(ordered)} cannot be decoded "
                "(truncated, or an unknown compression); copy or export the series again"
            ) from error
        yield np.asarray(itk.array_from_image(reader.GetOutput()))[0].T


def _voxels(ordered: Sequence[Slice], what: str) -> NDArray[Any]:
    """Read slice by slice into one array: int16 as long as integers that fit come, else float32."""
    first = ordered[0]
    volume: NDArray[Any] = np.empty((first.columns, first.rows, len(ordered)), dtype=np.int16, order="F")
    for index, pixels in enumerate(dicom_planes(ordered, what)):
        if volume.dtype == np.int16 and not _fits(pixels):
            volume = volume.astype(np.float32, order="F")
        volume[:, :, index] = pixels
    return volume


def _fits(pixels: NDArray[np.float32]) -> bool:
    low, high = pixels.min(), pixels.max()
    return bool(low >= _INT16.min and high <= _INT16.max and np.array_equal(pixels, np.rint(pixels)))
