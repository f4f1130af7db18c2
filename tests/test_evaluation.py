"""Overlap and volume against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import oblique_affine, write_nifti

from ctseg.cli import main
from ctseg.errors import ConfigError, GeometryError
from ctseg.evaluation.measuring import evaluate_masks, parse_labels


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    predicted, reference = np.zeros((2, 4, 5, 6), np.uint8)
    predicted[0, 0, 0:4] = 1
    reference[0, 0, 1:6] = 5
    affine = oblique_affine(spacing=(2.0, 2.0, 5.0))
    return tuple(write_nifti(tmp_path / f"{n}.nii.gz", a, affine) for n, a in (("p", predicted), ("r", reference)))


def test_values_by_hand(pair: tuple[Path, Path]) -> None:
    row = evaluate_masks(*pair, {"liver": (1, 5)})["liver"]
    # 4 predicted, 5 reference, 3 common voxels of 20 mm3.
    assert row["dice"] == pytest.approx(6 / 9)
    assert row["iou"] == pytest.approx(3 / 6)
    assert row["predicted_ml"] == pytest.approx(0.08, rel=1e-5)
    assert row["reference_ml"] == pytest.approx(0.10, rel=1e-5)


def test_a_label_in_neither_has_no_value(pair: tuple[Path, Path]) -> None:
    assert evaluate_masks(*pair, {"spleen": (2, 1)})["spleen"]["dice"] is None


def test_another_grid_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    moved = write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 5, 6), np.uint8), oblique_affine())
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        evaluate_masks(moved, pair[1], {"liver": (1, 5)})


def test_labels_are_parsed() -> None:
    assert parse_labels("liver=1:5, gallbladder=2") == {"liver": (1, 5), "gallbladder": (2, 2)}
    for text in ("liver", "liver=", "=1", "liver=a", "liver=1:b"):
        with pytest.raises(ConfigError, match="expected NAME=VALUE"):
            parse_labels(text)


def test_command(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--prediction", str(pair[0]), "--reference", str(pair[1]), "--labels", "liver=1:5"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["liver"]["voxels_common"] == 3
    assert main(arguments) == 0
    assert "0.6667  0.5000" in capsys.readouterr().out
    assert main([*arguments[:-1], "liver"]) == 2
