"""The parts of prepare: given splits, slices with an orientation, and what the pictures show."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctseg.errors import ConfigError, InputError, LedgerError
from ctseg.items import volume_of
from ctseg.prepare.givensplits import read_split
from ctseg.prepare.sample_pictures import choose_samples, draw_sample
from ctseg.slices import read_slice
from ctseg.volume import Volume


def test_lists_of_case_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("lr: 0.1\ntrain_cts: [1, 2]\nval_cts: [3]\ntest_cts: [17]\n")
    split = read_split(path)
    cases = [(f"ct_{n:03d}_s1", f"ct_{n:03d}") for n in (1, 2, 3, 17, 18)]
    assert split.patients(cases) == {
        "ct_001": "train",
        "ct_002": "train",
        "ct_003": "validation",
        "ct_017": "test",
    }
    assert split.side_of("x", "p1_2") is None  # two numbers: nobody can say which


def test_table_with_a_split_column(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    path.write_text("image_id;age;split\ns0001;60;train\ns0002;61;val\ns0003;62;test\n")
    assert read_split(path).sides == {"s0001": "train", "s0002": "validation", "s0003": "test"}
    path.write_text("image_id;split\ns0001;train\ns0002;left\n")
    with pytest.raises(ConfigError, match="the split 'left'"):
        read_split(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": ["a"], "val": ["b"]}], "none has number 3"),
        ({"train": ["a"], "test": ["a"]}, "a in train and in test"),
        ({"folds": 3}, "holds no split"),
    ],
)
def test_splits_that_are_none(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        read_split(tmp_path / "s.json", fold=3)


def test_a_split_through_a_patient_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"train": ["p1_a"], "test": ["p1_b"]}))
    with pytest.raises(LedgerError, match="both are of patient p1"):
        read_split(tmp_path / "s.json").patients([("p1_a", "p1"), ("p1_b", "p1")])
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(InputError, match="neither JSON nor YAML"):
        read_split(tmp_path / "s.json")


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "PLS", "ARS"])
def test_npy_in_array_order_lies_as_the_volume_it_was_cut_from(tmp_path: Path, code: str) -> None:
    """nibabel is the judge: the slice and its volume, both brought to LPS, are the same picture."""
    volume = np.arange(5 * 7 * 4, dtype=np.int16).reshape(5, 7, 4) - 70
    axes = nib.orientations.axcodes2ornt(tuple(code))
    affine = nib.orientations.inv_ornt_aff(axes, volume.shape) @ np.diag([1.0, 1.0, 1.0, 1.0])
    assert nib.aff2axcodes(affine) == tuple(code)
    np.save(tmp_path / "s.npy", volume[:, :, 2])
    item = {"slice_spacing": [1, 1, 2], "slice_orientation": f"array:{code[:2]}"}
    one = volume_of(tmp_path / "s.npy", item, "label")
    assert nib.aff2axcodes(one.affine) == tuple(code)
    turn = nib.orientations.axcodes2ornt(("L", "P", "S"))

    def to_lps(array: np.ndarray, place: np.ndarray) -> np.ndarray:
        here = nib.orientations.io_orientation(place)
        return nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(here, turn))

    assert np.array_equal(to_lps(one.array, one.affine)[:, :, 0], to_lps(volume, affine)[:, :, 2])


def test_radiological_npy_and_png_are_one(tmp_path: Path) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)  # rows, columns
    np.save(tmp_path / "s.npy", picture.astype(np.float64))
    Image.fromarray(picture).save(tmp_path / "s.png")
    from_npy, from_png = (read_slice(tmp_path / f"s.{ending}", (1.0, 2.0, 5.0)) for ending in ("npy", "png"))
    assert from_npy.shape == from_png.shape == (4, 3, 1)
    assert np.array_equal(from_npy.array, from_png.array) and np.array_equal(from_npy.affine, from_png.affine)
    assert from_png.array[3, 0, 0] == 3 and nib.aff2axcodes(from_npy.affine) == ("L", "P", "S")
    assert from_npy.spacing == (1.0, 2.0, 5.0)
    assert nib.aff2axcodes(read_slice(tmp_path / "s.npy", (1, 2, 5), "array").affine) == ("R", "A", "S")


def test_npy_refusals(tmp_path: Path) -> None:
    item = {"slice_spacing": [1, 1, 1], "slice_orientation": "array"}
    for array, words in (
        (np.zeros((2, 2, 2)), "of shape"),
        (np.array([[1.0, np.nan]]), "finite"),
        (np.array([[1, None]], dtype=object), "cannot be read"),
    ):
        np.save(tmp_path / "s.npy", array, allow_pickle=True)
        with pytest.raises(InputError, match=words):
            volume_of(tmp_path / "s.npy", item, "label")
    np.save(tmp_path / "s.npy", np.linspace(0, 1, 16).reshape(4, 4))
    with pytest.raises(InputError, match="no CT in Hounsfield units"):
        volume_of(tmp_path / "s.npy", item, "CT")
    with pytest.raises(InputError, match="names no slice_orientation"):
        volume_of(tmp_path / "s.npy", {"slice_spacing": [1, 1, 1]}, "label")
    with pytest.raises(ConfigError, match="no orientation"):
        volume_of(tmp_path / "s.npy", {**item, "slice_orientation": "array:RL"}, "label")


def test_samples_are_the_extremes_first() -> None:
    counts = [{"liver": n} for n in (50, 3, 90, 0, 60, 55)]
    assert choose_samples(counts, 3) == [1, 2, 3]  # smallest, largest, without
    assert choose_samples(counts, 10) == [0, 1, 2, 3, 4, 5]
    assert choose_samples([{}], 4) == [0]


def test_drawn_mask_stands_on_the_patients_right(tmp_path: Path) -> None:
    """A block in the corner right and front of a RAS volume is drawn in the upper left of the axial plane."""
    array = np.full((40, 40, 40), -1000, np.int16)
    labels = np.zeros(array.shape, np.uint8)
    labels[26:36, 26:36, 10:30] = 5  # towards R and A
    affine = np.eye(4)
    volume = Volume(array, affine, affine, tmp_path / "x", "nifti")
    with Image.open(io.BytesIO(draw_sample(volume, labels, {5: (255, 0, 0)}))) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    axial = pixels[:240, :240]
    red = (axial[..., 0] > 200) & (axial[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert rows.min() > 0 and rows.max() < 120 and columns.max() < 120
    assert pixels.shape == (240, 3 * 240 + 2 * 4, 3)
