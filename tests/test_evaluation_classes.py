"""Rates of classes, confusion, sides, training against test: by hand, against Ignite, and in the report."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import f_phantom, oblique_affine, write_nifti

from ctseg.cli import main
from ctseg.errors import InputError
from ctseg.evaluation.classplots import confusion_plot
from ctseg.evaluation.classrates import class_values, over_classes, rates, summarise_classes
from ctseg.evaluation.confusion import added, confusion_counts, side_confusion, summarise_confusion
from ctseg.evaluation.measuring import evaluate_folders, parse_labels
from ctseg.evaluation.pictures import error_states
from ctseg.evaluation.traininggap import read_training, training_gap
from ctseg.evaluation.types import Settings
from ctseg.files import write_beside

SHAPE = (12, 10, 6)
NAMES = ["a left", "a right", "b"]
LABELS = "a left=1:11,a right=2:12,b=3:13"


def test_the_rates_of_a_class_by_hand() -> None:
    assert rates({"tp": 5, "fp": 6, "fn": 4, "tn": 85}) == {"misclassification": 0.1, "fp_fn": 1.5}
    assert rates({"tp": 5, "fp": 6, "fn": 0, "tn": 89}) == {"misclassification": 0.06, "fp_fn": None}
    assert rates({"tp": 0, "fp": 0, "fn": 0, "tn": 100}) == {"misclassification": 0.0, "fp_fn": None}
    assert class_values({"tp": 5, "fp": 6, "fn": 4, "tn": 85})["iou"] == pytest.approx(5 / 15)
    assert class_values({"tp": 0, "fp": 0, "fn": 0, "tn": 9})["dice"] is None


def test_mean_and_population_variance_over_classes_by_hand() -> None:
    voxels = {
        "a": {"tp": 5, "fp": 6, "fn": 4, "tn": 85},  # 0.10, 1.5
        "b": {"tp": 5, "fp": 2, "fn": 4, "tn": 89},  # 0.06, 0.5
        "c": {"tp": 9, "fp": 2, "fn": 0, "tn": 89},  # 0.02, none
    }
    over = over_classes({name: class_values(row) for name, row in voxels.items()})
    assert over["misclassification"]["mean"] == pytest.approx(0.06)
    assert over["misclassification"]["variance"] == pytest.approx((0.04**2 + 0.04**2) / 3)
    assert over["fp_fn"] == {"mean": 1.0, "variance": 0.25, "n": 2, "without": ["c"]}
    cases = [{"labels": {name: {"voxels": row} for name, row in voxels.items()}}] * 2
    both = summarise_classes(cases, list(voxels))
    assert both["labels"]["a"]["fp_fn"] == 1.5 and both["iou"] == pytest.approx(19 / (19 + 10 + 8))
    assert over_classes({})["iou"] == {"mean": None, "variance": None, "n": 0, "without": []}


def maps() -> tuple[np.ndarray, np.ndarray]:
    """A reference with three classes, and a prediction with values of its own."""
    reference, predicted = np.zeros((2, *SHAPE), np.uint8)
    reference[1:4, 2:6, 1:4], reference[8:11, 2:6, 1:4], reference[5:7, 7:9, 2:5] = 11, 12, 13
    predicted[1:4, 2:6, 1:4], predicted[8:11, 2:6, 1:3], predicted[5:7, 6:8, 2:5] = 1, 2, 3
    predicted[1, 2:6, 1:4] = 2  # 12 voxels of a left taken for a right
    predicted[8, 2:4, 1] = 3
    predicted[0, 0, 0] = 7  # no class
    return predicted, reference


def test_the_confusion_matrix_is_that_of_ignite() -> None:
    from ignite.metrics.confusion_matrix import ConfusionMatrix, IoU

    predicted, reference = maps()
    counts = np.array(confusion_counts(predicted, reference, [(1, 11), (2, 12), (3, 13)]))
    # Ignite's classes: 0 the background, which is ours last
    own = np.vectorize({0: 0, 7: 0, 1: 1, 2: 2, 3: 3}.get)(predicted)
    other = np.vectorize({0: 0, 11: 1, 12: 2, 13: 3}.get)(reference)
    matrix = ConfusionMatrix(num_classes=4)
    overlap = IoU(matrix)
    logits = torch.nn.functional.one_hot(torch.from_numpy(own.ravel()), 4).float()
    matrix.update((logits, torch.from_numpy(other.ravel())))
    order = [3, 0, 1, 2]
    assert matrix.compute().numpy().tolist() == counts[np.ix_(order, order)].tolist()
    iou = overlap.compute().numpy()[1:]
    every = counts.sum()
    for number, name in enumerate(NAMES):
        tp = counts[number, number]
        fp, fn = counts[:, number].sum() - tp, counts[number].sum() - tp
        values = class_values({"tp": tp, "fp": fp, "fn": fn, "tn": every - tp - fp - fn})
        assert values["iou"] == pytest.approx(float(iou[number])), name
    assert confusion_counts(predicted, reference, [(1, 11), (1, 12)]) is None
    assert added([counts.tolist(), counts.tolist()]) == (2 * counts).tolist()
    assert added([counts.tolist(), None]) is None and added([]) is None


def test_sides_by_hand() -> None:
    predicted, reference = maps()
    counts = confusion_counts(predicted, reference, [(1, 11), (2, 12), (3, 13)])
    assert counts is not None
    sides = side_confusion(NAMES, counts)
    assert sides["classes"]["a left"] == {"voxels": 36, "as_twin": 12, "as_other_side": 12}
    assert sides["classes"]["a right"] == {"voxels": 36, "as_twin": 0, "as_other_side": 0}
    assert (sides["voxels"], sides["as_twin"], sides["as_other_side"]) == (72, 12, 12)
    assert side_confusion(["a", "b"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]) == {}
    # another region of the other side counts as the other side, not as the twin
    four = ["a left", "a right", "b left", "b right"]
    row = [[0, 3, 2, 5, 1], [0] * 5, [0] * 5, [0] * 5, [0] * 5]
    assert side_confusion(four, row)["classes"]["a left"] == {"voxels": 11, "as_twin": 3, "as_other_side": 8}
    summary = summarise_confusion([{"confusion": counts}], NAMES)
    assert summary is not None and summary["names"] == [*NAMES, "no label"]
    assert summarise_confusion([{}], NAMES) is None  # of an earlier version
    assert confusion_plot(summary["names"], counts) == confusion_plot(summary["names"], counts)


def test_errors_by_hand() -> None:
    predicted, reference = np.array([[[0, 1, 1, 0, 2, 9]]]), np.array([[[0, 11, 12, 11, 0, 8]]])
    assert error_states(predicted, reference, [(1, 11), (2, 12)]).ravel().tolist() == [0, 3, 4, 1, 2, 0]


def evaluation(patients: str, values: dict[str, list[float | None]]) -> dict[str, Any]:
    """A result of which only what the gap needs is there."""
    rows = zip(*values.values(), strict=True)
    cases = [
        {
            "case": p,
            "patient": p,
            "labels": {n: {"dice": v, "iou": v and v / 2} for n, v in zip(values, row, strict=True)},
        }
        for p, row in zip(patients, rows, strict=True)
    ]
    return {"schema": "ctseg-evaluation/1", "settings": {"labels": dict.fromkeys(values)}, "cases": cases}


def test_the_gap_by_hand(tmp_path: Path) -> None:
    training = evaluation("xyz", {"a": [0.9, 0.7, 0.8], "b": [0.6, None, 0.8], "c": [None] * 3})
    test = evaluation("pz", {"a": [0.5, 0.7], "b": [0.6, 0.6], "c": [0.2, 0.2], "d": [1.0, 1.0]})
    gap = training_gap(test, training)
    assert gap["labels"]["a"]["dice"] == pytest.approx(
        {"training": 0.8, "training_cases": 3, "test": 0.6, "test_cases": 2, "gap": 0.2}
    )
    assert gap["labels"]["b"]["dice"]["gap"] == pytest.approx(0.1) and gap["labels"]["c"]["dice"]["gap"] is None
    mean = gap["mean"]["dice"]
    assert mean["gap"] == pytest.approx(0.15) and (mean["largest_class"], mean["n"]) == ("a", 2)
    assert "1 patients are among the training cases and among these too (z)" in gap["notes"][0]
    assert gap["notes"][1].startswith("d: in only one")
    with pytest.raises(InputError, match="no class of this run"):
        training_gap(test, evaluation("x", {"e": [1.0]}))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match="evaluation of the training cases"):
        read_training(tmp_path / "no.json")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test cases beside the evaluation of two training cases, which serves as baseline of one of them too."""
    folder = tmp_path_factory.mktemp("classes")
    predicted, reference = maps()
    perfect = np.select([reference == 11, reference == 12, reference == 13], [1, 2, 3], 0).astype(np.uint8)
    affine = oblique_affine()
    for name in ("train/p", "train/r", "test/p", "test/r", "cts"):
        (folder / name).mkdir(parents=True)
    for split, cases in (("train", {"t1": perfect, "u": predicted}), ("test", {"u": perfect, "v": predicted})):
        for case, array in cases.items():
            write_nifti(folder / split / "p" / f"{case}.nii.gz", array, affine)
            write_nifti(folder / split / "r" / f"{case}.nii.gz", reference, affine)
    write_nifti(folder / "cts" / "v.nii.gz", f_phantom(SHAPE), affine)
    common = ["--labels", LABELS, "--resamples", "100"]

    def run(split: str, *more: str) -> int:
        pairs = ["--prediction", str(folder / split / "p"), "--reference", str(folder / split / "r")]
        return main(["evaluate", *pairs, *common, "-o", str(folder / f"out_{split}"), *more])

    found = evaluate_folders(
        folder / "train" / "p", folder / "train" / "r", Settings(parse_labels(LABELS), resamples=100)
    )
    earlier = str(folder / "out_train" / "evaluation.json")  # without its page of plots, which takes seconds
    write_beside(Path(earlier), json.dumps(found.results).encode())
    assert run("test", "--training", earlier, "--baseline", earlier, "--images", str(folder / "cts")) == 0
    assert run("train", "--training", earlier) == 2  # it would replace what it reads
    return folder / "out_test"


