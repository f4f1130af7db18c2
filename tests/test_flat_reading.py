"""Flat images as they are read: formats, bits, palettes, transparency, orientation, DICOM, frames, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_flat import write_dicom
from PIL import Image

from ctseg.errors import InputError
from ctseg.flat.items import flat_affine, flat_volume
from ctseg.flat.reading import count_frames, flat_name, is_flat_path, read_flat, read_frames

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)  # no symmetry
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_grey_and_colours_keep_their_values_and_places(tmp_path: Path, ending: str) -> None:
    grey = read_flat(saved(tmp_path / f"g.{ending}", Image.fromarray(GREY)))
    assert (grey.kind, grey.white, grey.size, grey.spacing) == ("grey", 255.0, (2, 3), None)
    np.testing.assert_array_equal(grey.array, GREY[None])
    assert grey.array.dtype == np.float32
    colours = read_flat(saved(tmp_path / f"c.{ending}", Image.fromarray(COLOURS)))
    assert colours.kind == "rgb"
    np.testing.assert_array_equal(colours.array, COLOURS.transpose(2, 0, 1))


def test_a_jpeg_is_read_to_within_its_loss(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32) * 4, np.arange(40) * 2).astype(np.uint8)
    read = read_flat(saved(tmp_path / "a.JPG", Image.fromarray(smooth), quality=95, format="JPEG"))
    assert np.abs(read.array[0] - smooth).max() <= 3


def test_palette_transparency_and_one_bit(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    read = read_flat(saved(tmp_path / "p.png", palette))
    np.testing.assert_array_equal(read.array[:, 0].T, [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    see_through = np.dstack([COLOURS, np.full(GREY.shape, 51, np.uint8)])  # a fifth opaque
    read = read_flat(saved(tmp_path / "a.png", Image.fromarray(see_through)))
    np.testing.assert_allclose(read.array, COLOURS.transpose(2, 0, 1) * 0.2, atol=1e-4)
    assert read.notes == ("its transparent pixels were laid on black",)
    opaque = np.dstack([COLOURS, np.full(GREY.shape, 255, np.uint8)])
    assert read_flat(saved(tmp_path / "o.png", Image.fromarray(opaque))).notes == ()
    bits = read_flat(saved(tmp_path / "b.png", Image.fromarray(GREY > 120)))
    np.testing.assert_array_equal(bits.array[0], np.where(GREY > 120, 255, 0))


def test_sixteen_bits_are_kept_in_grey_and_in_colours(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 257 - 3 * (GREY > 0)).astype(np.uint16)
    read = read_flat(saved(tmp_path / "g.png", Image.fromarray(deep)))
    assert read.white == 65535
    np.testing.assert_array_equal(read.array[0], deep)
    dark = read_flat(saved(tmp_path / "d.tif", Image.fromarray(GREY.astype(np.uint16) * np.uint16(16))))
    assert "brightest value is 4080 of 65535" in dark.notes[0]
    import SimpleITK as sitk

    colours = COLOURS.astype(np.uint16) * np.uint16(200) + np.uint16(7)  # not to be had from 8 bits
    for name in ("c.png", "c.tif"):
        sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / name))
    read = read_flat(tmp_path / "c.tif")
    assert (read.kind, read.white) == ("rgb", 65535.0)
    np.testing.assert_array_equal(read.array, colours.transpose(2, 0, 1))
    eight = read_flat(tmp_path / "c.png")  # Pillow keeps the upper eight bits, and that is said
    np.testing.assert_array_equal(eight.array, colours.transpose(2, 0, 1) >> 8)
    assert eight.notes == ("its colours of 16 bits were read with 8",)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, GREY),
        (2, GREY[:, ::-1]),
        (3, GREY[::-1, ::-1]),
        (4, GREY[::-1]),
        (5, GREY.T),
        (6, GREY[::-1].T),
        (7, GREY[::-1, ::-1].T),
        (8, GREY.T[::-1]),
    ],
)
def test_exif_orientations_are_applied(tmp_path: Path, orientation: int, shown: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_flat(saved(tmp_path / "e.png", Image.fromarray(GREY), exif=exif))
    np.testing.assert_array_equal(read.array[0], shown)
    assert bool(read.notes) == (orientation != 1)


def test_a_ct_slice_is_in_hounsfield_units_with_its_millimetres(tmp_path: Path) -> None:
    stored = np.array([[0, 1024, 1064], [1104, 2000, 900]], np.uint16)
    path = write_dicom(
        tmp_path / "ct.dcm", stored, Modality="CT", RescaleSlope="1", RescaleIntercept="-1024", PixelSpacing=[0.5, 0.25]
    )
    read = read_flat(path)
    assert (read.kind, read.white, read.spacing) == ("hu", None, (0.5, 0.25))
    np.testing.assert_array_equal(read.array[0], stored.astype(float) - 1024)
    np.testing.assert_allclose(read.brightness((0, 80))[0], [[0, 0, 0.5], [1, 1, 0]])
    volume = flat_volume(read)
    np.testing.assert_allclose(volume.affine @ [2, 1, 0, 1], [-0.25, -1.0, 0, 1])  # two rows down, one column left


def test_ultrasound_has_colours_frames_and_the_size_of_its_region(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    frames = np.stack([COLOURS, COLOURS[::-1]])
    path = write_dicom(tmp_path / "us", frames, Modality="US", SequenceOfUltrasoundRegions=[region])
    assert is_flat_path(path)  # without an ending
    assert count_frames(path) == 2
    with pytest.raises(InputError, match="holds 2 frames, but one picture is needed"):
        read_flat(path)
    one, two = read_frames(path)
    np.testing.assert_array_equal(two.array, COLOURS[::-1].transpose(2, 0, 1))
    np.testing.assert_allclose(one.spacing or (), (0.3, 0.2))
    assert (two.frame, two.frames) == (1, 2)


def test_other_greys_are_shown_by_window_or_bits_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    stored = np.array([[0, 1000, 4095]], np.uint16)
    plain = read_flat(write_dicom(tmp_path / "a.dcm", stored, Modality="US", BitsStored=12))
    np.testing.assert_array_equal(plain.array[0], stored)
    assert plain.white == 4095
    negative = read_flat(
        write_dicom(tmp_path / "b.dcm", stored, Modality="CR", BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_array_equal(negative.array[0], 4095 - stored.astype(float))
    window = read_flat(write_dicom(tmp_path / "c.dcm", stored, Modality="MR", WindowCenter="1000", WindowWidth="2000"))
    np.testing.assert_allclose(window.array[0], [[0, 127.5, 255]])


def test_pages_and_gif_frames_come_one_by_one(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    path = saved(tmp_path / "pages.tiff", pages[0], save_all=True, append_images=pages[1:])
    assert [frame.array[0, 0, 0] for frame in read_frames(path)] == [0, 150]
    gif = saved(tmp_path / "film.gif", pages[0], save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_flat(gif, 1).grey().round(), GREY[::-1])
    with pytest.raises(InputError, match="has the frames 0 to 1, but frame 2"):
        read_flat(gif, 2)


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(
        tmp_path / "whole.jpg", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    )
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "a.xyz").write_text("")
    (tmp_path / "no.dcm").write_text("no DICOM")
    Image.fromarray(np.array([[0.1, 0.9]], np.float32)).save(tmp_path / "float.tif")
    bare = write_dicom(tmp_path / "bare.dcm", GREY, Modality="US")
    import pydicom

    dataset = pydicom.dcmread(bare)
    del dataset.PixelData
    dataset.save_as(bare)
    for name, said in (
        ("missing.png", "does not exist"),
        (".", "is a folder"),
        ("half.jpg", "it is damaged"),
        ("text.png", "is no image, whatever its name says"),
        ("a.xyz", "tells no known format"),
        ("no.dcm", "is no DICOM file"),
        ("bare.dcm", "without PixelData"),
        ("float.tif", "of which nobody says what is white"),
    ):
        with pytest.raises(InputError) as caught:
            read_flat(tmp_path / name)
        assert said in str(caught.value) and "\n" not in str(caught.value), name
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="too large to be a picture"):
        read_flat(whole)


def test_names_and_the_grid(tmp_path: Path) -> None:
    assert [flat_name(name) for name in ("a.b.jpeg", "x.DCM", "bare")] == ["a.b", "x", "bare"]
    np.testing.assert_array_equal(flat_affine(None)[:3, :3], [[0, -1, 0], [-1, 0, 0], [0, 0, 1]])
    assert not is_flat_path(tmp_path)
