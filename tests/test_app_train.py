"""Training from the viewer, in this process: the options, the devices, what is refused, what a failed training says."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_app import load_app_class, sibling
from helpers_phantoms import write_nifti
from helpers_server import add_random_weights

from ctseg.errors import BundleError, ConfigError, DeviceError
from ctseg.registry import BundleInfo, app_root, get_bundle

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException

MODEL = "phantom_ct_segmentation"
ON_CPU = {"model": MODEL, "device": "cpu", "max_epochs": 1, "val_interval": 1, "tracking": ""}


@pytest.fixture
def phantom(tmp_path: Path, phantom_bundle: BundleInfo) -> BundleInfo:
    """A copy of the phantom bundle, with random weights."""
    shutil.copytree(phantom_bundle.path, tmp_path / "bundles" / MODEL)
    add_random_weights(tmp_path / "bundles" / MODEL)
    return get_bundle(tmp_path / "bundles" / MODEL)


@pytest.fixture
def app(tmp_path: Path, phantom: BundleInfo, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app on three tiny CTs, whose labels have the bundle's codes."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    (tmp_path / "studies" / "labels" / "final").mkdir(parents=True)
    for number in range(3):
        shutil.copyfile(tiny_dataset / f"image_{number}.nii.gz", tmp_path / "studies" / f"case{number}.nii.gz")
        label = tmp_path / "studies" / "labels" / "final" / f"case{number}.nii.gz"
        shutil.copyfile(tiny_dataset / f"label_{number}.nii.gz", label)
    return load_app_class()(str(app_root()), str(tmp_path / "studies"), {"bundles": str(phantom.path.parent)})


def refusal(app: Any, **request: Any) -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        app.checked_training(MODEL, {**ON_CPU, **request})
    return caught.value.status_code, caught.value.detail


def split_of(data: Path, split: str) -> str:
    from ctseg.ledger import Ledger

    return Ledger(data / "split.csv").patients(split)[0]


def test_options_are_the_bundles_own_unless_asked(phantom: BundleInfo) -> None:
    options = sibling("app_train_options")
    read = options.read_options({"device": "cpu", "gpus": 7, "val_split": 0.5, "dataset": "x"}, phantom)
    declared = json.loads((phantom.path / "configs" / "train.json").read_text())
    assert (read.max_epochs, read.train_batch_size) == (declared["epochs"], declared["batch_size"]) == (2, 1)
    assert (read.val_interval, read.num_workers) == (2, 0)  # 5 is declared, but of 2 epochs one must validate
    assert (read.pretrained, read.label_tag) == (True, "final")
    asked = {"device": ["cpu"], "pretrained": "false", "max_epochs": "7", "train_batch_size": 3.0, "val_interval": 2}
    more = {"start": ["current"], "tolerance": "0.05", "resume": False, "tracking": "None"}
    read = options.read_options({**asked, "num_workers": 1, "label_tag": "checked", **more}, phantom)
    assert read == options.TrainOptions("cpu", False, 7, 3, 2, 1, "checked", "current", 0.05, False, "")
    assert options.read_options(read.as_request(MODEL), phantom) == read


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("max_epochs", value) for value in (0, -1, 10_001, 1.5, "many", True, [3], float("inf"))],
        *[("train_batch_size", 0), ("val_interval", 0), ("num_workers", -1), ("pretrained", "maybe")],
        *[
            ("tracking", "abacus"),
            ("start", "nowhere"),
            ("tolerance", -0.1),
            ("tolerance", True),
            ("resume", "perhaps"),
        ],
    ],
)
def test_options_out_of_bounds_are_refused(phantom: BundleInfo, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is .*expected"):
        sibling("app_train_options").read_options({"device": "cpu", key: value}, phantom)


def test_cpu_must_be_asked_for(monkeypatch: pytest.MonkeyPatch, phantom: BundleInfo) -> None:
    options = sibling("app_train_options")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for asked in (None, "", [], "auto", "cuda", "cuda:1", ["cuda", "cpu"], "NVIDIA Any", "CPU", {"cpu": 1}):
        with pytest.raises(DeviceError, match="training runs on CUDA"):
            options.training_device(asked)
    assert options.training_device("cpu") == "cpu"
    assert options.shown_options(phantom)["device"] == ["cuda", "cpu"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA Any")
    asked_for = (None, "auto", "cuda", "cuda:1", "NVIDIA Any:1", ["NVIDIA Any:0", "cpu"], "cpu")
    expected = ["cuda:0", "cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert [options.training_device(asked) for asked in asked_for] == expected
    assert options.shown_options(phantom)["device"] == ["NVIDIA Any:0", "NVIDIA Any:1", "cpu"]
    for unknown in ("cuda:2", "abacus", {"a": 1}):
        with pytest.raises(DeviceError, match="device"):
            options.training_device(unknown)


def test_refusals_are_a_status_and_a_sentence(app: Any, phantom: BundleInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = Path(app.studies)
    assert refusal(app, label_tag="original")[0] == 422
    assert "no labelled case" in refusal(app, label_tag="original")[1]
    assert refusal(app, label_tag="../x")[0] == 400
    assert refusal(app, max_epochs=0)[0] == 400
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal(app, device="cuda")[0] == 400
    for model in ("nope", None, 7):
        with pytest.raises(HTTPException, match=MODEL) as caught:
            app.checked_training(model, {})
        assert caught.value.status_code == 404
    assert not (studies / "ctseg").exists()
    assert phantom.weights is not None
    phantom.weights.write_bytes(b"others")
    assert refusal(app)[0] == 409 and "sha256" in refusal(app)[1]
    assert app.checked_training(MODEL, {**ON_CPU, "pretrained": False})["pretrained"] is False
    ledger = studies / "ctseg" / MODEL / "split.csv"
    ledger.write_text(ledger.read_text().replace(",test,", ",train,"))
    status, sentence = refusal(app, pretrained=False)
    assert status == 500 and "by hand" in sentence and str(studies) not in sentence


def test_studies_on_a_server_are_refused(phantom: BundleInfo) -> None:
    with pytest.raises(ConfigError, match="needs a folder of studies"):
        sibling("app_train").TrainingTask(phantom, None).plan(ON_CPU, None)


def test_bundle_without_weights_starts_from_random_ones(app: Any, phantom: BundleInfo) -> None:
    metadata = phantom.path / "configs" / "metadata.json"
    told = json.loads(metadata.read_text())
    told["ctseg"]["weights"] = None
    metadata.write_text(json.dumps(told))
    shutil.rmtree(phantom.path / "models")
    assert app.trainer(MODEL).plan(ON_CPU, app.datastore()).start is None
    metadata.write_text("{")
    assert "broken" in app.info()["trainers"][MODEL]["description"]
    with pytest.raises(BundleError):
        app.trainer(MODEL).plan(ON_CPU, app.datastore())


def test_training_and_what_its_statistics_say(app: Any, phantom: BundleInfo) -> None:
    assert app.info()["train_stats"] == {MODEL: {}}
    told = app.train({**ON_CPU, "max_epochs": 3, "val_interval": 2})
    assert told == app.info()["train_stats"][MODEL] == json.loads(json.dumps(told))
    assert [entry["epoch"] for entry in told["history"]] == [1, 2, 3]
    assert [entry["dice"] is None for entry in told["history"]] == [True, False, True]
    assert told["best_metric"] == told["history"][1]["dice"] == told["eval"]["metrics"]["val_mean_dice"]
    assert told["best_metric_epoch"] == 2 and told["pretrained"] == str(phantom.weights)
    made = get_bundle(Path(told["bundle"]))
    assert made.evidence.startswith(f"validation Dice {told['best_metric']:.3f} on 1 case")
    assert made.version == f"{phantom.version}+{Path(told['run']).name}"
    assert made.weights is not None and told["weights"] == str(made.weights)


def test_progress_goes_to_mlflow_too(app: Any) -> None:
    pytest.importorskip("mlflow", reason="the server's extra is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow's own store is not installed")
    assert app.info()["trainers"][MODEL]["config"]["tracking"][0] == "mlflow"
    told = app.train({**ON_CPU, "tracking": ["mlflow"], "max_epochs": 2})
    store = Path(told["run"]).parents[1] / "tracking" / "mlflow" / "mlruns.db"
    with contextlib.closing(sqlite3.connect(store)) as database:
        rows = database.execute(
            "select key, value, step from metrics where key = 'val_mean_dice' order by step"
        ).fetchall()
    assert [value for _, value, _ in rows] == pytest.approx([entry["dice"] for entry in told["history"]], abs=1e-4)


def test_a_network_that_is_worse_is_kept_and_not_used(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.85, 0.9, 0.895])  # in use before, new; twice
    monkeypatch.setattr(sibling("app_train_run"), "validation_value", lambda *_: next(values))
    shipped = app.info()["models"][MODEL]["version"]
    worse = app.train({**ON_CPU, "tolerance": 0.02})
    assert worse["published"] is False and "0.850 on 1 case, 0.900" in worse["verdict"]
    assert app.info()["models"][MODEL]["version"] == shipped
    told = app.info()["trainers"][MODEL]
    assert told["current"] == shipped and [one["accepted"] for one in told["versions"]] == [True, False]
    as_good = app.train({**ON_CPU, "tolerance": 0.02, "pretrained": False})
    assert as_good["published"] is True
    assert app.info()["models"][MODEL]["version"] == as_good["version"] != shipped
    versions = app.trainer(MODEL).versions()
    assert versions.current().path == Path(as_good["bundle"])
    for name in (worse["version"], shipped):
        versions.use(name)
        assert app.info()["models"][MODEL]["version"] == name


def test_the_first_network_of_a_bundle_without_one_is_used(app: Any, phantom: BundleInfo) -> None:
    metadata = phantom.path / "configs" / "metadata.json"
    told = json.loads(metadata.read_text())
    told["ctseg"]["weights"] = None
    metadata.write_text(json.dumps(told))
    shutil.rmtree(phantom.path / "models")
    assert app.info()["models"][MODEL]["trained"] is False
    made = app.train(ON_CPU)
    assert made["published"] is True and "no network before it" in made["verdict"]
    assert app.info()["models"][MODEL]["trained"] is True
    second = app.trainer(MODEL).plan(ON_CPU, app.datastore())
    assert second.start == Path(made["weights"])


def test_a_killed_training_goes_on(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after its second epoch: the same request goes on from there, another one begins anew.

    The kill came when the second epoch's checkpoint was written and its line of the statistics was not.
    """
    module = sibling("app_train_progress")
    epoch = module.Progress._epoch

    def killed(self: Any, trainer: Any, evaluator: Any) -> None:
        epoch(self, trainer, evaluator)
        if trainer.state.epoch == 2:
            raise KeyboardInterrupt

    request = {**ON_CPU, "max_epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(module.Progress, "_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            app.train(request)
    run = app.trainer(MODEL).stats()["run"]
    other = app.train({**request, "max_epochs": 1})
    assert other["run"] != run and other["resumed"] is False
    shutil.rmtree(other["run"])
    (Path(run).parents[1] / "train_stats.json").write_text(
        json.dumps({**other, "run": run, "history": [{"epoch": 1, "loss": 9.0, "dice": None}]})
    )
    told = app.train(request)
    assert told["run"] == run and told["resumed"] is True
    assert [entry["epoch"] for entry in told["history"]] == [1, 2, 3]
    assert told["history"][0]["loss"] == 9.0
    assert all(0 < entry["loss"] < 9.0 and 0 <= entry["dice"] <= 1 for entry in told["history"][1:])
    assert app.train(request)["run"] != run


def test_label_off_its_grid_fails_with_the_librarys_sentence(app: Any, tmp_path: Path) -> None:
    data = tmp_path / "studies" / "ctseg" / MODEL
    app.checked_training(MODEL, ON_CPU)
    label = np.ones((5, 5, 5), np.uint8)
    case = split_of(data, "train")
    write_nifti(tmp_path / "studies" / "labels" / "final" / f"{case}.nii.gz", label, np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(HTTPException, match=r"has the grid \(5, 5, 5\)") as caught:
        app.train(ON_CPU)
    assert caught.value.status_code == 422


def test_training_that_saves_nothing_fails(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sibling("app_train_run"), "_run_config", lambda *_: None)
    with pytest.raises(HTTPException, match="ended without a network"):
        app.train(ON_CPU)
    assert "bundle" not in app.trainer(MODEL).stats()
