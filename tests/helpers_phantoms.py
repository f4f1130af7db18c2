"""An asymmetric phantom and independent writers for it: nibabel, SimpleITK and pydicom, never ctseg itself."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

AIR, BODY, LETTER = -1000, 40, 300
FEW_MM = (1.0, 1.25, 2.5)

# Voxels of the canonical phantom (index along R, A, S) with a value of their own, so that each can be found again.
LANDMARKS = {1001: (3, 2, 1), 1002: (16, 3, 2), 1003: (4, 20, 3), 1004: (15, 18, 8), 1005: (9, 11, 5)}


def f_phantom(shape: Sequence[int] = (20, 24, 10)) -> np.ndarray:
    """Return int16 HU, axes R, A, S: air, a body, and the letter F that grows thicker towards the head.

    No flip and no exchange of axes maps it onto itself (tested): the F is asymmetric in its plane, its stem widens
    along the third axis, and the landmarks lie without symmetry.
    """
    i, j, k = shape
    volume = np.full(shape, AIR, dtype=np.int16)
    volume[1 : i - 1, 1 : j - 2, :] = BODY
    for level in range(k):
        volume[3 : 5 + level // 2, 3 : j - 4, level] = LETTER  # stem
        volume[3 : i - 4, j - 7 : j - 4, level] = LETTER + 10  # long bar, in front
        volume[3 : i - 8, j - 13 : j - 11, level] = LETTER + 20  # short bar
    for value, place in LANDMARKS.items():
        if all(p < size for p, size in zip(place, shape, strict=True)):
            volume[place] = value
    return volume


def straight_affine(spacing: Sequence[float] = FEW_MM, origin: Sequence[float] = (-31.5, 12.25, -140.0)) -> np.ndarray:
    """Return a RAS affine along the axes."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def oblique_affine(
    spacing: Sequence[float] = FEW_MM,
    origin: Sequence[float] = (-31.5, 12.25, -140.0),
    degrees: Sequence[float] = (12.0, -7.0, 21.0),
) -> np.ndarray:
    """Return a RAS affine turned about x, then y, then z."""
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def landmark_places(affine: np.ndarray) -> dict[int, np.ndarray]:
    """Return value -> RAS mm of each landmark of the canonical phantom under its affine."""
    return {value: affine[:3, :3] @ place + affine[:3, 3] for value, place in LANDMARKS.items()}


def reoriented(array: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Store the same image with its axes in the order and direction of `code` ("LPS", "PSR" ...), by nibabel."""
    import nibabel as nib

    now = nib.orientations.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(tuple(code))
    turn = nib.orientations.ornt_transform(now, wanted)
    stored = nib.orientations.apply_orientation(array, turn)
    return stored, affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, **fields: object) -> Path:
    """Write by nibabel, both forms with code 1; then put `fields` into the header's bytes, however wrong they are."""
    import nibabel as nib

    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    if fields:
        opened = gzip.open if path.name.endswith(".gz") else open
        with opened(path, "rb") as stream:
            content = stream.read()
        header = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        with opened(path, "wb") as stream:
            stream.write(header.binaryblock + content[348:])
    return path


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, compress: bool = False) -> Path:
    """Write NRRD or MetaImage by SimpleITK from an (I, J, K) array with a RAS affine."""
    import SimpleITK as sitk

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([float(size) for size in spacing])
    image.SetDirection([float(cosine) for cosine in (lps[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(mm) for mm in lps[:3, 3]])
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path


def write_dicom(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    series_number: int = 3,
    modality: str = "CT",
    compression: str | None = None,
    edit: Callable[[object, int], bool | None] | None = None,
) -> str:
    """Write a series by pydicom: columns along I, rows along J, one file per K. New UIDs, no names.

    Args:
        folder: made where missing.
        array: (I, J, K) integers in HU.
        affine: index to RAS mm.
        series_number: DICOM's SeriesNumber.
        modality: DICOM's Modality.
        compression: None, "rle" or "jpeg2000" (OpenJPEG wants planes of 64 x 64 or more).
        edit: called with each data set and its k before it is saved; False leaves it out.

    Returns:
        The SeriesInstanceUID.
    """
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for k in range(array.shape[2]):
        image = _dicom_image(array[:, :, k], lps, k)
        image.SeriesNumber, image.Modality = series_number, modality
        for name, uid in uids.items():
            setattr(image, name, uid)
        if edit is not None and edit(image, k) is False:
            continue
        _compress(image, compression)
        # Names that do not tell the order.
        image.save_as(folder / f"{(k * 7) % 101:03d}-{image.SOPInstanceUID[-6:]}.dcm", write_like_original=False)
    return str(uids["SeriesInstanceUID"])


def write_axial_series(folder: Path, **options: object) -> str:
    """Write the phantom as an ordinary axial series of 10 slices; options as `write_dicom` has them."""
    array, affine = reoriented(f_phantom(), straight_affine(), "LPS")
    return write_dicom(folder, array, affine, **options)  # type: ignore[arg-type]


def _dicom_image(plane: np.ndarray, lps: np.ndarray, k: int):  # type: ignore[no-untyped-def]
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.is_little_endian, image.is_implicit_VR = True, False
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID = "", "phantom"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.InstanceNumber = k + 1
    image.ImagePositionPatient = [f"{mm:.6f}" for mm in lps[:3, :3] @ [0, 0, k] + lps[:3, 3]]
    image.ImageOrientationPatient = [f"{c:.9f}" for c in (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))]
    image.PixelSpacing = [f"{spacing[1]:.7f}", f"{spacing[0]:.7f}"]
    image.SliceThickness = f"{spacing[2]:.6f}"
    image.Rows, image.Columns = plane.shape[1], plane.shape[0]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = (plane.T.astype(np.int32) + 1024).astype("<u2").tobytes()
    return image


def _compress(image, compression: str | None) -> None:  # type: ignore[no-untyped-def]
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless, RLELossless

    if compression == "rle":
        image.compress(RLELossless)
    elif compression == "jpeg2000":
        from openjpeg.utils import encode_array

        code = encode_array(image.pixel_array, bits_stored=16, photometric_interpretation=2)
        image.PixelData = encapsulate([bytes(code)])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    elif compression is not None:
        raise ValueError(f"unknown compression {compression!r}")
