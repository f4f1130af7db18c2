"""Tiny collections on disk, each in the layout of its own kind; written by nibabel and the standard library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers_phantoms import oblique_affine, write_nifti

SHAPE = (12, 14, 6)
LIVER, GALLBLADDER = 3 * 4 * 2, 2 * 2 * 2  # voxels


def ct(seed: int) -> np.ndarray:
    """Air with noise, so that no two are alike, and a body."""
    array = np.random.default_rng(seed).normal(-900, 20, SHAPE).astype(np.int16)
    array[2:10, 2:12] = 40
    return array


def label(liver: int = 1, gallbladder: int = 0) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[3:6, 4:8, 2:4] = liver
    array[7:9, 9:11, 3:5] = gallbladder
    return array


def write_image(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, array, oblique_affine() if affine is None else affine)


def write_pairs(root: Path, number: int = 3, liver: int = 1) -> Path:
    for n in range(number):
        write_image(root / "images" / f"p{n}_a.nii.gz", ct(n))
        write_image(root / "labels" / f"p{n}_a.nii.gz", label(liver))
    return root


def write_decathlon(root: Path, number: int = 2) -> Path:
    training = []
    for n in range(number):
        write_image(root / "imagesTr" / f"liver_{n}.nii.gz", ct(n))
        write_image(root / "labelsTr" / f"liver_{n}.nii.gz", label(1, 2))
        training.append({"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"})
    content = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": training,
        "test": ["./imagesTs/liver_9.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_nnunet(root: Path, number: int = 4, labels: dict[str, object] | None = None) -> Path:
    for n in range(number):
        write_image(root / "imagesTr" / f"case_{n:03d}_0000.nii.gz", ct(n))
        write_image(root / "labelsTr" / f"case_{n:03d}.nii.gz", label(1, 2))
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "liver": 1, "gallbladder": 2},
        "numTraining": number,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_totalsegmentator(root: Path, number: int = 2) -> Path:
    """Masks of single structures: liver and gallbladder share one voxel."""
    for n in range(number):
        folder = root / f"s{n:04d}"
        write_image(folder / "ct.nii.gz", ct(n))
        liver, gallbladder = label(1), label(0, 1)
        gallbladder[3, 4, 2] = 1
        write_image(folder / "segmentations" / "liver.nii.gz", liver)
        write_image(folder / "segmentations" / "gallbladder.nii.gz", gallbladder)
        write_image(folder / "segmentations" / "spleen.nii.gz", label(0))
    return root


def write_slices(root: Path, number: int = 3, header: str = "ct,image,mask,liver") -> Path:
    """Slices in array order with value 36; on the last one there is no liver, and the table says so."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for n in range(number):
        np.save(root / f"ct{n}_3.npy", ct(n)[:, :, 3].astype(np.float32))
        present = n < number - 1
        np.save(root / f"ct{n}_3_mask.npy", label(36 if present else 0)[:, :, 3])
        lines.append(f"{n},ct{n}_3.npy,ct{n}_3_mask.npy,{int(present)}")
    (root / "slices.csv").write_text("\n".join(lines) + "\n")
    return root / "slices.csv"
