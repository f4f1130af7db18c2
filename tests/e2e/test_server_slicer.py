"""The way of 3D Slicer, and every address that clients and MONAI Label's own tests call, with and without a token."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_http import Answer, ask, ask_json, form
from helpers_server import write_phantom_ct
from helpers_site import MODEL, SHAPE, Site
from helpers_versions import make_version
from numpy.typing import NDArray

from ctseg.prediction import Predictor
from ctseg.registry import get_bundle

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


@pytest.fixture(params=["open_site", "guarded_site"])
def site(request: pytest.FixtureRequest) -> Site:
    """The server without and with tokens."""
    found: Site = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def client(site: Site, tmp_path: Path) -> Iterator[Any]:
    """3D Slicer's client as it is; the token is in the server's address."""
    yield MONAILabelClient(site.address(), tmpdir=str(tmp_path), client_id="slicer")
    gc.collect()


@cache
def _predictor(folder: Path) -> Any:
    return Predictor(get_bundle(folder), "cpu")


def expected(site: Site, image: Path) -> NDArray[np.uint8]:
    """The mask by the library in this process, without the gate."""
    mask: NDArray[np.uint8] = _predictor(site.plain.path).predict(image).label_map
    return mask


def label_of(site: Site, number: int, folder: Path) -> Path:
    """A mask with both organs on the grid of a case."""
    image = nib.load(site.studies / f"case{number}.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[4 + number : 16, 6:20, 2:7], mask[20:28, 10:30, 3 : 4 + number] = 1, 2
    nib.save(nib.Nifti1Image(mask, image.affine), folder / f"label{number}.nii.gz")
    return folder / f"label{number}.nii.gz"


def admin(site: Site, method: str, path: str, *rest: Any) -> Answer:
    return ask(site.port, method, path, *rest, token=site.tokens.get("admin"))


def post(site: Site, path: str, content: Any) -> Answer:
    return ask_json(site.port, "POST", path, content, token=site.tokens.get("admin"))


def test_the_way_of_slicer(site: Site, client: Any, tmp_path: Path) -> None:
    """Connect, next sample by each strategy, segment, save with the segments' names, train, status, stop."""
    assert client.auth_enabled() is False  # no login window
    info = client.info()
    assert info["models"][MODEL]["labels"] == {"block": 1, "bar": 4}
    assert {"random", "first"} <= set(info["strategies"])
    for strategy in info["strategies"]:
        assert client.next_sample(strategy, {})["id"].startswith(("case", "link")), strategy
    sample = client.next_sample("first", {})
    image = site.studies / f"{sample['id']}.nii.gz"
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert sample["checksum"] == f"SHA256:{digest}" and digest[:16] in sample["name"] and "path" not in sample
    # 3D Slicer loads from there what it has not yet; the server's address is the one that was entered.
    prefix = f"/t/{site.tokens['admin']}" if site.tokens else ""
    assert ask(site.port, "GET", f"{prefix}/datastore/image?image={sample['id']}").body == image.read_bytes()

    mask, params = client.infer(MODEL, sample["id"], {"device": "cpu", "result_extension": ".nrrd"})
    assert mask.endswith(".nrrd") and params["device"] == "cpu"
    mask, params = client.infer(MODEL, sample["id"], {"device": "cpu"})
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), expected(site, image))

    names = {"label_info": [{"name": "block", "idx": 1}, {"name": "bar", "idx": 2}]}
    for number in (1, 2):
        label = label_of(site, number, tmp_path)
        answer = client.save_label(f"case{number}", str(label), params=names)
        assert (answer["image"], answer["label"]) == (f"case{number}", f"case{number}") and answer["version"] >= 1
        assert Path(client.download_label(f"case{number}", "final")).read_bytes() == label.read_bytes()
        stored = client.datastore()["objects"][f"case{number}"]["labels"]["final"]["info"]
        assert stored["label_info"] == names["label_info"] and stored["client_id"] == "slicer"
    assert client.next_sample("first", {})["id"] not in ("case1", "case2")

    task = client.train_start(MODEL, {"device": "cpu", "max_epochs": 10_000, "val_interval": 1})
    assert task["status"] in ("SUBMITTED", "RUNNING")
    assert client.train_status(check_if_running=True) is True
    assert client.train_status()["status"] in ("SUBMITTED", "RUNNING")
    assert client.info()["datastore"]["completed"] >= 2
    client.train_stop()
    assert client.train_status(check_if_running=True) is False
    assert client.train_status()["status"] == "STOPPED"


