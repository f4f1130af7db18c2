"""Masks lie on exactly their image's grid, for every orientation and format; same input, same bytes."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers_phantoms import (
    LANDMARKS,
    f_phantom,
    landmark_places,
    oblique_affine,
    reoriented,
    straight_affine,
    write_dicom,
    write_itk,
    write_nifti,
)

from ctseg.errors import GeometryError, OutputError
from ctseg.outputs.writing import write_mask
from ctseg.reading import read_volume

FORM_FIELDS = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
FORM_FIELDS += ["srow_x", "srow_y", "srow_z", "xyzt_units"]


def _labels(array: np.ndarray) -> np.ndarray:
    """Return labels 1..5 at the five landmarks and 9 on the letter."""
    labels = np.where((array >= 300) & (array < 400), 9, 0).astype(np.uint8)
    for code, value in enumerate(sorted(LANDMARKS), start=1):
        labels[array == value] = code
    return labels


def _assert_places(path: Path, affine: np.ndarray, atol: float) -> None:
    """The landmarks' labels must lie where the phantom says, by nibabel and by SimpleITK."""
    theirs = nib.load(path)
    image = sitk.ReadImage(str(path))
    stored = np.asarray(theirs.dataobj)
    seen = sitk.GetArrayFromImage(image).T
    for code, place in enumerate(landmark_places(affine).values(), start=1):
        (index,) = np.argwhere(stored == code)
        assert np.allclose(theirs.affine[:3, :3] @ index + theirs.affine[:3, 3], place, atol=atol)
        (index,) = np.argwhere(seen == code)
        x, y, z = image.TransformIndexToPhysicalPoint([int(i) for i in index])
        assert np.allclose([-x, -y, z], place, atol=atol)


@pytest.mark.parametrize("affine", [straight_affine(), oblique_affine()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "PSR", "SRP", "ILA"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_mask_lies_on_its_image(tmp_path: Path, ending: str, code: str, affine: np.ndarray) -> None:
    stored, place = reoriented(f_phantom(), affine, code)
    source = tmp_path / f"ct{ending}"
    (write_nifti if ending.startswith(".nii") else write_itk)(source, stored, place)
    volume = read_volume(source)
    labels = _labels(volume.array)
    path = write_mask(labels, volume, tmp_path / "out" / "mask.nii.gz")
    mask = nib.load(path)
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(mask.dataobj), labels)
    _assert_places(path, affine, atol=1e-4)
    if ending.startswith(".nii"):
        original = nib.load(source)
        assert np.array_equal(mask.affine, original.affine)
        for field in FORM_FIELDS:
            assert mask.header[field].tobytes() == original.header[field].tobytes(), field
        assert mask.header["pixdim"][:4].tobytes() == original.header["pixdim"][:4].tobytes()
    else:
        assert np.allclose(mask.affine, volume.source_affine, rtol=1e-7, atol=1e-7)
        assert np.allclose(mask.get_qform(), mask.get_sform(), atol=1e-4)
        assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0},
        {"qform_code": 0},
        {"sform_code": 0, "qform_code": 0},
        {"sform_code": 4, "qform_code": 2},
        {"qoffset_x": 99.0},
        {"srow_x": [1.0000001, 3e-8, -2e-8, -31.499998]},
    ],
)
def test_forms_and_codes_are_repeated_bit_for_bit(tmp_path: Path, fields: dict[str, object]) -> None:
    source = write_nifti(tmp_path / "ct.nii.gz", f_phantom(), straight_affine(), **fields)
    volume = read_volume(source)
    mask, original = nib.load(write_mask(_labels(volume.array), volume, tmp_path / "m.nii")), nib.load(source)
    assert np.array_equal(mask.affine, original.affine)
    assert np.array_equal(mask.affine, volume.source_affine)
    for field in FORM_FIELDS:
        assert mask.header[field].tobytes() == original.header[field].tobytes(), field


def test_nothing_else_of_the_header_is_taken_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image((f_phantom() + 1024).astype(np.uint16), oblique_affine())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    image.header["descrip"] = b"Doe^Jane"
    image.header["aux_file"] = b"Doe^Jane"
    image.header["db_name"] = b"Doe^Jane"
    image.header["intent_name"] = b"Doe^Jane"
    image.header["cal_max"] = 255
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([1, -1024], "<f4").tobytes()
    source = tmp_path / "b.nii"
    source.write_bytes(content)
    assert b"Doe" in source.read_bytes()
    volume = read_volume(source)
    assert volume.array.min() == -1000
    path = write_mask(_labels(volume.array), volume, tmp_path / "m.nii")
    mask = nib.load(path)
    assert b"Doe" not in path.read_bytes()
    assert mask.header["cal_max"] == 0
    assert len(mask.header.extensions) == 0
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1.0, 0.0)
    assert np.array_equal(np.asarray(mask.dataobj), _labels(volume.array))
    assert path.stat().st_size == 352 + volume.array.size


