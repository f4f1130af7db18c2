"""Small pictures on disk: photographs with a bright, off-centre lesion, and their masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_picture(path: Path, inside: NDArray[np.bool_], seed: int = 0) -> Path:
    """Write an RGB picture, darker and redder inside; ends decide the format."""
    rng = np.random.default_rng(seed)
    pixels = np.where(inside[..., None], (120, 60, 50), (225, 190, 170)) + rng.normal(0, 6, (*inside.shape, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def flat_dataset(folder: Path, number: int = 6) -> Path:
    """Write a data folder of photographs: one lesion (255) each, and beside it a second, small one (4)."""
    cases = []
    for index in range(number):
        size = (36 + index, 44 + 2 * index)
        mask = np.zeros(size, np.uint8)
        mask[8 + index : 24 + index, 10:30], mask[4:8, 34:42] = 1, 4
        write_picture(folder / f"p{index}_1.png", mask > 0, index)
        Image.fromarray(mask).save(folder / f"p{index}_1_mask.png")
        names = {"image": f"p{index}_1.png", "label": f"p{index}_1_mask.png"}
        cases.append({"case_id": f"p{index}_1", "patient": f"p{index}", **names})
    (folder / "datalist.json").write_text(json.dumps({"flat": True, "cases": cases}))
    return folder


def write_dicom(path: Path, pixels: NDArray[np.generic], **elements: Any) -> Path:
    """Write pixels (H, W), (H, W, 3) or (frames, H, W, 3) as an uncompressed DICOM file with further elements."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    colours = pixels.ndim >= 3
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colours else pixels.shape
    dataset.SamplesPerPixel = 3 if colours else 1
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 4:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.PixelRepresentation = 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    return path
