"""The server as a user starts it, spoken to through the client that 3D Slicer has inside."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_server import (
    add_random_weights,
    free_port,
    running_server,
    server_command,
    server_environment,
    write_phantom_ct,
)
from numpy.typing import NDArray

from ctseg.registry import BundleInfo, find_bundles, get_bundle

pytest.importorskip("monailabel", reason="the server's extra is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the client imports cgi
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

# MONAI Label's client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Expected = Callable[[Path], NDArray[np.uint8]]
UNTRAINED = "untrained_ct_segmentation"


@dataclass(frozen=True)
class Server:
    """A running server, its client, and the bundle and studies behind it."""

    url: str
    client: Any
    bundle: BundleInfo
    studies: Path
    ct: Path


def bundle_to_serve(bundles: Path) -> str:
    """Copy a shipped bundle, one with weights if there is one, and return its name."""
    shipped = [info for info in find_bundles().values() if info.segments and info.needs_weights]
    if not shipped:
        pytest.skip("no bundle ships in this tree")
    chosen = max(shipped, key=lambda info: info.trained)
    shutil.copytree(chosen.path, bundles / chosen.name)
    if not chosen.trained:
        add_random_weights(bundles / chosen.name)
    return chosen.name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests: a copy of a shipped bundle and the same without its weights, on two small CTs."""
    work = tmp_path_factory.mktemp("my server")  # with a space, as in real folders
    bundles, studies = work / "bundles", work / "studies"
    name = bundle_to_serve(bundles)
    shutil.copytree(bundles / name, bundles / UNTRAINED, ignore=shutil.ignore_patterns("models"))
    metadata = bundles / UNTRAINED / "configs" / "metadata.json"
    told = json.loads(metadata.read_text())
    told["ctseg"]["weights"] = None
    metadata.write_text(json.dumps(told))
    studies.mkdir()
    ct = write_phantom_ct(studies / "case1.nii.gz", (72, 60, 8), seed=1)
    write_phantom_ct(studies / "case2.nii.gz", (64, 60, 6), seed=2)
    answers = work / "answers"
    answers.mkdir()
    with running_server(studies, work, ("bundles", str(bundles)), ("models", "all")) as url:
        client = MONAILabelClient(url, tmpdir=str(answers), client_id="test")
        yield Server(url, client, get_bundle(name, bundles), studies, ct)
        gc.collect()


@pytest.fixture(scope="module")
def expected(server: Server) -> Expected:
    """The label map of a CT by the library in this process, on the same bundle; each computed once."""
    from ctseg.prediction import Predictor

    predictor = Predictor(server.bundle, "cpu")
    return cache(lambda ct: predictor.predict(ct).label_map)


def refused(call: Any, *arguments: Any, **named: Any) -> str:
    """What a call through the client is answered with when it is refused: a 4xx and a sentence, no traceback."""
    with pytest.raises(MONAILabelClientException) as caught:
        call(*arguments, **named)
    message: str = caught.value.msg
    assert message.startswith("Status: 4"), message
    assert "Traceback" not in message
    return message


def test_info(server: Server) -> None:
    info = server.client.info()
    assert set(info["models"]) == {server.bundle.name, UNTRAINED, *server.bundle.part_of}
    model = info["models"][server.bundle.name]
    assert (model["labels"], model["version"]) == (server.bundle.labels, server.bundle.version)
    assert (model["type"], model["trained"]) == ("segmentation", True)
    assert model["description"].startswith(server.bundle.description)
    assert server.bundle.caution in model["description"] and model.get("caution", "") == server.bundle.caution
    assert info["models"][UNTRAINED]["trained"] is False
    assert "untrained" in info["models"][UNTRAINED]["description"]
    assert info["datastore"]["total"] >= 2


def test_mask_is_the_librarys_voxel_by_voxel_and_on_the_cts_grid(server: Server, expected: Expected) -> None:
    label_map = expected(server.ct)
    file, params = server.client.infer(server.bundle.name, "case1", {"device": "cpu"})
    mask, ct = nib.load(file), nib.load(server.ct)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), label_map)
    assert mask.affine.tobytes() == ct.affine.tobytes()
    assert label_map.any(), "an empty mask shows little: the phantom should look like the organ"
    voxel_ml = 4 * 4 * 5 / 1000
    for name, code in server.bundle.labels.items():
        assert params["volumes_ml"][name] == pytest.approx((label_map == code).sum() * voxel_ml, abs=0.01)
    assert params["label_names"].items() <= server.bundle.labels.items()
    assert params["device"] == "cpu"
    assert params["latencies"]["total"] > 0


def test_slicer_asks_for_nrrd(server: Server, expected: Expected) -> None:
    sitk = pytest.importorskip("SimpleITK")
    # What the Slicer module sends: the options of /info/, and these two.
    options = {key: value[0] for key, value in server.client.info()["models"][server.bundle.name]["config"].items()}
    asked = {**options, "result_extension": ".nrrd", "result_dtype": "uint8"}
    file, _ = server.client.infer(server.bundle.name, "case1", asked)
    mask, ct = sitk.ReadImage(file), sitk.ReadImage(str(server.ct))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).transpose(), expected(server.ct))
    for corner in ((0, 0, 0), (71, 59, 7), (71, 0, 0)):
        np.testing.assert_allclose(
            mask.TransformIndexToPhysicalPoint(corner), ct.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )


