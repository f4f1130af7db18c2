"""What curves say, worked by hand; the written report of a grid; the shares of several processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers_folds import EXPERIMENT

import ctseg.commands.experiments as command
import ctseg.experiments.share as share
from ctseg.cli import main
from ctseg.evaluation.triptychs import draw_triptych
from ctseg.experiments.files import find_experiments
from ctseg.experiments.findings import Run, at_the_end, axes_of, first_at, followed, overfitting, read_runs, speeds
from ctseg.experiments.report import write_reports
from ctseg.experiments.runs import Plan
from ctseg.experiments.share import Share
from ctseg.experiments.table import read_rows

MEASURE = "val_thresholded_iou_at_half"


def run_of(network: str, loss: str, values: list[float], losses: list[float], training: list[float]) -> Run:
    curves = {MEASURE: values, "val_loss": losses, "train_loss": training}
    numbered = {name: list(enumerate(column, start=1)) for name, column in curves.items()}
    return Run(f"t/{network}_{loss}", Path(), {"epochs": 4}, {"network": network, "loss": loss}, numbered)


def test_overfitting_by_hand() -> None:
    falling = [4.0, 3.0, 2.0, 1.0, 0.5]
    found = overfitting(run_of("a", "b", [0] * 5, [1.0, 0.5, 0.6, 0.7, 0.8], falling))
    assert found is not None and (found.epoch, found.last, found.overfits) == (2, 5, True)
    assert found.rise == pytest.approx((0.7 - 0.5) / 0.5), "the mean of the last three over the lowest"
    for losses, training in (
        ([1.0, 0.9, 0.8, 0.7, 0.6], falling),  # still falling
        ([1.0, 0.5, 0.51, 0.5, 0.51], falling),  # flat
        ([1.0, 0.5, 0.6, 0.7, 0.8], [1.0, 0.2, 0.5, 0.6, 0.7]),  # training got worse too: no overfitting
    ):
        found = overfitting(run_of("a", "b", [0] * 5, losses, training))
        assert found is not None and not found.overfits
    assert overfitting(Run("t/x", Path(), {}, {}, {})) is None


def grid() -> list[Run]:
    """Two networks by two losses. The levels are 0.9 * 0.8 = 0.72 and 0.9 * 0.5 = 0.45."""
    flat = [1.0] * 4
    return [
        run_of("segnet", "bce", [0.1, 0.75, 0.8, 0.8], flat, flat),
        run_of("segnet", "dice", [0.0, 0.1, 0.6, 0.73], flat, flat),
        run_of("unet", "bce", [0.46, 0.3, 0.2, 0.2], flat, flat),
        run_of("unet", "dice", [0.0, 0.1, 0.2, 0.5], flat, flat),
    ]


def test_which_learns_fastest_by_hand() -> None:
    runs = grid()
    assert followed(runs) == MEASURE and axes_of(runs) == ["network", "loss"]
    bce, dice = speeds(runs, MEASURE, "loss")
    assert (bce.value, dict(bce.epochs), bce.median) == ("bce", {"segnet": 2, "unet": 1}, 2)
    assert (dice.value, dict(dice.epochs), dice.median) == ("dice", {"segnet": 4, "unet": 4}, 4)
    assert first_at(runs[1], MEASURE, 0.74) is None
    ends = dict(at_the_end(runs, MEASURE, "loss"))
    assert ends["bce"] == pytest.approx(((0.75 + 0.8 + 0.8) / 3 + 0.7 / 3) / 2)
    assert ends["dice"] == pytest.approx((1.43 / 3 + 0.8 / 3) / 2)
    slow = [*runs, run_of("segnet", "focal", [0.0] * 4, [1.0] * 4, [1.0] * 4)]
    assert speeds(slow, MEASURE, "loss")[-1].median == math.inf
    assert speeds([slow[-1]], MEASURE, "loss") == [], "a group that learns nothing says nothing"
    assert followed([*runs, Run("t/x", Path(), {}, {}, {})]) is None
    dice = {MEASURE: [(1, 0.0)], "val_mean_dice": [(1, 0.2)]}
    assert followed([Run("t/x", Path(), {}, {}, dice)]) == "val_mean_dice", "the other is 0 in all"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four finished experiments of a grid as the runner leaves them, and one that failed."""
    files = tmp_path / "files"
    files.mkdir()
    about = {"about": "their 200 images", "findings": ["Dice per pixel learns slowest"]}
    (files / "reference.json").write_text(json.dumps(about))
    disc = np.hypot(*np.mgrid[-16:16, -16:16]) < 9
    for number, run in enumerate(grid()):
        folder = tmp_path / "out" / run.name
        report = folder / "evaluation"
        (report / "triptychs").mkdir(parents=True)
        theirs = {"thresholded_iou": 0.762, "thresholded_iou_test": 0.84} if not number else {}
        state = {
            "status": "finished", "theirs": theirs, "grid": run.grid, "file": str(files / "x.yaml"), "planned": 4,
            "own_epochs": 200, "bundle": "skin 0.1.0", "patients": {"train": 25, "validation": 5}, "reason": "",
            "evaluated": {"split": "validation", "epochs": 4},
            "settings": {"--data": "/somewhere/skin", "the datalist": "0123456789abcdef", "--set": {}},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(state))
        names = list(run.curves)
        lines = [",".join(["epoch", "seconds", *names])]
        lines += [",".join([str(n + 1), "60", *(str(run.curves[name][n][1]) for name in names)]) for n in range(4)]
        (folder / "history.csv").write_text("\n".join(lines) + "\n")
        means = {"dice": 0.9 - number / 10, "iou": 0.8 - number / 10, "pooled_iou": 0.81}
        means |= {"thresholded_iou": 0.6 + number / 10, "thresholded_iou_at_half": 0.7 - number / 10}
        for name, mean in means.items():
            (report / f"{name}.json").write_text(json.dumps({"mean": mean, "patients": 5}))
        cases = []
        for place, (case, dice) in enumerate((("a", 0.9), ("b", 0.5), ("c", 0.1))):
            picture = f"{place + 1:04d}.png"
            image = np.stack([disc * 200.0, disc * 90.0, disc * 40.0])
            drawn = draw_triptych(image, disc, np.roll(disc, 3 * place + number, 1), rows_first=True)
            (report / "triptychs" / picture).write_bytes(drawn)
            cases.append({"picture": picture, "case": case, "patient": case, "dice": dice})
        (report / "triptychs" / "triptychs.json").write_text(json.dumps({"cases": cases}))
    (tmp_path / "out" / "t" / "broken").mkdir()
    (tmp_path / "out" / "t" / "broken" / "run.json").write_text('{"status": "failed", "reason": "why"}')
    return tmp_path / "out"


