"""What is plainly no CT in Hounsfield units is refused, and a CT cropped as tightly as one likes passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import f_phantom, straight_affine, write_itk, write_nifti

from ctseg.errors import InputError
from ctseg.reading import read_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = (24, 20, 16)


def _noise(mean: float, deviation: float, shape: tuple[int, ...] = SMALL, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, shape)


def _body() -> np.ndarray:
    """Air around a noisy body with fat, 40 x 40 x 12."""
    volume = _noise(-1000, 10, (40, 40, 12))
    volume[6:34, 6:34] = _noise(-100, 12, (28, 28, 12))
    volume[9:31, 9:31] = _noise(55, 15, (22, 22, 12))
    return volume


def _magnitude() -> np.ndarray:
    """MR-like: never negative, 0..4000, bright in the middle, Rician noise around it."""
    noise = np.hypot(_noise(0, 20, (40, 40, 12)), _noise(0, 20, (40, 40, 12), 4))
    noise[8:32, 8:32] += np.linspace(300, 3900, 24)[:, None, None]
    return noise


CTS: dict[str, Callable[[], np.ndarray]] = {
    "a body in air": lambda: _body().astype(np.int16),
    "a body, float": lambda: _body().astype(np.float32),
    "clipped to a soft-tissue window": lambda: np.clip(_body(), -160, 240).astype(np.int16),
    "padded with zeros": lambda: np.pad(_body(), 10).astype(np.int16),
    "inside the liver, a few negatives": lambda: np.clip(_noise(60, 25), -20, 180).astype(np.int16),
    "inside the liver, none negative": lambda: np.clip(_noise(100, 20), 20, 180).astype(np.int16),
    "inside the liver, unsigned type": lambda: np.clip(_noise(100, 20), 20, 180).astype(np.uint16),
    "inside the liver, float": lambda: np.clip(_noise(100, 20), 20, 180).astype(np.float32),
    "a vertebra": lambda: np.clip(_noise(350, 90), 40, 1100).astype(np.int16),
    "inside a contrast-filled aorta": lambda: _noise(320, 22).astype(np.int16),
    "one slice of the spleen": lambda: _noise(110, 18, (30, 30, 1)).astype(np.int16),
    "water": lambda: _noise(0, 6).astype(np.int16),
    "metal": lambda: np.where(_noise(0, 1) > 3, 30000, _noise(50, 20)).astype(np.int16),
}
NO_CTS: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "constant": (lambda: np.full(SMALL, -1000, np.int16), "all its voxels are -1000"),
    "a binary mask": (lambda: (_body() > 0).astype(np.int16), r"0 to 1 \(a mask"),
    "scaled to 0..1": (lambda: np.clip((_body() + 1024) / 2048, 0, 1).astype(np.float32), r"scaled to 0\.\.1"),
    "8 bit": (lambda: np.clip(_body(), 0, 255).astype(np.uint8), "8-bit grey values"),
    "8 bit inside an organ": (lambda: np.clip(_noise(100, 20), 20, 180).astype(np.uint8), "8-bit grey values"),
    "clipped to 0..255": (lambda: np.clip(_body(), 0, 255).astype(np.int16), "8-bit grey values"),
    "0..255 as float": (lambda: np.clip(_body(), 0, 255).astype(np.float32), "8-bit grey values"),
    "random 0..255": (
        lambda: np.random.default_rng(0).integers(0, 256, SMALL).astype(np.int16), "0 to 255 .8-bit grey values"),
    "random 0..255 as float": (
        lambda: np.random.default_rng(0).uniform(0, 255, SMALL).astype(np.float32), "8-bit grey values"),
    "a label map": (lambda: (_body() > 0).astype(np.int16) * 5, "8-bit grey values"),
    "windowed to 0..250": (
        lambda: np.interp(_body(), (-160, 240), (0, 250)).astype(np.int16), "8-bit grey values"),
    "MR": (lambda: _magnitude().astype(np.int16), "rescale intercept"),
    "MR, float": (lambda: _magnitude().astype(np.float32), "rescale intercept"),
    "MR without noise": (lambda: np.where(_magnitude() > 200, _magnitude(), 0).astype(np.int16), "rescale intercept"),
    "MR of small values": (lambda: np.where(_magnitude() > 200, _magnitude() / 9, 0).astype(np.int16), "intercept"),
    "CT without its intercept": (lambda: np.clip(_body() + 1024, 0, None).astype(np.uint16), "rescale intercept"),
    "organ of a CT without its intercept": (lambda: (_noise(100, 20) + 1024).astype(np.int16), "rescale intercept"),
}  # fmt: skip


@pytest.mark.parametrize("name", CTS)
def test_a_ct_passes(tmp_path: Path, name: str) -> None:
    array = CTS[name]()
    for path in (
        write_nifti(tmp_path / "a.nii.gz", array, straight_affine()),
        write_itk(tmp_path / "a.nrrd", array, straight_affine()),
    ):
        volume = read_volume(path)
        assert np.array_equal(volume.array, array)
        assert len(volume.notes) == (array.min() >= 0)
        if volume.notes:
            assert "no voxel is below 0 HU" in volume.notes[0]


@pytest.mark.parametrize("name", NO_CTS)
def test_what_is_no_ct_is_refused(tmp_path: Path, name: str) -> None:
    make, words = NO_CTS[name]
    array = make()
    for path in (
        write_nifti(tmp_path / "a.nii.gz", array, straight_affine()),
        write_itk(tmp_path / "a.mha", array, straight_affine()),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_volume(path)
        assert str(path) in str(caught.value)
        if name != "constant":
            assert "no CT in Hounsfield units" in str(caught.value)


@pytest.mark.parametrize("name", NO_CTS)
def test_another_modality_asks_for_no_hounsfield_units(tmp_path: Path, name: str) -> None:
    array = NO_CTS[name][0]()
    path = write_nifti(tmp_path / "a.nii.gz", array, straight_affine())
    assert np.array_equal(read_volume(path, modality="MR").array, array)


def test_wide_images_without_fat_or_air_are_no_crops(tmp_path: Path) -> None:
    """The same values pass as a box of 60 mm and are refused as 240 mm, where fat cannot be missing."""
    array = np.clip(_noise(100, 20), 20, 180).astype(np.int16)
    assert read_volume(write_nifti(tmp_path / "a.nii", array, straight_affine((2.5, 3.0, 2.5)))).shape == SMALL
    with pytest.raises(InputError, match="no CT in Hounsfield units"):
        read_volume(write_nifti(tmp_path / "b.nii", array, straight_affine((10.0, 10.0, 2.5))))


def test_the_slope_is_applied_before_the_judgement(tmp_path: Path) -> None:
    stored = (f_phantom() + 1024).astype(np.uint16)
    path = write_nifti(tmp_path / "a.nii.gz", stored, straight_affine(), scl_slope=1.0, scl_inter=-1024.0)
    assert np.array_equal(read_volume(path).array, f_phantom())


@pytest.mark.parametrize("width", [6, 12, 24])
def test_tight_crops_of_a_real_liver_pass(tmp_path: Path, width: int) -> None:
    import nibabel as nib

    folder = DATA / "abdomen_ct"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    volume = read_volume(folder / "ct.nii.gz")
    inside = np.asarray(nib.load(folder / "seg.nii.gz").dataobj) == 5
    middle = np.argwhere(inside).mean(axis=0).astype(int)
    crop = volume.array[tuple(slice(m - width // 2, m + width // 2) for m in middle)]
    read = read_volume(write_nifti(tmp_path / "crop.nii.gz", np.ascontiguousarray(crop), volume.source_affine))
    assert np.array_equal(read.array, crop)
