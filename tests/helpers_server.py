"""Shared by the tests of the MONAI Label app: tiny bundles, a small oblique CT, and a real server process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ctseg.registry import app_root

STUB_WEIGHTS = b"no tensors, only bytes"


def write_fake_bundle(root: Path, name: str, labels: dict[str, int], trained: bool = True) -> Path:
    """Write a folder that the registry takes for a bundle; its network is never built."""
    folder = root / name
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    for config in ("inference.json", "train.json"):
        (folder / "configs" / config).write_text("{}")
    block = {
        "task": name.removesuffix("_segmentation"),
        "kind": "slicewise",
        "modality": "CT",
        "labels": [{"name": label, "code": code, "color": [200, 100, 50]} for label, code in labels.items()],
        "evidence": "none: a test",
        "licence": {"code": "Apache-2.0", "weights": "CC0-1.0"},
        "weights": None,
    }
    outputs = {"pred": {"format": "segmentation"}}
    metadata = {
        "version": "0.3.0",
        "description": f"Segments {' and '.join(labels)}.",
        "network_data_format": {"outputs": outputs},
        "ctseg": block,
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if trained:
        add_weights(folder)
    return folder


def add_weights(bundle: Path, content: bytes = STUB_WEIGHTS) -> None:
    """Give a fake bundle its weights, as a training and `scripts/build_bundles` would."""
    (bundle / "models" / "model.pt").write_bytes(content)
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["ctseg"]["weights"] = {"file": "models/model.pt", "sha256": hashlib.sha256(content).hexdigest()}
    file.write_text(json.dumps(metadata))


def add_random_weights(bundle: Path) -> None:
    """Give a copy of a real bundle weights that fit its network and know nothing; its masks are odd but never empty."""
    import io

    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def")
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    (bundle / "models").mkdir(exist_ok=True)
    add_weights(bundle, content.getvalue())


def oblique_affine() -> NDArray[np.float64]:
    """Voxels of 4 x 4 x 5 mm, 8 degrees off the axes around the body's long axis, stored in LPS order."""
    angle = np.deg2rad(8.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-4.0, -4.0, 5.0])
    affine[:3, 3] = (150.25, 120.5, -310.75)
    return affine


def write_phantom_ct(path: Path, shape: tuple[int, int, int] = (72, 60, 20), seed: int = 0) -> Path:
    """Write a trunk of soft tissue in air with a large bright organ on the patient's right, int16 HU, NIfTI."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(i / 0.85) ** 2 + (j / 0.75) ** 2 < 1] = 30.0
    # In LPS order the index grows to the patient's left and back: the organ lies at small i.
    hu[((i + 0.38) / 0.38) ** 2 + ((j + 0.05) / 0.48) ** 2 + (k / 0.8) ** 2 < 1] = 110.0
    hu[(i / 0.12) ** 2 + ((j - 0.5) / 0.15) ** 2 < 1] = 400.0
    hu += rng.normal(0, 8, shape)
    image = nib.Nifti1Image(np.clip(hu, -1024, 1500).astype(np.int16), oblique_affine())
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def write_mask_of(studies: Path, number: int, value: int = 1, name: str = "mask") -> str:
    """Write a mask on the grid of `case<number>`, beside the studies, with a block of `value`; return its path."""
    image = nib.load(studies / f"case{number}.nii.gz")
    array = np.zeros(image.shape, np.uint8)
    array[2:5, 3:7, 1:4] = value
    path = studies.parent / f"{name}{number}_{value}.nii.gz"
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)
    return str(path)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_command(studies: Path | str, port: int, *conf: tuple[str, str], host: str | None = "127.0.0.1") -> list[str]:
    """The line that starts the app, as a user types it; without a host the app chooses."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app_root())]
    command += ["--studies", str(studies), "--port", str(port)]
    command += ["--host", host] if host else []
    for key, value in conf:
        command += ["--conf", key, value]
    return command


def server_environment(work: Path) -> dict[str, str]:
    """MONAI Label's sessions away from the home folder, and the library that this test imports, and its helpers."""
    source = str(Path(sys.modules["ctseg"].__file__ or "").parents[1])
    tests = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, [source, tests, os.environ.get("PYTHONPATH", "")]))
    environment = {key: value for key, value in os.environ.items() if key != "CTSEG_TOKEN"}
    return {**environment, "PYTHONPATH": path, "MONAI_LABEL_SESSION_PATH": str(work / "sessions")}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/info/", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return refusal.code == 401
    except (urllib.error.URLError, OSError):
        return False


@dataclass(frozen=True)
class RunningServer:
    """A server process, its address and what it wrote."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def started_server(
    studies: Path | str,
    work: Path,
    *conf: tuple[str, str],
    host: str | None = "127.0.0.1",
    seconds: float = 400.0,
    **environment: str,
) -> Iterator[RunningServer]:
    """Start the server as a process, yield it once `/info/` answers, and end its whole process group."""
    port = free_port()
    log = work / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            server_command(studies, port, *conf, host=host),
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=server_environment(work) | environment,
            start_new_session=True,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.25)
        yield RunningServer(url, port, process, log)
    finally:
        _end_group(process)


@contextmanager
def running_server(studies: Path, work: Path, *conf: tuple[str, str], seconds: float = 400.0) -> Iterator[str]:
    """Start the server as `started_server` does, and yield its address."""
    with started_server(studies, work, *conf, seconds=seconds) as server:
        yield server.url


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for signal_number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait(timeout=10.0)
