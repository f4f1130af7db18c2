"""Small pictures on disk: photographs with a bright, off-centre lesion, and their masks."""

from __future__ import annotations

import json
from pathlib import Path

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
