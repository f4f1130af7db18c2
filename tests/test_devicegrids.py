"""The way of a GPU, run on the CPU: torch's resampling is NumPy's value for value, and gives whole predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine, reoriented, straight_affine
from monai.data import MetaTensor
from monai.transforms import Compose, DeleteItemsd, Flipd

from ctseg import devices
from ctseg.grids import device as devicegrids
from ctseg.grids.boxes import box_of, grown_box
from ctseg.grids.device import regridded_there, resample_labels_there
from ctseg.grids.labels import resample_labels
from ctseg.grids.spacing import new_shape, oriented, regridded, turn_of
from ctseg.ondevice import prepare_there
from ctseg.transforms import ToGridd

RNG = np.random.default_rng(7)
# Float32 on both sides and the operations in one order: on a CPU nothing may differ, on a GPU the last bits of HU.
SAME = 0.0


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "works_there", lambda device: True)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("code", "memory", "plane"),
    [("LPS", "C", "axial"), ("RAS", "F", "coronal"), ("PSR", "F", "axial"), ("IRP", "C", "sagittal")],
)
def test_an_image_is_regridded_as_by_numpy(mode: Any, code: str, memory: Any, plane: str) -> None:
    canonical = RNG.integers(-1000, 1000, (21, 17, 13)).astype(np.int16)
    array, affine = reoriented(canonical, oblique_affine((0.9, 1.1, 1.3)), code)
    array = np.asarray(array, order=memory)
    view, place = oriented(array, affine, plane=plane)
    shape = new_shape(view.shape, place, (1.37, 0.61, 2.9))
    axes, flipped, turned = turn_of(array.shape, affine, plane=plane)
    assert np.array_equal(turned, place)
    given = torch.from_numpy(np.array(array, order="K")).permute(axes)
    for box in (None, ((2, 5), (3, 9), (1, 3))):
        expected, _ = regridded(view, place, shape, mode, box, threads=2)
        found = regridded_there(given, flipped, shape, mode, box)
        assert found.dtype == torch.float32 and found.is_contiguous()
        assert np.abs(found.numpy() - expected).max() <= SAME


def test_the_transform_gives_the_same_image_in_the_same_place(there: None) -> None:
    array, affine = reoriented(RNG.integers(-1000, 1000, (21, 17, 13)).astype(np.int16), oblique_affine(), "SRA")
    item = {"image": MetaTensor(torch.from_numpy(array.copy())[None], affine=torch.as_tensor(affine))}
    for options in ({}, {"crop_air": {"margin_mm": 2.0}, "plane": "sagittal"}, {"thick_slices": 0.1}):
        step = ToGridd("image", spacing=(2.2, 1.7, 3.1), **options)
        usual = step(dict(item))["image"]
        prepare_there(Compose([step, DeleteItemsd("study")]), "cpu")
        assert step.device == torch.device("cpu")
        found = step(dict(item))["image"]
        assert torch.equal(found.as_tensor(), usual.as_tensor()) and torch.equal(found.affine, usual.affine)
        assert dict(found.meta).keys() == dict(usual.meta).keys()


def test_an_image_stays_on_the_processor_where_a_later_step_needs_it(there: None) -> None:
    step = ToGridd("image", spacing=(2, 2, 2))
    prepare_there(Compose([step, Flipd("image", spatial_axis=0)]), "cpu")
    assert step.device is None


def _labels() -> np.ndarray:
    labels = np.zeros((12, 11, 9), np.uint8)
    labels[2:9, 3:8, 1:6], labels[5:7, 5:10, 4:9], labels[0:2, 0:1, 0:2] = 4, 7, 1
    return labels


@pytest.mark.parametrize("sure", [False, True], ids=["alike", "certainty"])
@pytest.mark.parametrize("codes", [(1, 4, 7), (4,), ()], ids=["three", "one", "none"])
@pytest.mark.parametrize(
    ("turn", "spacing", "shape"),
    [
        ("LPS", (1.3, 1.1, 1.7), (28, 30, 21)),
        ("SRA", (1.2, 2.0, 1.4), (33, 17, 26)),
        ("AIL", (3.3, 2.9, 9.0), (11, 12, 4)),
    ],
)
def test_labels_come_back_as_by_numpy(
    monkeypatch: pytest.MonkeyPatch, sure: bool, codes: tuple[int, ...], turn: str, spacing: Any, shape: Any
) -> None:
    monkeypatch.setattr(devicegrids, "_AT_ONCE", shape[0] * shape[1] * 3)  # slabs of three planes
    labels = _labels()
    labels[~np.isin(labels, codes)] = 0
    certainty = RNG.integers(1, 255, labels.shape).astype(np.uint8) if sure else None
    small = oblique_affine((2.9, 3.1, 4.0))
    target, large = reoriented(np.zeros(shape, np.uint8), oblique_affine(spacing), turn)
    shape = target.shape
    expected = resample_labels(labels, small, large, shape, certainty=certainty)
    given = None if certainty is None else torch.from_numpy(certainty)
    found = resample_labels_there(torch.from_numpy(labels), small, large, shape, given).numpy()
    assert found.dtype == np.uint8 and found.flags.f_contiguous
    assert np.array_equal(found, expected) and (set(np.unique(found)) == {0, *codes} or spacing[2] == 9.0)


def test_a_tilted_grid_is_left_to_scipy() -> None:
    labels, tilted = _labels(), straight_affine((2.0, 2.1, 3.0))
    tilted[1, 2] = 0.8  # a gantry
    small = straight_affine((2.9, 3.1, 4.0))
    expected = resample_labels(labels, small, tilted, (17, 16, 12))
    assert np.array_equal(resample_labels_there(torch.from_numpy(labels), small, tilted, (17, 16, 12)), expected)
    assert expected.any()


def test_the_box_of_a_mask() -> None:
    mask = torch.zeros(6, 5, 4, dtype=torch.bool)
    mask[2, 1, 0] = mask[4, 3, 0] = True
    assert box_of(mask) == box_of(mask.to(torch.uint8) * 7) == (slice(2, 5), slice(1, 4), slice(0, 1))
    assert grown_box((slice(2, 5), slice(1, 4), slice(0, 1)), (1, 2, 1), mask.shape) == (
        slice(1, 6), slice(0, 5), slice(0, 2),
    )  # fmt: skip
    assert box_of(mask & False) is None
