"""`ctseg experiments`: run for real on tiny slices, killed and gone on with, and the table that compares."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ctseg.experiments.runs as runs
from ctseg.cli import main
from ctseg.errors import BundleError, ConfigError
from ctseg.experiments.files import bundle_of, find_experiments, scaled_stages
from ctseg.experiments.runs import Plan, read_state, run_experiments
from ctseg.experiments.table import as_markdown, read_rows, row_of, write_table
from ctseg.history import read_history
from ctseg.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENT = """
experiment: {{task: {task}, theirs: {{iou: 0.9}}}}
window: [0, 255]
patch: [32, 32]
network_def: {{_target_: monai.networks.nets.BasicUNet, spatial_dims: 2, out_channels: 1, features: [4, 4, 4, 4, 8, 4]}}
loss: {{_target_: ctseg.losses.make_loss, name: {loss}}}
epochs: 30
batch_size: 2
val_interval: 1
monitor: val_pooled_iou
"""


def write_experiment(folder: Path, name: str, task: str = "liver_ct", loss: str = "bce", more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EXPERIMENT.format(task=task, loss=loss) + more)
    return path


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Six patients of two PNG slices: a bright block on the first, nothing on the second."""
    folder = tmp_path / "data"
    folder.mkdir()
    cases = []
    rng = np.random.default_rng(1)
    for number in range(12):
        label = np.zeros((32, 32), np.uint8)
        if number % 2 == 0:
            label[8 : 24 - number, 6:20] = 255
        image = np.where(label > 0, 200, 40) + rng.integers(0, 20, label.shape)
        names = {"image": f"image_{number}.png", "label": f"label_{number}.png"}
        Image.fromarray(image.astype(np.uint8)).save(folder / names["image"])
        Image.fromarray(label).save(folder / names["label"])
        cases.append({"case_id": f"p{number // 2}_{number}", "patient": f"p{number // 2}", **names})
    content = {"mask_values": {"255": "liver"}, "slice_spacing": [1.5, 1.5, 5.0], "cases": cases}
    (folder / "datalist.json").write_text(json.dumps(content))
    split = ["train"] * 3 + ["validation"] * 2 + ["test"]
    Ledger(folder / "split.csv").assign({f"p{number}": where for number, where in enumerate(split)})
    return folder


def epochs_of(path: Path) -> list[int]:
    return [int(row["epoch"]) for row in csv.DictReader(path.read_text().splitlines())]


