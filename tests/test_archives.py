"""Zips with DICOM series: read as their folder, unpacked safely, and nothing left behind."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import f_phantom, reoriented, straight_affine, write_axial_series, write_dicom

from ctseg.dicom.archives import unpacked
from ctseg.errors import CtsegError, InputError, ResourceError
from ctseg.reading import read_volume


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
    write_axial_series(tmp_path / "s" / "one", series_number=4)
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
    write_axial_series(tmp_path / "s")
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
    write_axial_series(tmp_path / "s")
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
    monkeypatch.setattr("ctseg.dicom.archives.LARGEST_UNPACKED_BYTES", 5000)
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
