"""The evaluation as a metric of a bundle's run: the same values and report as over files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine
from monai.data import MetaTensor

from ctseg.evaluation.case_scores import CaseScores


def pair(patient: str, file: str, height: int) -> tuple[MetaTensor, MetaTensor]:
    """A block of 4x5x6 voxels, predicted so many slices high; only the reference knows where it comes from."""
    maps = np.zeros((2, 1, 10, 12, 8), np.float32)
    maps[0, 0, 2:6, 2:7, 1 : 1 + height], maps[1, 0, 2:6, 2:7, 1:7] = 1, 1
    meta = {"patient": patient, "filename_or_obj": file}
    one, other = (
        MetaTensor(torch.from_numpy(m), affine=torch.from_numpy(oblique_affine()), meta=dict(meta)) for m in maps
    )
    return one, other


def test_scores_and_report_of_a_run(tmp_path: Path) -> None:
    metric = CaseScores(["liver"], save_to=tmp_path / "report")
    metric.update([pair("p", "p/mask.nii.gz", 6), pair("q", "q/mask.nii.gz", 3)])
    metric.update([pair("q", "q/mask.nii.gz", 2)])
    assert metric.compute() == pytest.approx((1 + 6 / 9 + 4 / 8) / 3)
    results = json.loads((tmp_path / "report" / "evaluation.json").read_text(encoding="utf-8"))
    assert [(c["case"], c["patient"]) for c in results["cases"]] == [("mask", "p"), ("q mask", "q"), ("q mask 2", "q")]
    row = results["cases"][1]["labels"]["liver"]
    assert row["hd_mm"] == pytest.approx(3 * 2.5, rel=1e-5)
    assert row["reference_ml"] == pytest.approx(120 * 1.0 * 1.25 * 2.5 / 1000)
    assert results["summary"]["labels"]["liver"]["macro"]["dice"]["patients"] == 2
    assert "<figure>" in (tmp_path / "report" / "evaluation.html").read_text(encoding="utf-8")


def test_reset_forgets_and_nothing_has_no_value() -> None:
    metric = CaseScores(["liver"])
    metric.update([pair("p", "mask.nii.gz", 6)])
    metric.reset()
    assert math.isnan(metric.compute())
