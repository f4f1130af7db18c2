"""Mean HU of regions, left against right, on heads whose HU are known: values, sides, levels, and the command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_heads import AFFINE, rotation
from helpers_phantoms import write_dicom, write_itk, write_nifti
from helpers_regions import LABELS, region_bundle, region_head

from ctseg.cli import main
from ctseg.commands.aspects import bundle_of
from ctseg.errors import BundleError, ConfigError, GeometryError, InputError
from ctseg.heads.levels import find_levels, short_names
from ctseg.heads.regions import measure_regions

DARK = {"M2 right": 8.0, "insula right": 6.0, "M5 left": 7.0}
UPPER = {"M4", "M5", "M6"}


def expected(name: str) -> float:
    """HU of a region by the phantom's rule."""
    code = LABELS[name]
    return 30 + (code - 1) % 10 + 1 + (code <= 10) - DARK.get(name, 0.0)


@pytest.fixture(scope="module")
def heads() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """CT, labels, affine: as scanned, turned with oblique slices, and stored in two other orders."""
    oblique = AFFINE.copy()
    oblique[:3, :3] = rotation(9, -6, 11) @ AFFINE[:3, :3]
    oblique[:3, 3] = rotation(9, -6, 11) @ AFFINE[:3, 3]
    straight, turned = region_head(dark=DARK), region_head((-14, 9, 6), DARK, oblique)
    found = {"straight": (*straight, AFFINE), "oblique": (*turned, oblique)}
    for code in ("RAS", "PSR"):
        array, affine = reoriented_from(straight[0], code)
        found[code] = (array, reoriented_from(straight[1], code)[0], affine)
    return found


def reoriented_from(array: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """Store a straight LPS head in another order, and give its affine."""
    import nibabel as nib

    there = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code))
    return nib.apply_orientation(array, there), AFFINE @ nib.orientations.inv_ornt_aff(there, array.shape)


@pytest.mark.parametrize("stored", ["straight", "oblique", "RAS", "PSR"])
def test_known_hypodensity_is_found_on_its_side(
    heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], stored: str
) -> None:
    found = measure_regions(*heads[stored], LABELS, threshold=33.5, darker_by=5)
    assert len(found.regions) == 20 and len(found.twins) == 10 and found.notes == ()
    for one in found.regions:
        assert one.mean == pytest.approx(expected(one.name)) and one.sd == 0 and one.voxels > 20
    differences = {pair.name: pair.difference for pair in found.twins}
    plain = {"caudate", "lentiform", "internal capsule", "M1", "M3", "M4", "M6"}
    assert differences == pytest.approx({**dict.fromkeys(plain, 1.0), "M2": 9.0, "insula": 7.0, "M5": -6.0})
    assert set(found.darker()) == {"M2 right", "insula right", "M5 left"}
    assert set(found.below()) == {name for name in LABELS if expected(name) < 33.5}
    over = found.over_twins()  # seven times 1, then 9, 7 and -6: mean 1.7
    assert over["mean"] == pytest.approx(1.7) and over["median"] == 1.0 and over["pairs"] == 10
    assert over["sd"] == pytest.approx(np.sqrt((7 * 0.7**2 + 7.3**2 + 5.3**2 + 7.7**2) / 10))


def test_values_against_simpleitk() -> None:
    import SimpleITK as sitk

    array, labels = region_head(noise=6.0)
    found = measure_regions(array, labels, AFFINE, LABELS)
    filters = sitk.LabelStatisticsImageFilter()
    filters.Execute(*(sitk.GetImageFromArray(np.ascontiguousarray(a)) for a in (array, labels)))
    for one in found.regions:
        assert one.voxels == filters.GetCount(one.value)
        assert one.mean == pytest.approx(filters.GetMean(one.value))
        assert one.sd == pytest.approx(filters.GetSigma(one.value), rel=0.01)  # ITK divides by n - 1
    pair = found.twins[0]
    assert pair.spread == pytest.approx(np.hypot(pair.left.sd, pair.right.sd)) and 7 < pair.spread < 10
    assert found.regions[0].ml == pytest.approx(found.regions[0].voxels * 2.5 * 2.2 * 4 / 1000)


