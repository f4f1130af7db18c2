"""DICOM CTs with a known label map, and DICOM SEGs in the forms in which other programs store them."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_phantoms import f_phantom, oblique_affine, reoriented, straight_affine, write_dicom

from ctseg.reading import read_volume
from ctseg.volume import Volume

LABELS: list[dict[str, Any]] = [
    {"name": "liver", "code": 1, "color": [221, 130, 101], "snomed": {"value": "10200004", "meaning": "Liver"}},
    {"name": "spleen", "code": 4, "color": [157, 108, 162], "snomed": {"value": "78961009", "meaning": "Spleen"}},
    {
        "name": "gallbladder",
        "code": 2,
        "color": [139, 150, 98],
        "snomed": {"value": "28231008", "meaning": "Gallbladder"},
    },
]
EVEN, ODD = (32, 24, 10), (37, 29, 9)  # Rows * Columns is 768, a multiple of 8, and 1073
GRIDS = {
    "axial": ("LPS", straight_affine()),
    "flipped": ("RAI", straight_affine()),
    "sagittal": ("PSR", straight_affine((1.0, 0.8, 3.0))),
    "oblique": ("LPS", oblique_affine((0.75, 0.75, 4.0))),
}


def make_case(
    folder: Path, shape: Sequence[int] = ODD, grid: str = "axial", **options: Any
) -> tuple[Volume, np.ndarray]:
    """Write a CT series into `folder` and return it as read, with a label map of two asymmetric organs on its grid."""
    code, affine = GRIDS[grid]
    stored, place = reoriented(f_phantom(shape), affine, code)
    write_dicom(folder, stored, place, **options)
    volume = read_volume(folder)
    label_map = np.zeros(volume.shape, np.uint8)
    label_map[volume.array == 300] = 1  # the stem: all slices but none of the third label
    label_map[volume.array == 310] = 4
    middle = label_map.shape[2] // 2
    label_map[:, :, :2] = 0
    label_map[:, :, middle] = np.where(label_map[:, :, middle] == 4, 0, label_map[:, :, middle])
    return volume, label_map


def tool(name: str, package: str) -> str:
    """Return the path of a program, or skip with the name of the package that has it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here; it comes with {package}")
    return found


def errors_of(path: Path) -> list[str]:
    """Lines of `dciodvfy -new` that begin with Error."""
    done = subprocess.run([tool("dciodvfy", "Debian's dicom3tools"), "-new", str(path)], capture_output=True, text=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def padded_to_bytes(seg: Any) -> Any:
    """The same SEG with each frame padded to whole bytes, as OHIF stores a bitmap."""
    size, count = seg.Rows * seg.Columns, int(seg.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: size * count].reshape(count, size)
    content = b"".join(np.packbits(frame, bitorder="little").tobytes() for frame in bits)
    other = copy.deepcopy(seg)
    other.PixelData = content + b"\0" * (len(content) % 2)
    return other


def as_label_map(seg: Any, compressed: bool) -> Any:
    """The same SEG as a LABELMAP: one frame a slice with segment numbers, as OHIF stores it by default."""
    from pydicom.dataset import Dataset
    from pydicom.uid import RLELossless

    size, count = seg.Rows * seg.Columns, int(seg.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: size * count].reshape(count, size)
    planes: dict[str, np.ndarray] = {}
    groups: dict[str, Dataset] = {}
    for frame, group in zip(bits, seg.PerFrameFunctionalGroupsSequence, strict=True):
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        planes.setdefault(uid, np.zeros(size, np.uint8))[frame > 0] = number
        groups[uid] = copy.deepcopy(group)
        del groups[uid].SegmentIdentificationSequence
    other = copy.deepcopy(seg)
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    other.SegmentationType = "LABELMAP"
    other.BitsAllocated = other.BitsStored = 8
    other.HighBit = 7
    other.NumberOfFrames = len(planes)
    other.PerFrameFunctionalGroupsSequence = list(groups.values())
    content = b"".join(plane.tobytes() for plane in planes.values())
    other.PixelData = content + b"\0" * (len(content) % 2)
    plain = Dataset()
    plain.update(other)
    plain.file_meta = other.file_meta
    plain.is_little_endian, plain.is_implicit_VR = True, False
    if compressed:
        plain.compress(RLELossless)
    return plain


def save(seg: Any, path: Path) -> Path:
    """Save a data set with its file meta information."""
    import pydicom

    pydicom.dcmwrite(path, seg, write_like_original=False)
    return path


def written_by_dcmqi(label_map: np.ndarray, volume: Volume, series: Path, folder: Path) -> Path:
    """Have dcmqi write the labels 1 and 4 of a label map; its segments are numbered in the other order."""
    import SimpleITK as sitk
    from helpers_phantoms import write_itk

    entries = [LABELS[1], LABELS[0]]
    files = []
    for entry in entries:
        part = (label_map == entry["code"]).astype(np.uint8)
        files.append(write_itk(folder / f"{entry['name']}.nrrd", part, volume.source_affine))
        assert sitk.ReadImage(str(files[-1])).GetSize() == volume.shape
    attributes = [
        [
            {
                "labelID": 1,
                "SegmentLabel": entry["name"],
                "SegmentAlgorithmType": "MANUAL",
                "SegmentedPropertyCategoryCodeSequence": _code("123037004", "Anatomical Structure"),
                "SegmentedPropertyTypeCodeSequence": _code(entry["snomed"]["value"], entry["snomed"]["meaning"]),
            }
        ]
        for entry in entries
    ]
    meta = folder / "meta.json"
    meta.write_text(json.dumps({"SeriesDescription": "x", "SeriesNumber": "3", "segmentAttributes": attributes}))
    path = folder / "dcmqi.dcm"
    command = [tool("itkimage2segimage", "pip install dcmqi"), "--inputImageList", ",".join(map(str, files))]
    command += [
        "--inputDICOMDirectory",
        str(series),
        "--outputDICOM",
        str(path),
        "--inputMetadata",
        str(meta),
        "--skip",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert path.is_file(), done.stderr
    return path


def _code(value: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
