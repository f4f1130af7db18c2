"""Means, pooled values, intervals and the comparison with a baseline, against hand-worked cases and SciPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctseg.errors import InputError
from ctseg.evaluation.bootstrap import PatientBootstrap
from ctseg.evaluation.comparison import SCHEMA, compare, read_baseline
from ctseg.evaluation.scoring import score
from ctseg.evaluation.summaries import summarise


def case(name: str, *bars: tuple[int, int], patient: str | None = None) -> dict[str, Any]:
    """A case of one row of voxels (1 mm) with organs a, b ...: predicted from 0 on, the reference from 2 on."""
    labels = {}
    for label, (predicted, reference) in zip("ab", bars, strict=False):
        masks = np.zeros((2, 40, 1, 2), bool)
        masks[0, :predicted, 0, 0] = True
        masks[1, 2 : 2 + reference, 0, 0] = True
        labels[label] = score(*masks, (1.0, 1.0, 1.0))[0]
    return {"case": name, "patient": patient or name, "labels": labels}


def results(*cases: dict[str, Any], tolerance: float = 3.0) -> dict[str, Any]:
    labels = {name: {"prediction": 1, "reference": 1} for name in cases[0]["labels"]}
    return {
        "schema": SCHEMA,
        "settings": {"labels": labels, "tolerance_mm": tolerance, "beta": 1.0},
        "cases": list(cases),
    }


def test_macro_and_micro_by_hand() -> None:
    # Organ a: 4 predicted and 4 reference share 2; 20 and 20 share 18. Organ b: 6 and 6 share 4; in neither.
    summary = summarise([case("x", (4, 4), (6, 6)), case("y", (20, 20), (0, 0))], ["a", "b"], resamples=100)
    a, b = summary["labels"]["a"], summary["labels"]["b"]
    assert a["macro"]["dice"]["value"] == pytest.approx((0.5 + 0.9) / 2)
    assert a["micro"]["dice"]["value"] == pytest.approx(40 / 48)
    assert a["spread"]["dice"] == pytest.approx({"median": 0.7, "lowest": 0.5, "highest": 0.9})
    assert (b["macro"]["dice"]["value"], b["macro"]["dice"]["n"]) == (pytest.approx(8 / 12), 1)
    assert b["found"] == {"both": 1, "reference only": 0, "prediction only": 0, "neither": 1}
    assert b["macro"]["dice"]["low"] is None  # one patient tells no spread
    overall = summary["overall"]
    assert overall["macro"]["dice"]["value"] == pytest.approx((0.7 + 8 / 12) / 2)
    assert overall["micro"]["dice"]["value"] == pytest.approx(2 * (2 + 18 + 4) / (8 + 40 + 12))


def test_an_organ_in_no_case_has_no_value_and_does_not_lower_the_rest() -> None:
    summary = summarise([case("x", (4, 4), (0, 0)), case("y", (4, 4), (0, 0))], ["a", "b"], resamples=100)
    assert summary["labels"]["b"]["macro"]["dice"]["value"] is None
    assert summary["overall"]["macro"]["dice"]["value"] == pytest.approx(0.5)


def test_slices_with_organ_pooled_and_mean_by_hand() -> None:
    reference, predicted = np.zeros((2, 10, 10, 4), bool)
    reference[:2, :5, 0], reference[:4, :5, 1] = True, True  # 10 and 20 voxels
    predicted[:4, :5, 1], predicted[:, :, 2] = True, True  # 20 right, 100 on a slice without the organ
    row = {"case": "x", "patient": "x", "labels": {"a": score(predicted, reference, (1.0, 1.0, 1.0))[0]}}
    label = summarise([row], ["a"], resamples=100)["labels"]["a"]
    assert label["slices"]["mean"]["iou"]["value"] == pytest.approx((0 + 1) / 2)
    assert label["slices"]["mean"]["iou"]["n"] == 2
    assert label["slices"]["pooled"]["iou"]["value"] == pytest.approx(20 / 30)  # system A's way
    assert label["micro"]["iou"]["value"] == pytest.approx(20 / 130)  # the honest way
    assert label["slices"]["presence"]["slices"] == {"tp": 1, "fp": 1, "fn": 1, "tn": 1}
    assert label["slices"]["presence"]["recall"]["value"] == 0.5


def test_intervals_against_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).beta(8, 2, 25)
    ours = PatientBootstrap([str(n) for n in range(25)], resamples=20000).mean(list(values))
    theirs = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert ours["value"] == pytest.approx(values.mean())
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_patients_are_drawn_whole() -> None:
    # Two patients of 50 cases each that agree within themselves: half of all draws are one patient alone.
    values, patients = [0.0] * 50 + [1.0] * 50, ["p"] * 50 + ["q"] * 50
    whole = PatientBootstrap(patients).mean(values)
    assert (whole["low"], whole["high"], whole["patients"], whole["n"]) == (0.0, 1.0, 2, 100)
    apart = PatientBootstrap([str(n) for n in range(100)]).mean(values)
    assert 0.35 < apart["low"] < 0.45 and 0.55 < apart["high"] < 0.65


def test_the_seed_gives_the_interval() -> None:
    values = [0.1, 0.5, None, 0.9, 0.95]
    runs = [PatientBootstrap(list("abcde"), seed=seed).mean(values) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0]["n"] == 4


def test_a_run_beside_its_baseline() -> None:
    before = results(*(case(n, (4, 4)) for n in "uvwx"), case("gone", (4, 4)))
    now = results(case("u", (20, 20)), case("v", (4, 4)), case("w", (3, 4)), case("x", (0, 4)), case("new", (4, 4)))
    compared = compare(now, before, resamples=200)
    label = compared["labels"]["a"]
    rows = {row["case"]: row["dice"] for row in label["cases"]}
    assert rows["w"] == pytest.approx({"before": 0.5, "now": 2 / 7, "difference": 2 / 7 - 0.5})
    assert label["worse"] == ["x", "w"]
    assert label["mean"]["dice"]["value"] == pytest.approx((0.4 + 0 + 2 / 7 - 0.5 - 0.5) / 4)
    assert label["mean"]["hd_mm"]["n"] == 3  # x has no second surface any more
    assert (compared["only_now"], compared["only_before"]) == (["new"], ["gone"])
    assert any("reference of u" in note for note in compared["notes"])


@pytest.mark.parametrize(
    ("first", "second", "verdict"), [(4, 20, "better"), (20, 4, "worse"), (4, 4, "no clear difference")]
)
def test_verdicts(first: int, second: int, verdict: str) -> None:
    before, now = (results(*(case(n, (size, size)) for n in "uvwx")) for size in (first, second))
    mean = compare(now, before, resamples=200)["labels"]["a"]["mean"]
    assert mean["dice"]["verdict"] == verdict
    # The bars are 2 mm apart whatever their length.
    assert mean["hd_mm"]["verdict"] == "no clear difference"


def test_a_shorter_distance_is_better() -> None:
    before, now = (results(*(case(n, (size, 10)) for n in "uvwx")) for size in (30, 14))
    assert compare(now, before, resamples=200)["labels"]["a"]["mean"]["hd_mm"]["verdict"] == "better"


def test_an_organ_invented_where_there_was_none_is_worse() -> None:
    before, now = results(case("u", (0, 0)), case("v", (4, 4))), results(case("u", (5, 0)), case("v", (4, 4)))
    assert compare(now, before, resamples=200)["labels"]["a"]["worse"] == ["u"]


def test_another_tolerance_is_not_compared() -> None:
    compared = compare(results(case("u", (4, 4))), results(case("u", (4, 4)), tolerance=1.0), resamples=200)
    assert "nsd" not in compared["labels"]["a"]["mean"]
    assert any(note.startswith("nsd: measured with another setting") for note in compared["notes"])


def test_a_wrong_baseline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    for text, word in (("no json", "cannot be read"), ("[]", "schema None"), ('{"schema": "x/1"}', "schema 'x/1'")):
        path.write_text(text)
        with pytest.raises(InputError, match=word):
            read_baseline(path)
    path.write_text(json.dumps(results(case("u", (4, 4)))))
    with pytest.raises(InputError, match="no case and label"):
        compare(results(case("other", (4, 4))), read_baseline(path))