def test_the_mask_of_a_nifti_2_image_is_nifti_2(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(f_phantom(), oblique_affine()), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    mask = nib.load(write_mask(_labels(volume.array), volume, tmp_path / "m.nii.gz"))
    assert isinstance(mask, nib.Nifti2Image)
    assert np.array_equal(mask.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert np.array_equal(np.asarray(mask.dataobj), _labels(volume.array))


def test_big_endian_and_one_frame_4d_sources(tmp_path: Path) -> None:
    affine = oblique_affine()
    nib.save(nib.Nifti1Image(f_phantom()[..., None], affine), tmp_path / "four.nii")
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(f_phantom().astype(">i2"), affine, header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    for name in ("four", "big"):
        volume = read_volume(tmp_path / f"{name}.nii")
        path = write_mask(_labels(volume.array), volume, tmp_path / "m.nii.gz")
        assert nib.load(path).shape == (20, 24, 10)
        assert np.array_equal(nib.load(path).affine, nib.load(tmp_path / f"{name}.nii").affine)
        _assert_places(path, affine, atol=1e-4)


def test_the_mask_of_a_dicom_series(tmp_path: Path) -> None:
    array, affine = reoriented(f_phantom(), oblique_affine(), "LPS")
    write_dicom(tmp_path / "series", array, affine)
    volume = read_volume(tmp_path / "series")
    path = write_mask(_labels(volume.array), volume, tmp_path / "m.nii.gz")
    _assert_places(path, oblique_affine(), atol=1e-4)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    ct, mask = reader.Execute(), sitk.ReadImage(str(path))
    assert ct.GetSize() == mask.GetSize()
    for corner in ((0, 0, 0), (19, 0, 0), (0, 23, 0), (0, 0, 9), (19, 23, 9)):
        ours, theirs = mask.TransformIndexToPhysicalPoint(corner), ct.TransformIndexToPhysicalPoint(corner)
        assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 24, 1), (1, 24, 2), (1, 1, 1)])
def test_single_slices(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    volume = read_volume(write_itk(tmp_path / "a.mha", np.full(shape, -5, np.int16), straight_affine()), "any")
    path = write_mask(np.ones(shape, dtype=bool), volume, tmp_path / "m.nii.gz")
    assert nib.load(path).shape == shape
    assert np.allclose(nib.load(path).affine, straight_affine())


def test_two_runs_give_identical_bytes(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "ct.nii.gz", f_phantom(), oblique_affine())
    volume = read_volume(source)
    labels = _labels(volume.array)
    first = write_mask(labels, volume, tmp_path / "one.nii.gz").read_bytes()
    second = write_mask(np.ascontiguousarray(labels), read_volume(source), tmp_path / "b" / "two.nii.gz").read_bytes()
    third = write_mask(np.asfortranarray(labels).astype(np.int64), volume, tmp_path / "three.nii.gz").read_bytes()
    assert first == second == third
    assert first[4:8] == b"\0\0\0\0"  # gzip's time
    assert first[3] == 0  # no name in gzip's header
    assert gzip.decompress(first) == write_mask(labels, volume, tmp_path / "plain.nii").read_bytes()


def test_an_earlier_mask_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "ct.nii", f_phantom(), straight_affine()))
    path = tmp_path / "out" / "mask.nii.gz"
    write_mask(np.zeros(volume.shape, np.uint8), volume, path)
    write_mask(np.full(volume.shape, 255, np.uint8), volume, path)
    assert np.asarray(nib.load(path).dataobj).min() == 255
    assert [file.name for file in path.parent.iterdir()] == ["mask.nii.gz"]


def test_a_mask_that_does_not_fit_its_image_is_refused(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "ct.nii", f_phantom(), straight_affine()))
    labels = _labels(volume.array)
    path = tmp_path / "out" / "m.nii.gz"
    with pytest.raises(GeometryError, match=r"24 x 20 x 10 voxels.*has 20 x 24 x 10"):
        write_mask(labels.transpose(1, 0, 2), volume, path)
    with pytest.raises(GeometryError, match="lies elsewhere"):
        write_mask(labels, volume, path, affine=volume.affine @ np.diag([-1.0, 1, 1, 1]))
    for values in (labels.astype(np.int16) - 1, labels.astype(np.int16) * 256, labels.astype(np.float32)):
        with pytest.raises(OutputError, match="0 to 255"):
            write_mask(values, volume, path)
    with pytest.raises(OutputError, match=r"must end in \.nii"):
        write_mask(labels, volume, tmp_path / "mask.png")
    assert not path.parent.exists()
    assert write_mask(labels, volume, path, affine=volume.affine).exists()


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_volume(write_nifti(tmp_path / "ct.nii", f_phantom(), straight_affine()))
    labels = _labels(volume.array)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write m\.nii\.gz"):
        write_mask(labels, volume, tmp_path / "file" / "m.nii.gz")
    with pytest.raises(OutputError, match=r"cannot write m\.nii\.gz"):
        write_mask(labels, volume, Path("/proc/nowhere/m.nii.gz"))
    earlier = write_mask(labels, volume, tmp_path / "out" / "m.nii").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctseg.outputs.writing._write", full)
    with pytest.raises(OutputError, match="No space left"):
        write_mask(labels, volume, tmp_path / "out" / "m.nii")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["m.nii"]
    assert (tmp_path / "out" / "m.nii").read_bytes() == earlier


def test_a_volume_without_its_header_still_places_the_mask(tmp_path: Path) -> None:
    """A server or a test may hand over a NIfTI volume whose header was lost: the exact affine is used."""
    volume = read_volume(write_nifti(tmp_path / "ct.nii", f_phantom(), oblique_affine()))
    bare = dataclasses.replace(volume, header=None)
    mask = nib.load(write_mask(_labels(volume.array), bare, tmp_path / "m.nii"))
    assert np.array_equal(mask.affine, volume.source_affine)
