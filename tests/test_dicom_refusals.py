"""DICOM series that make no straight, even, complete stack are refused with one sentence that says where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import f_phantom, reoriented, straight_affine, write_axial_series, write_dicom

from ctseg.errors import GeometryError, InputError, ResourceError
from ctseg.reading import read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


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


TILT = float(np.tan(np.radians(40.0)) * 2.5)
REFUSED = {
    "one slice missing": (_left_out(6), GeometryError, r"missing slices \(1\) between images 6 and 7 of 9 .*5\.00 mm"),
    "two slices missing": (_left_out(3, 4), GeometryError, r"missing slices \(2\) between images 3 and 4 of 8"),
    "an uneven slice": (_moved(z=0.4, only=5), GeometryError, r"uneven slices between images .*elsewhere 2\.50 mm"),
    "a slice twice in one place": (_moved(z=2.5, only=5), GeometryError, "two images at one place"),
    "all in one place": (_moved(z=-2.5), GeometryError, "two images at one place, 9 times in 10 images"),
    "too much gantry tilt": (_moved(x=TILT), GeometryError, r"tilted gantry \(40\.00 degrees .*at most 35"),
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
        write_axial_series(tmp_path, edit=edit)
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
    write_axial_series(tmp_path)
    file = sorted(tmp_path.iterdir())[0]
    content = bytearray(file.read_bytes())
    at = content.index(b"\xe0\x7f\x10\x00OW")
    content[at + 11] = 0x7F
    file.write_bytes(content)
    with pytest.raises(InputError, match="1 damaged CT images"):
        read_volume(tmp_path)


def test_memory_is_foreseen_before_the_slices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_axial_series(tmp_path)
    monkeypatch.setattr("ctseg.checks.available_memory", lambda: 57_599)
    with pytest.raises(ResourceError, match="20 x 24 x 10 voxels"):
        read_volume(tmp_path)
