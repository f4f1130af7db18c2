"""What passes as a label map of an image, and what is refused with which sentence; the phantoms are asymmetric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_phantoms import f_phantom, oblique_affine, write_nifti

from ctseg.errors import GeometryError, InputError
from ctseg.prepare.labelchecks import Grid, check_label, check_label_array, grid_of
from ctseg.reading import read_volume

SHAPE = (20, 24, 8)
NAMES = {1: "liver", 5: "spleen"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_nifti(
        tmp_path / "image.nii.gz", np.where(f_phantom(SHAPE) > 0, 60, -900).astype(np.int16), oblique_affine()
    )


def label(folder: Path, array: Any, affine: Any = None, name: str = "label.nii.gz") -> Path:
    return write_nifti(folder / name, np.asarray(array), oblique_affine() if affine is None else affine)


def two_organs() -> Any:
    array = (f_phantom(SHAPE) > 0).astype(np.uint8)
    array[0, :3, 0] = 5
    return array


def test_voxels_are_counted_by_value(tmp_path: Path, image: Path) -> None:
    array = two_organs()
    counts = check_label(label(tmp_path, array), image, NAMES)
    assert counts == {value: int((array == value).sum()) for value in (0, 1, 5)} and counts[5] == 3
    assert check_label(label(tmp_path, array.astype(np.float32)), grid_of(image), NAMES) == counts
    assert check_label(label(tmp_path, array), read_volume(image), NAMES) == counts
    assert check_label(label(tmp_path, np.zeros(SHAPE, np.uint8)), image, {}) == {0: array.size}


def test_header_alone_gives_the_grid_that_reading_gives(tmp_path: Path, image: Path) -> None:
    whole = read_volume(image)
    found = grid_of(image)
    assert found.shape == whole.shape == SHAPE
    assert found.affine.tobytes() == whole.affine.tobytes()
    image.write_bytes(image.read_bytes()[:-200])  # voxels are missing; they are not looked at
    assert grid_of(image).affine.tobytes() == whole.affine.tobytes()


def test_nrrd_label_fits_a_nifti_image(tmp_path: Path, image: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    nifti = label(tmp_path, two_organs())
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(tmp_path / "label.nrrd"))
    assert check_label(tmp_path / "label.nrrd", image, NAMES) == check_label(nifti, image, NAMES)


@pytest.mark.parametrize("axes", [(1, 0, 2), (0, 2, 1)])
def test_other_shape_is_refused(tmp_path: Path, image: Path, axes: tuple[int, int, int]) -> None:
    with pytest.raises(GeometryError, match=r"has the grid \(.*its image has \(20, 24, 8\)"):
        check_label(label(tmp_path, two_organs().transpose(axes)), image, NAMES)


def test_other_place_is_refused_and_header_noise_is_not(tmp_path: Path, image: Path) -> None:
    spacing = np.sqrt((oblique_affine()[:3, :3] ** 2).sum(axis=0)).min()
    for share, passes in ((0.02, True), (0.2, False)):
        shifted = oblique_affine()
        shifted[1, 3] += share * spacing
        path = label(tmp_path, two_organs(), shifted)
        if passes:
            check_label(path, image, NAMES)
        else:
            with pytest.raises(GeometryError, match="mm away"):
                check_label(path, image, NAMES)
    for axis in range(3):  # mirrored: the same box of voxels, another place
        flip = np.eye(4)
        flip[axis, axis] = -1
        with pytest.raises(GeometryError, match="mm away"):
            check_label(label(tmp_path, two_organs(), oblique_affine() @ flip), image, NAMES)


def test_declared_size_is_not_believed(tmp_path: Path, image: Path) -> None:
    """A header of 60 GiB is compared with the image before any memory is taken."""
    import gzip

    path = label(tmp_path, two_organs())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([4000, 4000, 4000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(GeometryError, match="4000"):
        check_label(path, image, NAMES)


def with_value(value: float, dtype: Any = np.float32) -> Any:
    array = two_organs().astype(dtype)
    array[3, 4, 5] = value
    return array


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (with_value(0.5), "whole numbers"),
        (with_value(float("nan")), "NaN"),
        (with_value(float("inf")), "NaN"),
        (with_value(3, np.uint8), r"nobody named: 3 \(1 voxels\); the named ones are: 1 liver, 5 spleen"),
        (with_value(-2, np.int16), r"-2 \(1 voxels\)"),
        (with_value(70000, np.int32), r"70000 \(1 voxels\)"),
        (np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), "and 3831 more"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path: Path, image: Path, array: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_label(label(tmp_path, array), image, NAMES)
    named = {**NAMES, 3: "kidney"}
    assert check_label(label(tmp_path, with_value(3, np.uint8)), image, named)[3] == 1


def test_files_that_are_no_images_are_refused(tmp_path: Path, image: Path) -> None:
    for name, content in (("a.nii.gz", b"text"), ("a.nii", b"text"), ("a.nrrd", b"NRRD0004\n"), ("a.txt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            check_label(tmp_path / name, image, NAMES)
    whole = label(tmp_path, two_organs())
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(InputError, match="truncated"):
        check_label(whole, image, NAMES)
    with pytest.raises(InputError, match="4D"):
        check_label(label(tmp_path, np.zeros((*SHAPE, 3), np.uint8)), image, NAMES)
    with pytest.raises(InputError):
        check_label(tmp_path / "missing.nii.gz", image, NAMES)


def test_arrays_are_checked_as_files_are() -> None:
    grid = Grid(SHAPE, oblique_affine())
    assert check_label_array(two_organs(), grid, NAMES, "seg")[5] == 3
    with pytest.raises(InputError, match="seg has values that nobody named"):
        check_label_array(with_value(3, np.uint8), grid, NAMES, "seg")
    with pytest.raises(GeometryError, match="seg has the grid"):
        check_label_array(np.zeros((3, 3, 3), np.uint8), grid, NAMES, "seg")
