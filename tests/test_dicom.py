"""DICOM series, written by pydicom without any name: found, chosen, checked slice by slice, against SimpleITK."""

from __future__ import annotations

import tempfile
import zipfile
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
    write_dicom,
    write_nifti,
)

from ctseg.archives import unpacked
from ctseg.errors import CtsegError, GeometryError, InputError, ResourceError
from ctseg.reading import read_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _series(folder: Path, **options: object) -> str:
    """Write the phantom as an ordinary axial series."""
    array, affine = reoriented(f_phantom(), straight_affine(), "LPS")
    return write_dicom(folder, array, affine, **options)  # type: ignore[arg-type]


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
    largest = _series(tmp_path / "study" / "a" / "deep", series_number=12)
    _series(tmp_path / "mr", modality="MR")
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

    _series(tmp_path, edit=thin)
    assert read_volume(tmp_path).notes == (
        "the slices are 2.5 mm apart but 1 mm thick: what lies between was not seen",
    )


def test_positions_rounded_to_one_decimal_are_even(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom((20, 24, 40)), straight_affine((1, 1, 0.625)), "LPS")

    def rounded(image: object, k: int) -> None:
        image.ImagePositionPatient = [f"{mm:.1f}" for mm in image.ImagePositionPatient]  # type: ignore[attr-defined]

    write_dicom(tmp_path, array, affine, edit=rounded)
    assert read_volume(tmp_path).spacing[2] == pytest.approx(0.625, abs=0.003)


def _set(**values: object):  # type: ignore[no-untyped-def]
    """Return an edit that changes slice 4 only."""

    def edit(image: object, k: int) -> None:
        if k == 4:
            for name, value in values.items():
                setattr(image, name, value)

    return edit


def _moved(x: float = 0.0, z: float = 0.0, only: int | None = None):  # type: ignore[no-untyped-def]
    """Return an edit that moves one slice, or slice k by k times the distances (LPS mm)."""

    def edit(image: object, k: int) -> None:
        times = k if only is None else int(k == only)
        old = [float(mm) for mm in image.ImagePositionPatient]  # type: ignore[attr-defined]
        image.ImagePositionPatient = [old[0] + x * times, old[1], old[2] + z * times]  # type: ignore[attr-defined]

    return edit


def _left_out(*missing: int):  # type: ignore[no-untyped-def]
    return lambda image, k: k not in missing


def _crop(image, k: int) -> None:  # type: ignore[no-untyped-def]
    if k == 4:
        image.Rows = 12
        image.PixelData = image.PixelData[: 12 * image.Columns * 2]


def _cut(image, k: int) -> None:  # type: ignore[no-untyped-def]
    if k == 4:
        image.PixelData = b""


def _colour(image, k: int) -> None:  # type: ignore[no-untyped-def]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = bytes(image.Rows * image.Columns * 3)


def _everywhere(**values: object):  # type: ignore[no-untyped-def]
    def edit(image: object, k: int) -> None:
        for name, value in values.items():
            setattr(image, name, value)

    return edit


