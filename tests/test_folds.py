"""`ctseg folds`: nobody is trained on who is held out, folds never change, and what they come to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_folds import EXPERIMENT, InProcess, block_slices
from PIL import Image
from torch import nn

from ctseg.api import segment_volume
from ctseg.cli import main
from ctseg.datalist import cases_of
from ctseg.errors import BundleError, ConfigError, InputError, LedgerError
from ctseg.evaluation.triptychs import chosen_cases, draw_triptych, read_triptychs
from ctseg.folds.dealing import Fold, draw_folds, folds_of, patients_for_folds, read_folds_file, write_fold_data
from ctseg.folds.ensemblebundle import write_ensemble
from ctseg.folds.ensembles import MeanOfNetworks
from ctseg.folds.summary import draw_summary, summarise
from ctseg.ledger import Ledger
from ctseg.registry import get_bundle

PATIENTS = [f"p{number}" for number in range(11)]


@pytest.mark.parametrize(("k", "choosers"), [(3, "inner"), (11, "inner"), (2, "held-out"), (5, "held-out")])
def test_each_patient_is_held_out_once_and_never_trained_on_there(k: int, choosers: str) -> None:
    folds = draw_folds(PATIENTS, k, 4, choosers)
    assert sorted(patient for fold in folds for patient in fold.held_out) == sorted(PATIENTS)
    assert max(len(fold.held_out) for fold in folds) - min(len(fold.held_out) for fold in folds) <= 1
    for fold in folds:
        assert not set(fold.training) & {*fold.held_out, *fold.choosing}
        assert {*fold.training, *fold.choosing, *fold.held_out} == set(PATIENTS)
        assert (fold.choosing == fold.held_out) == (choosers == "held-out")
    assert draw_folds(list(reversed(PATIENTS)) * 2, k, 4, choosers) == folds, (
        "the order of the patients does not matter"
    )
    assert draw_folds(PATIENTS, k, 5, choosers) != folds


def test_folds_that_cannot_be() -> None:
    for k, patients in ((1, PATIENTS), (12, PATIENTS), (2, [])):
        with pytest.raises(ConfigError, match="folds of"):
            draw_folds(patients, k)
    with pytest.raises(ConfigError, match="nobody left to train on"):
        draw_folds(["a", "b"], 2)
    with pytest.raises(ConfigError, match="cannot be chosen by 'me'"):
        draw_folds(PATIENTS, 2, 0, "me")


def test_test_patients_are_in_no_fold(tmp_path: Path) -> None:
    data = block_slices(tmp_path / "data", 4, test=["p1"])
    assert patients_for_folds(data) == ["p0", "p2", "p3"]
    (data / "split.csv").unlink()
    assert patients_for_folds(data, no_test=True) == ["p0", "p1", "p2", "p3"]
    assert Ledger(data / "split.csv").patients("test") == []


def test_a_folds_data_holds_no_other_patient(tmp_path: Path) -> None:
    cases = [{"case_id": f"{p}_{i}", "patient": p, "image": f"/{p}{i}", "label": "/l"} for p in "abcde" for i in (1, 2)]
    write_fold_data(Fold(1, ("a",), ("b",), ("c", "d")), cases, tmp_path)
    seen = {s: {case["patient"] for case in cases_of(s, tmp_path)} for s in ("train", "validation", "test")}
    assert seen == {"train": {"c", "d"}, "validation": {"b"}, "test": {"a"}}
    with pytest.raises(LedgerError, match="never changes side"):
        write_fold_data(Fold(1, ("c",), ("b",), ("a", "d")), cases, tmp_path)
    with pytest.raises(InputError, match="a patient in two of its groups"):
        write_fold_data(Fold(1, ("a",), ("b",), ("a", "d")), cases, tmp_path / "other")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, list[str], InProcess]]:
    """Two folds of five patients, trained and measured for real: the first call is ended within the second fold."""
    folder = tmp_path_factory.mktemp("folds")
    data = block_slices(folder / "data", 6, test=["p2"])
    (folder / "small.yaml").write_text(EXPERIMENT)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)  # paths may be relative
    command = ["folds", "liver_ct_segmentation", "--data", "data", "--k", "2", "--out", "runs", "--device", "cpu"]
    command += ["--over", "small.yaml", "--early-stop", "9", "--set", "num_workers=0"]
    processes = InProcess(patch)
    processes.fail_at = 3
    assert main(command) == 2, "the second fold was ended from outside"
    assert processes.steps == ["fold_1 training", "fold_1 evaluation", "fold_2 training"]
    assert not (folder / "runs" / "ensemble").exists()
    processes.fail_at = 0
    assert main(command) == 0
    yield data, folder / "runs", command, processes
    patch.undo()


def test_folds_go_on_where_they_were_left(run: tuple[Path, Path, list[str], InProcess]) -> None:
    _, out, command, processes = run
    told = processes.told.copy()
    assert processes.steps == ["fold_2 training", "fold_2 evaluation"]
    assert (told[0][1]["device"], told[1][1]["split"]) == ("cpu", "test")
    assert main(command) == 0 and processes.steps == []
    folds = folds_of(read_folds_file(out))
    assert {patient for fold in folds for patient in fold.held_out} == {"p0", "p1", "p3", "p4", "p5"}
    for fold in folds:
        folder = out / "liver_ct" / fold.name
        assert {file.name for file in folder.glob("*.pt")} == {"model.pt", "checkpoint_epoch=2.pt"}, "best and last"
        dice = json.loads((folder / "evaluation" / "dice.json").read_text())
        assert set(dice["values"]) == set(fold.held_out)
        trained = {case["patient"] for case in cases_of("train", out / "data" / fold.name)}
        assert trained == set(fold.training) and not trained & set(fold.held_out)


def test_folds_never_change(run: tuple[Path, Path, list[str], InProcess], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, command, processes = run
    before = (out / "folds.json").read_bytes()
    for more, said in ((["--seed", "1"], "another state of seed, folds"), (["--k", "3"], "another state of k, folds")):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "--fold", "3"]) == 2
    assert "there is no fold 3: expected 1 to 2" in capsys.readouterr().err
    assert (out / "folds.json").read_bytes() == before and processes.steps == []


def test_mean_and_spread(run: tuple[Path, Path, list[str], InProcess]) -> None:
    _, out, _, _ = run
    folds = folds_of(read_folds_file(out))
    summary = summarise(out, get_bundle("liver_ct_segmentation"), folds)
    per_fold, patients = [], []
    for fold in folds:
        dice = json.loads((out / "liver_ct" / fold.name / "evaluation" / "dice.json").read_text())
        per_fold.append(dice["mean"])
        patients += [labels["liver"] for labels in dice["values"].values()]
    over = summary["over_folds"]["dice"]
    assert over["mean"] == pytest.approx(np.mean(per_fold)) and over["sd"] == pytest.approx(np.std(per_fold, ddof=1))
    over = summary["over_patients"]["dice"]
    assert over["n"] == 5 and over["mean"] == pytest.approx(np.mean(patients))
    assert over["sd"] == pytest.approx(np.std(patients, ddof=1))
    with (out / "folds.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["fold"]: row for row in csv.DictReader(stream)}
    assert float(rows["mean over folds"]["dice"]) == pytest.approx(np.mean(per_fold), abs=1e-6)
    assert rows["1"]["best_epoch"] in ("1", "2") and rows["n over patients"]["dice"] == "5"
    assert draw_summary(summary).startswith(b"\x89PNG") and (out / "folds.png").is_file()


def test_triptychs_of_the_held_out(run: tuple[Path, Path, list[str], InProcess]) -> None:
    _, out, _, _ = run
    rows = [row for n in (1, 2) for row in read_triptychs(out / "liver_ct" / f"fold_{n}" / "evaluation" / "triptychs")]
    assert len(rows) == 10 and all(row["file"].name[:4].isdigit() for row in rows)
    told = json.loads((out / "summary.json").read_text())["pictures"]
    values = sorted((row["dice"] for row in rows), reverse=True)
    assert [told[name]["dice"] for name in ("best", "median", "worst")] == [values[0], values[5], values[-1]]
    for name in told:
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (3 * 256 + 12, 256)


def test_the_ensemble_is_a_bundle_like_any_other(run: tuple[Path, Path, list[str], InProcess], tmp_path: Path) -> None:
    _, out, _, _ = run
    info = get_bundle(out / "ensemble" / "liver_ct_segmentation_folds")
    assert info.status == "trained" and info.version.endswith("-ensemble2") and not info.quality
    assert "over 5 patients of 2 folds" in info.evidence and "was not measured" in info.evidence
    assert not (info.path / "configs" / "train.json").exists()
    image = np.full((32, 32, 3), 50.0, np.float32)
    image[8:24, 6:20] = 200.0
    ct = {"spacing": (1.5, 1.5, 5.0), "orientation": "LPS", "device": "cpu"}
    found = segment_volume(image, task=info.path, **ct)
    assert found.mask.shape == image.shape and found.prediction.bundle.name == "liver_ct_segmentation_folds"
    joined = torch.load(info.path / "models" / "model.pt", weights_only=True)
    for number in (1, 2):
        own = torch.load(out / "liver_ct" / f"fold_{number}" / "model.pt", weights_only=True)
        assert all(torch.equal(joined[f"networks.{number - 1}.{name}"], tensor) for name, tensor in own.items())
    inference = json.loads((info.path / "configs" / "inference.json").read_text())
    assert inference["network_def"]["network"]["features"] == [4, 4, 4, 4, 8, 4], "the experiment's network"
    assert (inference["window"], "loss" in inference) == ([0, 255], False)


def test_a_classifier_has_folds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    InProcess(monkeypatch)
    data = block_slices(tmp_path / "data", 3)
    small = "{_target_: ctseg.networks.make_classifier, encoder: resnet10t, in_channels: 1}"
    experiment = f"experiment: {{task: liver_ct_presence, folds: {{k: 3}}}}\npatch: [32, 32]\nnetwork_def: {small}\n"
    (tmp_path / "over.yaml").write_text(experiment + "epochs: 1\nval_interval: 1\nnum_workers: 0\n")
    command = ["folds", "liver_ct_classification", "--data", str(data), "--out", str(tmp_path / "runs"), "--fold", "2"]
    assert main([*command, "--over", str(tmp_path / "over.yaml"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "fold 1: not begun" in said and "fold 2: finished, 1 held out; F1 by patient" in said
    model = tmp_path / "runs" / "liver_ct_presence" / "fold_2" / "model.pt"
    info = get_bundle("liver_ct_classification")
    made = write_ensemble(info, [model, model], tmp_path / "joined", "none", tmp_path / "over.yaml")
    inference = json.loads((made.path / "configs" / "inference.json").read_text())
    assert inference["network_def"]["activation"] == "sigmoid" and made.classifies


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would train")
def test_without_a_gpu_it_wants_to_be_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    InProcess(monkeypatch)
    data = block_slices(tmp_path / "data", 3)
    command = [
        "folds",
        "liver_ct_segmentation",
        "--data",
        str(data),
        "--leave-one-out",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main([*command, "--fold", "1"]) == 2
    said = capsys.readouterr()
    assert "Training runs on CUDA" in said.out and "1 of 3 folds did not end well" in said.err


class Constant(nn.Module):
    """Answers with one logit for each class everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits.reshape(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])


