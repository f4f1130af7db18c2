"""Tracking on this machine's disk: every setting and epoch, nothing sent anywhere, one sentence without a package."""

from __future__ import annotations

import importlib.util
import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser

from ctseg.errors import ConfigError
from ctseg.history import History
from ctseg.settings import flat_settings, parser_in_use, versions
from ctseg.tracking import PACKAGES, Track, wanted_trackers

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import socket, sys
from pathlib import Path
import torch
from ignite.engine import Engine
from ctseg.history import History
from ctseg.recording import Record
from ctseg.tracking import Track

folder, trackers, epochs, history = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), History()
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("OUTSIDE", address, flush=True)
    return real(self, address)
socket.socket.connect = connect
trainer = Engine(lambda engine, batch: {"loss": torch.tensor(batch)})
Record(history, torch.optim.SGD([torch.zeros(1)], lr=0.5)).attach(trainer)
history_configuration = {f"part::{n}": n for n in range(150)} | {"name with | bar": "a|b", "train::batch#1": [1, 2]}
class Settings:
    def attach(self, engine):
        from ignite.engine import Events
        engine.add_event_handler(Events.STARTED, lambda _: history.configuration.update(history_configuration))
Settings().attach(trainer)
Track(trackers, history, folder, "livers", "run 1").attach(trainer)
trainer.run([1.0, 3.0], max_epochs=epochs)
print("RUN", history.run)
"""


@pytest.fixture
def listener() -> Iterator[tuple[int, list[Any]]]:
    """A proxy that takes note of whoever asks it for a way out, and answers nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    callers: list[Any] = []

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.settimeout(5)
            callers.append(connection.recv(200))
            connection.close()

    thread = threading.Thread(target=listen)
    thread.start()
    yield server.getsockname()[1], callers
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def tracked(folder: Path, trackers: str, environment: dict[str, str], proxy: int, epochs: int = 2) -> str:
    for package in (package for name in PACKAGES if name in trackers for package in PACKAGES[name]):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} of the extra track is not installed")
    way_out = f"http://127.0.0.1:{proxy}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    environment = {**environment, **dict.fromkeys(names, way_out), "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-c", SCRIPT, str(folder), trackers, str(epochs)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "OUTSIDE" not in done.stdout, done.stdout
    return done.stdout.rpartition("RUN ")[2].strip()


def test_mlflow_tensorboard_and_wandb_write_here_and_nowhere_else(
    tmp_path: Path, clean_environment: dict[str, str], listener: tuple[int, list[Any]]
) -> None:
    run = tracked(tmp_path, "mlflow,tensorboard,wandb", clean_environment, listener[0])
    assert listener[1] == [], "nobody asked for a way out"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow", "tensorboard", "wandb"}

    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlruns.db")) as base:
        runs = base.execute("select r.name, r.status, e.name from runs r join experiments e using (experiment_id)")
        assert list(runs) == [("run 1", "FINISHED", "livers")]
        settings = dict(base.execute("select key, value from params"))
        curve = list(base.execute("select step, value from metrics where key = 'train_loss' order by step"))
        rates = {value for (value,) in base.execute("select value from metrics where key = 'lr'")}
    assert settings["part.149"] == "149" and settings["train.batch_1"] == "[1, 2]"
    assert len([name for name in settings if name.startswith("part.")]) == 150, "all, not the first hundred"
    assert "versions.torch" in settings
    assert curve == [(1, 2.0), (2, 2.0)] and rates == {0.5}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "livers" / "run 1"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 2.0), (2, 2.0)]
    (text,) = events.Tensors("settings/text_summary")
    assert b"| name with _ bar | a/b |" in text.tensor_proto.string_val[0]

    (record,) = (tmp_path / "wandb" / "wandb").glob(f"offline-run-*-{run}/*.wandb")
    written = record.read_bytes()
    assert b"livers" in written and b"run 1" in written and b"epoch/train_loss" in written and b"part.149" in written
    assert socket.gethostname().encode() not in written or len(socket.gethostname()) < 4


def test_off_is_off(tmp_path: Path) -> None:
    for off in (None, False, [], {}):
        trainer = Engine(lambda engine, batch: None)
        Track(off, History(), tmp_path / "tracking", "p", "r").attach(trainer)
        trainer.run([0], max_epochs=1)
    assert list(tmp_path.iterdir()) == []
    train = json.loads((ROOT / "bundles" / "liver_ct_segmentation" / "configs" / "train.json").read_text())
    assert train["track"] is None


def test_what_cannot_be_tracked_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tracker 'neptune' is not known: expected one of mlflow, tensorboard, wandb"):
        wanted_trackers(["neptune"])
    there = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name in ("wandb", "tensorboard", "sqlalchemy") else object()

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for name, package in (("wandb", "wandb"), ("tensorboard", "tensorboard"), ("mlflow", "sqlalchemy")):
        with pytest.raises(ConfigError, match=f"{name} needs the package {package}, which is not installed: .*track"):
            wanted_trackers(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    assert wanted_trackers({"mlflow": {"tracking_uri": "http://x"}, "TensorBoard": None}) == {
        "mlflow": {"tracking_uri": "http://x"}, "tensorboard": {},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="tracker mlflow has no option colour: expected tracking_uri"):
        wanted_trackers({"mlflow": {"colour": 1}})
    assert there is not None


class Watcher:
    """What a configuration makes, as `Record` is made."""

    def __init__(self, size: int) -> None:
        self.parser = parser_in_use()


def test_every_setting_is_named_with_its_value() -> None:
    """By hand: references and expressions by what they came to, lists of plain values whole, the rest leaf by leaf."""
    config = {
        "epochs": 3, "size": [1.5, 2.0], "first": "@size#0", "twice": "$2 * @epochs", "names": ["a", "b"],
        "watcher": {"_target_": "test_tracking.Watcher", "size": "@twice"}, "steps": [{"a": 1}, {"b": None}],
        "never": "$open('/nowhere')", "thing": "$object()", "empty": {},
    }  # fmt: skip
    parser = ConfigParser(config)
    for name in ("first", "twice", "thing"):
        parser.get_parsed_content(name)
    made = parser.get_parsed_content("watcher")
    assert made.parser is parser and parser_in_use() is None
    assert flat_settings(parser) == {
        "epochs": 3, "size": [1.5, 2.0], "first": 1.5, "twice": 6, "names": ["a", "b"],
        "watcher::_target_": "test_tracking.Watcher", "watcher::size": 6, "steps::0::a": 1, "steps::1::b": None,
        "never": "$open('/nowhere')", "thing": "$object()", "empty": "{}",
    }  # fmt: skip


def test_versions_are_those_that_are_imported() -> None:
    import monai
    import torch

    found = versions("cpu")
    assert found["monai"] == monai.__version__ and torch.__version__.startswith(found["torch"].partition("+")[0])
    assert found["device"].startswith("cpu")
