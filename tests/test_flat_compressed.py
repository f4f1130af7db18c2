"""Compressed DICOM images and films: every frame comes out as it went in, whatever holds it."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_flat import write_dicom

from ctseg.errors import InputError
from ctseg.flat.films import _KEPT
from ctseg.flat.reading import count_frames, read_flat, read_frames

GREY = np.add.outer(np.arange(24) * 6, np.arange(32) * 2).astype(np.uint8)
GREY[4:10, 5:20] = 200  # no symmetry
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
FRAMES = np.stack([COLOURS, COLOURS[::-1], COLOURS[:, ::-1]])
CT: dict[str, Any] = {"Modality": "CT", "BitsStored": 12, "RescaleSlope": "1", "RescaleIntercept": "-1024"}
IMAGES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "grey": (GREY, {"Modality": "US"}),
    "colours": (COLOURS, {"Modality": "US"}),
    "frames": (FRAMES, {"Modality": "US"}),
    "ct": (GREY.astype(np.uint16) * np.uint16(16), CT),
}


def same(compressed: Path, plain: Path, tolerance: float = 0.0) -> None:
    """Compare all frames: none may differ by more than the tolerance on the mean, lossless ones not at all."""
    assert count_frames(compressed) == count_frames(plain)
    for one, other in zip(read_frames(compressed), read_frames(plain), strict=True):
        assert (one.kind, one.white, one.size) == (other.kind, other.white, other.size)
        difference = np.abs(one.array - other.array)
        assert difference.mean() <= tolerance and (tolerance or not difference.max())


@pytest.mark.parametrize("name", IMAGES)
def test_run_lengths_of_one_and_of_several_frames(name: str, tmp_path: Path) -> None:
    import pydicom
    from pydicom.uid import RLELossless

    pixels, elements = IMAGES[name]
    plain = write_dicom(tmp_path / "plain.dcm", pixels, **elements)
    dataset = pydicom.dcmread(plain)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    same(tmp_path / "rle.dcm", plain)


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command in ("dcmcjpeg +e1", "dcmcjpls") for name in IMAGES]
    + [("dcmcjpeg +eb +q 95", name) for name in IMAGES if name != "ct"],  # baseline JPEG has 8 bits, a CT 12
)
def test_jpeg_lossless_ls_and_baseline(command: str, name: str, tmp_path: Path) -> None:
    program, *options = command.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} of the Debian package dcmtk is not installed")
    pixels, elements = IMAGES[name]
    plain = write_dicom(tmp_path / "plain.dcm", pixels, **elements)
    subprocess.run([program, *options, str(plain), str(tmp_path / "packed.dcm")], check=True, capture_output=True)
    same(
        tmp_path / "packed.dcm", plain, tolerance=4.0 if "+eb" in options else 0.0
    )  # half the colours' columns are left out


def test_a_torn_compressed_image_is_refused(tmp_path: Path) -> None:
    if shutil.which("dcmcjpls") is None:
        pytest.skip("dcmcjpls of the Debian package dcmtk is not installed")
    plain = write_dicom(tmp_path / "plain.dcm", GREY, Modality="US")
    packed = tmp_path / "packed.dcm"
    subprocess.run(["dcmcjpls", str(plain), str(packed)], check=True, capture_output=True)
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) - 200])
    with pytest.raises(InputError):
        read_flat(packed)


# Of a film that is torn, or gone back in, imageio forgets to close the pipes to ffmpeg.
forgotten_pipes = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def film(tmp_path: Path) -> Iterator[Path]:
    """Twelve frames of 48 x 64, each brighter than the one before, a square moving down."""
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: it reads and writes films")
    from imageio import v3

    frames = np.empty((12, 48, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:] = 15 * number
        frame[2 * number : 2 * number + 12, 8:24] = (220, 60, 30)
    v3.imwrite(tmp_path / "film.mp4", frames, fps=10, plugin="FFMPEG", macro_block_size=1)
    yield tmp_path / "film.mp4"
    _KEPT.clear()
    gc.collect()


@forgotten_pipes
def test_the_frames_of_a_film_come_one_by_one_and_in_any_order(film: Path) -> None:
    frames = list(read_frames(film))
    assert [(one.frame, one.frames, one.size) for one in frames] == [(number, 12, (48, 64)) for number in range(12)]
    for number, one in enumerate(frames):
        assert abs(float(one.array[:, :, 40:].mean()) - 15 * number) < 4
        assert one.array[0, 2 * number + 6, 16] > one.array[2, 2 * number + 6, 16] + 100
    assert not _KEPT  # closed after its last frame
    for number in (7, 2, 11):
        np.testing.assert_array_equal(read_flat(film, number).array, frames[number].array)
    with pytest.raises(InputError, match="holds 12 frames, but one picture is needed"):
        read_flat(film)


@forgotten_pipes
def test_what_is_no_film_is_refused(film: Path) -> None:
    torn = film.with_name("torn.avi")
    torn.write_bytes(film.read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read as a film"):
        count_frames(torn)


def test_without_imageio_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "film.mp4").write_bytes(b"\0")
    with pytest.raises(InputError, match="pip install imageio imageio-ffmpeg"):
        count_frames(tmp_path / "film.mp4")
