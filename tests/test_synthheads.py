"""Generated heads: the atlas carried into 3D with its sides, drawn alike for the same seed, and taken by `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_synth import ABOVE, AFFINE, GANGLIA, write_atlas, write_template

from ctseg.cli import main
from ctseg.collections.detecting import find_collection
from ctseg.errors import ConfigError, InputError, OutputError
from ctseg.heads.atlas import find_height, label_template, read_atlas, read_template
from ctseg.heads.drawing import Limits, rotation
from ctseg.heads.generating import generate_heads
from ctseg.registry import get_bundle
from ctseg.sides import wrong_sides

COARSE = Limits(pixels=(4.0, 5.0), slices=(5.0, 8.0))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_atlas(tmp_path_factory.mktemp("atlas"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def heads(atlas: Path, template: Path, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    out = tmp_path_factory.mktemp("heads") / "h"
    names = get_bundle("aspects_ct_segmentation", root / "bundles").labels
    generate_heads(atlas, template, out, 3, seed=7, names=names, limits=COARSE)
    return out


def test_the_levels_are_found_where_they_lie(atlas: Path, template: Path) -> None:
    read = read_template(template)
    lower, upper = read_atlas(atlas)["10_29"]
    for level, height in ((lower, GANGLIA), (upper, ABOVE)):
        z, score = find_height(level, read)
        assert abs(z - height) <= 8 and score > 0.8


def test_twenty_labels_on_their_sides_and_levels(atlas: Path, template: Path, root: Path) -> None:
    read = read_template(template)
    labels = label_template(read_atlas(atlas)["30_49"], read)
    names = get_bundle("aspects_ct_segmentation", root / "bundles").labels
    assert set(np.unique(labels)) == set(range(21))
    assert wrong_sides(labels, read.affine, {code: name for name, code in names.items()}) == []
    counts = np.bincount(labels.ravel(), minlength=21)
    assert counts[1:11] == pytest.approx(counts[11:21], rel=0.1)  # the phantom is symmetric
    z = {name: float(np.argwhere(labels == code)[:, 2].mean()) for name, code in names.items()}
    front = {name: float(np.argwhere(labels == code)[:, 1].mean()) for name, code in names.items()}
    assert z["m4_left"] > z["m1_left"] and z["m6_right"] > z["m3_right"]  # M4-M6 lie above M1-M3
    assert front["m1_left"] > front["m2_left"] > front["m3_left"]
    assert front["m4_right"] > front["m5_right"] > front["m6_right"]


def test_every_head_has_its_labels_on_their_sides(heads: Path, root: Path) -> None:
    names = get_bundle("aspects_ct_segmentation", root / "bundles").labels
    told = json.loads((heads / "generated.json").read_text())["heads"]
    assert list(told) == ["head_7_0000", "head_7_0001", "head_7_0002"]
    for name in told:
        label, image = (nib.load(heads / kind / f"{name}.nii.gz") for kind in ("labels", "images"))
        array = np.asarray(label.dataobj)
        assert np.array_equal(label.affine, image.affine) and label.shape == image.shape
        assert set(np.unique(array)) == set(range(21))
        assert wrong_sides(array, label.affine, {code: one for one, code in names.items()}) == []
        hu = np.asarray(image.dataobj)
        assert hu.dtype == np.int16 and hu.min() < -900 and hu.max() > 500
        assert 15 < np.median(hu[array > 0]) < 45  # brain


def test_the_same_seed_gives_the_same_bytes_and_a_longer_run_begins_alike(
    heads: Path, atlas: Path, template: Path, tmp_path: Path
) -> None:
    generate_heads(atlas, template, tmp_path / "again", 1, seed=7, limits=COARSE)
    generate_heads(atlas, template, tmp_path / "other", 1, seed=8, limits=COARSE)
    for kind in ("images", "labels"):
        first = (heads / kind / "head_7_0000.nii.gz").read_bytes()
        assert (tmp_path / "again" / kind / "head_7_0000.nii.gz").read_bytes() == first
        assert (tmp_path / "other" / kind / "head_8_0000.nii.gz").read_bytes() != first
    assert not (tmp_path / "again" / "dataset.json").exists()


def test_prepare_takes_them_by_name(heads: Path, root: Path) -> None:
    names = get_bundle("aspects_ct_segmentation", root / "bundles").labels
    found = find_collection(heads)
    assert [candidate.case_id for candidate in found.candidates] == ["head_7_0000", "head_7_0001", "head_7_0002"]
    assert {name: value for value, name in found.values.items()} == names


def test_a_head_is_turned_by_what_is_told(atlas: Path, template: Path, tmp_path: Path) -> None:
    """The line between the middles of both sides' labels leans as the head was turned and tilted, within its bends."""
    (image,) = generate_heads(atlas, template, tmp_path / "one", 1, seed=3, limits=COARSE)
    told = json.loads((tmp_path / "one" / "generated.json").read_text())["heads"]["head_3_0000"]
    label = nib.load(tmp_path / "one" / "labels" / image.name)
    array = np.asarray(label.dataobj)
    left, right = (
        nib.affines.apply_affine(label.affine, np.argwhere((array > low) & (array <= low + 10))).mean(axis=0)
        for low in (0, 10)
    )
    found = (right - left) / np.linalg.norm(right - left)
    wanted = rotation(told["turn"], told["tilt"], told["nod"]) @ [1, 0, 0]
    assert np.degrees(np.arccos(found @ wanted)) < 5


def test_refusals(atlas: Path, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no ASPECTS atlas"):
        read_atlas(template)
    with pytest.raises(InputError, match="cannot be read"):
        read_template(atlas)
    with pytest.raises(ConfigError, match="1 or more"):
        generate_heads(atlas, template, tmp_path / "x", 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        generate_heads(atlas, template, tmp_path / "full", 1)
    flat = write_atlas(tmp_path / "flat", ("1_2",))
    picture = nib.load(flat / "cortical_label_1_2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(picture.dataobj) // 9, picture.affine), flat / "cortical_label_1_2.nii.gz")
    with pytest.raises(InputError, match=r"labels \[1\].*expected \[8, 9, 10\]"):
        read_atlas(flat)
    arguments = ["generate-heads", str(atlas), str(template), "--number", "1", "--output", str(tmp_path / "y")]
    assert main([*arguments, "--turn", "90"]) == 2
    assert "0 to 40 degrees" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_the_command(atlas: Path, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate-heads", str(atlas), str(template), "--number", "1", "--seed", "2"]
    assert main([*arguments, "--pixel", "5", "5", "--slices", "8", "--output", str(tmp_path / "h")]) == 0
    assert "ctseg prepare" in capsys.readouterr().out
    assert nib.load(tmp_path / "h" / "images" / "head_2_0000.nii.gz").header.get_zooms() == pytest.approx((5, 5, 8))


def test_the_real_atlas_on_the_real_template(shared_data: Path) -> None:
    """Measured: 2 to 6 mm and 22 mm above the plane of the commissures."""
    if not (shared_data / "aspects_atlas").is_dir():
        pytest.skip("the ASPECTS atlas is not in ../shared/data")
    template = read_template(shared_data / "head_ct_template")
    for lower, upper in read_atlas(shared_data / "aspects_atlas").values():
        (low, low_score), (high, high_score) = find_height(lower, template), find_height(upper, template)
        assert 0 <= low <= 6 and 20 <= high <= 26 and min(low_score, high_score) > 0.7


def test_the_phantom_template_lies_as_the_real_one() -> None:
    assert nib.aff2axcodes(AFFINE) == ("L", "A", "S")
