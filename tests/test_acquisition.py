"""Scores of cases by a real network on a phantom, pooled over a patient's images, and kept once for each version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import write_nifti

from ctseg.annotation.acquisition import ScoreBook, Scorer, pooled
from ctseg.annotation.strategies import CaseScore
from ctseg.prediction import Predictor
from ctseg.registry import find_bundles


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """The first bundle that ships trained weights for one organ."""
    return Predictor(next(info for info in find_bundles().values() if info.segments and info.trained), "cpu")


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """A body with an organ-like block, 4 mm."""
    rng = np.random.default_rng(0)
    array = rng.normal(-900, 10, (48, 40, 5)).astype(np.int16)
    array[6:42, 6:34] = 20
    array[8:24, 8:30] = 110
    return write_nifti(tmp_path / "ct.nii.gz", array, np.diag([-4.0, -4.0, 5.0, 1.0]))


def test_a_case_is_scored_the_same_each_time_and_more_with_runs(predictor: Predictor, ct: Path) -> None:
    plain = Scorer(predictor)("a", [ct])
    organ = next(iter(predictor.bundle.labels))
    assert plain == Scorer(predictor)("a", [ct]) and plain.case_id == "a"
    assert plain.voxels[organ] >= 0 and 0 <= plain.entropy[organ] <= 1 and plain.disagreement == {}
    assert len(plain.features) > 10 and np.isfinite(plain.features).all()
    more = Scorer(predictor, runs=2)("a", [ct])
    assert more.voxels == plain.voxels and more.features == plain.features
    assert 0 <= more.disagreement[organ] <= 1


def test_a_patient_of_several_images_is_pooled() -> None:
    one = CaseScore("", {"liver": 0.2}, {"liver": 10}, {"liver": 0.1}, (1.0, 3.0))
    two = CaseScore("", {"liver": 0.6}, {"liver": 5}, {"liver": 0.3}, (3.0, 5.0))
    both = pooled("p", [one, two])
    assert both.case_id == "p" and both.voxels == {"liver": 15} and both.features == (2.0, 4.0)
    assert both.entropy["liver"] == pytest.approx(0.4) and both.disagreement["liver"] == pytest.approx(0.2)


def test_a_score_is_kept_for_its_version_and_image(tmp_path: Path) -> None:
    score = CaseScore("a", {"liver": 0.5}, {"liver": 3}, {}, (1.0, 2.0))
    book = ScoreBook(tmp_path / "scores.json", "1")
    assert book.get("a", "x") is None
    book.put(score, "x")
    again = ScoreBook(tmp_path / "scores.json", "1")
    assert again.get("a", "x") == score and again.get("a", "y") is None and len(again) == 1
    assert ScoreBook(tmp_path / "scores.json", "2").get("a", "x") is None
    (tmp_path / "scores.json").write_text('{"version": "1", "cases": [')
    assert len(ScoreBook(tmp_path / "scores.json", "1")) == 0
