"""Label maps between grids, against SimpleITK's resampling of the indicator and against analytic bodies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers_phantoms import oblique_affine, straight_affine

from ctseg.errors import GeometryError
from ctseg.grids.labels import resample_labels

RNG = np.random.default_rng(7)


def _world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def _ellipsoid(affine: np.ndarray, shape: tuple[int, ...], centre: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    return ((((_world(affine, shape) - centre) / radii) ** 2).sum(axis=-1) <= 1).astype(np.uint8)


def _by_simpleitk(values: np.ndarray, affine: np.ndarray, to: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation of a float image; 0 outside, its border voxels hold for half a voxel."""
    import SimpleITK as sitk

    def image(array: np.ndarray, place: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        spacing = np.linalg.norm(place[:3, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetDirection((place[:3, :3] / spacing).ravel().tolist())
        made.SetOrigin(place[:3, 3].tolist())
        return made

    target = image(np.zeros(shape, dtype=np.uint8), to)
    resampled = sitk.Resample(image(values.astype(np.float64), affine), target, sitk.Transform(), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(resampled).T


# Axis order and flips of the target against the network's grid, then turned ones.
TURNS = [np.eye(4)[[*axes, 3]] * [*signs, 1] for axes in ((0, 1, 2), (1, 2, 0), (0, 2, 1)) for signs in
         ((1, 1, 1), (-1, 1, -1), (1, -1, 1))]  # fmt: skip


def _target(turn: np.ndarray | None, spacing: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return an affine of a grid of that size around the origin."""
    affine = oblique_affine(spacing, (0, 0, 0)) if turn is None else turn @ straight_affine(spacing, (0, 0, 0))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [0.31, -0.22, 0.17]
    return affine


@pytest.mark.parametrize("turn", [*TURNS, None])
def test_one_label_is_its_indicator_resampled_as_simpleitk_does(turn: np.ndarray | None) -> None:
    shape, to_shape = (30, 28, 26), (52, 61, 33)
    affine = _target(TURNS[0], (1.5, 1.5, 1.5), shape)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:25, 0:20, 6:26] = RNG.random((21, 20, 20)) > 0.4  # ragged, and it touches two borders
    to = _target(turn, (0.81, 0.71, 1.29), to_shape)  # no centre lies on a border
    share = _by_simpleitk(labels, affine, to, to_shape)
    result = resample_labels(labels * 5, affine, to, to_shape)
    clear = np.abs(share - 0.5) > 1e-5  # a tie may fall either way in the last bit
    assert result.dtype == np.uint8
    assert result.shape == to_shape
    assert set(np.unique(result)) == {0, 5}
    assert clear.mean() > 0.99
    assert np.array_equal(result[clear] == 5, share[clear] > 0.5)


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[4], None])
def test_a_body_keeps_its_place_and_its_volume(turn: np.ndarray | None) -> None:
    shape, to_shape = (48, 44, 40), (88, 96, 50)
    affine, to = _target(TURNS[0], (1.5, 1.5, 1.5), shape), _target(turn, (0.77, 0.83, 1.31), to_shape)
    centre, radii = np.array([1.23, -0.57, 0.81]), (27.0, 22.0, 19.0)
    result = resample_labels(_ellipsoid(affine, shape, centre, radii), affine, to, to_shape)
    volume = result.sum() * abs(np.linalg.det(to[:3, :3]))
    assert volume == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.02)
    found = _world(to, to_shape)[result > 0].mean(axis=0)
    assert np.abs(np.linalg.inv(to[:3, :3]) @ (found - centre)).max() < 0.05


def test_no_shift_even_of_a_tenth_of_a_voxel() -> None:
    """The body stays within 0.05 voxel where the target is shifted by a part of a voxel."""
    shape = (40, 40, 40)
    affine = straight_affine((1.5, 1.5, 1.5), (0, 0, 0))
    labels = _ellipsoid(affine, shape, np.array([29.0, 30.0, 31.0]), (20.0, 21.0, 22.0))
    places = []
    for shift in (0.0, 0.1):
        to = straight_affine((0.7, 0.7, 0.7), (shift, 0, 0))
        places.append(np.argwhere(resample_labels(labels, affine, to, (86, 86, 86))).mean(axis=0)[0] * 0.7 + shift)
    assert abs(places[0] - places[1]) < 0.05 * 0.7
    assert abs(places[0] - 29.0) < 0.1


def test_the_same_grid_gives_the_same_labels() -> None:
    labels = RNG.integers(0, 4, (9, 8, 7)).astype(np.uint8)
    for affine in (straight_affine(), oblique_affine()):
        for order in ("linear", "nearest"):
            assert np.array_equal(resample_labels(labels, affine, affine, labels.shape, order), labels)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_axes_are_exchanged_and_flipped_exactly(axes: tuple[int, int, int]) -> None:
    labels = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    expected = labels.transpose(axes)[:, ::-1]
    affine = oblique_affine()
    turn = np.zeros((4, 4))
    for new, old in enumerate(axes):
        turn[old, new] = 1
    turn[3, 3] = 1
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = expected.shape[1] - 1
    for order in ("linear", "nearest"):
        assert np.array_equal(resample_labels(labels, affine, affine @ turn @ flip, expected.shape, order), expected)


@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_the_border_voxel_holds_to_its_edge_and_nothing_holds_beyond(order: str) -> None:
    """Two voxels of 3 mm cover -1.5 to 4.5 mm; on a grid of 1 mm from -4 mm these are the indices 3 to 8."""
    labels = np.ones((2, 1, 1), dtype=np.uint8)
    to = np.eye(4)
    to[0, 3] = -4
    result = resample_labels(labels, np.diag([3.0, 3, 3, 1]), to, (12, 1, 1), order)  # type: ignore[arg-type]
    assert result[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]


def test_the_border_holds_on_a_turned_grid_too() -> None:
    shape = (10, 10, 10)
    affine = straight_affine((2.0, 2.0, 2.0), (-9.0, -9.0, -9.0))  # covers -10 to 10 mm
    to_shape = (60, 60, 60)
    to = oblique_affine((0.5, 0.5, 0.5), (0, 0, 0))
    to[:3, 3] = -to[:3, :3] @ [29.5, 29.5, 29.5]
    result = resample_labels(np.ones(shape, dtype=np.uint8), affine, to, to_shape)
    assert np.array_equal(result == 1, np.abs(_world(to, to_shape)).max(axis=-1) <= 10)


def test_several_labels_share_a_border_without_a_gap() -> None:
    """Left 1, right 2, a third above: linear shares decide, the lower code keeps the tie, no hole where three meet."""
    labels = np.ones((6, 6, 6), dtype=np.uint8)
    labels[3:] = 2
    labels[:, :, 3:] = 9
    to = np.diag([0.5, 0.5, 0.5, 1.0])
    result = resample_labels(labels, np.eye(4), to, (11, 11, 11))
    assert (result > 0).all()
    assert result[:, 0, 0].tolist() == [1] * 6 + [2] * 5  # index 5 lies at 2.5: half and half
    assert result[0, 0].tolist() == [1] * 6 + [9] * 5


def test_background_wins_where_the_labels_together_stay_below_half() -> None:
    labels = np.zeros((4, 1, 1), dtype=np.uint8)
    labels[:2, 0, 0] = 1, 3
    to = np.diag([0.25, 1.0, 1.0, 1.0])
    result = resample_labels(labels, np.eye(4), to, (13, 1, 1))
    assert result[:, 0, 0].tolist() == [1, 1, 1, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0]


def test_nearest_is_the_voxel_that_holds_the_centre() -> None:
    labels = RNG.integers(0, 5, (8, 9, 10)).astype(np.uint8)
    affine, shape = straight_affine((2.0, 1.5, 1.1), (0.3, 0.1, -0.2)), (14, 13, 12)
    to = oblique_affine((1.1, 1.0, 0.9), (1.0, 0.5, -1.0))
    index = np.floor((_world(to, shape) - affine[:3, 3]) / np.diag(affine)[:3] + 0.5).astype(int)
    inside = ((index >= 0) & (index < labels.shape)).all(axis=-1)
    expected = np.where(inside, labels[tuple(np.clip(index, 0, np.array(labels.shape) - 1).transpose(3, 0, 1, 2))], 0)
    assert inside.any() and not inside.all()
    assert np.array_equal(resample_labels(labels, affine, to, shape, "nearest"), expected)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("steps", [(0.81, 0.71, 1.29), (2.313, 1.937, 3.171)], ids=["finer", "coarser"])
def test_nearest_by_index_is_what_simpleitk_gives(turn: np.ndarray, steps: tuple[float, ...]) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    shape, to_shape = (20, 18, 16), (31, 37, 23)
    affine, to = _target(TURNS[0], (1.5, 1.4, 1.3), shape), _target(turn, steps, to_shape)
    to[:3, 3] += [1.7, -2.9, 3.3]  # part of the target lies beyond the labels
    labels = RNG.integers(0, 5, shape).astype(np.uint8)

    def image(array: np.ndarray, place: np.ndarray) -> Any:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        spacing = np.linalg.norm(place[:3, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetDirection((place[:3, :3] / spacing).ravel().tolist())
        made.SetOrigin(place[:3, 3].tolist())
        return made

    target = image(np.zeros(to_shape, np.uint8), to)
    expected = sitk.Resample(image(labels, affine), target, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)
    result = resample_labels(labels, affine, to, to_shape, "nearest")
    assert result.flags.c_contiguous
    assert np.array_equal(result, sitk.GetArrayFromImage(expected).T)


def test_the_border_lies_where_the_certainty_puts_it() -> None:
    """Votes +3 and -1: the line from 3 down to -1 passes 0 three quarters of the way, at 1.75."""
    labels = np.array([1, 1, 0, 0], dtype=np.uint8).reshape(4, 1, 1)
    votes = np.array([3, 3, 1, 1], dtype=np.uint8).reshape(4, 1, 1)
    to = np.diag([0.125, 1.0, 1.0, 1.0])
    result = resample_labels(labels, np.eye(4), to, (25, 1, 1), certainty=votes)[:, 0, 0]
    assert result.tolist() == [1] * 15 + [0] * 10  # indices 0 to 14 lie at 0 to 1.75
    plain = resample_labels(labels, np.eye(4), to, (25, 1, 1))[:, 0, 0]
    assert plain.tolist() == [1] * 13 + [0] * 12  # half way, at 1.5


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[4], None])
def test_equal_certainty_changes_nothing(turn: np.ndarray | None) -> None:
    shape, to_shape = (14, 13, 12), (23, 27, 19)
    affine, to = _target(TURNS[0], (1.5, 1.5, 1.5), shape), _target(turn, (0.81, 0.71, 1.29), to_shape)
    for top in (2, 5):  # one label, and several that share borders
        labels = np.zeros(shape, dtype=np.uint8)
        labels[2:12, 0:9, 3:12] = RNG.integers(0, top, (10, 9, 9))
        plain = resample_labels(labels, affine, to, to_shape)
        votes = resample_labels(labels, affine, to, to_shape, certainty=np.full(shape, 4, np.uint8))
        assert (plain != votes).mean() < 5e-4  # a tie may fall either way in the last bit


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[4], None])
def test_a_ball_out_of_thick_slices_has_no_steps_and_stays_in_its_place(turn: np.ndarray | None) -> None:
    """Slices of 3 mm onto voxels of 1 mm: with distances as certainty a ball comes back as a ball, not as a stair."""
    shape, to_shape = (50, 48, 26), (66, 64, 68)
    affine, to = _target(TURNS[0], (1.5, 1.5, 3.0), shape), _target(turn, (1.0, 1.0, 1.0), to_shape)
    centre, radius = np.array([1.23, -0.57, 0.81]), 25.0
    depth = radius - np.linalg.norm(_world(affine, shape) - centre, axis=-1)  # mm inside
    labels, votes = (depth > 0).astype(np.uint8), np.clip(np.abs(depth), 1 / 32, 8)
    truth = np.linalg.norm(_world(to, to_shape) - centre, axis=-1) <= radius
    smooth = resample_labels(labels, affine, to, to_shape, certainty=votes) > 0
    steps = resample_labels(labels, affine, to, to_shape) > 0
    assert (smooth != truth).sum() < 0.25 * (steps != truth).sum()
    assert smooth.sum() == pytest.approx(truth.sum(), rel=0.005)
    found = _world(to, to_shape)[smooth].mean(axis=0)
    assert np.abs(found - centre).max() < 0.02  # mm


def test_several_labels_with_certainty_leave_no_gap_and_meet_where_the_votes_are_even() -> None:
    labels = np.array([1, 1, 2, 2, 0, 0], dtype=np.uint8).reshape(6, 1, 1)
    votes = np.array([4, 3, 1, 2, 2, 2], dtype=np.uint8).reshape(6, 1, 1)
    result = resample_labels(labels, np.eye(4), np.diag([0.125, 1, 1, 1]), (41, 1, 1), certainty=votes)[:, 0, 0]
    # 1 and 2 meet between 1 and 2 where 3 (1 - t) = t, at 1.75, a tie for the lower code; 2 ends half way, at 3.5.
    assert result.tolist() == [1] * 15 + [2] * 14 + [0] * 12


def test_a_certainty_of_another_shape_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"their certainty \(2, 2, 2\)"):
        resample_labels(np.ones((3, 3, 3), np.uint8), np.eye(4), np.eye(4), (3, 3, 3), certainty=np.ones((2, 2, 2)))


def test_labels_elsewhere_and_no_labels_give_an_empty_map() -> None:
    far = np.eye(4)
    far[:3, 3] = 1000
    assert not resample_labels(np.ones((3, 3, 3), dtype=np.uint8), far, np.eye(4), (5, 5, 5)).any()
    assert not resample_labels(np.zeros((3, 3, 3), dtype=np.uint8), np.eye(4), np.eye(4), (5, 5, 5)).any()


def test_a_single_slice_and_any_memory_layout() -> None:
    labels = np.zeros((8, 8, 1), dtype=np.int64, order="F")
    labels[2:6, 2:6] = 1
    to = np.diag([0.5, 0.5, 2.5, 1.0])
    result = resample_labels(labels, np.diag([1.0, 1.0, 5.0, 1.0]), to, (16, 16, 1))
    assert result[:, 8, 0].tolist() == [0, 0, 0] + [1] * 9 + [0, 0, 0, 0]


def test_what_cannot_be_brought_anywhere_is_refused() -> None:
    ones = np.ones((3, 3, 3), dtype=np.uint8)
    with pytest.raises(GeometryError, match="singular"):
        resample_labels(ones, np.diag([1.0, 1, 0, 1]), np.eye(4), (3, 3, 3))
    with pytest.raises(GeometryError, match="3D"):
        resample_labels(ones[0], np.eye(4), np.eye(4), (3, 3, 3))
    with pytest.raises(ValueError, match="0 to 255"):
        resample_labels(ones.astype(np.int16) * 256, np.eye(4), np.eye(4), (3, 3, 3))
    with pytest.raises(ValueError, match="order"):
        resample_labels(ones, np.eye(4), np.eye(4), (3, 3, 3), "cubic")  # type: ignore[arg-type]