def test_the_report_has_classes_confusion_gap_and_a_page_for_each_case(report: Path) -> None:
    text = (report / "evaluation.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    for wanted in (
        "Classes",
        "Confusion",
        "Training against test cases",
        "Beside the baseline",
        "A page for each case",
    ):
        assert wanted in headings
    assert re.findall(r'<h3 class="sheet" id="([^"]*)">([^<]*)<', text) == [("case1", "Case u"), ("case2", "Case v")]
    assert 'href="#case2"' in text and "break-before: page" in text
    assert "Of 144 voxels of classes with a twin, 12 (8.33 %) are predicted as a class of the other side" in text
    assert "Left and right: 12 of 72 voxels" in text and "1 patients are among the training cases" in text
    assert "a left for a right, 16.7 % of its voxels" in text  # 12 of 72, pooled over both cases
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)  # nothing from outside
    assert text.count("Errors of case") == 2


def test_the_tables_and_the_json_of_classes(report: Path) -> None:
    results = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))
    classes = {row["class"]: row for row in csv.DictReader(io.StringIO((report / "classes.csv").read_text()))}
    # a right, both cases: 72 in the reference; v misses one slice of 12 and 2 more, and has 12 false ones
    assert results["classes"]["labels"]["a right"]["fp_fn"] == pytest.approx(12 / 14)
    assert float(classes["a right"]["fp_fn"]) == pytest.approx(12 / 14)
    assert float(classes["a right"]["misclassification"]) == pytest.approx(26 / (2 * 720))
    values = [float(classes[name]["misclassification"]) for name in NAMES]
    assert float(classes["mean over classes"]["misclassification"]) == pytest.approx(np.mean(values))
    assert float(classes["variance over classes"]["misclassification"]) == pytest.approx(np.var(values))
    assert float(classes["a left"]["fp_fn"]) == 0  # 12 missed, none false
    confusion = list(csv.reader(io.StringIO((report / "confusion.csv").read_text())))
    assert confusion[0] == ["reference", *NAMES, "no label"] and confusion[1] == ["a left", "60", "12", "0", "0"]
    case = {case["case"]: case for case in results["cases"]}["u"]
    assert case["labels"]["a left"]["fp_fn"] is None and case["labels"]["a left"]["misclassification"] == 0
    compared = results["comparison"]["classes"]  # u alone is in both: perfect now, v's errors before
    assert compared["now"]["misclassification"] == {"mean": 0, "variance": 0, "n": 3, "without": []}
    assert compared["before"]["fp_fn"]["n"] == 3 and compared["now"]["fp_fn"]["without"] == NAMES
    gap = results["training"]["labels"]["a left"]["iou"]
    assert gap["gap"] == pytest.approx(0) and gap["training"] == pytest.approx((1 + 24 / 36) / 2)
    rows = list(csv.DictReader(io.StringIO((report / "cases.csv").read_text())))
    assert {row["fp_fn"] for row in rows if row["case"] == "u"} == {""}
