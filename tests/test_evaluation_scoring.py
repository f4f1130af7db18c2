"""Scores of one organ against values worked out by hand, SimpleITK and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ctseg.evaluation.scoring import METRICS, count_slices, overlaps, plain, score, surface_values

SPACING = (1.0, 2.0, 5.0)


def block(*box: tuple[int, int], shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*ends) for ends in box)] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int] = (18, 16, 10)) -> np.ndarray:
    """An irregular mask with holes and islands."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.02


def edge_points(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Centres in mm of the voxels of a mask that have a face neighbour outside of it, by a plain loop."""
    padded = np.pad(mask, 1)
    points = []
    for place in np.argwhere(padded):
        neighbours = [place + sign * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (-1, 1)]
        if not all(padded[tuple(other)] for other in neighbours):
            points.append((place - 1) * spacing)
    return np.array(points)


def test_overlap_by_hand() -> None:
    # 6 common, 2 too much, 4 missed, 88 rightly empty.
    values = plain(overlaps(np.array([6, 2, 4, 88]), beta=2))
    assert values == pytest.approx(
        {
            "dice": 12 / 18,
            "iou": 6 / 12,
            "precision": 6 / 8,
            "recall": 6 / 10,
            "f_beta": 5 * 6 / (5 * 6 + 4 * 4 + 2),
            "accuracy": 94 / 100,
            "specificity": 88 / 90,
        }
    )
    assert plain(overlaps(np.array([6, 2, 4, 88])))["f_beta"] == pytest.approx(values["dice"])


def test_a_block_moved_by_one_thick_slice() -> None:
    # 3x3x4 voxels of 1x2x5 mm, moved by one slice of 5 mm: 27 of 36 voxels stay.
    reference, predicted = block((2, 5), (2, 5), (2, 6)), block((2, 5), (2, 5), (3, 7))
    values, per_slice = score(predicted, reference, SPACING, tolerance_mm=4.9)
    assert values["dice"] == pytest.approx(27 / 36)
    assert values["iou"] == pytest.approx(27 / 45)
    assert values["predicted_ml"] == values["reference_ml"] == pytest.approx(0.36)
    assert values["voxels"] == {"tp": 27, "fp": 9, "fn": 9, "tn": 12**3 - 45}
    assert values["hd_mm"] == values["hd95_mm"] == 5.0
    assert values["nsd"] < 1
    assert score(predicted, reference, SPACING, tolerance_mm=5.0)[0]["nsd"] == 1.0
    assert per_slice[2].tolist() == [0, 0, 9, 135] and per_slice[6].tolist() == [0, 9, 0, 135]
    # Reference on slices 2-5: 0 on the first, 1 on the three others.
    assert values["slices"] == {
        "all": 12,
        "with_organ": 4,
        "missed": 1,
        "false": 1,
        "dice": 0.75,
        "iou": 0.75,
        "voxels": {"tp": 27, "fp": 0, "fn": 9, "tn": 4 * 144 - 36},
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distance_follows_the_spacing_of_its_axis(axis: int) -> None:
    reference = block((3, 6), (3, 6), (3, 6))
    values = surface_values(np.roll(reference, 2, axis), reference, SPACING, 1.0)
    assert values["hd_mm"] == pytest.approx(2 * SPACING[axis])


def test_nsd_weighs_surface_by_area() -> None:
    """A cube of 60 mm, of 60x60x12 voxels, that is drawn one slice of 5 mm too high.

    Met are five of its six faces, and of the drawn body the bottom and four sides up to 60 of 65 mm; an element of
    surface at the height of the old top reaches half a slice further. Edges are bevelled, hence the tolerance. Voxels
    of the rim, counted alike, would say 0.65.
    """
    shape = (64, 64, 16)
    reference, predicted = block((2, 62), (2, 62), (1, 13), shape=shape), block((2, 62), (2, 62), (1, 14), shape=shape)
    met, whole = 10 * 60**2 + 4 * 60 * 2.5, 8 * 60**2 + 4 * 60 * 65
    assert surface_values(predicted, reference, (1.0, 1.0, 5.0), 1.0)["nsd"] == pytest.approx(met / whole, abs=0.01)


def test_surfaces_do_not_depend_on_the_order_of_axes() -> None:
    one, other = blob(1), blob(2)
    values = surface_values(one, other, SPACING, 2.0)
    turned = surface_values(one.transpose(2, 0, 1), other.transpose(2, 0, 1), (5.0, 1.0, 2.0), 2.0)
    assert turned == pytest.approx(values, rel=1e-5)
    assert surface_values(other, one, SPACING, 2.0) == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 5, 9])
def test_distances_against_all_pairs_of_points(seed: int) -> None:
    one, other = blob(seed), blob(seed + 1)
    away = cdist(edge_points(one, SPACING), edge_points(other, SPACING))
    there, back = away.min(axis=1), away.min(axis=0)
    values = surface_values(one, other, SPACING, 2.0)
    assert values["hd_mm"] == pytest.approx(max(there.max(), back.max()), rel=1e-6)
    assert values["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-6)


def test_distances_against_simpleitk() -> None:
    sitk = pytest.importorskip("SimpleITK")
    reference, predicted = block((2, 9), (3, 8), (2, 6)), block((3, 11), (3, 7), (2, 9))
    images = [sitk.GetImageFromArray(mask.T.astype(np.uint8)) for mask in (predicted, reference)]
    for image in images:
        image.SetSpacing(SPACING)
    overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    hausdorff.Execute(*images)
    values = score(predicted, reference, SPACING)[0]
    assert values["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert values["iou"] == pytest.approx(overlap.GetJaccardCoefficient())
    assert values["hd_mm"] == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-6)
    directed = []
    contours = [sitk.LabelContour(image) for image in images]
    for one, other in (contours, contours[::-1]):
        away = sitk.Abs(sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True))
        directed.append(sitk.GetArrayFromImage(away)[sitk.GetArrayFromImage(one) > 0])
    assert values["hd95_mm"] == pytest.approx(max(np.percentile(way, 95) for way in directed), rel=1e-5)


def test_a_mask_at_the_edge_of_the_grid_and_a_single_slice() -> None:
    whole = np.ones((4, 5, 1), bool)
    part = whole.copy()
    part[3] = False
    values = surface_values(part, whole, (2.0, 1.0, 5.0), 1.0)
    assert values["hd_mm"] == 2.0
    assert 0 < values["nsd"] < 1
    assert surface_values(whole, whole, (2.0, 1.0, 5.0), 1.0) == {"nsd": 1.0, "hd95_mm": 0.0, "hd_mm": 0.0}


@pytest.mark.parametrize(
    ("predicted", "reference", "found", "expected"),
    [
        (0, 0, "neither", {"accuracy": 1.0, "specificity": 1.0}),
        (8, 0, "prediction only", {"dice": 0, "iou": 0, "f_beta": 0, "nsd": 0, "precision": 0}),
        (0, 8, "reference only", {"dice": 0, "iou": 0, "f_beta": 0, "nsd": 0, "recall": 0, "specificity": 1.0}),
    ],
)
def test_empty_masks_follow_the_rule(predicted: int, reference: int, found: str, expected: dict[str, float]) -> None:
    masks = [
        block((0, 2), (0, 2), (0, 2)) if count else np.zeros((12, 12, 12), bool) for count in (predicted, reference)
    ]
    values, _ = score(*masks, SPACING)
    assert values["found"] == found
    assert {name: values[name] for name in expected} == expected
    if found != "neither":
        assert values["accuracy"] == pytest.approx(1 - 8 / 12**3)
    counted = {*expected, "accuracy", "specificity"}
    assert all(values[name] is None for name in METRICS if name not in counted)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_sum_up_to_the_whole(axis: int) -> None:
    one, other = blob(3), blob(4)
    per_slice = count_slices(one, other, axis)
    assert per_slice.shape == (one.shape[axis], 4)
    assert per_slice.sum(axis=0).tolist() == [
        int((one & other).sum()),
        int((one & ~other).sum()),
        int((other & ~one).sum()),
        int((~one & ~other).sum()),
    ]
