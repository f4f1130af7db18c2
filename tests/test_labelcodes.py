"""Codes of organs: presets as their makers publish them, a user's own file, and masks written with them."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_prediction import FakePrediction, FakePredictor, make_labels, make_volume

from ctseg.cli import main
from ctseg.errors import ConfigError
from ctseg.labelcodes import codes_for, presets, read_codes, recoded
from ctseg.registry import get_bundle


def test_the_bundles_own_codes_come_first_and_the_presets_after() -> None:
    assert presets()[0] == "bundle"
    assert {"planning2022", "totalsegmentator"} <= set(presets())


def test_totalsegmentator_has_its_117_structures_under_their_numbers() -> None:
    codes = read_codes("totalsegmentator")
    assert sorted(codes.values()) == list(range(1, 118))
    # spot checks over the whole table, from TotalSegmentator's README
    known = {
        "spleen": 1, "kidney_right": 2, "gallbladder": 4, "liver": 5, "lung_upper_lobe_left": 10, "colon": 20,
        "sacrum": 25, "vertebrae_C1": 50, "heart": 51, "portal_vein_and_splenic_vein": 64, "hip_right": 78,
        "iliopsoas_right": 89, "skull": 91, "rib_left_1": 92, "rib_left_12": 103, "rib_right_12": 115,
        "sternum": 116, "costal_cartilages": 117,
    }  # fmt: skip
    assert {name: codes[name] for name in known} == known


def test_the_planning_systems_codes() -> None:
    assert read_codes("planning2022") == {"gallbladder": 34, "liver": 36}


def test_names_are_found_whatever_their_capitals_and_spaces() -> None:
    labels = {"Vertebrae L5": 7, "kidney-right": 1}
    assert codes_for(labels, "totalsegmentator") == {"Vertebrae L5": 27, "kidney-right": 2}
    assert codes_for(labels) == labels


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"liver": 200, "spleen": 3}')
    assert codes_for({"liver": 1}, tmp_path / "mine.json") == {"liver": 200}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("{}", "name no organ"),
        ("[1]", "name no organ"),
        ('{"liver": 0}', "liver has the code 0 .* expected a whole number from 1 to 255"),
        ('{"liver": 256}', "liver has the code 256"),
        ('{"liver": true}', "liver has the code True"),
        ('{"liver": 3, "spleen": 3}', "liver and spleen both have the code 3"),
        ('{"spleen": 3}', "have none for liver"),
    ],
)
def test_a_file_that_cannot_work_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        codes_for({"liver": 1}, tmp_path / "mine.json")


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bundle, planning2022, totalsegmentator"):
        codes_for({"liver": 1}, "totalseg")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_codes(tmp_path / "none.json")


def test_recoding_exchanges_values_at_once(tmp_path: Path) -> None:
    """Values 1 and 3 change places: done one after the other, one organ would swallow the other."""
    labels = make_labels()
    labels[0, 0, 0] = 3
    prediction = FakePrediction(make_volume(), labels, get_bundle(make_bundle(tmp_path)))
    assert prediction.labels == {"liver": 1, "spleen": 3}
    done = recoded(prediction, {"liver": 3, "spleen": 1})
    assert done.labels == {"liver": 3, "spleen": 1}
    assert done.label_map.dtype == np.uint8
    assert np.array_equal(done.label_map == 3, labels == 1)
    assert np.array_equal(done.label_map == 1, labels == 3)
    assert recoded(prediction, prediction.labels) is prediction


def test_segment_writes_the_mask_and_the_report_with_the_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundles")
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: tmp_path / "bundles")
    module = types.ModuleType("ctseg.prediction")
    module.Predictor = FakePredictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctseg.prediction", module)
    monkeypatch.setattr(FakePredictor, "result", None)
    (tmp_path / "ct.nii.gz").write_bytes(b"not read")
    run = ["segment", str(tmp_path / "ct.nii.gz"), "--output", "nifti,json", "--codes"]

    assert main([*run, "totalsegmentator", "-o", str(tmp_path / "out")]) == 0
    mask = np.asarray(nibabel.load(tmp_path / "out" / "mask.nii.gz").dataobj)
    assert np.array_equal(mask == 5, make_labels() == 1) and set(np.unique(mask)) == {0, 5}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {organ["name"]: organ["code"] for organ in report["organs"]} == {"liver": 5, "spleen": 1}

    capsys.readouterr()
    assert main([*run, "planning2022", "-o", str(tmp_path / "other")]) == 2  # it has no spleen
    assert "have none for spleen" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