def ensemble(*networks: Constant, activation: str | None = None) -> torch.Tensor:
    mean = MeanOfNetworks(Constant(*[0.0] * len(networks[0].logits)), len(networks), activation)
    state = {f"networks.{n}.logits": network.logits.detach() for n, network in enumerate(networks)}
    mean.load_state_dict(state, strict=True)
    with torch.no_grad():
        answer: torch.Tensor = mean(torch.zeros(2, 1, 3, 4))
    assert answer.shape == (2, len(networks[0].logits), 3, 4)
    return answer[0, :, 0, 0]


def test_it_is_the_probabilities_that_are_averaged() -> None:
    for each in ((0.9, 0.4, 0.4), (0.9, 0.3, 0.3), (0.999, 0.2, 0.2)):
        logits = [float(torch.logit(torch.tensor(p))) for p in each]
        found = torch.sigmoid(ensemble(*(Constant(z) for z in logits)))
        assert float(found[0]) == pytest.approx(sum(each) / 3, abs=1e-5)
    votes = [float(torch.logit(torch.tensor(p))) for p in (0.999, 0.2, 0.2)]
    assert sum(votes) / 3 > 0 and float(ensemble(*(Constant(z) for z in votes))[0]) < 0, "the mean of logits says yes"


def test_the_ensemble_of_several_classes_and_of_probabilities() -> None:
    a, b = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([-3.0, 1.0, 0.5])
    found = ensemble(Constant(*a.tolist()), Constant(*b.tolist()))
    assert torch.allclose(found.softmax(0), (a.softmax(0) + b.softmax(0)) / 2, atol=1e-6)
    found = ensemble(Constant(2.0, -1.0), Constant(-3.0, 0.5), activation="sigmoid")  # of a classifier of two organs
    expected = (torch.tensor([2.0, -1.0]).sigmoid() + torch.tensor([-3.0, 0.5]).sigmoid()) / 2
    assert torch.allclose(found.sigmoid(), expected, atol=1e-6)
    assert torch.allclose(ensemble(Constant(0.9), Constant(0.2), activation="none"), torch.tensor([0.55]))
    extreme = ensemble(Constant(500.0), Constant(400.0))
    assert torch.isfinite(extreme).all() and float(extreme[0]) == pytest.approx(400.0 + np.log(2), abs=1e-3)
    with pytest.raises(ConfigError, match="'relu' is not known"):
        MeanOfNetworks(Constant(0.0), 2, "relu")


