"""Masks of flat images: black and white, noisy, by value, by colour; and outlines drawn as masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctseg.errors import GeometryError, InputError
from ctseg.flat.masks import colour_values, read_mask
from ctseg.flat.shapes import Outlines, Shape, decoded, resized, runs_of_text
from ctseg.flat.writing import write_flat_mask

INSIDE = np.zeros((48, 64), bool)
INSIDE[8:30, 10:50] = True
INSIDE[30:40, 10:20] = True


def written(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.mark.parametrize("white", [1, 255])
def test_black_and_white_means_the_same_whichever_white(tmp_path: Path, white: int) -> None:
    path = written(tmp_path / "m.png", (INSIDE * white).astype(np.uint8))
    for wanted in (1, 255):
        labels, notes = read_mask(path, {wanted: "lesion"})
        assert notes == ()
        np.testing.assert_array_equal(labels, INSIDE * wanted)
    np.testing.assert_array_equal(read_mask(path)[0], INSIDE)
    grey = np.repeat((INSIDE * 255).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_mask(written(tmp_path / "rgb.png", grey), {1: "lesion"})[0], INSIDE)
    bits = written(tmp_path / "bits.png", INSIDE)
    np.testing.assert_array_equal(read_mask(bits, {1: "lesion"})[0], INSIDE)


def test_what_jpeg_left_is_thresholded_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "m.jpg", (INSIDE * 255).astype(np.uint8), quality=60)
    assert len(np.unique(pixels_of(path))) > 10
    labels, notes = read_mask(path, {255: "lesion"})
    assert (labels > 0).sum() == pytest.approx(INSIDE.sum(), abs=12)
    assert ((labels > 0) != INSIDE).sum() <= 12
    assert "as JPEG or smoothing leaves them: above 127 is taken as inside" in notes[0]
    assert notes[0] in caplog.text


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(48), np.arange(64) * 3).astype(np.uint8)
    with pytest.raises(InputError, match=r"is no mask: .* near the middle"):
        read_mask(written(tmp_path / "photo.png", ramp), {255: "lesion"})


def test_label_values_and_palettes_are_taken_as_they_are(tmp_path: Path) -> None:
    labels = (INSIDE * 3).astype(np.uint8)
    labels[0, 0] = 7
    np.testing.assert_array_equal(read_mask(written(tmp_path / "v.png", labels), {3: "a", 7: "b"})[0], labels)
    write_flat_mask(labels, {"a": 3, "b": 7}, tmp_path / "p.png", {"a": (255, 0, 0), "b": (0, 0, 255)})
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.mode == "P" and picture.convert("RGB").getpixel((10, 8)) == (255, 0, 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", {3: "a", 7: "b"})[0], labels)
    write_flat_mask(INSIDE, {"a": 1}, tmp_path / "one.png")
    assert set(np.unique(pixels_of(tmp_path / "one.png"))) == {0, 255}


def test_colours_by_a_table_exact_near_and_unknown(tmp_path: Path) -> None:
    table = {"lesion": (255, 0, 0), "ruler": (0, 0, 255)}
    assert colour_values(table) == {1: "lesion", 2: "ruler"}
    assert colour_values({"skin": (0, 0, 0), **table}) == {2: "lesion", 3: "ruler"}
    pixels = np.zeros((*INSIDE.shape, 3), np.uint8)
    pixels[INSIDE], pixels[44:, 50:] = table["lesion"], table["ruler"]
    expected = INSIDE.astype(int)
    expected[44:, 50:] = 2
    labels, notes = read_mask(written(tmp_path / "c.png", pixels), None, table)
    np.testing.assert_array_equal(labels, expected)
    assert notes == ()
    pixels[INSIDE] = (240, 8, 4)
    labels, notes = read_mask(written(tmp_path / "n.png", pixels), None, table)
    np.testing.assert_array_equal(labels, expected)
    assert notes[0].startswith(f"{INSIDE.sum()} pixels")
    pixels[INSIDE] = (0, 255, 0)
    with pytest.raises(InputError, match=r"colours that the table does not name: \(0,255,0\) 980 pixels"):
        read_mask(written(tmp_path / "u.png", pixels), None, table)
    with pytest.raises(InputError, match="no table says what they mean"):
        read_mask(tmp_path / "c.png", {255: "lesion"})


def test_polygons_cover_the_pixels_whose_centres_they_hold() -> None:
    square = Shape("a", "polygon", ((1, 2), (5, 2), (5, 5), (1, 5)))  # 4 columns from 1, 3 rows from 2
    mask = Outlines((square,)).draw((8, 10), {"a": 3})
    assert (mask == 3).sum() == 12
    assert np.flatnonzero(mask.any(axis=1)).tolist() == [2, 3, 4]
    assert np.flatnonzero(mask.any(axis=0)).tolist() == [1, 2, 3, 4]
    corners = Shape("a", "rectangle", ((5, 5), (1, 2)))
    np.testing.assert_array_equal(Outlines((corners,)).draw((8, 10), {"a": 3}), mask)
    shares = Shape("a", "polygon", tuple((x / 10, y / 8) for x, y in square.points))
    np.testing.assert_array_equal(Outlines((shares,), relative=True).draw((8, 10), {"a": 3}), mask)
    circle = Outlines((Shape("a", "circle", ((20.0, 15.0), (20.0, 25.0))),)).draw((40, 50), {"a": 1})
    rows, columns = np.mgrid[:40, :50] + 0.5
    assert (circle != (np.hypot(columns - 20, rows - 15) <= 10)).sum() <= 4


def test_the_first_structure_keeps_a_shared_pixel_and_other_sizes_are_asked_for() -> None:
    shapes = (Shape("b", "rectangle", ((0, 0), (4, 4))), Shape("a", "rectangle", ((2, 0), (6, 4))))
    mask = Outlines(shapes, (4, 6)).draw((4, 6), {"a": 1, "b": 2})
    assert mask[0].tolist() == [2, 2, 1, 1, 1, 1]
    with pytest.raises(GeometryError, match="outlined on 4 rows and 6 columns, the image has 8 and 12"):
        Outlines(shapes, (4, 6)).draw((8, 12), {"a": 1})
    twice = Outlines(shapes, (4, 6)).draw((8, 12), {"a": 1, "b": 2}, resize=True)
    np.testing.assert_array_equal(twice, mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resized(twice, (4, 6)), mask)
    with pytest.raises(InputError, match="a polygon of 2 points"):
        Outlines((Shape("a", "polygon", ((0, 0), (1, 1))),)).draw((4, 4), {"a": 1})


def _coco_text(runs: list[int]) -> str:
    """COCO's own way of writing, after `rleToString` of maskApi.c."""
    text = ""
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def test_run_lengths_go_down_the_columns() -> None:
    assert decoded([1, 2, 3], (2, 3)).tolist() == [[False, True, False], [True, False, False]]
    runs = [7, 300, 2, 41, 1000, 3, 5, 60000]
    assert runs_of_text(_coco_text(runs)) == tuple(runs)
    assert runs_of_text("52203") == (5, 2, 2, 2, 5)  # each below 16: 5, 2, 2, then 0 more than 2 and 3 more than 2
    with pytest.raises(InputError, match="sum up to 5, its picture has 6"):
        decoded([5], (2, 3))
    with pytest.raises(InputError, match="which COCO's text never does"):
        runs_of_text(" ")