def test_a_range_of_hu_and_a_region_that_is_missing() -> None:
    array, labels = np.full((8, 6, 4), 30, np.int16), np.zeros((8, 6, 4), np.uint8)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])  # the first index grows to the patient's left
    labels[5:8, 1:4, 1], labels[0:3, 1:4, 1] = 1, 2
    array[5, 1:4, 1], array[6, 1:4, 1] = 400, 27  # bone, and three darker voxels
    values = {"M1 left": 1, "M1 right": 2, "M2 left": 3}
    found = measure_regions(array, labels, affine, values, hu_range=(0, 80))
    assert (found.regions[0].voxels, found.regions[0].measured) == (9, 6)
    assert found.regions[0].mean == 28.5 and found.regions[0].sd == 1.5 and found.twins[0].difference == -1.5
    assert found.regions[2].mean is None and found.notes == ("not in the mask: M2 left",)
    assert measure_regions(array, labels, affine, values).regions[0].mean == pytest.approx((3 * 400 + 81 + 90) / 9)
    for wrong in ({"hu_range": (80, 0)}, {"darker_by": 0}, {"threshold": float("nan")}):
        with pytest.raises(ConfigError):
            measure_regions(array, labels, affine, values, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="none of the 1 regions"):
        measure_regions(array, labels, affine, {"M9 left": 9})


def test_a_mirrored_mask_is_refused_and_one_wrong_pair_is_named() -> None:
    array, labels = region_head()
    with pytest.raises(InputError, match="mirrored"):
        measure_regions(array, labels[::-1], AFFINE, LABELS)
    swapped = labels.copy()
    swapped[labels == LABELS["M4 left"]] = LABELS["M4 right"]
    swapped[labels == LABELS["M4 right"]] = LABELS["M4 left"]
    (note,) = measure_regions(array, swapped, AFFINE, LABELS).notes
    assert note.startswith("on the wrong side by the affine: M4 left lies")


@pytest.mark.parametrize("stored", ["straight", "oblique", "PSR"])
def test_the_two_levels_are_those_of_the_sheet(
    heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], stored: str
) -> None:
    """Lower level seven regions a side, upper three; image left is the patient's right, up is the front."""
    array, labels, affine = heads[stored]
    found = find_levels(array, labels, affine, LABELS)
    assert len(found.levels) == 2
    assert abs(found.degrees - (0 if stored != "oblique" else 16.6)) < 1  # of turn and tilt: by the phantom's rule
    lower, upper = found.levels
    assert {name.rsplit(" ", 1)[0] for name in upper.shown} == UPPER and len(lower.shown) == 14
    for level in found.levels:
        columns = {value: np.nonzero(level.labels == value)[1].mean() for value in np.unique(level.labels) if value}
        rows = {value: np.nonzero(level.labels == value)[0].mean() for value in columns}
        for name in level.shown:
            base, side = name.rsplit(" ", 1)
            if side == "left":
                right = LABELS[f"{base} right"]
                assert columns[LABELS[name]] > level.labels.shape[1] / 2 > columns[right]
                assert abs(rows[LABELS[name]] - rows[right]) < 4  # straightened: twins at one height
    assert np.nonzero(lower.labels == 8)[0].mean() < np.nonzero(lower.labels == 10)[0].mean()  # M1 in front of M3
    inside = lower.labels == LABELS["M2 right"]
    from scipy import ndimage

    assert np.median(lower.image[ndimage.binary_erosion(inside, iterations=3)]) == pytest.approx(31, abs=0.5)


def test_one_level_where_a_second_shows_nothing_more() -> None:
    array, labels = region_head()
    found = find_levels(array, labels, AFFINE, {name: code for name, code in LABELS.items() if name[:2] not in UPPER})
    assert len(found.levels) == 1 and len(found.levels[0].shown) == 14