def test_an_ensemble_of_unlike_networks_is_refused(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 4)):
        torch.save({"w": torch.zeros(size)}, tmp_path / f"{name}.pt")
    bundle = get_bundle("liver_ct_segmentation")
    with pytest.raises(BundleError, match="are of another network than"):
        write_ensemble(bundle, [tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "e", "none")
    with pytest.raises(BundleError, match="none are there"):
        write_ensemble(bundle, [], tmp_path / "e", "none")
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt", "b.pt"}


def test_a_triptych_is_image_reference_prediction() -> None:
    image = np.zeros((1, 20, 10), np.float32)  # 20 across, 10 down
    image[0, 15:] = 1.0
    reference, prediction = np.zeros((2, 20, 10), np.uint8)
    reference[2:8, 3:8] = 1
    prediction[0, 9] = 1
    picture = np.asarray(Image.open(_stream(draw_triptych(image, reference, prediction)))).astype(int)
    assert picture.shape == (128, 3 * 256 + 12, 3)
    first, second, third = (picture[:, n * 262 : n * 262 + 256] for n in range(3))
    assert first[:, :150].max() < 10 and first[:, 220:].min() > 250, "white to the right, as the first axis runs"
    coloured = [np.ptp(part, axis=2) > 20 for part in (first, second, third)]
    assert not coloured[0].any()
    rows, columns = np.nonzero(coloured[1])
    assert (rows.min() / 12.8, columns.min() / 12.8) == pytest.approx((3, 2), abs=0.6), "rows are the second axis"
    rows, columns = np.nonzero(coloured[2])
    assert rows.min() > 100 and columns.max() < 26, "a corner below, left"
    arrays = image.transpose(0, 2, 1), reference.T, prediction.T
    assert np.array_equal(np.asarray(Image.open(_stream(draw_triptych(*arrays, rows_first=True)))), picture)


def _stream(content: bytes) -> object:
    import io

    return io.BytesIO(content)


def test_best_median_worst() -> None:
    rows = [{"dice": value} for value in (0.2, 0.9, 0.5, 0.7)]
    assert {name: row["dice"] for name, row in chosen_cases(rows).items()} == {"best": 0.9, "median": 0.5, "worst": 0.2}
    assert list(chosen_cases(rows[:1])) == ["best"] and chosen_cases([]) == {}
