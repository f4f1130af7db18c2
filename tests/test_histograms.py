"""HU histograms: distances against SciPy, deviating cases by hand, the window and what it loses, the command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_phantoms import oblique_affine, reoriented, write_nifti

from ctseg.cli import main
from ctseg.errors import ConfigError
from ctseg.prepare.histograms import (
    LOWEST,
    CaseCounts,
    count_case,
    count_hu,
    deviations,
    distance,
    losses,
    modified_z,
    propose_window,
    quantiles,
)


def normal(mean: float, sd: float = 8.0, count: int = 4000, seed: int = 0) -> np.ndarray:
    return count_hu(np.random.default_rng(seed).normal(mean, sd, count))


def test_counting_rounds_and_cuts() -> None:
    counts = count_hu(np.array([[-3024.0, -1024.4, 0.49, 0.51, 5000.0]]))
    assert counts[0] == 2 and counts[0 - LOWEST] == counts[1 - LOWEST] == counts[-1] == 1 and counts.sum() == 5


def test_the_distance_is_scipys_earth_movers() -> None:
    from scipy.stats import wasserstein_distance

    one, other = normal(30, 9, seed=1), np.concatenate([normal(41, 4, 3000, seed=2)])
    hu = np.arange(LOWEST, LOWEST + len(one))
    assert distance(one, other) == pytest.approx(wasserstein_distance(hu, hu, one, other))
    # the median of two histograms lies half way: quantile functions, not bins, are averaged
    (a, b) = deviations({"a": one, "b": other})
    assert a.distance == pytest.approx(distance(one, other) / 2, abs=0.1) == b.distance
    assert a.score is None and not a.deviates  # two cases: too few


def test_quantiles_against_numpy() -> None:
    values = np.random.default_rng(4).integers(-40, 90, 5001)
    shares = np.array([0.05, 0.5, 0.95])
    assert quantiles(count_hu(values), shares) == pytest.approx(np.quantile(values, shares), abs=1.0)
    gap = quantiles(count_hu(np.array([0.0, 100.0])), np.array([0.25, 0.49, 0.51, 0.75]))
    assert gap == pytest.approx([0, 0.48, 99.52, 100])  # nothing lies between
    assert np.isnan(quantiles(np.zeros_like(count_hu(values)), shares)).all()


def test_the_modified_z_score_by_hand() -> None:
    # median 2, absolute deviations 1 0 1 0 8: MAD 1
    assert modified_z([1, 2, 3, 2, 10]) == pytest.approx([-0.6745, 0, 0.6745, 0, 0.6745 * 8])
    assert modified_z([2, 2, 2, 2, 7]) == pytest.approx([0, 0, 0, 0, 5 / 1.253314])  # MAD 0: mean deviation 1
    assert modified_z([3, 3, 3]) == [0, 0, 0]


def test_three_of_seven_that_deviate_are_named() -> None:
    """As in the reference system; the four others differ from each other by a few HU."""
    means = {"1": 32, "2": 34, "3": 62, "4": 33, "5": 5, "6": 31, "7": 58}
    found = {one.case: one for one in deviations({case: normal(m, seed=int(case)) for case, m in means.items()})}
    assert {case for case, one in found.items() if one.deviates} == {"3", "5", "7"}
    assert found["5"].shift == pytest.approx(5 - 33, abs=1.5) and found["3"].shift > 25
    assert found["3"].distance == pytest.approx(62 - 33, abs=1.5)
    near = deviations({str(n): normal(30 + (4 if n == 3 else 0), seed=1) for n in range(6)})
    assert near[3].score > 2.9 and not any(one.deviates for one in near)  # 4 HU is no finding
    empty = deviations({"a": np.zeros_like(normal(1)), "b": normal(1)})
    assert empty[0].distance is None and empty[1].distance is not None


def counts(case: str, **classes: np.ndarray) -> CaseCounts:
    """A case of which nothing but the classes is there."""
    kinds = {name: count_hu(values) for name, values in classes.items()}
    return CaseCounts(case, case, np.sum(list(kinds.values()), axis=0), kinds)


def test_the_window_and_what_it_loses_by_hand() -> None:
    """Ten cases of 0 to 99 HU, and one of a hundred times as many voxels at 200, which counts once like the rest."""
    cases = [counts(str(n), a=np.arange(0, 50), b=np.arange(50, 100)) for n in range(10)]
    cases.append(counts("big", a=np.full(10_000, 200), b=np.zeros(0)))
    assert propose_window(cases, (5, 90)) == (5.0, 98.0)  # 11 cases: 5 % of voxels is 5.5 % of the ten, 90 % is 99 %
    assert propose_window(cases) == (0.0, 200.0)
    table = {loss.what: loss for loss in losses(cases, (10, 79))}
    assert table["a"].below == pytest.approx(10 * 0.2 / 11) and table["a"].above == pytest.approx(1 / 11)
    assert (table["b"].below, table["b"].above, table["b"].cases) == (0, pytest.approx(0.4), 10)
    assert table["all labels"].below == pytest.approx(10 * 0.1 / 11)
    assert (table["a"].worst, table["a"].worst_case) == (1.0, "big")
    with pytest.raises(ConfigError, match="two rising numbers"):
        propose_window(cases, (99, 1))
    assert propose_window([counts("none", a=np.zeros(0))]) is None


def test_air_does_not_count() -> None:
    array = np.full((4, 5, 6), -1000, np.int16)
    labels = np.zeros(array.shape, np.uint8)
    array[1:3, 1:4, 2:4], labels[1:3, 1:4, 2] = 40, 7
    labels[0, 0, 0] = 9  # no class of ours
    found = count_case("c", "p", array, labels, {7: "liver"}, ["liver", "spleen"])
    assert found.image.sum() == 12 and found.image[40 - LOWEST] == 12
    assert found.labelled.sum() == 6 and not found.classes["spleen"].any()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Six cases of an abdomen with two organs; the fifth was scanned 60 HU too bright, one is stored as PSR."""
    folder = tmp_path_factory.mktemp("data")
    task = make_bundle(folder / "bundles", weights=None)
    (task / "configs" / "inference.json").write_text(json.dumps({"window": [0, 100]}))
    cases = []
    for number in range(6):
        rng = np.random.default_rng(number)
        array = np.full((20, 16, 10), -1000.0)
        labels = np.zeros(array.shape, np.uint8)
        array[2:18, 2:14] = rng.normal(20, 6, (16, 12, 10))
        labels[3:9, 4:9, 2:8], labels[12:16, 4:9, 2:6] = 1, 2
        array[labels == 1] += 40
        array[labels == 2] += 90
        array[array > -900] += 60 if number == 4 else 0
        stored, affine = np.round(array).astype(np.int16), oblique_affine()
        if number == 1:
            stored, affine = reoriented(stored, oblique_affine(), "PSR")
            labels, _ = reoriented(labels, oblique_affine(), "PSR")
        write_nifti(folder / f"i{number}.nii.gz", stored, affine)
        write_nifti(folder / f"l{number}.nii.gz", labels, affine)
        names = {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz"}
        cases.append({"case_id": f"c{number}", "patient": f"p{number}", **names})
    (folder / "datalist.json").write_text(json.dumps({"cases": cases}))
    return folder, str(task)


def test_the_command(data: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, task = data
    out = tmp_path / "out"
    assert main(["histograms", str(folder), "--task", task, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("deviates") == 2  # the fifth, by its image and by its labels
    assert "c4 deviates by its image without air: 60 HU" in said and "60 HU brighter" in said
    assert "the task's window: 0 to 100 HU" in said
    rows = {row["case"]: row for row in csv.DictReader(io.StringIO((out / "cases.csv").read_text()))}
    assert rows["c4"]["deviates_by"] == "image and labels" and rows["c1"]["deviates_by"] == ""
    assert float(rows["c4"]["image_distance_hu"]) == pytest.approx(60, abs=2)
    assert int(rows["c1"]["labels_voxels"]) == 6 * 5 * 6 + 4 * 5 * 4 and int(rows["c1"]["image_voxels"]) == 1920
    windows = list(csv.DictReader(io.StringIO((out / "window.csv").read_text())))
    proposed = {row["of"]: row for row in windows if row["window"] == "proposed"}
    assert float(proposed["all labels"]["percent_below"]) + float(proposed["all labels"]["percent_above"]) <= 1.0
    # values 1 and 2 are the task's first and second label: liver 60 HU, spleen 110 HU, above the task's window of 100
    spleen = next(row for row in windows if row["window"] == "task" and row["of"] == "spleen")
    assert float(spleen["percent_above"]) > 90 and spleen["cases"] == "6"
    bins = list(csv.DictReader(io.StringIO((out / "histograms.csv").read_text())))
    assert sum(float(row["share_of_image"]) for row in bins if row["case"] == "c0") == pytest.approx(1, abs=1e-4)
    first = (out / "histograms.png").read_bytes()
    assert main(["histograms", str(folder), "--task", task, "-o", str(out)]) == 0
    assert (out / "histograms.png").read_bytes() == first
    assert main(["histograms", str(folder), "--task", task, "-o", str(out), "--percentiles", "99", "1"]) == 2