def test_uploads_and_sessions_of_slicer(site: Site, client: Any, tmp_path: Path) -> None:
    image = write_phantom_ct(tmp_path / "new one.nii.gz", SHAPE, seed=50)
    session = client.create_session(str(image))["session_id"]
    mask, _ = client.infer(MODEL, "", {"device": "cpu"}, session_id=session)
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), expected(site, image))
    assert client.get_session(session)["name"] == session
    client.remove_session(session)
    mask, _ = client.infer(MODEL, "", {"device": "cpu"}, file=str(image))
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), expected(site, image))
    assert client.upload_image(str(image), "new one")["image"] == "new one"
    assert client.upload_image(str(image), "new one")["image"] == "new one"  # the same once more
    other = write_phantom_ct(tmp_path / "other.nii.gz", SHAPE, seed=51)
    with pytest.raises(MONAILabelClientException, match="Status: 409"):
        client.upload_image(str(other), "new one")
    assert (site.studies / "new one.nii.gz").read_bytes() == image.read_bytes()
    admin(site, "DELETE", "/datastore/image?id=new%20one")
    assert not (site.studies / "new one.nii.gz").exists()


def test_two_patients_with_the_same_file_name_never_mix(site: Site, client: Any, tmp_path: Path) -> None:
    """Files of one name from two folders, in two sessions, as uploads at once, and in turn in the studies."""
    images = []
    for seed in (60, 61):
        (tmp_path / str(seed)).mkdir()
        images.append(write_phantom_ct(tmp_path / str(seed) / "image.nii.gz", SHAPE, seed=seed))
    masks = [expected(site, image) for image in images]
    assert (masks[0] != masks[1]).any()
    sessions = [client.create_session(str(image))["session_id"] for image in images]
    answers: dict[int, str] = {}

    def ask_for(place: int) -> None:
        own = MONAILabelClient(site.address(), tmpdir=str(tmp_path), client_id=str(place))
        if place < 2:
            answers[place] = own.infer(MODEL, "", {"device": "cpu"}, session_id=sessions[place])[0]
        else:
            answers[place] = own.infer(MODEL, "", {"device": "cpu"}, file=str(images[place - 2]))[0]

    threads = [threading.Thread(target=ask_for, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, file in answers.items():
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), masks[place % 2])
    assert len(answers) == 4

    target, told = site.studies / "aaa.nii.gz", []
    for image, mask in zip(images, masks, strict=True):
        target.write_bytes(image.read_bytes())
        told.append(client.next_sample("first", {}))
        assert told[-1]["id"] == "aaa"
        file, _ = client.infer(MODEL, "aaa", {"device": "cpu"})
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), mask)
        target.unlink()
    assert told[0]["name"] != told[1]["name"] and told[0]["checksum"] != told[1]["checksum"]


