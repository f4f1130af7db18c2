"""Training through the running server, as 3D Slicer's client asks for it: a tiny network on phantoms, on the CPU."""

from __future__ import annotations

import gc
import json
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_http import ask, form
from helpers_phantoms import write_nifti
from helpers_server import add_random_weights, running_server

from ctseg.building import build_bundle
from ctseg.cli import main
from ctseg.datalist import read_cases
from ctseg.files import file_sha256, write_beside
from ctseg.ledger import Ledger
from ctseg.registry import get_bundle, verify_weights

pytest.importorskip("monailabel", reason="the server's extra is not installed")
psutil = pytest.importorskip("psutil")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the client imports cgi
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

# MONAI Label's client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL = "phantom_ct_segmentation"
ON_CPU = {"device": "cpu", "max_epochs": 1, "val_interval": 1, "tracking": "", "gpus": 7, "unknown": {"a": 1}}
AFFINE = np.diag([-4.0, -4.0, 5.0, 1.0])


@dataclass(frozen=True)
class Server:
    """A running server, its client, and the folders behind it."""

    url: str
    client: Any
    bundles: Path
    studies: Path

    @property
    def data(self) -> Path:
        return self.studies / "ctseg" / MODEL


def write_case(studies: Path, number: int) -> None:
    """A tiny CT with a bright block and a brighter bar, and its label beside the studies: values 2 and 3."""
    rng = np.random.default_rng(number)
    image = rng.normal(-900, 20, (36, 40, 10)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[8 + number : 20 + number, 10:30, 2:8], label[26:32, 8:24, 3:7] = 2, 3
    image[label == 2], image[label == 3] = 60, 200
    write_nifti(studies / f"case{number}.nii.gz", image, AFFINE)
    write_nifti(studies.parent / f"label{number}.nii.gz", label, AFFINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Server]:
    """A server of the phantom bundle with random weights, on four CTs without labels."""
    work = tmp_path_factory.mktemp("training")
    bundles, studies = work / "bundles", work / "studies"
    studies.mkdir()
    for name, text in build_bundle(root / "tests" / "tasks" / "phantom_volume.yaml", root / "configs" / "base").items():
        write_beside(bundles / MODEL / name, text.encode())
    add_random_weights(bundles / MODEL)
    for number in range(4):
        write_case(studies, number)
    with running_server(studies, work, ("bundles", str(bundles))) as url:
        yield Server(url, MONAILabelClient(url, tmpdir=str(work), client_id="test"), bundles, studies)
        gc.collect()


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its sha256."""
    return {str(file.relative_to(folder)): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def save_label(server: Server, number: int, **names: int) -> None:
    """Save a label as 3D Slicer does, with the names of its values."""
    info = [{"name": name, "idx": value} for name, value in (names or {"block": 2, "bar": 3}).items()]
    file = server.studies.parent / f"label{number}.nii.gz"
    server.client.save_label(f"case{number}", str(file), "final", {"label_info": info})


def refused(server: Server, **params: Any) -> str:
    with pytest.raises(MONAILabelClientException) as caught:
        server.client.train_start(MODEL, params)
    assert caught.value.msg.startswith("Status: 4"), caught.value.msg
    return str(caught.value.msg)


def until(server: Server, *states: str, seconds: float = 600.0) -> dict[str, Any]:
    """Wait for a state of the training and return its status."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status: dict[str, Any] = server.client.train_status()
        if status["status"] in states:
            return status
        assert status["status"] in ("SUBMITTED", "RUNNING"), status
        time.sleep(0.2)
    raise AssertionError(f"the training is not {states} after {seconds} s: {status}")


def stats(server: Server) -> dict[str, Any]:
    return dict(server.client.info()["train_stats"][MODEL])


def test_refusals_before_anything_starts(server: Server) -> None:
    """In this order: nothing is labelled yet."""
    assert "no labelled case" in refused(server, **ON_CPU)
    save_label(server, 0)
    assert "only 1 patient" in refused(server, **ON_CPU)
    assert not server.data.exists()
    assert "max_epochs" in refused(server, device="cpu", max_epochs=0)
    assert "abacus" in refused(server, device="abacus") or not torch.cuda.is_available()
    with pytest.raises(MONAILabelClientException, match="Status: 404"):
        server.client.train_start("nope", ON_CPU)
    assert server.client.train_status(check_if_running=True) is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so training would start")
def test_without_a_gpu_the_cpu_must_be_asked_for(server: Server) -> None:
    options = server.client.info()["trainers"][MODEL]["config"]
    as_slicer_sends = {key: value[0] if isinstance(value, list) else value for key, value in options.items()}
    for params in ({}, {"device": "cuda"}, {"device": ["cuda", "cpu"]}, as_slicer_sends):
        assert "training runs on CUDA" in refused(server, **params)


def test_training_to_a_usable_bundle(server: Server, tmp_path: Path) -> None:
    shipped = content(server.bundles)
    for number in range(2):
        save_label(server, number)
    task = server.client.train_start(MODEL, {**ON_CPU, "max_epochs": 2})
    assert task["request"]["device"] == "cpu" and "unknown" not in task["request"]
    with pytest.raises(MONAILabelClientException, match="Status: 429"):
        server.client.train_start(MODEL, ON_CPU)
    until(server, "DONE")
    told = stats(server)
    assert (told["epoch"], told["total_epochs"]) == (2, 2)
    assert told["cases"] == {"train": 1, "validation": 1, "test": 0}
    assert [entry["epoch"] for entry in told["history"]] == [1, 2]
    assert told["best_metric"] == max(entry["dice"] for entry in told["history"])
    assert told["total_time"] and told["pretrained"].startswith(str(server.bundles))
    ledger = Ledger(server.data / "split.csv")
    assert {ledger.split_of("case0"), ledger.split_of("case1")} == {"train", "validation"}
    listed = {case["case_id"]: case["mask_values"] for case in read_cases(server.data)}
    assert listed == {case: {"2": "block", "3": "bar"} for case in ("case0", "case1")}
    assert content(server.bundles) == shipped
    assert set(server.client.datastore()["objects"]) == {f"case{number}" for number in range(4)}

    made = get_bundle(Path(told["bundle"]))
    assert made.name == MODEL and made.status == "trained"
    assert verify_weights(made).read_bytes() == (Path(told["run"]) / "model.pt").read_bytes()
    assert file_sha256(verify_weights(made)) not in shipped.values()
    command = ["segment", str(server.studies / "case0.nii.gz"), "--task", str(made.path), "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "out"), "--output", "nifti"]) == 0
    masks = list((tmp_path / "out").rglob("*.nii.gz"))
    assert [nib.load(mask).shape for mask in masks] == [(36, 40, 10)]


def test_second_training_keeps_the_ledger_and_starts_from_random_weights(server: Server) -> None:
    shipped, before = content(server.bundles), (server.data / "split.csv").read_text().splitlines()
    for number in (2, 3):
        save_label(server, number)
    url = f"{server.url}/train/?run_sync=true"  # the address of all models, answered when the training has ended
    body = json.dumps({MODEL: {**ON_CPU, "pretrained": False, "train_batch_size": 2}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        told = json.load(response)[MODEL]["result"]
    assert told["pretrained"] is None and told["total_time"]
    assert sum(told["cases"].values()) == 4 and told["cases"]["test"] >= 1
    after = (server.data / "split.csv").read_text().splitlines()
    assert set(before) <= set(after) and len(after) == 5
    assert len(list((server.data / "runs").iterdir())) == 2
    assert content(server.bundles) == shipped


def test_values_that_nobody_named_end_in_error_with_the_sentence(server: Server) -> None:
    runs = len(list((server.data / "runs").iterdir()))
    trained = next(iter(Ledger(server.data / "split.csv").patients("train")))
    with pytest.raises(MONAILabelClientException, match="values that nobody named"):
        save_label(server, int(trained.removeprefix("case")), block=2)
    body, headers = form({"info": json.dumps({"label_info": [{"name": "block", "idx": 2}]})})
    port = int(server.url.rpartition(":")[2])
    assert ask(port, "PUT", f"/datastore/label/info?label={trained}&tag=final", body, headers).status == 200
    server.client.train_start(MODEL, ON_CPU)
    details = until(server, "ERROR")["details"]
    assert details[-1].startswith(f"ctseg: the label of {trained} has the value 3")
    assert len(list((server.data / "runs").iterdir())) == runs
    save_label(server, int(trained.removeprefix("case")))


def start_endless(server: Server, **more: Any) -> None:
    """Start a training that would last long, and wait for its first epoch."""
    before = stats(server)["run"]
    server.client.train_start(MODEL, {**ON_CPU, "max_epochs": 10_000, "resume": False, **more})
    deadline = time.monotonic() + 400
    while stats(server)["run"] == before or not stats(server)["history"]:
        assert time.monotonic() < deadline, server.client.train_status()
        time.sleep(0.2)


def test_stop_and_going_on(server: Server) -> None:
    """The stop is a SIGKILL in the middle of whatever it does; the same request goes on from its last epoch."""
    request = {"resume": True, "train_batch_size": 3}  # another one than before: it begins anew
    start_endless(server, **request)
    assert server.client.train_status(check_if_running=True) is True
    server.client.train_stop()
    assert server.client.train_status(check_if_running=True) is False
    killed = stats(server)
    assert "total_time" not in killed
    server.client.train_start(MODEL, {**ON_CPU, "max_epochs": 10_000, **request})
    deadline = time.monotonic() + 400
    while not stats(server)["resumed"] or stats(server)["epoch"] <= killed["epoch"]:
        assert time.monotonic() < deadline, server.client.train_status()
        time.sleep(0.2)
    going_on = stats(server)
    server.client.train_stop()
    assert going_on["run"] == killed["run"]
    assert [entry["epoch"] for entry in going_on["history"]] == list(range(1, going_on["epoch"] + 1))
    kept = killed["history"][: killed["epoch"] - 1]  # the checkpoint of the very last one may not have been written
    assert going_on["history"][: len(kept)] == kept


def test_training_ends_with_its_server(server: Server) -> None:
    """The last test: it kills the server."""
    start_endless(server)
    port = server.url.rpartition(":")[2]
    main_process = next(p for p in psutil.process_iter(["cmdline"]) if _has(p, f"--port {port}"))
    training = next(p for p in main_process.children(recursive=True) if _has(p, "monailabel.interfaces.utils.app"))
    main_process.kill()
    psutil.wait_procs([training], timeout=120)
    assert not training.is_running() or training.status() == psutil.STATUS_ZOMBIE


def _has(process: Any, text: str) -> bool:
    return text in " ".join(process.info["cmdline"] or [] if hasattr(process, "info") else process.cmdline())
