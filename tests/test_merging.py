"""Several organs in one label map: the first named wins a shared voxel."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.errors import ConfigError, GeometryError
from ctseg.merging import merge

CODES = {"liver": 36, "gallbladder": 34, "spleen": 3}


def _mask(*voxels: int) -> np.ndarray:
    mask = np.zeros((5, 1, 1), dtype=bool)
    mask[list(voxels)] = True
    return mask


def test_the_first_named_wins_where_organs_overlap() -> None:
    gallbladder, liver, spleen = _mask(1, 2), _mask(0, 1, 2, 3), _mask(3, 4)
    merged = merge([("gallbladder", gallbladder), ("liver", liver), ("spleen", spleen)], CODES)
    assert merged.dtype == np.uint8
    assert merged.ravel().tolist() == [36, 34, 34, 36, 3]
    other = merge([("spleen", spleen), ("liver", liver), ("gallbladder", gallbladder)], CODES)
    assert other.ravel().tolist() == [36, 36, 36, 3, 3]


def test_any_value_but_0_is_the_organ_and_the_mask_is_left_alone() -> None:
    mask = _mask(1).astype(np.float32) * 7
    assert merge([("liver", mask)], CODES).ravel().tolist() == [0, 36, 0, 0, 0]
    assert mask.ravel().tolist() == [0, 7, 0, 0, 0]


def test_against_a_loop_over_the_voxels() -> None:
    rng = np.random.default_rng(0)
    masks = [(name, rng.random((4, 5, 6)) < 0.5) for name in ("spleen", "gallbladder", "liver")]
    merged = merge(masks, CODES)
    for index in np.ndindex(4, 5, 6):
        holders = [CODES[name] for name, mask in masks if mask[index]]
        assert merged[index] == (holders[0] if holders else 0)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ([], "no mask to merge"),
        ([("liver", _mask(0)), ("liver", _mask(1))], "liver is named more than once"),
        ([("bone", _mask(0))], "no code for bone: expected one of liver, gallbladder, spleen"),
    ],
)
def test_what_cannot_be_merged_is_refused(masks: list[tuple[str, np.ndarray]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        merge(masks, CODES)


def test_two_organs_with_one_code_are_refused() -> None:
    with pytest.raises(ConfigError, match="liver and spleen both have the code 3"):
        merge([("liver", _mask(0)), ("spleen", _mask(1))], {"liver": 3, "spleen": 3})


def test_masks_of_two_grids_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"spleen has the grid \(5, 2, 1\), that of liver has \(5, 1, 1\)"):
        merge([("liver", _mask(0)), ("spleen", np.zeros((5, 2, 1)))], CODES)
