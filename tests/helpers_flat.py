"""Small pictures on disk: photographs with a bright, off-centre lesion, and their masks."""

from __future__ import annotations

import json
import shutil
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


def dark_bundle(bundles: Path, name: str, folder: Path, size: tuple[int, int], below: float = 0.6) -> Path:
    """Write a flat bundle whose answer is known: a pixel counts where its first channel is below a share of white.

    A classifier says how sure it is that the mean is. Pictures of `size` (rows, columns) are not resized.

    Args:
        bundles: the shipped ones.
        name: of the one to take after.
        folder: to write; its parent is a folder of bundles.
        size: of the pictures.
        below: from 0 (black) to 1 (white).
    """
    import torch

    shutil.copytree(bundles / name, folder)
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    classifies = "threshold" in content
    network = f"torch.nn.Conv2d({1 if classifies else 3}, 1, {list(size) if classifies else 1})"
    content["network_def"] = f"$torch.nn.Sequential({network}, {'torch.nn.Flatten()' if classifies else ''})"
    content["patch"] = list(size)
    config.write_text(json.dumps(content))
    steep = 100.0 if not classifies else 10.0
    weight = torch.zeros((1, 1, *size) if classifies else (1, 3, 1, 1))
    weight[:, 0] = -steep / (size[0] * size[1] if classifies else 1)
    (folder / "models").mkdir(exist_ok=True)
    torch.save({"0.weight": weight, "0.bias": torch.tensor([steep * below])}, folder / "models" / "model.pt")
    return folder
