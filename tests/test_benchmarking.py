"""What the benchmarks measure with: agreement by hand, and the naive way on a network whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from helpers_cascade import Bright
from helpers_phantoms import straight_affine, write_nifti
from monai.data import MetaTensor

from ctseg.benchmarks.shared import NaiveNetwork, dice, dice_where_present, largest_component, longer, machine


def test_dice_by_hand() -> None:
    one, other = np.zeros((4, 4, 3), bool), np.zeros((4, 4, 3), bool)
    assert dice(one, other) == 1.0
    one[:2, :, 0], other[1:3, :, 0] = True, True  # 8 and 8 voxels, 4 shared
    assert dice(one, other) == pytest.approx(0.5)
    one[:, :, 2] = True  # a slice on which the reference has nothing
    assert dice(one, other) == pytest.approx(2 * 4 / (24 + 8))
    assert dice_where_present(one, other) == pytest.approx(0.5)


def test_the_long_ct_lies_at_the_same_place(tmp_path: Path) -> None:
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    affine = straight_affine((2.0, 2.0, 4.0))
    made = nibabel.load(longer(write_nifti(tmp_path / "a.nii.gz", array, affine), tmp_path / "b.nii.gz", (12, 5, 8)))
    assert made.shape == (12, 5, 8)
    for corner in (np.array([-0.5, -0.5, -0.5, 1]), np.array([5.5, 4.5, 3.5, 1])):
        there = np.linalg.inv(made.affine) @ affine @ corner
        assert there[:3] == pytest.approx([-0.5] * 3 if corner[0] < 0 else [11.5, 4.5, 7.5])


@pytest.mark.parametrize("full", [False, True])
def test_a_naive_slice_is_windowed_resized_and_brought_back(full: bool) -> None:
    values = {"window": [0, 200], "spacing": [2.0, 2.0, 3.0]}
    predictor = SimpleNamespace(network=Bright(level=0.5), value=values.get)
    image = MetaTensor(torch.zeros(1, 24, 20, 5), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
    network = NaiveNetwork(predictor, image, full)  # type: ignore[arg-type]
    grey = torch.zeros(24, 20)
    grey[4:16, 6:14] = 180
    with torch.inference_mode():
        assert torch.equal(network.mask(grey), grey > 100)
        assert network.prepared(grey, [grey > 0]).shape == ((1, 2, 32, 32) if full else (1, 2, 16, 16))
        assert network.answer(grey) > 0.99 > 0.5 > network.answer(grey / 4)


def test_the_largest_component_is_kept_and_the_machine_named() -> None:
    mask = torch.zeros(1, 8, 8, 4, dtype=torch.uint8)
    mask[0, :3, :3], mask[0, 5:7, 5:7, 2] = 1, 1
    assert int(largest_component(mask).sum()) == 36
    assert "threads" in machine()


def test_the_pieces_of_the_benchmark_of_a_gpu_work_on_the_processor(tmp_path: Path) -> None:
    from ctseg.benchmarks.gpu import Watch, best_of, body_phantom, images_forever, samples_per_second

    body = nibabel.load(body_phantom(tmp_path / "ct.nii.gz", (20, 16, 3)))
    voxels = np.asarray(body.dataobj)
    assert voxels.dtype == np.int16 and voxels[10, 8, 1] > -100 > voxels[0, 0, 1]
    assert np.allclose(body.header.get_zooms(), (17.5, 17.5, 2.5))
    calls: list[int] = []
    with Watch("cpu") as watch:
        least, answer = best_of(lambda: [calls.append(1), len(calls)][1], 3, "cpu")
    assert (answer, watch.told()) == (4, "| |") and 0 <= least < 1
    batch = torch.rand(2, 1, 8, 8)
    images = images_forever([{"image": batch}])
    assert samples_per_second(torch.nn.Conv2d(1, 1, 3, padding=1), images, "cpu", 2, 2) > 0
    assert next(images) is batch
