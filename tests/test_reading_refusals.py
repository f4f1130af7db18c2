"""Files that must be refused: the right class, one sentence that names the file and the reason, and quickly."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers_phantoms import f_phantom, straight_affine, write_itk, write_nifti

from ctseg.checks import available_memory
from ctseg.errors import GeometryError, InputError, ResourceError
from ctseg.reading import read_volume


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _nifti(path: Path, **fields: object) -> Path:
    return write_nifti(path, f_phantom(), straight_affine(), **fields)


def _edited(path: Path, old: bytes, new: bytes) -> Path:
    """Write the phantom in the path's format and replace a piece of its text header."""
    content = write_itk(path, f_phantom(), straight_affine((0.5, 1.0, 2.0), (1, 2, 3))).read_bytes()
    assert old in content, content[:600]
    return _bytes(path, content.replace(old, new, 1))


def _saved(path: Path, array: np.ndarray, vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path))
    return path


def _cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    return _bytes(path, content[: int(len(content) * keep)])


def _damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    return _bytes(path, bytes(content))


def _quaternion_nan(path: Path) -> Path:
    return _nifti(path, sform_code=0, quatern_b=np.nan)


RAS = straight_affine()
NOT_READ: dict[str, tuple[Callable[[Path], Path], type[Exception], str]] = {
    "missing": (lambda d: d / "nothing.nii.gz", InputError, "does not exist"),
    "empty .nii": (lambda d: _bytes(d / "a.nii", b""), InputError, "is empty"),
    "empty .nii.gz": (lambda d: _bytes(d / "a.nii.gz", b""), InputError, "is empty"),
    "gzip of nothing": (lambda d: _bytes(d / "a.nii.gz", gzip.compress(b"")), InputError, "is empty"),
    "empty .nrrd": (lambda d: _bytes(d / "a.nrrd", b""), InputError, "is empty"),
    "empty .mha": (lambda d: _bytes(d / "a.mha", b""), InputError, "is empty"),
    "text as .nii.gz": (lambda d: _bytes(d / "a.nii.gz", b"some text\n" * 99), InputError, "no sound gzip"),
    "gzipped text as .nii.gz": (
        lambda d: _bytes(d / "a.nii.gz", gzip.compress(b"some text\n" * 99)), InputError, "no NIfTI"),
    "text as .nii": (lambda d: _bytes(d / "a.nii", b"some text\n" * 99), InputError, "no NIfTI"),
    "text as .nrrd": (lambda d: _bytes(d / "a.nrrd", b"some text\n" * 99), InputError, "no NRRD"),
    "text as .mha": (lambda d: _bytes(d / "a.mha", b"some text\n" * 99), InputError, "no MetaImage"),
    "bytes as .mhd": (lambda d: _bytes(d / "a.mhd", bytes(range(256)) * 9), InputError, "no MetaImage"),
    "unknown ending": (lambda d: _bytes(d / "a.txt", b"some text"), InputError, r"\.nii\.gz.*\.nrrd.*\.mha.*DICOM"),
    "empty folder": (lambda d: d, InputError, "no DICOM file"),
    "header cut": (lambda d: _bytes(d / "a.nii", _nifti(d / "b.nii").read_bytes()[:347]), InputError, "no NIfTI"),
    ".nii cut": (lambda d: _cut(_nifti(d / "a.nii"), 0.7), InputError, "truncated.*9600 bytes"),
    ".nii.gz cut": (lambda d: _cut(_nifti(d / "a.nii.gz"), 0.7), InputError, "truncated or damaged"),
    ".nii.gz cut in its last bytes": (lambda d: _cut(_nifti(d / "a.nii.gz"), 0.998), InputError, "truncated|damaged"),
    ".nii.gz with a flipped bit": (lambda d: _damaged(_nifti(d / "a.nii.gz")), InputError, "damaged|gzip"),
    ".nrrd cut": (lambda d: _cut(write_itk(d / "a.nrrd", f_phantom(), RAS), 0.7), InputError, "truncated"),
    ".nrrd compressed and cut": (
        lambda d: _cut(write_itk(d / "a.nrrd", f_phantom(), RAS, compress=True), 0.7), InputError, "truncated"),
    ".mha cut": (lambda d: _cut(write_itk(d / "a.mha", f_phantom(), RAS), 0.7), InputError, "truncated"),
    ".mha cut by one byte": (
        lambda d: _bytes(d / "a.mha", write_itk(d / "b.mha", f_phantom(), RAS).read_bytes()[:-1]), InputError, "trunc"),
    ".mhd without its data": (
        lambda d: _bytes(d / "c.mhd", write_itk(d / "b.mhd", f_phantom(), RAS).read_bytes().replace(b"b.", b"x.")),
        InputError, "data file is missing"),
    "4D .nii": (
        lambda d: write_nifti(d / "a.nii", np.stack([f_phantom()] * 3, axis=-1), RAS), InputError, "of 3 frames"),
    "4D .nrrd": (lambda d: _saved(d / "a.nrrd", np.zeros((2, 3, 4, 5), np.int16)), InputError, "4D image"),
    "2D .nii": (lambda d: write_nifti(d / "a.nii", f_phantom()[:, :, 0], RAS), InputError, "2D image"),
    "2D .mha": (lambda d: _saved(d / "a.mha", np.zeros((9, 8), np.int16)), InputError, "2D image"),
    "colour .nii": (
        lambda d: write_nifti(d / "a.nii", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), RAS),
        InputError, "colour"),
    "complex .nii": (lambda d: write_nifti(d / "a.nii", np.ones((4, 4, 4), np.complex64), RAS), InputError, "complex"),
    "vectors .nii": (lambda d: write_nifti(d / "a.nii", np.zeros((4, 4, 4, 1, 3), "f4"), RAS), InputError, "several"),
    "colour .nrrd": (lambda d: _saved(d / "a.nrrd", np.zeros((4, 4, 4, 3), np.uint8), True), InputError, "3 numbers"),
    "vectors .mha": (lambda d: _saved(d / "a.mha", np.zeros((4, 4, 4, 2), np.float32), True), InputError, "2 numbers"),
    "unknown datatype": (lambda d: _nifti(d / "a.nii", datatype=77), InputError, "unknown type"),
    "no offset": (lambda d: _nifti(d / "a.nii", vox_offset=np.nan), InputError, "begin at byte nan"),
    "far offset": (lambda d: _nifti(d / "a.nii.gz", vox_offset=1e30), InputError, "begin at byte 1e"),
    "rank 9": (lambda d: _nifti(d / "a.nii", dim=[9, 20, 24, 10, 1, 1, 1, 1]), InputError, "declares"),
    "no voxel": (lambda d: _nifti(d / "a.nii", dim=[3, 20, 0, 10, 1, 1, 1, 1]), InputError, "20 x 0 x 10"),
    "all NaN": (lambda d: write_nifti(d / "a.nii", np.full((4, 4, 4), np.nan, np.float32), RAS), InputError, "finite"),
    "NaN in the sform": (lambda d: _nifti(d / "a.nii", srow_x=[np.nan, 0, 0, 0]), GeometryError, "NaN or infinite"),
    "infinite sform": (lambda d: _nifti(d / "a.nii.gz", srow_y=[0, 1, 0, np.inf]), GeometryError, "NaN or infinite"),
    "NaN in the qform": (lambda d: _quaternion_nan(d / "a.nii"), GeometryError, "NaN|rotation"),
    "pixdim 0": (lambda d: _nifti(d / "a.nii", pixdim=[1, 1, 0, 2.5, 0, 0, 0, 0]), GeometryError, "1 x 0 x 2.5 mm"),
    "pixdim negative": (lambda d: _nifti(d / "a.nii", pixdim=[1, -1, 1, 2.5, 0, 0, 0, 0]), GeometryError, "-1 x 1"),
    "pixdim NaN": (lambda d: _nifti(d / "a.nii", pixdim=[1, np.nan, 1, 2, 0, 0, 0, 0]), GeometryError, "nan x 1 x 2"),
    "sform of zeros": (lambda d: _nifti(d / "a.nii", srow_z=[0, 0, 0, 0]), GeometryError, "singular|0 mm"),
    "singular sform": (lambda d: _nifti(d / "a.nii", srow_x=[0, 1.25, 0, 0]), GeometryError, "singular|0 x"),
    "sheared sform": (lambda d: _nifti(d / "a.nii", srow_y=[0, 1.25, 0.6, 0]), GeometryError, "by 13.50 degrees"),
    "spacing 0 in .mha": (lambda d: _edited(d / "a.mha", b"Spacing = 0.5", b"Spacing = 0"), GeometryError, "0 x 1 x 2"),
    "spacing -0.5 in .mha": (
        lambda d: _edited(d / "a.mha", b"Spacing = 0.5", b"Spacing = -0.5"), GeometryError, "-0.5 x 1 x 2"),
    "NaN in .mha": (lambda d: _edited(d / "a.mha", b"Offset = -1", b"Offset = nan"), GeometryError, "'nan'.*offset"),
    "infinite .mha": (lambda d: _edited(d / "a.mha", b"Spacing = 0.5", b"Spacing = inf"), GeometryError, "'inf'"),
    "NaN in .nrrd": (lambda d: _edited(d / "a.nrrd", b"origin: (-1,", b"origin: (nan,"), GeometryError, "'nan'"),
    "singular .mha": (
        lambda d: _edited(d / "a.mha", b"Matrix = -1 0 0 0 -1", b"Matrix = -1 0 0 -1 0"), GeometryError, "singular"),
    "sheared .mha": (
        lambda d: _edited(d / "a.mha", b"Matrix = -1 0 0 0 -1 0 0 0 1", b"Matrix = -1 0 0 0 -1 0 0 0.2 1"),
        GeometryError, "sheared by 11.31 degrees"),
    "sheared .nrrd": (lambda d: _edited(d / "a.nrrd", b"(0,0,2)", b"(0,0.2,2)"), GeometryError, "by 5.71 degrees"),
    "zero axis in .nrrd": (lambda d: _edited(d / "a.nrrd", b"(0,0,2)", b"(0,0,0)"), GeometryError, "1 x 0 mm"),
    "30000 cubed .nii": (lambda d: _nifti(d / "a.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), ResourceError, "GiB"),
    "30000 cubed .nii.gz": (lambda d: _nifti(d / "a.nii.gz", dim=[3] + [30000] * 3 + [1] * 4), ResourceError, "GiB"),
    "30000 cubed .mha": (
        lambda d: _edited(d / "a.mha", b"DimSize = 20 24 10", b"DimSize = 30000 30000 30000"), ResourceError, "GiB"),
    "30000 cubed .nrrd": (
        lambda d: _edited(d / "a.nrrd", b"sizes: 20 24 10", b"sizes: 30000 30000 30000"), ResourceError, "GiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_refused_with_one_sentence(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, error, words = NOT_READ[name]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    start = time.perf_counter()
    with pytest.raises(error, match=words) as caught:
        read_volume(path)
    assert type(caught.value) is error
    assert time.perf_counter() - start < 20  # of which ITK's import takes most
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 420
    assert sorted(tmp_path.iterdir()) == before
    assert "Traceback" not in capfd.readouterr().err


def test_memory_is_foreseen_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 x 24 x 10 voxels of float32 three times over are 57,600 bytes."""
    path = _nifti(tmp_path / "a.nii.gz")
    monkeypatch.setattr("ctseg.checks.available_memory", lambda: 57_600)
    assert read_volume(path).shape == (20, 24, 10)
    monkeypatch.setattr("ctseg.checks.available_memory", lambda: 57_599)
    with pytest.raises(ResourceError, match="20 x 24 x 10 voxels"):
        read_volume(path)


def test_available_memory_is_what_the_system_says() -> None:
    psutil = pytest.importorskip("psutil")
    available = available_memory()
    assert available is not None
    assert 0 < available <= psutil.virtual_memory().total


def test_a_file_without_the_right_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _nifti(tmp_path / "a.nii")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom nothing stops
    with pytest.raises(InputError, match="Permission denied"):
        read_volume(path)


def test_analyze_pairs_are_not_taken_for_nifti(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(f_phantom(), RAS), tmp_path / "a.img")
    with pytest.raises(InputError, match="tells no known format"):
        read_volume(tmp_path / "a.img")
