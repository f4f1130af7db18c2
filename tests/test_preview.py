"""The preview: which slices, which way round and at what scale, for every orientation a file may have."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers_prediction import make_labels, make_volume
from PIL import Image

from ctseg.errors import GeometryError
from ctseg.organs import Organ
from ctseg.outputs.preview import _bright, _caption, write_preview
from ctseg.views import View, views_through
from ctseg.volume import Volume

COLORS = {"liver": (0, 255, 0)}


def _phantom() -> tuple[np.ndarray, np.ndarray]:
    """RAS, 2 x 3 x 4 mm. Value at one corner voxel of each view's plane tells right from left, front from back."""
    array = np.zeros((12, 10, 8), np.float32)
    labels = np.zeros(array.shape, np.uint8)
    labels[3:9, 4:7, 2:6] = 1  # largest area: sagittal 3 of 3..8, coronal 4 of 4..6, axial 2 of 2..5
    labels[4, 4, 2] = 0  # so that the largest planes are others than the first
    labels[3, 5, 3] = 0
    array[11, :, :] += 1  # the patient's right
    array[:, 9, :] += 10  # front
    array[:, :, 7] += 100  # head
    return array, labels


def _reoriented(array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> tuple:
    """Store the same body with other axes: transpose, then flip, and say so in the affine."""
    array = array.transpose(order)
    step = np.zeros((4, 4))
    step[3, 3] = 1.0
    for new, old in enumerate(order):
        step[old, new] = flips[new]
        step[old, 3] += (array.shape[new] - 1) * (flips[new] < 0)
    return array[tuple(slice(None, None, flip) for flip in flips)], affine @ step


RAS = np.diag([2.0, 3.0, 4.0, 1.0])
RIGHT_IS_HIGH = np.array([[1.0, 0, 0, 5.0], [0, 1.0, 0, 6.0], [0, 0, 1.0, 7.0], [0, 0, 0, 1.0]]) @ RAS


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_every_orientation_shows_the_same_radiological_views(
    order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    array, labels = _phantom()
    stored, affine = _reoriented(array, RIGHT_IS_HIGH, order, flips)
    stored_labels, _ = _reoriented(labels, RIGHT_IS_HIGH, order, flips)
    axial, coronal, sagittal = views_through(stored, stored_labels, affine, [1])
    assert [view.name for view in (axial, coronal, sagittal)] == ["Axial", "Coronal", "Sagittal"]
    assert axial.letters == (*coronal.letters[:2], "A", "P") == ("R", "L", "A", "P")
    assert coronal.letters[2:] == sagittal.letters[2:] == ("S", "I") and sagittal.letters[:2] == ("A", "P")
    # image left = patient's right, top = front
    assert (axial.image[1:, 0] == 1).all() and (axial.image[0, 1:] == 10).all() and axial.image[-1, -1] == 0
    assert (coronal.image[1:, 0] == 1).all() and (coronal.image[0, 1:] == 100).all() and coronal.image[-1, -1] == 0
    assert (sagittal.image[1:, 0] == 10).all() and (sagittal.image[0, 1:] == 100).all() and sagittal.image[-1, -1] == 0
    assert (axial.pixel_mm, coronal.pixel_mm, sagittal.pixel_mm) == ((3.0, 2.0), (4.0, 2.0), (4.0, 3.0))
    assert (axial.size_mm, coronal.size_mm, sagittal.size_mm) == ((30.0, 24.0), (32.0, 24.0), (32.0, 30.0))
    # the planes with the most organ: 18, 24 and 12 voxels when whole
    assert (axial.mask.sum(), coronal.mask.sum(), sagittal.mask.sum()) == (18, 24, 12)
    for view, along in ((axial, 2), (coronal, 1), (sagittal, 0)):
        axis = order.index(along)
        assert view.count == stored.shape[axis]
        plane = np.take(stored_labels, view.number - 1, axis=axis)  # the number is the source's own, from 1
        assert plane.sum() == view.mask.sum()


def test_an_oblique_volume_is_shown_along_its_nearest_axes() -> None:
    array, labels = _phantom()
    angle = np.deg2rad(25)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight = views_through(array, labels, RIGHT_IS_HIGH, [1])
    for view, same in zip(views_through(array, labels, turn @ RIGHT_IS_HIGH, [1]), straight, strict=True):
        np.testing.assert_array_equal(view.image, same.image)
        np.testing.assert_allclose(view.pixel_mm, same.pixel_mm)


def test_a_whole_body_scan_is_cut_to_half_a_metre_round_the_organ() -> None:
    labels = np.zeros((10, 10, 400), np.uint8)
    labels[4:6, 4:6, 350:360] = 1
    coronal = views_through(labels, labels, np.diag([5.0, 5.0, 5.0, 1.0]), [1])[1]
    assert coronal.size_mm == (500.0, 50.0) and coronal.mask.sum() == 20


def test_other_values_do_not_choose_the_planes() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[:, :, 1] = 2
    labels[4, 4, 6] = 1
    axial = views_through(labels, labels, np.eye(4), [1])[0]
    assert axial.number == 7


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert set(image.info) <= {"dpi"}  # no name, date or software
        return np.asarray(image.convert("RGB")).astype(int)


def _green(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 1] > 150) & (picture[..., 0] < 120) & (picture[..., 2] < 120)


def test_the_contour_lies_round_the_organ_in_the_picture(tmp_path: Path) -> None:
    volume = make_volume()
    path = write_preview(volume, make_labels(), {"liver": 1}, tmp_path / "p.png", colors=COLORS)
    picture = _picture(path)
    # The axial plane comes first, 60 mm of the 60 + 60 + 48 mm in the row of 13.46 inches. In it the body (20 HU, grey
    # 115 of 255) spans columns 3..26 of 30, its middle is 15, and the organ 5..16; image left is the patient's right,
    # where index 0 of this grid lies.
    axial = slice(50, picture.shape[0] // 2), slice(0, int(picture.shape[1] * 60 / 168))
    pixels_a_voxel = 13.46 * 110 / 168 * 2.0
    grey = (abs(picture - 115) < 12).all(axis=-1)[axial].sum(axis=0)
    body = np.flatnonzero(grey > 20)  # and not the edge of a letter
    organ = np.flatnonzero(_green(picture)[axial].any(axis=0))
    middle = (body[0] + body[-1]) / 2
    assert (organ[0] - middle) / pixels_a_voxel == pytest.approx(5 - 15, abs=0.15)
    assert (organ[-1] - middle) / pixels_a_voxel == pytest.approx(17 - 15, abs=0.15)


def test_bytes_repeat_and_an_empty_mask_is_drawn_too(tmp_path: Path) -> None:
    volume, labels = make_volume(), make_labels()
    first, second = (write_preview(volume, labels, {"liver": 1}, tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    empty = write_preview(volume, np.zeros_like(labels), {"liver": 1}, tmp_path / "c.png", colors=COLORS)
    assert not _green(_picture(empty)).any()


def test_a_single_slice_shows_its_one_plane(tmp_path: Path) -> None:
    volume = make_volume()
    thin = Volume(volume.array[:, :, 5:6], volume.affine, volume.source_affine, volume.source, "nifti")
    path = write_preview(thin, make_labels()[:, :, 5:6], {"liver": 1}, tmp_path / "p.png", colors=COLORS)
    picture = _picture(path)
    assert _green(picture).any()
    assert picture.shape[1] < 1000  # one plane, not a row of three


def test_many_labels_get_rows_of_captions(tmp_path: Path) -> None:
    labels = make_labels()
    names = {f"an organ with a long name {number}": number for number in range(1, 9)}
    few = _picture(write_preview(make_volume(), labels, {"liver": 1}, tmp_path / "few.png"))
    many = _picture(write_preview(make_volume(), labels, names, tmp_path / "many.png"))
    assert many.shape[0] > few.shape[0] and many.shape[1] == few.shape[1]


@pytest.mark.parametrize(
    ("organ", "said"),
    [
        (Organ("liver", 1, 70_000, 1432.4, ((1, 2),) * 3, ()), "liver 1432 ml"),
        (
            Organ("left_kidney", 1, 900, 18.44, ((0, 2),) * 3, ((0, -1),)),
            "left kidney 18.4 ml (reaches the edge of the scan)",
        ),
        (Organ("gallbladder", 4, 0, 0.0, None, ()), "gallbladder: not found"),
    ],
)
def test_captions(organ: Organ, said: str) -> None:
    assert _caption(organ) == said


def test_a_dark_colour_is_lightened_and_a_bright_one_kept() -> None:
    assert _bright((255, 255, 0)) == (1.0, 1.0, 0.0)
    assert np.dot(_bright((0, 0, 120)), [0.2126, 0.7152, 0.0722]) == pytest.approx(0.45)


def test_a_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"\(3, 3, 3\) and its volume \(30, 24, 10\)"):
        write_preview(make_volume(), np.zeros((3, 3, 3), np.uint8), {"liver": 1}, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_views_are_plain_arrays() -> None:
    assert isinstance(views_through(*_phantom(), RIGHT_IS_HIGH, [1])[0], View)
