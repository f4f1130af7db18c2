"""Weights are never lost or half written: trainings that are killed for real, and disks that are full."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_bundles import make_bundle
from helpers_weights_crash import full_disk

from ctseg.annotation.versions import Versions
from ctseg.errors import OutputError
from ctseg.files import locked, remove_unfinished
from ctseg.registry import get_bundle
from ctseg.training import newest_checkpoint
from ctseg.weights import save_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A bundle whose weights are all 0."""
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(250, 250), "bias": torch.zeros(250)}, content)
    return make_bundle(tmp_path / "bundles", weights=content.getvalue())


def driver(how: str, data: Path, shipped: Path, *numbers: int, before: str = "") -> dict[str, int]:
    here = Path(__file__).parent
    command = [sys.executable, str(here / "helpers_weights_crash.py"), how, str(data), str(shipped), *map(str, numbers)]
    if before:
        command = ["unshare", "-rm", "sh", "-c", before + ' && exec "$@"', "sh", *command]
    source = str(Path(sys.modules["ctseg"].__file__ or "").parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(here)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0 and found, done.stdout[-2000:] + done.stderr[-4000:]
    told: dict[str, int] = json.loads(found[0].removeprefix("FOUND "))
    return told


def test_killed_while_weights_are_written(tmp_path: Path, shipped: Path) -> None:
    """A training and somebody who chooses versions are killed at a random moment, 10 times."""
    found = driver("kill", tmp_path / "data", shipped, 10, 5)
    assert found["kills"] == 20 and found["accepted"] >= 10 and found["mended"] == 5
    assert found["unfinished"] >= 1, "no kill hit the writing: the test shows nothing"


def test_disk_full_at_every_step_of_a_training(tmp_path: Path, shipped: Path) -> None:
    found = full_disk(tmp_path / "data", shipped, 30)
    assert found["refusals"] >= 18 and found["accepted"] >= 2


def test_disk_really_full_of_weights(tmp_path: Path, shipped: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=3m tmpfs '{small}'"
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no small disk can be made here: {probe.stderr.strip()}")
    found = driver("small", small / "data", shipped, before=mount)
    assert found["refusals"] == 3 and found["accepted"] >= 1


def test_a_half_written_checkpoint_is_never_gone_on_from(tmp_path: Path) -> None:
    """It lies beside the whole ones under a name of its own, with a later epoch."""
    for name in ("checkpoint_epoch=2.pt", ".0123456789ab-checkpoint_epoch=3.pt"):
        (tmp_path / name).write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_epoch=2.pt"


def test_only_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    for name in (
        ".0123456789ab-model.pt",
        ".liver.part/models/model.pt",
        "model.pt",
        ".hidden",
        "runs/.0123456789ab-x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "nowhere")
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", "model.pt", "runs/.0123456789ab-x"]


def test_one_training_at_a_time_and_nothing_is_tidied_beneath_it(tmp_path: Path, shipped: Path) -> None:
    versions = Versions(tmp_path / "data", get_bundle(shipped))
    with versions.being_trained() as free:
        beside = tmp_path / "data" / ".0123456789ab-versions.json"
        beside.touch()
        with versions.being_trained(patience=0.3) as second:
            assert free and not second
        versions.tidy()
        assert beside.exists()
    versions.tidy()
    assert not beside.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write a\.lock into"), locked(tmp_path / "file" / "a.lock"):
        pass
    with pytest.raises(OutputError, match="cannot write"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "file" / "model.pt")