TILT = float(np.tan(np.radians(12.0)) * 2.5)
REFUSED = {
    "one slice missing": (_left_out(6), GeometryError, r"missing slices \(1\) between images 6 and 7 of 9 .*5\.00 mm"),
    "two slices missing": (_left_out(3, 4), GeometryError, r"missing slices \(2\) between images 3 and 4 of 8"),
    "an uneven slice": (_moved(z=0.4, only=5), GeometryError, r"uneven slices between images .*elsewhere 2\.50 mm"),
    "a slice twice in one place": (_moved(z=2.5, only=5), GeometryError, "two images at one place"),
    "all in one place": (_moved(z=-2.5), GeometryError, "two images at one place, 9 times in 10 images"),
    "gantry tilt": (_moved(x=TILT), GeometryError, r"tilted gantry \(12\.00 degrees"),
    "slight gantry tilt": (_moved(x=TILT / 24), GeometryError, r"tilted gantry \(0\.51 degrees"),
    "one slice aside": (_moved(x=3.0, only=5), GeometryError, r"sideways by up to 3\.00 mm"),
    "tilt stated, not shown": (_everywhere(GantryDetectorTilt=15), GeometryError, "gantry tilt of 15 degrees"),
    "two orientations": (_set(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), GeometryError, "different orientations"),
    "two sizes": (_crop, GeometryError, r"different sizes .*\(20, 24\) and \(20, 12\)|different sizes"),
    "two pixel spacings": (_set(PixelSpacing=[1.3, 1.0]), GeometryError, "different pixel spacings"),
    "two frames of reference": (_set(FrameOfReferenceUID="1.2.3"), GeometryError, "different frames of reference"),
    "no thickness in one slice": (
        lambda image, k: k == 0 and setattr(image, "SliceThickness", 0) is None, GeometryError, "states no thickness"),
    "pixel spacing 0": (_everywhere(PixelSpacing=[0, 1]), GeometryError, "0 x 1 mm"),
    "rows not at right angles": (
        _everywhere(ImageOrientationPatient=[1, 0, 0, 0.2, 0.9798, 0]), GeometryError, "right angles"),
    "no position": (_everywhere(ImagePositionPatient=None), InputError, "10 image without position"),
    "modality": (_everywhere(Modality="PT"), InputError, "no CT image .found: 10 of modality PT"),
    "colour": (_colour, InputError, "10 colour image"),
    "multi-frame": (_everywhere(NumberOfFrames=1000), InputError, "multi-frame|without a readable image"),
    "a slice without its pixels": (_cut, InputError, "slice 5 of 10 cannot be decoded"),
    "no rescale intercept": (_everywhere(RescaleIntercept=0), InputError, "no CT in Hounsfield units"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_series_that_make_no_straight_even_stack_are_refused(tmp_path: Path, name: str) -> None:
    edit, error, words = REFUSED[name]
    if name == "no rescale intercept":
        array = np.random.default_rng(0).normal(60, 20, (20, 24, 10)).astype(np.int16)
        write_dicom(tmp_path, array, straight_affine() @ LPS, edit=edit)
    else:
        _series(tmp_path, edit=edit)
    with pytest.raises(error, match=words) as caught:
        read_volume(tmp_path)
    sentence = str(caught.value)
    assert type(caught.value) is error
    assert str(tmp_path) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 420


@pytest.mark.parametrize("compression", [None, "rle"])
@pytest.mark.parametrize("keep", [0.98, 0.6, 0.25])
def test_a_truncated_file_is_not_left_out_in_silence(tmp_path: Path, compression: str | None, keep: float) -> None:
    """The last slice, which no gap would betray."""
    array, affine = reoriented(f_phantom((64, 72, 3)), straight_affine(), "LPS")
    write_dicom(tmp_path, array, affine, compression=compression)
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[: int(last.stat().st_size * keep)])
    with pytest.raises(InputError, match=r"1 damaged CT images|slice 3 of 3 cannot be decoded"):
        read_volume(tmp_path)


def test_a_damaged_length_is_found_before_it_is_allocated(tmp_path: Path) -> None:
    """One wrong byte in the length of the pixels: 16 million times longer than the file."""
    _series(tmp_path)
    file = sorted(tmp_path.iterdir())[0]
    content = bytearray(file.read_bytes())
    at = content.index(b"\xe0\x7f\x10\x00OW")
    content[at + 11] = 0x7F
    file.write_bytes(content)
    with pytest.raises(InputError, match="1 damaged CT images"):
        read_volume(tmp_path)


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


def test_memory_is_foreseen_before_the_slices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _series(tmp_path)
    monkeypatch.setattr("ctseg.checks.available_memory", lambda: 57_599)
    with pytest.raises(ResourceError, match="20 x 24 x 10 voxels"):
        read_volume(tmp_path)


def _zipped(source: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(source)))
    return target


def test_a_zip_is_read_as_its_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    _series(tmp_path / "s" / "one", series_number=4)
    small, affine = reoriented(f_phantom((20, 24, 4)), straight_affine(), "LPS")
    write_dicom(tmp_path / "s" / "two", small, affine)
    path = _zipped(tmp_path / "s", tmp_path / "study.zip")
    volume, from_folder = read_volume(path), read_volume(tmp_path / "s")
    assert np.array_equal(volume.array, from_folder.array)
    assert np.array_equal(volume.source_affine, from_folder.source_affine)
    assert volume.notes == from_folder.notes
    assert volume.source == path
    assert list(scratch.iterdir()) == []


def test_a_zip_cannot_write_outside_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "a" / "b" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    _series(tmp_path / "s")
    path = _zipped(tmp_path / "s", tmp_path / "slip.zip", prefix="../../../")
    before = sorted(tmp_path.rglob("*"))
    with unpacked(path) as folder:
        assert folder.parent == scratch
        assert folder.stat().st_mode & 0o077 == 0  # nobody else looks in
        assert sorted(set(tmp_path.rglob("*")) - set(before) - {folder}) == sorted(folder.iterdir())
        assert len(list(folder.iterdir())) == 10
    assert sorted(tmp_path.rglob("*")) == before
    assert read_volume(path).shape == (20, 24, 10)


def test_zips_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[bytes, type[CtsegError], str]] = []
    _series(tmp_path / "s")
    sound = _zipped(tmp_path / "s", tmp_path / "sound.zip").read_bytes()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("nothing")
    without = _zipped(tmp_path / "e", tmp_path / "without.zip").read_bytes()
    damaged = bytearray(sound)
    damaged[200:260] = bytes(60)
    cases += [(b"", InputError, "no sound zip"), (b"text", InputError, "no sound zip")]
    cases += [(sound[: len(sound) // 2], InputError, "no sound zip"), (bytes(damaged), InputError, "no sound zip")]
    cases += [(without, InputError, "no CT image")]
    for content, error, words in cases:
        path = tmp_path / "x.zip"
        path.write_bytes(content)
        with pytest.raises(error, match=words):
            read_volume(path)
    path.write_bytes(sound)
    monkeypatch.setattr("ctseg.archives.LARGEST_UNPACKED_BYTES", 5000)
    with pytest.raises(ResourceError, match="unpacks to 10 files"):
        read_volume(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A gigabyte of zeros that claims no DICOM mark costs no disk; nothing in it is DICOM."""
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.dcm", "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(1 << 20))
    with unpacked(path) as folder:
        assert list(folder.iterdir()) == []
    with pytest.raises(InputError, match="no CT image"):
        read_volume(path)


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
