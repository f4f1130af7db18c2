"""A tiny CT of known place, written by this machine's packages, read back, and its mask written and read again.

The phantom is a block of 6 x 5 x 4 mm off the centre. Where it must lie is worked out from the numbers below, not by
the code that is tested; the files are written and read by nibabel, pydicom and highdicom.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.doctor.findings import NOTE, OK, PROBLEM, Finding

_SHAPE = (20, 16, 12)
_SPACING = (1.0, 1.25, 2.0)  # mm along R, A, S
_ORIGIN = (-31.5, 12.0, -140.0)  # mm RAS of the centre of voxel 0, 0, 0
_BLOCK = (slice(3, 9), slice(2, 6), slice(7, 9))
# Centre of the block: origin + spacing * mean index, by hand: 5.5, 3.5, 7.5.
_CENTRE = (-26.0, 16.375, -125.0)
_TOLERANCE_MM = 0.01


def _phantom() -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    array = np.full(_SHAPE, -1000, dtype=np.int16)
    array[_BLOCK] = 60
    affine = np.diag([*_SPACING, 1.0])
    affine[:3, 3] = _ORIGIN
    return array, affine


def round_trips() -> Iterator[Finding]:
    """Try every order of axes as NIfTI, and a DICOM series with its SEG where the packages are there."""
    with tempfile.TemporaryDirectory(prefix="ctseg-doctor-") as folder:
        yield _nifti(Path(folder))
        missing = [name for name in ("pydicom", "highdicom") if importlib.util.find_spec(name) is None]
        if missing:
            yield Finding(
                "round trip SEG", NOTE, f"not tried: {' and '.join(missing)} not installed", "scripts/setup server"
            )
        else:
            yield _dicom(Path(folder) / "dicom")


def _nifti(folder: Path) -> Finding:
    """Store the phantom with its axes in several orders and directions; the mask of each must lie on the block."""
    import nibabel as nib

    from ctseg.outputs.writing import write_mask
    from ctseg.reading import read_volume

    array, affine = _phantom()
    worst = 0.0
    for number, code in enumerate(("RAS", "LPS", "PIR", "SLA")):
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(code)
        )
        stored = nib.orientations.apply_orientation(array, turn)
        grid = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
        path = folder / f"ct{number}.nii.gz"
        nib.save(nib.Nifti1Image(stored, grid), path)
        volume = read_volume(path)
        mask = write_mask((np.asarray(volume.array) > 0).astype(np.uint8), volume, folder / f"mask{number}.nii.gz")
        written: Any = nib.load(mask)
        worst = max(worst, _error_mm(np.asarray(written.dataobj) > 0, written.affine))
    return _verdict("round trip NIfTI", worst, "CT and mask in four orders of axes")


def _error_mm(found: NDArray[np.bool_], affine: NDArray[Any]) -> float:
    """How far the centre of what was found lies from where it must, in mm; infinite for another number of voxels."""
    if np.count_nonzero(found) != 6 * 4 * 2:
        return float("inf")
    centre = affine[:3, :3] @ np.argwhere(found).mean(0) + affine[:3, 3]
    return float(np.abs(centre - _CENTRE).max())


def _verdict(name: str, error_mm: float, what: str) -> Finding:
    if error_mm <= _TOLERANCE_MM:
        return Finding(name, OK, f"{what}: in the right place")
    return Finding(
        name,
        PROBLEM,
        f"{what}: the mask lies {error_mm:.2f} mm off",
        "do not use results of this machine; make the environment anew with scripts/setup",
    )


def _dicom(folder: Path) -> Finding:
    """Write the phantom as a CT series with axes L, P, S, and its mask as DICOM SEG; read that onto the CT's grid."""
    from ctseg.dicom.seg import write_seg
    from ctseg.dicom.segreading import read_seg
    from ctseg.reading import read_volume

    array, affine = _phantom()
    stored = array[::-1, ::-1]  # columns to the patient's left, rows to the back, as a scanner writes them
    turn = np.array([[-1, 0, 0, _SHAPE[0] - 1], [0, -1, 0, _SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    files = _write_series(folder, stored, affine @ turn)
    volume = read_volume(folder)
    mask = (np.asarray(volume.array) > 0).astype(np.uint8)
    labels = [{"name": "block", "code": 1, "snomed": {"value": "123037004", "meaning": "Body structure"}}]
    path = write_seg(mask, volume, files, labels, folder.parent / "segmentation.dcm")
    again, _ = read_seg(path, volume, labels)
    error = max(_error_mm(found > 0, volume.source_affine) for found in (mask, again))
    return _verdict("round trip SEG", error, "CT and mask as DICOM")


def _write_series(folder: Path, array: NDArray[np.int16], affine: NDArray[Any]) -> list[Path]:
    """Write (I, J, K) HU as a CT series by pydicom: columns along I, rows along J, a file for each K."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, series, frame = (generate_uid() for _ in range(3))
    files = []
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "", "phantom", "", ""
        image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "", "", ""
        image.StudyDate, image.StudyTime, image.Manufacturer = "20000101", "000000", "ctseg"
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, k + 1
        image.ImageType, image.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY", "AXIAL"], ""
        image.ImagePositionPatient = [float(mm) for mm in lps[:3, 3] + k * lps[:3, 2]]
        image.ImageOrientationPatient = [*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1])]
        image.PixelSpacing, image.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
        image.Rows, image.Columns = array.shape[1], array.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = array[:, :, k].T.astype("<i2").tobytes()
        files.append(folder / f"{k:03d}.dcm")
        image.save_as(files[-1], write_like_original=False)
    return files
