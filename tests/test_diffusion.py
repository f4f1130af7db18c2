"""Diffusion filters against SimpleITK and the heat equation in small steps; what they keep and what they smooth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError
from ctseg.transforms import Diffused


def picture(rows: int = 24, columns: int = 31, seed: int = 0) -> NDArray[np.float32]:
    """A bright block off the middle with noise: no axis and no end like another."""
    values = np.random.default_rng(seed).normal(0, 5, (rows, columns)).astype(np.float32)
    values[3:10, 12:28] += 100
    return values


def filtered(values: NDArray[Any], **options: Any) -> NDArray[np.float32]:
    return Diffused("image", **options)({"image": torch.from_numpy(values)[None]})["image"][0].numpy()


@pytest.mark.parametrize("conductance", [0.8, 3.0])
@pytest.mark.parametrize("kind", ["gradient", "curvature"])
def test_anisotropic_is_that_of_simpleitk(kind: str, conductance: float) -> None:
    run = {"gradient": sitk.GradientAnisotropicDiffusion, "curvature": sitk.CurvatureAnisotropicDiffusion}[kind]
    theirs = run(sitk.GetImageFromArray(picture()), timeStep=0.1, conductanceParameter=conductance,
                 conductanceScalingUpdateInterval=1, numberOfIterations=4)  # fmt: skip
    ours = filtered(picture(), kind=kind, iterations=4, time_step=0.1, conductance=conductance)
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs), atol=1e-3)


def test_isotropic_is_the_heat_equation() -> None:
    """u_t = div grad u by explicit steps of .01 square pixels, no flow over the border, until t = 2."""
    values = picture().astype(np.float64)
    for _ in range(200):
        padded = np.pad(values, 1, mode="edge")
        around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
        values = values + 0.01 * (around - 4 * values)
    ours = filtered(picture(), kind="isotropic", iterations=20, time_step=0.1)
    np.testing.assert_allclose(ours, values, atol=0.2)  # of a range of 100


def test_time_is_in_square_pixels() -> None:
    """A point's variance along each axis is 2 t, whatever number of steps makes up t; its sum stays."""
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    spread = filtered(point, kind="isotropic", iterations=6, time_step=0.5)
    rows = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert (spread.sum(axis=1) * rows**2).sum() == pytest.approx(6, rel=1e-4)
    np.testing.assert_allclose(spread, filtered(point, kind="isotropic", iterations=60, time_step=0.05), atol=1e-6)


def test_edges_survive_anisotropic_and_not_isotropic() -> None:
    step = np.random.default_rng(2).normal(0, 4, (40, 40)).astype(np.float32)
    step[:, 20:] += 100
    for kind in ("gradient", "curvature"):
        kept = filtered(step, kind=kind, iterations=15, conductance=1.0)
        jump = (kept[:, 20] - kept[:, 19]).mean()
        assert jump > 85, (kind, jump)
        assert kept[5:35, 3:17].std() < 0.6 * step[5:35, 3:17].std()
    blurred = filtered(step, kind="isotropic", iterations=15)
    assert (blurred[:, 20] - blurred[:, 19]).mean() < 35
    assert blurred[5:35, 3:15].std() < 0.5 * step[5:35, 3:15].std()


@pytest.mark.parametrize("kind", ["isotropic", "gradient", "curvature"])
def test_conductance_knows_no_scale_of_grey(kind: str) -> None:
    values = picture()
    ours = filtered(values * 50 - 1000, kind=kind)
    np.testing.assert_allclose(ours, filtered(values, kind=kind) * 50 - 1000, atol=0.05)


def test_more_conductance_keeps_less() -> None:
    little, much = (filtered(picture(), iterations=10, conductance=value) for value in (0.5, 5.0))
    assert np.abs(np.diff(much, axis=1)).max() < 0.8 * np.abs(np.diff(little, axis=1)).max()


@pytest.mark.parametrize("axis", [0, 2])
def test_axial_slices_of_a_volume_by_themselves_and_the_place_is_kept(axis: int) -> None:
    """Of three slices the middle one has noise; where index 0 runs to the head, slices lie along it."""
    affine = torch.diag(torch.tensor([0.7, 0.8, 5.0, 1.0], dtype=torch.float64))
    slices = np.zeros((3, 24, 31), np.float32)
    slices[1] = picture()
    affine = affine[:, [2, 0, 1, 3]] if axis == 0 else affine
    affine[:3, 3] = torch.tensor([-11.0, 7.0, 30.0])
    volume = np.moveaxis(slices, 0, axis)
    image = MetaTensor(torch.from_numpy(volume.copy())[None], affine=affine, meta={"filename_or_obj": "x.nii.gz"})
    before = image.clone()
    result = Diffused("image", kind="gradient")({"image": image, "label": 1})["image"]
    expected = np.moveaxis(np.stack([slices[0], filtered(picture(), kind="gradient"), slices[2]]), 0, axis)
    np.testing.assert_array_equal(result[0].numpy(), expected)
    assert isinstance(result, MetaTensor) and result.meta["filename_or_obj"] == "x.nii.gz"
    assert torch.equal(result.affine, affine) and result.dtype == torch.float32
    assert torch.equal(image, before)


def test_channels_by_themselves_and_whole_numbers_become_floats() -> None:
    colours = np.stack([picture(seed=seed).clip(0, 255) for seed in range(3)]).astype(np.uint8)
    result = Diffused("image", kind="curvature")({"image": MetaTensor(torch.from_numpy(colours))})["image"]
    assert result.dtype == torch.float32
    for channel in range(3):
        np.testing.assert_array_equal(result[channel], filtered(colours[channel], kind="curvature"))


def test_a_flat_picture_stays() -> None:
    flat = np.full((8, 9), 7, np.float32)
    for kind in ("isotropic", "gradient", "curvature"):
        np.testing.assert_allclose(filtered(flat, kind=kind), flat, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "anisotropic"}, "'anisotropic' is not known: expected one of isotropic, gradient, curvature"),
        ({"iterations": 0}, "a whole number of 1 or more"),
        ({"time_step": 0.2}, "square pixels above 0 and at most 0.125"),
        ({"kind": "isotropic", "time_step": 0}, "above 0"),
        ({"conductance": -1}, "conductance -1"),
    ],
)
def test_refusals(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Diffused("image", **options)


def test_images_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"image of shape \(4, 4\)"):
        Diffused("image")({"image": torch.zeros(4, 4)})
    with pytest.raises(InputError, match="not finite"):
        Diffused("image")({"image": torch.full((1, 4, 4), torch.nan)})
