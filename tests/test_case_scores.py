"""A bundle's evaluate.json gives what `ctseg evaluate` gives for folders: every metric, every way of summing up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import straight_affine, write_nifti
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from ctseg.building import build_bundle
from ctseg.errors import InputError, OutputError
from ctseg.evaluation.case_scores import CaseScores
from ctseg.ledger import Ledger
from ctseg.registry import get_bundle

ORGANS = {"block": 1, "bar": 2}


def reference(number: int) -> np.ndarray:
    label = np.zeros((20, 24, 8), np.uint8)
    label[4:14, 4 : 14 + number, 2:6], label[16:19, 4:20, 3:5] = 1, 2
    return label


def prediction(number: int) -> np.ndarray:
    """One column of the block is missed, and the bar is missed in case 2."""
    label = reference(number)
    label[4] = 0
    if number == 2:
        label[label == 2] = 0
    return label


def pair(number: int) -> tuple[MetaTensor, MetaTensor]:
    meta = {"patient": f"p{number}", "filename_or_obj": f"case_{number}.nii.gz"}
    one, other = (
        MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(straight_affine()), meta=dict(meta))
        for array in (prediction(number), reference(number))
    )
    return one, other


def scored(folder: Path, **options: Any) -> dict[str, Any]:
    metric = CaseScores(list(ORGANS), save_to=folder, **options)
    metric.update([pair(number) for number in range(3)])
    metric.compute()
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_every_metric_of_the_issue_is_there_in_every_way_of_summing_up(tmp_path: Path) -> None:
    summary = scored(tmp_path)["summary"]
    overlaps = {"dice", "iou", "precision", "recall", "f_beta", "accuracy", "specificity"}
    surfaces = {"nsd", "hd95_mm", "hd_mm"}
    for organ in ORGANS:
        assert set(summary["labels"][organ]["macro"]) == overlaps | surfaces
        assert set(summary["labels"][organ]["micro"]) == overlaps
        assert {"low", "high", "n", "patients"} <= set(summary["labels"][organ]["macro"]["dice"])
    assert set(summary["overall"]["macro"]) == overlaps | surfaces
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert len(rows) == 6 and overlaps | surfaces <= set(rows[0])
    assert overlaps <= set(next(csv.DictReader((tmp_path / "slices.csv").read_text().splitlines())))
    page = (tmp_path / "evaluation.html").read_text()
    assert "http://" not in page and "https://" not in page


def test_values_by_hand(tmp_path: Path) -> None:
    cases = scored(tmp_path, beta=2.0)["cases"]
    block = cases[1]["labels"]["block"]  # 10 x 11 x 4 voxels, 9 of 10 columns found
    tp, fn, n = 9 * 11 * 4, 11 * 4, 20 * 24 * 8
    assert block["dice"] == pytest.approx(2 * tp / (2 * tp + fn))
    assert block["iou"] == pytest.approx(tp / (tp + fn))
    assert (block["precision"], block["recall"]) == (1.0, pytest.approx(0.9))
    assert block["f_beta"] == pytest.approx(5 * tp / (5 * tp + 4 * fn))
    assert block["accuracy"] == pytest.approx((n - fn) / n) and block["specificity"] == 1.0
    assert block["hd_mm"] == pytest.approx(1.0)  # one column of 1 mm
    missed = cases[2]["labels"]["bar"]
    assert missed["found"] == "reference only"
    assert (missed["dice"], missed["nsd"], missed["recall"]) == (0.0, 0.0, 0.0)
    assert missed["precision"] is None and missed["hd95_mm"] is None


def test_beside_a_baseline(tmp_path: Path) -> None:
    scored(tmp_path / "old")
    baseline = tmp_path / "old" / "evaluation.json"
    now = scored(tmp_path / "new", baseline=baseline)
    assert now["comparison"]["labels"]["block"]["mean"]["dice"]["value"] == 0.0
    assert "Beside the baseline" in (tmp_path / "new" / "evaluation.html").read_text()
    with pytest.raises(OutputError, match="would be replaced by this run"):
        CaseScores(list(ORGANS), save_to=tmp_path / "old", baseline=baseline)
    with pytest.raises(InputError, match="cannot be read"):
        CaseScores(list(ORGANS), baseline=tmp_path / "none.json")


def test_a_bundles_evaluation_writes_the_report(root: Path, tmp_path: Path) -> None:
    """A network that only thresholds finds block and bar by their HU; the report says so, case by case."""
    bundle = tmp_path / "bundle"
    for name, text in build_bundle(root / "tests" / "tasks" / "phantom_volume.yaml", root / "configs" / "base").items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(text)
    data = tmp_path / "data"
    data.mkdir()
    cases = []
    for number in range(2):
        label = reference(number)
        write_nifti(data / f"i{number}.nii.gz", np.where(label > 0, 200, -900).astype(np.int16), straight_affine())
        write_nifti(data / f"l{number}.nii.gz", label, straight_affine())
        names = {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz"}
        cases.append({"case_id": f"c{number}", "patient": f"p{number}", **names})
    (data / "datalist.json").write_text(json.dumps({"mask_values": {"1": "block"}, "cases": cases}))
    Ledger(data / "split.csv").assign({"p0": "test", "p1": "test"})
    info = get_bundle(bundle)
    configs = [str(info.path / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    steps = json.loads(Path(configs[0]).read_text())["validate"]["preprocessing"]["transforms"]
    (place,) = (n for n, step in enumerate(steps) if step["_target_"].endswith("LoadLabeld"))
    overrides: dict[str, Any] = {
        "network_def": {"_target_": "ctseg.thresholding.Threshold", "lower": 0.5, "upper": None},
        "labels": ["block"], "thresholds": {"block": None}, "patch": [16, 16, 8], "spacing": [1.0, 1.25, 2.5],
        "validate#postprocessing#transforms#0#codes": [1], "train#preprocessing": None, "train": None,
        f"validate#preprocessing#transforms#{place}#labels": ["block"], "optimizer": None, "lr_scheduler": None,
        "loss": None,
        "checkpoint_items": None,
        "validate#handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    }  # fmt: skip
    flow = ConfigWorkflow(
        config_file=configs, workflow_type="train", logging_file=False, dataset_dir=str(data), split="test",
        report_dir=str(tmp_path / "report"), device="cpu", num_workers=0, **overrides,
    )  # fmt: skip
    flow.run()
    results = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert [(case["case"], case["patient"]) for case in results["cases"]] == [("l0", "p0"), ("l1", "p1")]
    block = results["cases"][1]["labels"]["block"]
    found, drawn = 10 * 11 * 4 + 3 * 16 * 2, 10 * 11 * 4  # the bar is found too, and is no block
    assert block["dice"] == pytest.approx(2 * drawn / (found + drawn))
    names = {"evaluation.html", "evaluation.json", "cases.csv", "summary.csv", "slices.csv", "dice.json", "iou.json"}
    names |= {"pooled_iou.json", "image_iou.json", "classes.csv", "confusion.csv"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    assert not (data / "prepared").exists() and not (Path("runs") / info.name).exists()
