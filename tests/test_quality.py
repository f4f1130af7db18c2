"""The estimate of a mask's own Dice: by hand on a few voxels, the line and its error against SciPy and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ctseg.calibrating import draw, fit
from ctseg.errors import BundleError, InputError
from ctseg.quality import (
    Calibration,
    Quality,
    calibrations_of,
    estimate,
    estimated,
    expected_dice,
    notes,
    overlap_sums,
    summary,
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_one_organ_by_hand() -> None:
    # p = .9 .8 .4 and a voxel that was not run; the mask is the first two: 2 (.9 + .8) / (.9 + .8 + .4 + 2)
    logits = torch.tensor([logit(0.9), logit(0.8), logit(0.4), torch.finfo(torch.float32).min]).view(1, 4, 1, 1)
    assert expected_dice(overlap_sums(logits)[0]) == pytest.approx(3.4 / 4.1)


def test_several_organs_by_hand() -> None:
    # two voxels: p = (.2, .7, .1), the first organ's, and (.6, .3, .1), background
    logits = torch.tensor([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]).log().T.reshape(3, 2, 1, 1)
    first, second = overlap_sums(logits)
    assert first == pytest.approx((0.7, 1.0, 1.0)) and second == pytest.approx((0.0, 0.2, 0.0))
    found = estimate(logits, ["liver", "spleen"], {})
    assert found == {"liver": Quality(pytest.approx(0.7))}, "the spleen was not found, so nothing is said of it"


def test_the_sums_do_not_depend_on_how_the_volume_is_cut() -> None:
    logits = torch.randn(3, 5, 6, 37, generator=torch.Generator().manual_seed(0))
    probabilities, chosen = logits.double().softmax(0), logits.argmax(0)
    for index, sums in enumerate(overlap_sums(logits), start=1):
        mask = chosen == index
        by_hand = (probabilities[index][mask].sum(), probabilities[index].sum(), mask.sum())
        assert sums == pytest.approx([float(value) for value in by_hand], rel=1e-6)


def test_a_sure_network_expects_one_and_a_doubtful_one_less() -> None:
    sure, doubtful = (torch.full((1, 4, 4, 2), value) for value in (40.0, 0.1))
    assert expected_dice(overlap_sums(sure)[0]) == pytest.approx(1.0)
    assert 0.6 < (expected_dice(overlap_sums(doubtful)[0]) or 0) < 0.8


def test_the_line_is_that_of_scipy_and_its_error_leaves_each_patient_out() -> None:
    rng = np.random.default_rng(0)
    expected = rng.uniform(0.9, 0.99, 12)
    real = 2 * expected - 1 + rng.normal(0, 0.01, 12)
    line = fit(list(zip(expected.tolist(), real.tolist(), strict=True)))
    other = stats.linregress(expected, real)
    assert (line.low, line.high) == (expected.min(), expected.max())
    assert (line.slope, line.intercept, line.pearson) == pytest.approx((other.slope, other.intercept, other.rvalue))
    assert line.spearman == pytest.approx(stats.spearmanr(expected, real).statistic) and line.patients == 12
    errors = []
    for out in range(12):
        rest = stats.linregress(np.delete(expected, out), np.delete(real, out))
        errors.append(abs(rest.intercept + rest.slope * expected[out] - real[out]))
    assert line.error == pytest.approx(np.mean(errors))
    picture = draw(
        {str(n): {"liver": pair} for n, pair in enumerate(zip(expected, real, strict=True))}, {"liver": line}
    )
    assert picture.startswith(b"\x89PNG")


def test_the_estimate_stays_a_dice() -> None:
    line = Calibration(3.0, -2.0, 15, 0.01, 0.7, 0.5)
    assert (line.dice(0.98), line.dice(0.5), line.dice(1.2)) == pytest.approx((0.94, 0.0, 1.0))


def test_outside_of_what_it_was_fitted_on_no_error_is_claimed() -> None:
    line = Calibration(3.0, -2.0, 15, 0.01, 0.7, 0.5, low=0.95, high=0.99)
    found = estimated({"liver": 0.96, "low": 0.94, "high": 0.995}, dict.fromkeys(("liver", "low", "high"), line))
    assert [(one.error, one.outside) for one in found.values()] == [(0.01, False), (None, True), (None, True)]
    told = summary(found)
    assert told is not None and told["organs"]["low"] == {
        "expected_dice": 0.94, "dice": 0.82, "error": None, "outside": True,
    }  # fmt: skip
    inside, below, _ = notes(told)
    assert inside == "note: liver: estimated Dice 0.88, no measurement (docs/quality.md)"
    assert "far from the patients it was fitted on" in below
    assert notes(None) == notes({"organs": {"liver": {"dice": None}}}) == []


def test_too_few_patients_are_refused() -> None:
    for pairs in ([(0.9, 0.8)] * 4, [(0.9, 0.8)] * 6):
        with pytest.raises(InputError, match="expected at least 5 that differ"):
            fit(pairs)


def test_metadata_of_another_form_are_refused() -> None:
    assert calibrations_of({}, "b") == {}
    for told in ({"liver": {"slope": 1}}, {"liver": 3}, ["liver"]):
        with pytest.raises(BundleError, match="the quality of bundle b"):
            calibrations_of(told, "b")


def test_what_a_report_says() -> None:
    assert summary({}) is None
    told = summary({"liver": Quality(0.98, 0.94, 0.01), "spleen": Quality(0.9)})
    assert told is not None and told["dice"] == 0.94 and told["organs"]["spleen"]["dice"] is None
    alone = summary({"spleen": Quality(0.9)})
    assert alone is not None and alone["dice"] is None


def test_the_prediction_s_quality_is_that_of_its_network(tmp_path: Path) -> None:
    """Through the real pipeline: a rule has no probabilities and says nothing, the shipped network does."""
    import nibabel as nib

    from ctseg.prediction import Predictor
    from ctseg.registry import find_bundles

    rng = np.random.default_rng(0)
    array = rng.normal(-900, 20, (40, 36, 6)).astype(np.int16)
    array[8:30, 8:28] = 60
    nib.save(nib.Nifti1Image(array, np.diag([3.0, 3.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    for info in (info for info in find_bundles().values() if info.segments and info.ready):
        quality = Predictor(info, "cpu").predict(tmp_path / "ct.nii.gz").quality
        assert quality == {} or info.needs_weights
        for name, one in quality.items():
            assert 0 < one.expected_dice <= 1 and (one.dice is not None) == (name in info.quality)
