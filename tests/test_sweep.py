"""`ctseg sweep`: the experiments that it makes, and what it draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_folds import EXPERIMENT, block_slices

import ctseg.experiments.plots as plots
import ctseg.experiments.runs as runs
from ctseg.cli import main
from ctseg.commands.sweep import write_experiments
from ctseg.errors import ConfigError


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The processes' settings; each "trains" to a Dice of alpha * (1.2 - alpha)."""
    told: list[dict] = []

    def call(command: list[str], folder: Path, log: object, begin: int, say: object) -> int:
        files = json.loads(command[-1].partition("=")[2].replace("'", '"'))
        import yaml

        content = yaml.safe_load(Path(files[1]).read_text())
        told.append(content)
        alpha = float(content["loss"]["alpha"])
        (folder / "model.pt").touch()
        (folder / "history.csv").write_text(f"epoch,seconds,val_loss,val_mean_dice\n1,1.5,1.0,{alpha}\n")
        (folder / "evaluation").mkdir(exist_ok=True)
        report = {"mean": alpha * (1.2 - alpha), "patients": 1}
        (folder / "evaluation" / "dice.json").write_text(json.dumps(report))
        return 0

    monkeypatch.setattr(runs, "_followed", call)
    return told


@pytest.mark.parametrize("second", [[], ["--value", "optimizer#lr=0.001,0.01"]])
def test_each_combination_is_an_experiment(
    tmp_path: Path, finished: list[dict], second: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = block_slices(tmp_path / "data", 3)
    (tmp_path / "base.yaml").write_text(EXPERIMENT.replace("name: dice", "name: tversky"))
    drawn: list[tuple] = []
    line, matrix = plots.line, plots.matrix
    monkeypatch.setattr(plots, "line", lambda *given: drawn.append(given) or line(*given))
    monkeypatch.setattr(plots, "matrix", lambda *given: drawn.append(given) or matrix(*given))
    command = ["sweep", str(tmp_path / "base.yaml"), "--value", "loss#alpha=0.2,0.5,0.8", *second, "--device", "cpu"]
    command += ["--data", str(data), "--out", str(tmp_path / "out"), "--set", "loss#beta=$1 - @loss#alpha"]
    assert main(command) == 0
    assert "sweep.png" in capsys.readouterr().out and (tmp_path / "out" / "sweep.png").is_file()
    told = {(content["loss"]["alpha"], content["optimizer"]["lr"]) for content in finished}
    assert told == {(alpha, lr) for alpha in (0.2, 0.5, 0.8) for lr in ((0.001, 0.01) if second else (0.02,))}
    if second:
        values, rows, columns, words = next(given for given in drawn if given[3][0] == "alpha")
        assert (rows, columns) == (["0.2", "0.5", "0.8"], ["0.001", "0.01"])
        assert values["0.5", "0.01"] == pytest.approx(0.35) and words[:2] == ("alpha", "lr")
    else:
        points, words = drawn[-1]
        assert sorted(points) == [(0.2, pytest.approx(0.2)), (0.5, pytest.approx(0.35)), (0.8, pytest.approx(0.32))]
        assert words == ("alpha", "Dice by patient")
    begun = len(finished)
    assert main(command) == 0 and len(finished) == begun, "what is finished is not run again"


def test_places_that_the_file_does_not_write_out(tmp_path: Path) -> None:
    base = {"experiment": {"task": "liver_ct"}, "loss": {"name": "tversky"}}
    values = {"loss#alpha": [0.1, 0.9], "optimizer#lr": [1, 2]}
    first, *_, last = write_experiments(base, values, tmp_path)
    assert first.content["loss"] == {"name": "tversky", "alpha": 0.1} and first.content["optimizer#lr"] == 1
    assert last.grid == {"alpha": "0.9", "lr": "2"} and last.path.name == "alpha_0.9_lr_2.yaml"
    same = write_experiments(base, {"a#lr": [1, 2], "b#lr": [1, 2]}, tmp_path / "two")[0]
    assert same.grid == {"a lr": "1", "b lr": "1"}
    with pytest.raises(ConfigError, match="one or two settings, and 3"):
        write_experiments(base, {"a": [1, 2], "b": [1, 2], "c": [1, 2]}, tmp_path)


def test_values_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("loss#alpha", "loss#alpha=0.5", "loss#alpha=0.5,0.5"):
        with pytest.raises(SystemExit):
            main(["sweep", "liver_ct_segmentation", "--value", text, "--data", str(tmp_path), "--out", str(tmp_path)])
        assert "expected PLACE=" in capsys.readouterr().err