def test_killed_gone_on_with_and_compared(
    slices: Path, tmp_path: Path, clean_environment: dict[str, str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    files, out = tmp_path / "experiments", tmp_path / "runs"
    write_experiment(files, "good")
    write_experiment(files, "broken", loss="dise")
    write_experiment(files, "nowhere", task="spleen_ct")
    command = ["experiments", "run", str(files), "--data", str(slices), "--out", str(out), "--device", "cpu"]
    command += ["--epochs", "8", "--set", "num_workers=0"]

    good = out / "liver_ct" / "good"
    runner = subprocess.Popen(
        [sys.executable, "-m", "ctseg", *command, "--only", "good"], env=clean_environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        begun = time.monotonic()
        while not list(good.glob("checkpoint_epoch=*.pt")) and runner.poll() is None:
            assert time.monotonic() - begun < 240, "no epoch in four minutes"
            time.sleep(0.05)
    finally:
        os.killpg(runner.pid, signal.SIGKILL)
    _, said = runner.communicate()
    assert runner.returncode == -signal.SIGKILL, said
    before = read_state(good)
    assert before["status"] == "interrupted" and "evaluated" not in before
    (checkpoint,) = good.glob("checkpoint_epoch=*.pt")
    reached = read_history(checkpoint).rows
    assert 1 <= len(reached) < 8

    for name, value in clean_environment.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 2, "two of the three cannot succeed"
    said = capsys.readouterr().err
    assert "2 of 3 experiments failed" in said and "liver_ct/broken, spleen_ct/nowhere" in said
    history = read_history(good / "checkpoint_epoch=8.pt")
    assert history.rows[: len(reached)] == reached, "the epochs before the kill stay as they were"
    assert epochs_of(good / "history.csv") == list(range(1, 9))
    assert [int(epoch) for epoch in re.findall(r"    epoch (\d+) ", said)] == list(range(len(reached) + 1, 9))
    assert history.configuration["experiment::theirs::iou"] == 0.9
    assert (history.configuration["epochs"], history.configuration["train::trainer::max_epochs"]) == (8, 8)

    rows = {row["experiment"]: row for row in read_rows(out)}
    pooled, iou, dice = (
        json.loads((good / "evaluation" / f"{n}.json").read_text()) for n in ("pooled_iou", "iou", "dice")
    )
    done = rows["liver_ct/good"]
    assert (done["status"], done["epochs"], done["planned"], done["split"]) == ("finished", 8, 8, "validation")
    assert (done["theirs"], done["ours_their_way"]) == (0.9, pooled["mean"])
    assert (done["ours_patient_iou"], done["ours_patient_dice"]) == (iou["mean"], dice["mean"])
    assert (done["patients"], done["training_patients"], done["slices"]) == (2, 3, 2)
    assert set(dice["values"]) == {"p3", "p4"}, "no test patient was looked at"
    assert done["changed"] == "8 epochs instead of 30", "num_workers changes no result"
    assert done["seconds"] == pytest.approx(history.seconds, abs=0.1)
    broken, nowhere = rows["liver_ct/broken"], rows["spleen_ct/nowhere"]
    assert broken["status"] == nowhere["status"] == "failed"
    assert broken["reason"].startswith("training: The loss 'dise' is not known: expected one of bce")
    assert nowhere["reason"].startswith("there is no bundle for the task spleen_ct; the known tasks are: ")
    assert broken["ours_their_way"] is None and broken["theirs"] == 0.9

    log = (good / "log.txt").read_bytes()
    assert main([*command, "--only", "good"]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert (good / "log.txt").read_bytes() == log


class Processes:
    """Stands in for the processes: notes what they were told, and writes what they would write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.code = 0
        monkeypatch.setattr(runs, "_followed", self)

    def __call__(self, command: Sequence[str], folder: Path, log: Any, begin: int, say: Any) -> int:
        files = json.loads(command[-1].partition("=")[2].replace("'", '"'))
        settings = json.loads(Path(files[-1]).read_text())
        self.told.append((Path(files[-1]).stem, settings))
        if self.code:
            log.write("Traceback (most recent call last):\nValueError: the cat sat on it\n")
            log.flush()
            return self.code
        (folder / "model.pt").touch()
        (folder / "history.csv").write_text(f"epoch,seconds\n{settings.get('epochs', 9)},1.5\n")
        return 0

    @property
    def steps(self) -> list[str]:
        told, self.told = [what for what, _ in self.told], []
        return told


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    return Processes(monkeypatch)


def run(slices: Path, out: Path, file: Path, **options: Any) -> dict[str, Any]:
    (state,) = run_experiments(find_experiments([file]), Plan(slices, out, **options), lambda text: None)
    return state


def test_what_is_done_is_not_done_again(slices: Path, tmp_path: Path, processes: Processes) -> None:
    file, out = write_experiment(tmp_path, "one"), tmp_path / "runs"
    assert run(slices, out, file)["status"] == "finished"
    assert (processes.told[0][1]["epochs"], processes.told[0][1]["resume"]) == (30, True)
    assert processes.told[1][1]["split"] == "validation" and "device" not in processes.told[0][1]
    assert processes.steps == ["training", "evaluation"]
    assert run(slices, out, file)["status"] == "finished" and processes.steps == []
    assert run(slices, out, file, split="test")["status"] == "finished" and processes.steps == ["evaluation"]
    assert run(slices, out, file, epochs=40)["planned"] == 40 and processes.steps == ["training", "evaluation"]
    fewer = run(slices, out, file, epochs=10)
    assert fewer["status"] == "failed" and "trained for 40 epochs already, more than 10" in fewer["reason"]
    assert processes.steps == []


def test_other_settings_do_not_go_on_with_what_is_there(slices: Path, tmp_path: Path, processes: Processes) -> None:
    file, out = write_experiment(tmp_path, "one"), tmp_path / "runs"
    run(slices, out, file)
    processes.steps  # noqa: B018
    refused = run(slices, out, file, overrides={"batch_size": 7})
    assert refused["status"] == "failed" and "begun with another state of --set;" in refused["reason"]
    write_experiment(tmp_path, "one", loss="focal")
    assert "another state of the experiment's file;" in run(slices, out, file)["reason"]
    assert processes.steps == []
    assert row_of(out / "liver_ct" / "one")["ours_their_way"] is None
    write_experiment(tmp_path, "one")
    assert run(slices, out, file)["status"] == "finished" and processes.steps == []


def test_a_process_that_fails_is_named_with_its_last_words(slices: Path, tmp_path: Path, processes: Processes) -> None:
    file, out = write_experiment(tmp_path, "one"), tmp_path / "runs"
    processes.code = 1
    assert run(slices, out, file)["reason"].startswith("training: ValueError: the cat sat on it (see ")
    processes.code = -9
    assert "ended from outside by SIGKILL" in run(slices, out, file)["reason"]
    processes.code = 0
    assert run(slices, out, file)["status"] == "finished"


def test_a_second_runner_is_kept_away(slices: Path, tmp_path: Path, processes: Processes) -> None:
    file, out = write_experiment(tmp_path, "one"), tmp_path / "runs"
    folder = out / "liver_ct" / "one"
    folder.mkdir(parents=True)
    with runs._locked(folder) as mine:
        assert mine
        state = run(slices, out, file)
    assert state["status"] == "failed" and "another process is running it" in state["reason"]
    assert read_state(folder) == {} and processes.steps == []


def test_stages_follow_the_epochs(slices: Path, tmp_path: Path, processes: Processes) -> None:
    stages = [{"epochs": 36, "size": [256, 256]}, {"epochs": 6, "lr": 1e-4}, {"epochs": 6}]
    assert [stage["epochs"] for stage in scaled_stages(stages, 48)] == [36, 6, 6]
    assert [stage["epochs"] for stage in scaled_stages(stages, 8)] == [6, 1, 1]
    assert [stage["epochs"] for stage in scaled_stages(stages, 3)] == [1, 1, 1]
    assert scaled_stages(stages, 4)[1] == {"epochs": 1, "lr": 1e-4}
    assert all(sum(stage["epochs"] for stage in scaled_stages(stages, n)) == n for n in range(3, 60))
    file = write_experiment(tmp_path, "one", more="stages: [{epochs: 20}, {epochs: 10}]\n")
    run(slices, tmp_path / "runs", file, epochs=3)
    assert [stage["epochs"] for stage in processes.told[0][1]["stages"]] == [2, 1]
    assert "stages" not in processes.told[1][1]
    too_few = run(slices, tmp_path / "other", file, epochs=1)
    assert too_few["reason"] == "the experiment has 2 stages of image size; give it at least so many --epochs"


def test_all_24_are_found_and_each_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        ROOT / "configs" / "experiments" / f"{organ}_ct{kind}"
        for organ in ("liver", "gallbladder")
        for kind in ("", "_presence")
    ]
    assert len(find_experiments(folders)) == 24
    assert main(["experiments", "list", str(ROOT / "configs" / "experiments"), "--only", "liver_ct/*"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("over liver_ct_segmentation") == 5
    assert "liver_ct/unet_vgg19_focal\n    theirs: iou 0.8237; over" in listed
    (one,) = find_experiments([ROOT / "configs" / "experiments"], ["liver_ct/unet_resnet18*"])
    assert bundle_of(one).name == "liver_ct_segmentation"
    with pytest.raises(BundleError, match="there is no bundle for the task liver_ct; the known tasks are: none"):
        bundle_of(one, ROOT / "docs")


def test_what_is_no_experiment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_experiment(tmp_path / "a", "one")
    write_experiment(tmp_path / "b", "one")
    (tmp_path / "no.yaml").write_text("epochs: 3")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "up.yaml").write_text("experiment: {task: ../../x}")
    for paths, only, said in (
        ([tmp_path / "a", tmp_path / "b"], [], "two experiments have the name liver_ct/one"),
        ([tmp_path / "no.yaml"], [], "is no experiment"),
        ([tmp_path / "bad.yaml"], [], "cannot be read"),
        ([tmp_path / "up.yaml"], [], "names the task '../../x'"),
        ([tmp_path / "c"], [], "there is no experiment"),
        ([tmp_path / "a"], ["spleen"], "those found are: liver_ct/one"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            find_experiments(paths, only)
    assert main(["experiments", "table", str(tmp_path / "a")]) == 2
    assert "there are no experiments in" in capsys.readouterr().err
    data = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["experiments", "run", str(tmp_path / "a"), *data]) == 2
    assert "No datalist can be read" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["experiments", "run", str(tmp_path / "a"), *data, "--set", "epochs=3"]) == 2
    assert "--set cannot change epochs, which the runner sets itself" in capsys.readouterr().err


def finished(out: Path, name: str, theirs: dict[str, float], **reports: Any) -> None:
    folder = out / name
    (folder / "evaluation").mkdir(parents=True)
    state = {
        "status": "finished", "theirs": theirs, "planned": 3, "bundle": "b 0.1.0", "patients": {"train": 7},
        "evaluated": {"split": "validation", "epochs": 3}, "reason": "",
        "settings": {"--data": "/somewhere/liver", "the datalist": "0123456789abcdef", "--set": {"loss#name": "dice"}},
    }  # fmt: skip
    state |= {"own_epochs": 3}
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "history.csv").write_text("epoch,seconds,train_loss\n1,2.0,1\n2,2.5,1\n3,2.5,\n")
    for report, content in reports.items():
        (folder / "evaluation" / f"{report}.json").write_text(json.dumps(content))


def test_the_table_puts_their_figure_beside_ours(tmp_path: Path) -> None:
    finished(
        tmp_path, "liver_ct/x", {"iou": 0.9707},
        pooled_iou={"mean": 0.95, "counts": {"liver": {"slices": 321}}},
        iou={"mean": 0.9}, dice={"mean": 0.94, "patients": 15},
    )  # fmt: skip
    patients = {"liver": {"a": {"f1": 0.5}, "b": {"f1": 1.0}, "c": {"f1": None}}}
    presence = {"f1": 0.91, "recall": 0.97, "precision": 0.86, "support": 40, "patients": 9}
    finished(
        tmp_path,
        "liver_ct_presence/y",
        {"recall": 0.9803, "f1": 0.9405},
        presence={"labels": {"liver": presence}, "patients": patients},
    )
    (tmp_path / "liver_ct" / "z").mkdir()
    (tmp_path / "liver_ct" / "z" / "run.json").write_text(
        '{"status": "failed", "reason": "a | b", "theirs": {"iou": 0.8}}'
    )
    assert [path.name for path in write_table(tmp_path)] == [
        "comparison.csv", "comparison.json", "comparison.md", "comparison.html",
    ]  # fmt: skip
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as stream:
        x, z, y = csv.DictReader(stream)
    assert (x["theirs"], x["ours_their_way"], x["ours_patient_iou"], x["ours_patient_dice"]) == (
        "0.9707", "0.95", "0.9", "0.94",
    )  # fmt: skip
    assert (x["slices"], x["patients"], x["training_patients"], x["epochs"], x["seconds"]) == (
        "321",
        "15",
        "7",
        "3",
        "7.0",
    )
    assert x["changed"] == 'loss#name="dice"'
    assert x["data"] == "liver, datalist 01234567"
    assert (y["metric"], y["theirs"], y["theirs_recall"]) == ("f1", "0.9405", "0.9803")
    assert (y["ours_their_way"], y["ours_recall"], y["ours_precision"], y["patients"]) == ("0.91", "0.97", "0.86", "9")
    assert y["ours_patient_f1"] == "0.75" and x["ours_patient_f1"] == ""
    assert (z["status"], z["reason"], z["ours_their_way"]) == ("failed", "a | b", "")
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| 0.9707 | 0.9500 | 321 | 0.9000 | 0.9400 | – | 15 | 7 | validation |" in markdown
    assert "| 0.9405 (recall 0.9803) | 0.9100 (recall 0.9700; precision 0.8600) |" in markdown
    assert "a / b" in markdown
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "0.9707" in html and "http" not in html.replace("http-equiv", "")
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["rows"][0]["ours_their_way"] == 0.95
    assert as_markdown(read_rows(tmp_path)) == markdown