def test_the_report_is_one_page(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run.short for run in read_runs(out)] == ["segnet, bce", "segnet, dice", "unet, bce", "unet, dice"]
    assert main(["experiments", "table", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in page and "src=" in page and page.count("data:image/png") >= 9
    for words in (
        "4 experiments over skin 0.1.0; network: segnet, unet; loss: bce, dice",
        "patients: 25 train, 5 validation", "16 minutes of training together", "4 epochs instead of 200",
        "their 200 images", "Dice per pixel learns slowest", "<td>0.762</td><td>0.700</td>", "−0.062",
        "best: segnet, bce, thresholded IoU at a logit of 0.5 0.800", "worst: unet, bce",
        "bce learns fastest, dice slowest", "no overfitting within 4 epochs", "Which loss learns fastest",
        "The best experiment: segnet, bce", "median case, Dice 0.500",
    ):  # fmt: skip
        assert words.replace("−", "-") in page.replace("−", "-"), words
    rows = {row["experiment"]: row for row in read_rows(out)}
    first, second = rows["t/segnet_bce"], rows["t/segnet_dice"]
    assert (first["metric"], first["theirs"], first["ours_their_way"]) == ("thresholded_iou", 0.762, 0.7)
    assert (second["ours_their_way"], second["thresholded_iou"]) == (0.81, 0.7), "nothing of theirs to compare with"


def test_without_a_finished_experiment_there_is_no_report(out: Path) -> None:
    for file in out.glob("t/*/run.json"):
        file.write_text('{"status": "failed", "reason": "why"}')
    assert write_reports(out) == [] and not (out / "report.html").exists()


def test_processes_share_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = list("abcdefg")
    shares = [Share(rank, 3).of(items) for rank in range(3)]
    assert sorted(item for part in shares for item in part) == items and len(shares[0]) == 3
    assert share.join() == Share(), "not started by torchrun"

    import torch.distributed as dist

    waits: list[str] = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: waits.append("init"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda: waits.append("barrier"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: waits.append("left"))
    monkeypatch.setattr(command, "write_tables", lambda out: waits.append("wrote"))
    taken: list[str] = []

    def run_experiments(experiments: list, plan: Plan, say: object) -> list:
        taken.extend(experiment.path.stem for experiment in experiments)
        return []

    monkeypatch.setattr("ctseg.experiments.runs.run_experiments", run_experiments)
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(EXPERIMENT)
    command.run_and_write(find_experiments([tmp_path]), Plan(tmp_path, tmp_path / "out"))
    assert taken == ["three"], "one, three, two by name: the second process takes every second"
    assert waits == ["init", "barrier", "barrier", "left"], "the first process writes, between the two barriers"
