"""For the tests of the viewer: CTs as DICOM series, what lies in Orthanc, and a real browser."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

CHROMIUM = "/usr/bin/chromium"
# Software WebGL, and nothing that asks outside addresses.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ct_series(array: NDArray[Any], affine: NDArray[np.float64], case: str) -> list[Any]:
    """Make a DICOM CT series of a volume in HU.

    Args:
        array: (I, J, K) HU; stored are K axial slices with J rows and I columns.
        affine: index to RAS mm; its third column is the slices' normal.
        case: an id, for a patient without a name.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / sizes
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for k in range(array.shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = case, f"{case}^", "", ""
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260102", "101500", case, ""
        image.ContentDate, image.ContentTime, image.StudyDescription = "20260102", "101500", case
        image.ReferringPhysicianName, image.Manufacturer, image.PositionReferenceIndicator = "", "phantom", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, k + 1
        image.SeriesDescription, image.ImageType = "axial", ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.KVP, image.AcquisitionNumber, image.PatientPosition = "120", 1, "HFS"
        image.ImagePositionPatient = [f"{x:.6f}" for x in (lps @ [0, 0, k, 1])[:3]]
        image.ImageOrientationPatient = [f"{x:.6f}" for x in (*directions[:, 0], *directions[:, 1])]
        image.PixelSpacing = [f"{sizes[1]:.6f}", f"{sizes[0]:.6f}"]
        image.SliceThickness = f"{sizes[2]:.6f}"
        image.Rows, image.Columns = array.shape[1], array.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = "1", "-1024", "HU"
        image.WindowCenter, image.WindowWidth = "40", "400"
        image.PixelData = (np.rint(array[:, :, k].T) + 1024).astype("<i2").tobytes()
        image.is_little_endian, image.is_implicit_VR = True, False
        slices.append(image)
    return slices


def file_of(dataset: Any) -> bytes:
    """The dataset as a DICOM file."""
    stream = io.BytesIO()
    dataset.save_as(stream, write_like_original=False)
    return stream.getvalue()


def upper_abdomen(shared: Path, slices: slice = slice(64, 112)) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The real CT of 122 x 101 pixels from the lungs' bases up to the liver's dome, axes L, P, S; and its affine."""
    image = nib.load(shared / "abdomen_ct" / "ct.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    array = np.asarray(image.dataobj).astype(np.int16)[::-1, ::-1, slices]
    affine = image.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (image.affine @ [image.shape[0] - 1, image.shape[1] - 1, slices.start, 1])[:3]
    return array, affine


def padded_to(array: NDArray[Any], columns: int, rows: int) -> NDArray[Any]:
    """The same image with air at the far ends of its rows and columns: no voxel moves."""
    missing = ((0, columns - array.shape[0]), (0, rows - array.shape[1]), (0, 0))
    return np.pad(array, missing, constant_values=-1000)


class Witness:
    """Orthanc through its own interface, not through DICOMweb, which the server under test uses."""

    def __init__(self, orthanc: Any) -> None:
        self._root = orthanc.address.removesuffix("/dicom-web")
        self._login = (orthanc.user, orthanc.password)

    def send(self, datasets: Sequence[Any]) -> None:
        """Store instances."""
        for dataset in datasets:
            self._ask("/instances", file_of(dataset))

    def find(self, **query: str) -> list[Any]:
        """Return the instances that match, read whole."""
        import pydicom

        body = json.dumps({"Level": "Instance", "Query": query}).encode()
        found = []
        for one in json.loads(self._ask("/tools/find", body)):
            found.append(pydicom.dcmread(io.BytesIO(self._ask(f"/instances/{one}/file"))))
            found[-1].filename = None  # a stream cannot be copied
        return found

    def labels(self, series: str) -> list[Any]:
        """Return the DICOM SEGs that reference a series, in the order in which they were made."""
        segs = [seg for seg in self.find(Modality="SEG") if seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series]
        return sorted(segs, key=lambda seg: (seg.ContentDate, seg.ContentTime))

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        import requests

        answer = requests.request("POST" if body else "GET", self._root + path, data=body, auth=self._login, timeout=60)
        answer.raise_for_status()
        return answer.content


@contextmanager
def browser() -> Iterator[Any]:
    """Start Debian's Chromium without a screen; skip where it or Playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not shutil.which(CHROMIUM):
        pytest.skip("Chromium is not installed: apt install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        try:
            yield chromium
        finally:
            chromium.close()
