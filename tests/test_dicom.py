"""DICOM series, written by pydicom without any name: found, chosen, checked slice by slice, against SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers_phantoms import (
    f_phantom,
    landmark_places,
    oblique_affine,
    reoriented,
    straight_affine,
    write_axial_series,
    write_dicom,
    write_nifti,
)

from ctseg.reading import read_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("affine", [straight_affine(), oblique_affine()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", ["LPS", "RAS", "LIP", "PSR", "ALS"])
def test_a_series_lies_where_simpleitk_puts_it(tmp_path: Path, code: str, affine: np.ndarray) -> None:
    """Axial, coronal and sagittal stacks, in either direction: the slices come sorted along their normal."""
    stored, place = reoriented(f_phantom(), affine, code)
    uid = write_dicom(tmp_path, stored, place)
    volume = read_volume(tmp_path)
    image = _by_simpleitk(tmp_path)
    array = sitk.GetArrayFromImage(image).T
    assert volume.array.dtype == np.int16
    assert volume.array.shape == array.shape
    assert np.array_equal(volume.array, array)
    assert (volume.format, volume.series_uid, volume.notes) == ("dicom", uid, ())
    for value, expected in landmark_places(affine).items():
        (index,) = np.argwhere(volume.array == value)
        assert np.allclose(volume.source_affine[:3, :3] @ index + volume.source_affine[:3, 3], expected, atol=1e-4)
        x, y, z = image.TransformIndexToPhysicalPoint([int(i) for i in index])
        assert np.allclose([-x, -y, z], expected, atol=1e-4)
    assert np.linalg.det(LPS[:3, :3] @ volume.affine[:3, :3]) > 0  # the stack runs along row x column


def test_the_same_oblique_scan_as_dicom_and_nifti_has_one_clean_grid(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom(), oblique_affine((0.7421875, 0.7421875, 1.25)), "LPS")
    write_dicom(tmp_path / "series", array, affine)
    dicom, nifti = read_volume(tmp_path / "series"), read_volume(write_nifti(tmp_path / "a.nii.gz", array, affine))
    assert np.array_equal(dicom.affine, nifti.affine)
    assert np.array_equal(dicom.array, nifti.array)


@pytest.mark.parametrize("compression", ["rle", "jpeg2000"])
def test_compressed_series(tmp_path: Path, compression: str) -> None:
    if compression == "jpeg2000":
        pytest.importorskip("openjpeg")
    array, affine = reoriented(f_phantom((64, 72, 4)), straight_affine(), "LPS")
    write_dicom(tmp_path, array, affine, compression=compression)
    assert np.array_equal(read_volume(tmp_path).array, array)


@pytest.mark.parametrize("compression", ["JPEG", "JPEG2000", "JPEGLS"])
def test_series_compressed_by_gdcm(tmp_path: Path, compression: str) -> None:
    """JPEG lossless, JPEG 2000 lossless and JPEG-LS, as other tools write them."""
    plane = (np.arange(64 * 64).reshape(64, 64) % 2000 - 1000).astype(np.int16)
    image = sitk.GetImageFromArray(plane[None])
    for key, value in (
        ("0008|0060", "CT"),
        ("0018|0050", "2"),
        ("0020|0037", "1\\0\\0\\0\\1\\0"),
        ("0020|0032", "0\\0\\0"),
    ):
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.UseCompressionOn()
    try:
        writer.SetCompressor(compression)
        writer.Execute(image)
    except RuntimeError as error:
        pytest.skip(f"SimpleITK does not write {compression}: {error}")
    import pydicom

    syntax = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True).file_meta.TransferSyntaxUID
    assert syntax.is_compressed
    assert np.array_equal(read_volume(tmp_path).array[:, :, 0], plane.T)


def test_the_largest_ct_series_of_all_sub_folders_is_taken_and_named(tmp_path: Path) -> None:
    small, affine = reoriented(f_phantom((20, 24, 4)), straight_affine(), "LPS")
    write_dicom(tmp_path / "study" / "b", small, affine, series_number=7)
    largest = write_axial_series(tmp_path / "study" / "a" / "deep", series_number=12)
    write_axial_series(tmp_path / "mr", modality="MR")
    write_axial_series(tmp_path / ".ctseg" / "storage", series_number=99)  # hidden: kept by `ctseg serve`
    (tmp_path / "readme.txt").write_text("no DICOM")
    volume = read_volume(tmp_path)
    assert volume.series_uid == largest
    assert volume.shape == (20, 24, 10)
    assert volume.notes == (f"of 2 CT series the largest was taken: series 12, 10 images, UID {largest}",)
    assert read_volume(tmp_path, modality="MR").shape == (20, 24, 10)


def test_slopes_that_differ_from_slice_to_slice(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom(), straight_affine(), "LPS")

    def halved(image: object, k: int) -> None:
        if k == 4:
            image.RescaleSlope, image.RescaleIntercept = "0.25", "-1024"  # type: ignore[attr-defined]

    write_dicom(tmp_path, array, affine, edit=halved)
    volume = read_volume(tmp_path)
    expected = array.astype(np.float64)
    expected[:, :, 4] = (expected[:, :, 4] + 1024) * 0.25 - 1024
    assert not np.array_equal(expected, np.rint(expected))
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, expected)


def test_a_single_slice_and_a_single_file(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom((20, 24, 3)), straight_affine(), "LPS")
    write_dicom(tmp_path, array, affine)
    file = sorted(tmp_path.iterdir())[0]
    volume = read_volume(file)
    assert volume.shape == (20, 24, 1)
    assert volume.spacing == (1.0, 1.25, 2.5)
    assert "one slice was read" in volume.notes[0]
    one = tmp_path / "one"
    one.mkdir()
    (one / "a").write_bytes(file.read_bytes())  # no ending at all
    assert np.array_equal(read_volume(one).array, volume.array)


def test_localizers_and_repeated_files_are_passed_over(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom(), straight_affine(), "LPS")

    def localizer(image: object, k: int) -> None:
        if k == 0:
            image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]  # type: ignore[attr-defined]
            image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # type: ignore[attr-defined]

    write_dicom(tmp_path, array, affine, edit=localizer)
    for number, file in enumerate(sorted(tmp_path.iterdir())[2:4]):
        (tmp_path / f"copy{number}.dcm").write_bytes(file.read_bytes())
    (tmp_path / "empty.dcm").write_bytes(b"")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, array[:, :, 1:])
    assert volume.notes == (
        "2 files repeat an image of the series and were left out",
        "1 files were passed over: empty file",
        "1 files were passed over: localizer",
    )


def test_slices_with_gaps_between_them_are_noted(tmp_path: Path) -> None:
    def thin(image: object, k: int) -> None:
        image.SliceThickness = 1  # type: ignore[attr-defined]

    write_axial_series(tmp_path, edit=thin)
    assert read_volume(tmp_path).notes == (
        "the slices are 2.5 mm apart but 1 mm thick: what lies between was not seen",
    )


def test_positions_rounded_to_one_decimal_are_even(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom((20, 24, 40)), straight_affine((1, 1, 0.625)), "LPS")

    def rounded(image: object, k: int) -> None:
        image.ImagePositionPatient = [f"{mm:.1f}" for mm in image.ImagePositionPatient]  # type: ignore[attr-defined]

    write_dicom(tmp_path, array, affine, edit=rounded)
    assert read_volume(tmp_path).spacing[2] == pytest.approx(0.625, abs=0.003)


def test_a_real_series_beside_its_segmentation() -> None:
    folder = DATA / "dicom_seg"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    volume = read_volume(folder)
    planes = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"0{n}.dcm")))[0].T for n in (3, 2, 1)]
    assert volume.spacing == pytest.approx((0.810547, 0.810547, 1.0), abs=1e-6)
    assert np.array_equal(volume.array, np.stack(planes, axis=-1))
    mask = sitk.ReadImage(str(folder / "liver_seg.nrrd"))
    where = (10, 20, 0)
    theirs = np.array(mask.TransformIndexToPhysicalPoint(where)) * [-1, -1, 1]
    index = np.linalg.inv(volume.source_affine) @ [*theirs, 1]
    assert np.allclose(index[:3], np.round(index[:3]), atol=1e-2)  # its mask lies on our grid


def test_implicit_files_and_sequences_are_walked_over(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.uid import ImplicitVRLittleEndian

    def nested(image: object, k: int) -> None:
        inner, outer = Dataset(), Dataset()
        inner.CodeValue, inner.CodeMeaning = "1", "x" * 61
        outer.PurposeOfReferenceCodeSequence = [inner, inner]
        image.SourceImageSequence = [outer, outer]  # type: ignore[attr-defined]
        if k % 2:
            image["SourceImageSequence"].is_undefined_length = True  # type: ignore[index]
        if k > 4:
            image.is_implicit_VR = True  # type: ignore[attr-defined]
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # type: ignore[attr-defined]

    array, affine = reoriented(f_phantom(), straight_affine(), "LPS")
    write_dicom(tmp_path, array, affine, edit=nested)
    assert np.array_equal(read_volume(tmp_path).array, array)