def test_short_names_are_those_of_the_sheet() -> None:
    names = ["caudate", "lentiform", "internal capsule", "insula", "M1"]
    assert list(short_names(names).values()) == ["C", "L", "IC", "I", "M1"]
    assert list(short_names(["caudate", "cuneus"]).values()) == ["C", "Cu"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(region_bundle(tmp_path_factory.mktemp("bundles")))


def test_the_command_from_a_finished_mask(
    heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The mask is stored in another order of axes than its CT, by another program."""
    array, _, affine = heads["straight"]
    ct = write_nifti(tmp_path / "head.nii.gz", array, affine)
    mask = write_itk(tmp_path / "mask.nrrd", heads["PSR"][1], heads["PSR"][2])
    out = tmp_path / "out"
    asked = ["aspects", str(ct), "--mask", str(mask), "--task", task, "-o", str(out)]
    assert main([*asked, "--threshold", "33.5", "--difference", "5"]) == 0
    said = capsys.readouterr().out
    assert "darker than the twin by 5 HU or more: insula right, M5 left, M2 right" in said
    assert "not a medical device" in said
    rows = {row["region"]: row for row in csv.DictReader(io.StringIO((out / "aspects.csv").read_text()))}
    assert list(rows) == list(LABELS)
    assert float(rows["M2 right"]["mean_hu"]) == expected("M2 right") == 31
    assert (rows["M2 right"]["below_threshold"], rows["M2 right"]["darker_than_twin"]) == ("yes", "yes")
    assert float(rows["M2 left"]["left_minus_right_hu"]) == 9 and rows["M2 left"]["darker_than_twin"] == "no"
    report = json.loads((out / "aspects.json").read_text())
    assert report["darker_than_twin"] == ["insula right", "M5 left", "M2 right"]
    assert report["intended_use"].startswith("research only") and "image left" in report["picture"]["convention"]
    assert str(tmp_path) not in (out / "aspects.json").read_text()
    picture = (out / "aspects.png").read_bytes()
    assert main(asked) == 0  # again, without thresholds: nothing is flagged
    assert json.loads((out / "aspects.json").read_text())["below_threshold"] == []
    assert "yes" not in (out / "aspects.csv").read_text()
    assert main([*asked, "--threshold", "33.5", "--difference", "5"]) == 0
    assert (out / "aspects.png").read_bytes() == picture
    assert sorted(file.name for file in out.iterdir()) == ["aspects.csv", "aspects.json", "aspects.png"]


def test_a_mask_of_another_grid_or_an_untrained_bundle(
    heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    array, labels, affine = heads["straight"]
    ct = write_nifti(tmp_path / "head.nii.gz", array, affine)
    mask = write_nifti(tmp_path / "mask.nii.gz", labels[1:], affine)
    assert main(["aspects", str(ct), "--mask", str(mask), "--task", task, "-o", str(tmp_path / "out")]) == 2
    assert "does not lie on the grid" in capsys.readouterr().err
    assert main(["aspects", str(ct), "--task", task, "-o", str(tmp_path / "out")]) == 2
    assert "is untrained" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(BundleError, match="there is no bundle"):
        bundle_of("nothing")


def test_the_default_bundle_is_the_one_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers_bundles import make_bundle

    from ctseg.registry import find_bundles

    make_bundle(tmp_path)  # labels without twins
    monkeypatch.setattr("ctseg.commands.aspects.find_bundles", lambda: find_bundles(tmp_path))
    with pytest.raises(BundleError, match="found none; name the bundle with --task"):
        bundle_of(None)
    region_bundle(tmp_path, "regions_a")
    assert bundle_of(None).name == "regions_a"
    (region_bundle(tmp_path, "regions_b") / "models").mkdir()
    assert bundle_of(None).name == "regions_a"
    (tmp_path / "regions_b" / "models" / "model.pt").write_bytes(b"own")
    assert bundle_of(None).name == "regions_b"  # the one that is ready
    one = {"name": "M1 left", "code": 1, "color": [1, 2, 3], "snomed": {"value": "1"}}
    make_bundle(tmp_path, "other", labels=[one, {**one, "name": "M1 right", "code": 2}])
    with pytest.raises(BundleError, match="found other, regions_a, regions_b"):
        bundle_of(None)


def test_the_masks_of_a_tilted_series_and_of_a_network(
    heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mask that the program writes on tilted slices is taken back; values do not change by the tilt."""
    sheared = AFFINE.copy()
    sheared[1, 2] = -4 * np.tan(np.radians(15))
    array, labels = region_head(dark=DARK, affine=sheared)
    write_dicom(tmp_path / "series", array, sheared)
    task = region_bundle(tmp_path / "b", "trained")
    (task / "models").mkdir()
    (task / "models" / "model.pt").write_bytes(b"own")

    def predicted(study, info, progress):  # type: ignore[no-untyped-def]
        kept = np.stack([labels[..., k] for k in range(labels.shape[2])], axis=-1)
        if study.volume.affine[2, 2] < 0:
            kept = kept[..., ::-1]
        return SimpleNamespace(volume=study.volume, label_map=kept, labels=LABELS)

    monkeypatch.setattr("ctseg.study.Study.prediction", predicted)
    series, out = str(tmp_path / "series"), tmp_path / "out"
    assert main(["aspects", series, "--task", str(task), "-o", str(out), "--difference", "5"]) == 0
    first = json.loads((out / "aspects.json").read_text())
    assert set(first["darker_than_twin"]) == {"M2 right", "insula right", "M5 left"}
    mask, again = str(out / "aspects_mask.nii.gz"), tmp_path / "again"
    assert main(["aspects", series, "--mask", mask, "--task", str(task), "-o", str(again), "--difference", "5"]) == 0
    second = json.loads((again / "aspects.json").read_text())
    assert second["regions"] == first["regions"] and second["mask"] == "the file aspects_mask.nii.gz"
    other = write_nifti(tmp_path / "other.nii.gz", labels, AFFINE)
    assert main(["aspects", series, "--mask", str(other), "--task", str(task), "-o", str(again)]) == 2


def test_a_shape_that_does_not_fit() -> None:
    with pytest.raises(GeometryError, match="give one on its grid"):
        measure_regions(np.zeros((3, 3, 3)), np.zeros((3, 3, 2)), np.eye(4), LABELS)
