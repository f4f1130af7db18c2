"""Affines: what is refused, and that cleaning removes a header's noise and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers_phantoms import f_phantom, oblique_affine, straight_affine

from ctseg.errors import GeometryError
from ctseg.geometry import affine_from_lps_parts, check_affine, clean_affine, lps_from_ras, ras_from_lps, spacing_of


def test_the_phantom_is_its_own_image_under_no_flip_or_turn() -> None:
    cube = np.full((24, 24, 24), -1000, dtype=np.int16)
    cube[:20, :24, :10] = f_phantom()
    assert set(np.unique(f_phantom())) >= {1001, 1002, 1003, 1004, 1005}
    cube[cube > 1000] = 300  # the letter alone must be asymmetric, not only its landmarks
    same = []
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = cube.transpose(axes)[tuple(slice(None, None, step) for step in flips)]
            # compare the letters wherever they lie: cut both to their boxes
            same.append(np.array_equal(_cut(turned), _cut(cube)))
    assert sum(same) == 1


def _cut(volume: np.ndarray) -> np.ndarray:
    where = np.argwhere(volume >= 300)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    return volume[low[0] : high[0], low[1] : high[1], low[2] : high[2]] >= 300


def test_lps_and_ras_differ_by_the_signs_of_x_and_y() -> None:
    affine = np.array([[1.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    expected = np.array([[-1.0, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    assert np.array_equal(ras_from_lps(affine), expected)
    assert np.array_equal(lps_from_ras(expected), affine)


def test_an_itk_grid_maps_its_index_as_itk_does() -> None:
    import SimpleITK as sitk

    lps = lps_from_ras(oblique_affine())
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    image = sitk.Image(3, 4, 5, sitk.sitkInt16)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(directions.ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    affine = affine_from_lps_parts(directions, spacing.tolist(), lps[:3, 3].tolist())
    x, y, z = image.TransformIndexToPhysicalPoint((2, 3, 4))
    assert np.allclose(affine @ [2, 3, 4, 1], [-x, -y, z, 1], atol=1e-9)


def test_float32_noise_on_the_axes_becomes_exactly_the_axes() -> None:
    affine = straight_affine((0.7, 0.7421875, 2.5))
    noisy = affine.astype(np.float32).astype(np.float64)
    noisy[:3, :3] += np.random.default_rng(1).normal(0, 3e-7, (3, 3))
    cleaned = clean_affine(noisy)
    assert np.allclose(cleaned, affine, atol=2e-6)
    assert np.count_nonzero(cleaned[:3, :3]) == 3
    assert np.array_equal(clean_affine(affine.astype(np.float32)), affine)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 1.25), (0.7421875, 0.7421875, 3.0), (0.976562, 0.976562, 5.0)])
def test_an_oblique_affine_is_the_same_from_float32_and_from_text(spacing: tuple[float, float, float]) -> None:
    exact = oblique_affine(spacing, origin=(-211.37, 180.22, -905.1))
    as_float32 = exact.astype(np.float32).astype(np.float64)
    as_text = np.array([[float(f"{number:.9g}") for number in row] for row in exact])
    assert not np.array_equal(as_float32, as_text)
    assert np.array_equal(clean_affine(as_float32), clean_affine(as_text))
    far = np.array([511, 511, 400, 1.0])
    assert np.abs((clean_affine(as_float32) - exact) @ far).max() < 1e-3


def test_cleaning_gives_orthonormal_directions_and_keeps_a_mirrored_grid_mirrored() -> None:
    affine = oblique_affine((1.0, 1.25, 2.5)) @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 0] += 2e-4 * affine[:3, 1]  # a shear that is let pass
    check_affine(affine, "image")
    cleaned = clean_affine(affine)
    directions = cleaned[:3, :3] / spacing_of(cleaned)
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    assert np.linalg.det(directions) < 0
    assert np.allclose(clean_affine(cleaned), cleaned, atol=1e-9)


def test_a_true_small_angle_is_kept() -> None:
    affine = oblique_affine(degrees=(0.0, 0.0, 0.1))
    assert np.allclose(clean_affine(affine), affine, atol=1e-5)


def _changed(place: tuple[int, int], value: float) -> np.ndarray:
    affine = straight_affine()
    affine[place] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (_changed((0, 3), np.nan), "NaN or infinite"),
        (_changed((1, 1), np.inf), "NaN or infinite"),
        (_changed((2, 2), 0.0), "0 mm"),
        (_changed((3, 0), 1.0), "last row"),
        (np.eye(3), "4 x 4"),
        (_changed((0, 0), 4000.0), "millimetres"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        (_changed((1, 2), 2.5 * np.tan(np.radians(15))), "sheared by 15.00 degrees"),
        (_changed((1, 2), 2.5 * np.tan(np.radians(0.5))), "sheared by 0.50 degrees"),
    ],
)
def test_a_grid_that_lies_nowhere_is_refused_with_its_reason(affine: np.ndarray, words: str) -> None:
    with pytest.raises(GeometryError, match=words) as caught:
        check_affine(affine, "image.nii")
    assert str(caught.value).startswith("image.nii ")
    assert "\n" not in str(caught.value)


def test_header_noise_and_flips_pass() -> None:
    check_affine(oblique_affine().astype(np.float32), "image")
    check_affine(straight_affine() @ np.diag([-1.0, -1, 1, 1]), "image")