def test_every_address_of_the_clients(site: Site, client: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        client.save_label(f"case{number}", str(label_of(site, number, tmp_path)), "final", LABEL_INFO)
    weights = site.work / "bundles" / MODEL / "models" / "model.pt"
    assert admin(site, "GET", f"/model/{MODEL}").body == weights.read_bytes()
    told = admin(site, "GET", f"/model/info/{MODEL}").json()
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in told["checksum"]
    for lines in ("lines=0", "lines=5&text=true", ""):
        assert admin(site, "GET", f"/logs/?{lines}").status == 200
    archive = zipfile.ZipFile(BytesIO(admin(site, "GET", "/datastore/dataset").body))
    assert {"image/case1.nii.gz", "label/case1.nii.gz", "metadata.json"} <= set(archive.namelist())
    assert not any("link" in name for name in archive.namelist())
    digest = hashlib.sha256((site.studies / "case1.nii.gz").read_bytes()).hexdigest()
    for check_sum, status in (("", 200), (f"SHA256:{digest}", 200), (digest, 200), (f"SHA256:{'0' * 64}", 404)):
        assert admin(site, "HEAD", f"/datastore/image?image=case1&check_sum={check_sum}").status == status
    assert admin(site, "HEAD", "/datastore/label?image=case1&tag=final").status == 200
    pairs = admin(site, "GET", "/datastore/?output=train").json()
    assert {Path(pair["label"]).name for pair in pairs} >= {"case1.nii.gz", "case2.nii.gz"}
    assert admin(site, "GET", "/datastore/").json()["completed"] >= 2
    assert admin(site, "GET", "/datastore/label/info?label=case1&tag=final").json()["name"] == "case1.nii.gz"
    info, headers = form({"info": '{"quality": "good"}'})
    assert admin(site, "PUT", "/datastore/label/info?label=case1&tag=final", info, headers).status == 200
    assert admin(site, "PUT", "/datastore/image/info?image=case1", info, headers).status == 200
    assert admin(site, "GET", "/datastore/image/info?image=case1").json()["quality"] == "good"
    assert admin(site, "GET", "/").status == admin(site, "GET", "/ohif/").status == 200

    options = {"device": "cpu", "max_workers": 1, "multi_gpu": False}
    for images, least in (("labeled", 2), ("all", 4)):
        answer = post(site, f"/batch/infer/{MODEL}?images={images}&run_sync=true", options)
        assert answer.status == 200 and len(answer.json()) >= least, answer.text
        assert answer.json()["case1"]["label"] == "case1"
    assert admin(site, "GET", "/batch/infer").status in (200, 404)
    assert admin(site, "DELETE", "/batch/infer").status == 200
    scores = post(site, "/scoring/dice?run_sync=true", {})
    assert scores.status == 200 and {"case1", "case2"} <= set(scores.json())
    assert admin(site, "GET", "/scoring/").status in (200, 404)
    assert admin(site, "DELETE", "/scoring/").status == 200
    assert admin(site, "GET", "/train/?check_if_running=True").status == 404


LABEL_INFO = {"label_info": [{"name": "block", "idx": 1}, {"name": "bar", "idx": 2}]}


def test_scoring_without_a_method_and_training_to_its_end(guarded_site: Site, tmp_path: Path) -> None:
    """On the server with tokens; test_server_training.py trains on one without."""
    site = guarded_site
    client = MONAILabelClient(site.address("reviewer"), tmpdir=str(tmp_path), client_id="slicer")
    for number in (1, 2):
        client.save_label(f"case{number}", str(label_of(site, number, tmp_path)), "final", LABEL_INFO)
    everything = post(site, "/scoring/", {})
    assert everything.status == 200 and set(everything.json()) == {"dice"}
    body = {MODEL: {"device": "cpu", "max_epochs": 1, "val_interval": 1}}
    trained = post(site, "/train/?run_sync=True", body)
    assert trained.status == 200, trained.text
    assert trained.json()[MODEL]["result"]["total_time"]
    deadline = time.monotonic() + 300
    while admin(site, "GET", "/scoring/?check_if_running=true").status == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert admin(site, "GET", "/scoring/").json()["status"] == "DONE"


def test_reload_makes_the_app_anew_behind_the_same_door(site: Site, client: Any) -> None:
    assert admin(site, "POST", "/reload").status == 200
    assert MODEL in client.info()["models"]
    assert ask(site.port, "GET", "/info/").status == (401 if site.tokens else 200)
    assert ask(site.port, "PUT", f"/model/{MODEL}", headers={"Origin": "http://evil.example"}).status in (401, 403)


def test_others_are_answered_while_cts_are_segmented(site: Site, tmp_path: Path) -> None:
    """Two CTs, and more requests than the server has places for, all held: the rest is answered before they go on."""
    masks: dict[str, NDArray[Any]] = {}

    def segment(image: str) -> None:
        own = MONAILabelClient(site.address(), tmpdir=str(tmp_path), client_id=image)
        file, _ = own.infer(MODEL, image, {"device": "cpu"})
        masks[image] = np.asarray(nib.load(file).dataobj)

    for old in site.gate.glob("started-*"):
        old.unlink()
    (site.gate / "hold").touch()
    threads = [threading.Thread(target=segment, args=(image,)) for image in ("case3", "case4")]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 300
        while not list(site.gate.glob("started-*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        asked = (f"/infer/{MODEL}?image=case5", *form({"params": '{"device": "cpu", "output": "json"}'}))
        threads += [threading.Thread(target=admin, args=(site, "POST", *asked)) for _ in range(20)]
        for thread in threads[2:]:
            thread.start()
        other = MONAILabelClient(site.address("annotator") if site.tokens else site.address(), tmpdir=str(tmp_path))
        assert MODEL in other.info()["models"]
        assert other.train_status(check_if_running=True) is False
        assert other.next_sample("first", {})["id"]
        assert other.save_label("case6", str(label_of(site, 6, tmp_path)), "final", LABEL_INFO)["label"] == "case6"
        assert other.datastore()["objects"]["case6"]["labels"]["final"]
        assert admin(site, "GET", "/logs/?lines=1&text=true").status == 200
        assert len(list(site.gate.glob("started-*"))) == 1 and masks == {}  # held all the time, and one at a time
    finally:
        (site.gate / "hold").unlink()
        for thread in threads:
            thread.join()
    for image in ("case3", "case4"):
        np.testing.assert_array_equal(masks[image], expected(site, site.studies / f"{image}.nii.gz"))
    assert (masks["case3"] != masks["case4"]).any()


def test_a_version_taken_into_use_does_not_disturb_a_running_inference(open_site: Site, tmp_path: Path) -> None:
    """One CT is held within the server while another network is chosen: its mask is the old one's, the next the new."""
    site, image, answers = open_site, open_site.studies / "case3.nii.gz", dict[str, bytes]()
    shipped = get_bundle(site.work / "bundles" / MODEL)
    made = make_version(shipped, site.studies / "ctseg" / MODEL, seed=23, use=False)
    asked = (f"/infer/{MODEL}?image=case3&output=image", *form({"params": '{"device": "cpu"}'}))

    def choose(version: str) -> None:
        told = post(site, f"/versions/{MODEL}", {"version": version})
        assert told.status == 200 and told.json()["current"] == version, told.text

    def segment(name: str) -> None:
        answers[name] = admin(site, "POST", *asked).body

    choose(shipped.version)
    segment("old")
    for old in site.gate.glob("started-*"):
        old.unlink()
    (site.gate / "hold").touch()
    running = threading.Thread(target=segment, args=("running",))
    try:
        running.start()
        deadline = time.monotonic() + 300
        while not list(site.gate.glob("started-*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        choose(made.version)  # answered while the inference is held
        assert "running" not in answers
    finally:
        (site.gate / "hold").unlink()
        running.join()
    try:
        segment("new")
        assert answers["running"] == answers["old"] != answers["new"]
        (tmp_path / "new.nii.gz").write_bytes(answers["new"])
        new = Predictor(made, "cpu").predict(image).label_map
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "new.nii.gz").dataobj), new)
    finally:
        choose(shipped.version)
