"""Every format gives the same voxels in the same place, checked with landmarks, nibabel and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers_phantoms import (
    f_phantom,
    landmark_places,
    oblique_affine,
    reoriented,
    straight_affine,
    write_itk,
    write_nifti,
)

from ctseg.reading import read_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
ORIENTATIONS = ["RAS", "LPS", "LAS", "PSR", "SRP", "ILA"]


def assert_landmarks(array: np.ndarray, affine: np.ndarray, expected: dict[int, np.ndarray], atol: float) -> None:
    """Each landmark's voxel, found by its value, must lie at its place in RAS mm."""
    for value, place in expected.items():
        (index,) = np.argwhere(array == value)
        assert np.allclose(affine[:3, :3] @ index + affine[:3, 3], place, atol=atol), value


def by_simpleitk(path: Path) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return SimpleITK's voxels as (I, J, K) and where it puts the landmarks, in RAS mm."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image).T
    places = {}
    for value in range(1001, 1006):
        (index,) = np.argwhere(array == value)
        x, y, z = image.TransformIndexToPhysicalPoint([int(i) for i in index])
        places[value] = np.array([-x, -y, z])
    return array, places


@pytest.mark.parametrize("affine", [straight_affine(), oblique_affine()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", ORIENTATIONS)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_each_format_in_each_orientation(tmp_path: Path, ending: str, code: str, affine: np.ndarray) -> None:
    stored, place = reoriented(f_phantom(), affine, code)
    path = tmp_path / f"phantom{ending}"
    (write_nifti if ending.startswith(".nii") else write_itk)(path, stored, place)
    volume = read_volume(path)
    theirs, their_places = by_simpleitk(path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, stored)
    assert np.array_equal(volume.array, theirs)
    assert_landmarks(volume.array, volume.source_affine, landmark_places(affine), atol=1e-4)
    assert_landmarks(volume.array, volume.source_affine, their_places, atol=1e-4)
    assert np.allclose(volume.affine, volume.source_affine, atol=1e-4)
    assert volume.notes == ()
    assert volume.source == path
    assert volume.format == {".nrrd": "nrrd", ".mha": "metaimage"}.get(ending, "nifti")
    if ending.startswith(".nii"):
        assert np.array_equal(volume.source_affine, nib.load(path).affine)


def test_one_oblique_scan_has_one_clean_grid_whatever_its_format(tmp_path: Path) -> None:
    affine = oblique_affine((0.7421875, 0.7421875, 1.25), (-187.31, 203.77, -921.15))
    array = f_phantom()
    first = read_volume(write_nifti(tmp_path / "a.nii.gz", array, affine))
    assert np.abs(first.source_affine - affine).max() > 0  # NIfTI keeps float32
    for ending in (".nii", ".nrrd", ".mha", ".mhd", ".nhdr"):
        write = write_nifti if ending == ".nii" else write_itk
        other = read_volume(write(tmp_path / f"b{ending}", array, affine))
        assert np.array_equal(other.affine, first.affine), ending
        assert np.array_equal(other.array, first.array)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_compressed_and_detached_files(tmp_path: Path, ending: str) -> None:
    path = write_itk(tmp_path / f"a{ending}", f_phantom(), oblique_affine(), compress=True)
    assert np.array_equal(read_volume(path).array, f_phantom())


@pytest.mark.parametrize("shape", [(20, 24, 1), (20, 24, 2), (1, 24, 10)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_single_and_few_slices(tmp_path: Path, ending: str, shape: tuple[int, int, int]) -> None:
    array = np.full(shape, -1000, dtype=np.int16)
    array[:, 3:9, 0] = 55
    write = write_nifti if ending == ".nii.gz" else write_itk
    volume = read_volume(write(tmp_path / f"a{ending}", array, straight_affine()))
    assert volume.shape == shape
    assert np.array_equal(volume.array, array)
    assert volume.spacing == (1.0, 1.25, 2.5)


@pytest.mark.parametrize("dtype", ["i1", "i2", ">i2", "u2", "i4", "u4", "i8", "f4", ">f4", "f8"])
def test_voxel_types_of_nifti(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(4 * 5 * 6).reshape(4, 5, 6) % 120).astype(dtype)
    if np.dtype(dtype).kind != "u":
        array[0, 0, 0] = -100
    volume = read_volume(write_nifti(tmp_path / "a.nii", array, straight_affine()), modality="any")
    assert volume.array.dtype == (np.float32 if np.dtype(dtype).kind == "f" else np.int16)
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array, array)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_voxel_types_of_itk(tmp_path: Path, ending: str, dtype: type) -> None:
    array = (np.arange(4 * 5 * 6).reshape(4, 5, 6) % 120).astype(dtype)
    volume = read_volume(write_itk(tmp_path / f"a{ending}", array, straight_affine()), modality="any")
    assert volume.array.dtype == (np.float32 if np.dtype(dtype).kind == "f" else np.int16)
    assert np.array_equal(volume.array, array)


def test_integers_that_do_not_fit_become_float32(tmp_path: Path) -> None:
    array = np.array([-5, 40000, 3], dtype=np.int32).reshape(3, 1, 1)
    for path in (
        write_nifti(tmp_path / "a.nii", array, straight_affine()),
        write_itk(tmp_path / "a.nrrd", array, straight_affine()),
    ):
        volume = read_volume(path, modality="any")
        assert volume.array.dtype == np.float32
        assert volume.array.ravel().tolist() == [-5, 40000, 3]


@pytest.mark.parametrize(
    ("slope", "inter", "expected", "dtype"),
    [
        (1.0, -1024.0, [-1024, -984, 976], np.int16),
        (2.0, -1000.0, [-1000, -920, 3000], np.int16),
        (0.5, -1000.0, [-1000.0, -980.0, 0.0], np.float32),
        (0.0, 7.0, [0, 40, 2000], np.int16),  # a slope of 0 means no scaling (NIfTI-1)
        (float("nan"), float("nan"), [0, 40, 2000], np.int16),
        (100.0, 0.0, [0, 4000, 200000], np.float32),
    ],
)
def test_slope_and_intercept(tmp_path: Path, slope: float, inter: float, expected: list[float], dtype: type) -> None:
    stored = np.array([0, 40, 2000], dtype=np.uint16).reshape(3, 1, 1)
    path = write_nifti(tmp_path / "a.nii.gz", stored, straight_affine(), scl_slope=slope, scl_inter=inter)
    volume = read_volume(path, modality="any")
    assert volume.array.dtype == dtype
    assert volume.array.ravel().tolist() == expected
    assert np.array_equal(volume.array, nib.load(path).get_fdata())


def test_nifti_2_and_extensions(tmp_path: Path) -> None:
    array = f_phantom()
    nib.save(nib.Nifti2Image(array, oblique_affine()), tmp_path / "two.nii.gz")
    image = nib.Nifti1Image(array, oblique_affine())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "long.nii.gz")
    for name in ("two", "long"):
        volume = read_volume(tmp_path / f"{name}.nii.gz")
        assert np.array_equal(volume.array, array)
        assert np.array_equal(volume.source_affine, nib.load(tmp_path / f"{name}.nii.gz").affine)


def test_one_frame_of_4d_is_read_with_a_note(tmp_path: Path) -> None:
    array = f_phantom()
    nib.save(nib.Nifti1Image(array[..., None], straight_affine()), tmp_path / "a.nii")
    image = sitk.GetImageFromArray(array.T[None], isVector=False)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    for name in ("a.nii", "a.nrrd"):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, array)
        assert volume.notes[0] == "the image is 4D with one frame (20 x 24 x 10 x 1): read as 3D"


def test_qform_alone_and_no_form_at_all(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "q.nii", f_phantom(), oblique_affine(), sform_code=0)
    volume = read_volume(path)
    assert np.array_equal(volume.source_affine, nib.load(path).affine)
    assert np.allclose(volume.source_affine, oblique_affine(), atol=1e-4)
    path = write_nifti(tmp_path / "none.nii", f_phantom(), straight_affine(), sform_code=0, qform_code=0)
    volume = read_volume(path)
    assert np.array_equal(volume.source_affine, nib.load(path).affine)
    assert "left and right may be swapped" in volume.notes[0]


def test_forms_that_disagree_are_noted(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", f_phantom(), straight_affine(), qoffset_x=55.0)
    volume = read_volume(path)
    assert np.array_equal(volume.source_affine, nib.load(path).affine)
    assert volume.notes == ("sform and qform disagree by more than 0.5 mm: the sform was taken",)


def test_nrrd_in_ras_and_without_a_space(tmp_path: Path) -> None:
    path = write_itk(tmp_path / "a.nrrd", f_phantom(), straight_affine())
    content = path.read_bytes()
    ras = tmp_path / "ras.nrrd"
    ras.write_bytes(content.replace(b"left-posterior-superior", b"right-anterior-superior"))
    expected = np.diag([-1.0, -1, 1, 1]) @ straight_affine()  # the same numbers, now meant in RAS
    assert np.allclose(read_volume(ras).source_affine, expected)
    bare = tmp_path / "bare.nrrd"
    lines = [line for line in content.split(b"\n\n", 1)[0].split(b"\n") if not line.startswith(b"space")]
    bare.write_bytes(b"\n".join([*lines, b"spacings: 1 1.25 2.5"]) + b"\n\n" + content.split(b"\n\n", 1)[1])
    volume = read_volume(bare)
    assert volume.spacing == (1.0, 1.25, 2.5)
    assert "names no patient space" in volume.notes[0]


def test_not_a_number_voxels_become_air_and_are_counted(tmp_path: Path) -> None:
    array = f_phantom().astype(np.float32)
    array[5, 5, 5] = np.nan
    array[6:8, 5, 5] = np.inf
    for path in (
        write_nifti(tmp_path / "a.nii.gz", array, straight_affine()),
        write_itk(tmp_path / "a.mha", array, straight_affine()),
    ):
        volume = read_volume(path)
        assert volume.notes == ("3 voxels were NaN or infinite and were replaced by -1024",)
        assert volume.array[5:8, 5, 5].tolist() == [-1024] * 3
        rest = np.isfinite(array)
        assert np.array_equal(volume.array[rest], array[rest])


def test_names_in_capitals_and_plain_strings(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", f_phantom(), straight_affine())
    capital = tmp_path / "STUDY 1 ä.NII.GZ"
    capital.write_bytes(path.read_bytes())
    assert np.array_equal(read_volume(str(capital)).array, f_phantom())


def test_a_whole_volume_costs_no_needless_copy(tmp_path: Path) -> None:
    """The array that a plain int16 or float32 file gives is the one that was read into."""
    for dtype in (np.int16, np.float32):
        array = read_volume(write_nifti(tmp_path / "a.nii", f_phantom().astype(dtype), straight_affine())).array
        assert array.flags.f_contiguous
        assert array.flags.writeable


@pytest.mark.parametrize("name", ["abdomen_ct/ct.nii.gz", "chest_ct/ct_1p5x1p5x2p5mm.nii.gz", "chest_ct/ct_3mm.nii.gz"])
def test_real_cts_are_read_as_nibabel_reads_them(name: str) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    volume, theirs = read_volume(path), nib.load(path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, np.asarray(theirs.dataobj))
    assert np.array_equal(volume.source_affine, theirs.affine)
    assert np.allclose(volume.affine, theirs.affine, atol=1e-3)
    assert volume.notes == ()
