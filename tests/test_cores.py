"""Clean-up by cores: a neighbour on a thin bridge goes, thin edges of the organ stay, nothing moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine
from monai.data import MetaTensor

from ctseg.errors import ConfigError, GeometryError
from ctseg.transforms import KeepLargestCored

SPACING = (1.5, 1.5, 3.0)


def cleaned(labels: np.ndarray, **options: float) -> np.ndarray:
    tensor = MetaTensor(torch.from_numpy(labels[None]), affine=oblique_affine(spacing=SPACING))
    result = KeepLargestCored("pred", **options)({"pred": tensor})["pred"]
    assert torch.equal(result.affine, tensor.affine)
    assert result.dtype == tensor.dtype
    return result[0].numpy()


def organ_with_neighbour(bridge: int) -> np.ndarray:
    """An organ of 60 x 60 x 60 mm, and 40 mm further a smaller neighbour on a bridge `bridge` pixels wide."""
    labels = np.zeros((120, 60, 30), np.uint8)
    labels[5:45, 10:50, 5:25] = 7
    labels[70:95, 15:45, 8:20] = 7
    labels[45:70, 28 : 28 + bridge, 10:14] = 7
    return labels


def test_a_neighbour_on_a_thin_bridge_goes() -> None:
    labels = organ_with_neighbour(bridge=4)
    kept = cleaned(labels)
    assert (kept[5:45, 10:50, 5:25] == 7).all()
    assert not kept[70:].any()
    # 6 mm of the cut and 15 mm of reach, in steps of 2 pixels: the bridge stays up to 21 mm (14 pixels) from the core,
    # which ends 4 pixels inside the organ.
    assert np.flatnonzero((kept[45:70] > 0).any(axis=(1, 2))).tolist() == list(range(10))


def test_what_is_broadly_joined_stays() -> None:
    labels = organ_with_neighbour(bridge=4)
    labels[45:70, 15:45, 8:20] = 7
    kept = cleaned(labels, reach_mm=60)
    assert np.array_equal(kept, labels)


def test_a_thin_edge_of_the_organ_stays() -> None:
    labels = np.zeros((80, 60, 30), np.uint8)
    labels[5:45, 10:50, 5:25] = 1
    labels[45:53, 20:40, 10:13] = 1  # 12 mm long, 9 mm thick
    assert np.array_equal(cleaned(labels), labels)


def test_without_a_core_the_largest_piece_stays() -> None:
    labels = np.zeros((40, 40, 10), np.uint8)
    labels[5:9, 5:30, 4:6] = 3
    labels[20:24, 5:12, 4:6] = 3
    kept = cleaned(labels)
    assert (kept[5:9, 5:30, 4:6] == 3).all()
    assert int((kept > 0).sum()) == 4 * 25 * 2


def test_radius_zero_is_the_largest_piece() -> None:
    labels = organ_with_neighbour(bridge=4)
    labels[110:115, 2:6, 2:4] = 7
    kept = cleaned(labels, radius_mm=0)
    assert (kept[70:95, 15:45, 8:20] == 7).all()
    assert not kept[110:].any()


def test_the_edge_of_the_image_does_not_erode() -> None:
    labels = np.zeros((40, 40, 1), np.uint8)
    labels[:20, :20] = 1
    labels[30:34, 30:34] = 1
    kept = cleaned(labels)
    assert (kept[:20, :20] == 1).all()
    assert not kept[30:].any()


def test_labels_are_kept_apart_and_empty_stays_empty() -> None:
    labels = organ_with_neighbour(bridge=4)
    labels[98:118, 10:50, 5:25] = 9
    kept = cleaned(labels)
    assert (kept[98:118, 10:50, 5:25] == 9).all()
    assert not cleaned(np.zeros((10, 10, 4), np.uint8)).any()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="radius_mm -1"):
        KeepLargestCored("pred", radius_mm=-1)
    with pytest.raises(GeometryError, match="has lost its place"):
        KeepLargestCored("pred")({"pred": torch.zeros(1, 4, 4, 4)})
