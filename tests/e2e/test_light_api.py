"""`ctseg api` as a process that cannot import PyTorch, MONAI or ITK, and the service's own answers in this process."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import write_phantom
from helpers_phantoms import f_phantom, oblique_affine, write_nifti
from helpers_predict import ORGANS, SEEDS, PredictContract, Server, ct_file, post, raw
from helpers_server import free_port

from ctseg import inferers
from ctseg.cli import main
from ctseg.errors import ConfigError
from ctseg.prediction import Predictor
from ctseg.presence.slices import PresencePredictor
from ctseg.registry import BundleInfo

for _package in ("onnx", "onnxscript", "onnxruntime", "fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(_package, reason="the extra 'export' and FastAPI are not installed")

# Imports of these fail in the process under test; at its end it says what it had imported.
BARRED = (
    "torch", "monai", "itk", "ignite", "monailabel", "torchvision", "timm", "segmentation_models_pytorch", "matplotlib",
    "trimesh", "openvino", "onnx",
)  # fmt: skip
_PROGRAM = """
import json, sys
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ModuleNotFoundError(f"No module named {name!r}: barred by the test", name=name)
sys.meta_path.insert(0, Barred())
from ctseg.cli import main
try:
    main(ARGUMENTS)
finally:
    open(MODULES, "w").write(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def bundles(exported_bundles: tuple[dict[str, BundleInfo], Path]) -> dict[str, BundleInfo]:
    return exported_bundles[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, exported_bundles: tuple[dict[str, BundleInfo], Path]) -> Path:
    """Every bundle as ONNX; a classifier of `core` and `spare`; `later`, which only PyTorch could run."""
    bundles, made = exported_bundles
    folder = tmp_path_factory.mktemp("served") / "exported"
    shutil.copytree(made, folder)
    for name, changes in (
        ("core_ct_classification", {"inferer": {"way": "slice_classes"}}),
        ("many_ct_segmentation", {"needs_torch": "a step has no counterpart without PyTorch"}),
    ):
        shutil.copy(folder / "core_ct_segmentation.onnx", folder / f"{name}.onnx")
        fake = json.loads((bundles["core"].path.parent / name / "configs" / "metadata.json").read_text())
        told = json.loads((folder / "core_ct_segmentation.onnx.json").read_text())
        told.update(changes, metadata=fake, files={}, name=name)
        (folder / f"{name}.onnx.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the process writes what it had imported."""
    return tmp_path_factory.mktemp("modules") / "modules.json"


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory, exported: Path, modules: Path, clean_environment: dict[str, str]
) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    work = tmp_path_factory.mktemp("light")
    studies, port = work / "studies", free_port()
    studies.mkdir()
    for name, seed in SEEDS.items():
        write_phantom(studies / f"{name}.nii.gz", seed)
    (work / "tmp").mkdir()
    arguments = ["api", "--models", str(exported), "--port", str(port), "--threads", "1"]
    program = _PROGRAM.replace("BARRED", repr(BARRED)).replace("ARGUMENTS", repr(arguments))
    with (work / "log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-c", program.replace("MODULES", repr(str(modules)))],
            env={**clean_environment, "TMPDIR": str(work / "tmp")}, cwd=work, stdout=log, stderr=log,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", studies, work)
    try:
        until = time.monotonic() + 120
        while not _healthy(server.url):
            assert running.poll() is None and time.monotonic() < until, (work / "log").read_text()
            time.sleep(0.2)
        yield server, running
    finally:
        running.kill()
        running.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(process: tuple[Server, subprocess.Popen[bytes]]) -> Server:
    return process[0]


class TestPredict(PredictContract):
    """The service without PyTorch."""


def get(server: Server, path: str, **headers: str) -> Any:
    return raw(server, path, b"", headers, "GET")


def test_masks_and_tables_are_those_of_ctseg_segment(
    server: Server, bundles: dict[str, BundleInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an oblique grid whose axes are exchanged; at most a voxel in a thousand differs (rounding)."""
    monkeypatch.setattr(inferers, "cpu_has_bfloat16", lambda: False)
    turned = oblique_affine((1.4, 1.3, 2.8))[:, [1, 2, 0, 3]] @ np.diag([-1.0, -1.0, 1.0, 1.0])
    array = f_phantom((40, 50, 14)).transpose(1, 2, 0)
    path = write_nifti(tmp_path / "Jane_Doe.nii.gz", np.ascontiguousarray(array), turned)
    upload = ("Jane_Doe.nii.gz", path.read_bytes())
    answer = post(server, "/predict/", upload, models='["block", "bar"]', task="pair_ct_segmentation")
    wanted = Predictor(bundles["pair"], "cpu").predict(path)
    mask = answer.mask
    assert json.loads(answer.headers["x-labels"]) == wanted.labels and answer.headers["x-runtime"] == "onnx"
    assert mask.affine.tobytes() == nib.load(path).affine.tobytes()
    found = np.asarray(mask.dataobj)
    assert set(np.unique(found)) == {0, 2, 5} and (found != wanted.label_map).mean() <= 1e-3
    table = json.loads(post(server, "/presence/", upload, models='["says_ct_classification"]').content)
    said = PresencePredictor(bundles["says"], "cpu").predict(path)
    assert table["axis"] == said.axis and [row["slice"] for row in table["slices"]] == said.numbers.tolist()
    probability = [row["probability"]["block"] for row in table["slices"]]
    np.testing.assert_allclose(probability, said.probability[:, 0], atol=1e-3)
    assert (
        "no classifier says anything about nothing" in post(server, "/presence/", upload, models='["nothing"]').sentence
    )
    log = (server.work / "log").read_text()
    assert "Jane" not in log and "Doe" not in log


def test_left_stays_left(server: Server) -> None:
    """A network that marks a pixel further to the patient's left: an exchange of sides would show."""
    upload = ct_file(server)
    core, moved = (
        np.asarray(post(server, "/predict/", upload, models=f'["{organ}"]').mask.dataobj) for organ in ("core", "moved")
    )
    np.testing.assert_array_equal(moved[1:] > 0, core[:-1] > 0)
    assert (moved > 0).any() and ((moved > 0) != (core > 0)).any()


def test_a_picture_comes_back_in_its_own_size(server: Server, bundles: dict[str, BundleInfo], tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((37, 61, 3), np.uint8)
    pixels[5:20, 8:50], pixels[24:33, 30:36] = (250, 30, 20), (20, 240, 10)
    Image.fromarray(pixels).save(tmp_path / "lesion.png")
    answer = post(server, "/predict/", ("lesion.png", (tmp_path / "lesion.png").read_bytes()), models='["tint"]')
    assert answer.status == 200, answer.content
    assert answer.headers["content-type"] == "image/png" and 'filename="segmentation.png"' in str(answer.headers)
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    wanted = Predictor(bundles["tint"], "cpu").predict(tmp_path / "lesion.png").label_map[:, :, 0]
    assert found.shape == (37, 61) and set(np.unique(found)) == {0, 255}
    assert ((found > 0) != (wanted > 0)).mean() <= 2e-3
    assert (found[8:17, 12:46] == 255).all() and not found[25:33, 30:36].any()
    assert "expected a picture" in post(server, "/predict/", ct_file(server), models='["tint"]').sentence
    both = post(server, "/predict/", ct_file(server), models='["tint", "core"]')
    assert both.status == 400 and "'tint' is segmented on flat images only" in both.sentence


def test_lists_and_pages(server: Server, exported: Path) -> None:
    listed = {entry["name"]: entry for entry in json.loads(get(server, "/models").content)}
    assert listed["core_ct_segmentation"]["labels"] == {"core": 7} and listed["core_ct_segmentation"]["usable"]
    assert len(listed["core_ct_segmentation"]["sha256"]) == 64
    assert (
        not listed["many_ct_segmentation"]["usable"] and "no counterpart" in listed["many_ct_segmentation"]["problem"]
    )
    shutil.copy(exported / "core_ct_segmentation.onnx", exported / "mine.onnx")
    turned, bright = {"step": "orientation", "axcodes": "LPS"}, {"step": "intensity", "lowest": 0, "highest": 240}
    own: dict[str, Any] = {"schema": "ctseg-export/1", "labels": [{"name": "mine", "code": 9}]}
    own.update(preprocessing=[turned, bright], inferer={"way": "slices"})
    own["postprocessing"] = [{"step": "label_map", "codes": [9]}]
    (exported / "mine.onnx.json").write_text(json.dumps(own))
    mask = np.asarray(post(server, "/predict/", ct_file(server), models='["mine"]').mask.dataobj)
    core = np.asarray(post(server, "/predict/", ct_file(server), models='["core"]').mask.dataobj)
    np.testing.assert_array_equal(mask == 9, core == 7)
    assert {entry["name"] for entry in json.loads(get(server, "/models").content)} == {*listed, "mine"}
    told = json.loads(get(server, "/openapi.json").content)
    assert {"/models", "/predict/", "/presence/", "/health"} == set(told["paths"])
    page = get(server, "/docs").content.decode()
    assert "POST /predict/" in page and "<script" not in page and "http://" not in page and "https://" not in page


def test_other_sites_and_names_are_refused(server: Server) -> None:
    assert get(server, "/models", Host="evil.example").status == 403
    assert get(server, "/models", Origin="http://evil.example").status == 403
    assert get(server, "/nothing").status == 404


def test_the_process_never_imported_torch_and_leaves_nothing(
    process: tuple[Server, subprocess.Popen[bytes]], modules: Path
) -> None:
    """The last test: the process ends."""
    server, running = process
    post(server, "/predict/", ct_file(server), models=ORGANS)
    post(server, "/predict/", ("ct.nii.gz", b"no image"), models=ORGANS)
    (private,) = (server.work / "tmp").glob("ctseg-api-*")
    assert private.stat().st_mode & 0o777 == 0o700 and not list(private.iterdir())
    if Path("/proc/self/maps").is_file():
        assert "libtorch" not in Path(f"/proc/{running.pid}/maps").read_text()
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(30) == 0
    there = {name.partition(".")[0] for name in json.loads(modules.read_text())}
    assert "onnxruntime" in there and there.isdisjoint(BARRED)
    # Nothing of ours, and no file of ONNX Runtime's telemetry.
    assert list((server.work / "tmp").iterdir()) == []


def test_refusals_of_the_command(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ctseg.light.models import Models

    for arguments, said in (
        (["--models", str(tmp_path / "nowhere")], "there is no folder"),
        (["--models", str(exported), "--host", "0.0.0.0"], "so a token is needed"),
        (["--models", str(exported), "--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--models", str(exported), "--max-upload", "0"], "expected at least 1 MiB"),
    ):
        assert main(["api", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no runtime 'abacus'"):
        Models(exported, "abacus")


def test_a_token_opens(exported: Path) -> None:
    from fastapi.testclient import TestClient

    from ctseg.light.models import Models
    from ctseg.light.service import make_app

    with TestClient(make_app(Models(exported), 1, "word"), base_url="http://clinic.example") as client:
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"Authorization": "Bearer other"}).status_code == 401
        opened = {"Authorization": "Bearer word"}
        assert client.get("/models", headers=opened).status_code == 200
        large = client.post("/predict/", headers=opened, files={"file": ("a.nii", b"0" * (1 << 21))})
        assert large.status_code == 413 and "larger than 1 MiB" in large.json()["detail"]
        chunks = (b"0" * (1 << 16) for _ in range(40))
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert client.post("/predict/", headers={**opened, **kind}, content=chunks).status_code == 413