def test_upload_then_infer(server: Server, expected: Expected, tmp_path: Path) -> None:
    ct = write_phantom_ct(tmp_path / "a name of its own.nii.gz", (64, 60, 5), seed=3)
    assert server.client.upload_image(str(ct), "case3")["image"] == "case3"
    assert "case3" in server.client.datastore()["objects"]
    file, _ = server.client.infer(server.bundle.name, "case3", {"device": "cpu"})
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), expected(ct))


def test_file_in_the_request_and_session(server: Server, expected: Expected, tmp_path: Path) -> None:
    ct = write_phantom_ct(tmp_path / "elsewhere.nii.gz", (64, 60, 4), seed=4)
    session = server.client.create_session(str(ct))["session_id"]
    by_session, _ = server.client.infer(server.bundle.name, "", {"device": "cpu"}, session_id=session)
    by_file, _ = server.client.infer(server.bundle.name, "", {"device": "cpu"}, file=str(ct))
    for file in (by_session, by_file):
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), expected(ct))
    server.client.remove_session(session)


def test_next_sample_save_label_download(server: Server, tmp_path: Path) -> None:
    assert server.client.next_sample("random", {})["id"] in server.client.datastore()["objects"]
    assert server.client.next_sample("first", {})["id"] == "case1"
    file, params = server.client.infer(server.bundle.name, "case1", {"device": "cpu"})
    answer = server.client.save_label("case1", file, "final", {"label_info": params["label_names"]})
    assert (answer["image"], answer["label"]) == ("case1", "case1")
    assert (server.studies / "labels" / "final" / "case1.nii.gz").read_bytes() == Path(file).read_bytes()
    assert Path(server.client.download_label("case1", "final")).read_bytes() == Path(file).read_bytes()
    assert server.client.next_sample("first", {})["id"] == "case2"
    assert "strategy" in refused(server.client.next_sample, "nope", {})


def test_two_annotators_at_once(server: Server, expected: Expected) -> None:
    answers: dict[str, Path] = {}

    def ask(image: str) -> None:
        file, _ = MONAILabelClient(server.url, tmpdir=str(server.studies.parent)).infer(server.bundle.name, image, {})
        answers[image] = Path(file)

    threads = [threading.Thread(target=ask, args=(image,)) for image in ("case1", "case2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for image, file in answers.items():
        found = np.asarray(nib.load(file).dataobj)
        np.testing.assert_array_equal(found, expected(server.studies / f"{image}.nii.gz"))
    assert len(answers) == 2


def test_what_cannot_be_done_is_a_sentence(server: Server, tmp_path: Path) -> None:
    infer = server.client.infer
    assert server.bundle.name in refused(infer, "no_such_model", "case1", {})
    assert "untrained" in refused(infer, UNTRAINED, "case1", {})
    assert "no_such_image" in refused(infer, server.bundle.name, "no_such_image", {})
    for path in (str(server.ct), "../studies/case1", "/etc/hostname"):
        assert "names no image" in refused(infer, server.bundle.name, path, {})
        assert "names no image" in refused(infer, server.bundle.name, "case1", {"image": path})
    assert "device" in refused(infer, server.bundle.name, "case1", {"device": "abacus"})
    assert ".exe" in refused(infer, server.bundle.name, "case1", {"result_extension": ".exe"})
    text = tmp_path / "notes.nii.gz"
    text.write_text("no image")
    answer = refused(infer, server.bundle.name, "", {}, file=str(text))
    assert "the uploaded image" in answer and "/tmp" not in answer


def test_nothing_is_written_outside_or_over_the_weights(server: Server) -> None:
    before = sorted(server.studies.parent.glob("*"))
    for image_id in ("../escaped", "/tmp/escaped", "a/../../escaped"):
        assert "image id" in refused(server.client.upload_image, str(server.ct), image_id)
    assert "label tag" in refused(server.client.save_label, "case1", str(server.ct), "../../escaped", {})
    assert sorted(server.studies.parent.glob("*")) == before
    weights = server.bundle.weights
    assert weights is not None
    content = weights.read_bytes()
    for method in ("PUT", "DELETE"):
        request = urllib.request.Request(f"{server.url}/model/{server.bundle.name}", method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        caught.value.close()
        assert caught.value.code == 403
    assert weights.read_bytes() == content
    assert server.client.train_status(check_if_running=True) is False


def test_unknown_model_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    if not find_bundles():
        pytest.skip("no bundle ships in this tree")
    (tmp_path / "studies").mkdir()
    done = subprocess.run(
        server_command(tmp_path / "studies", free_port(), ("models", "no_such_model")),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=server_environment(tmp_path),
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ctseg: there is no model 'no_such_model'; the known ones are: ")
    assert all(name in last for name, info in find_bundles().items() if info.segments and not info.flat)
    assert "Traceback" not in done.stdout + done.stderr
