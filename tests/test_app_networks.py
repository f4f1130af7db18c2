"""One loaded network for each bundle and version: running inference keeps its own, the cascade takes those in use."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_app import load_app_class
from helpers_cascade import ORGAN, SECOND, phantom_ct, write_cascade
from helpers_phantoms import straight_affine, write_nifti
from helpers_versions import make_version

from ctseg.devices import inference_device
from ctseg.organchoice import Selection, choose_organs, combined_bundle
from ctseg.prediction import Predictor
from ctseg.registry import BundleInfo, app_root, get_bundle

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture
def bundles(cascade: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cascade, tmp_path / "bundles"))


@pytest.fixture
def app(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app on an organ, a second one that takes its mask, and one CT; every loaded network is noted in `made`."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "case1.nii.gz", phantom_ct(), straight_affine((4.0, 4.2, 3.0)))
    app = load_app_class()(str(app_root()), str(tmp_path / "studies"), {"bundles": str(bundles)})
    app.made = []
    init = Predictor.__init__

    def noted(self: Predictor, bundle: BundleInfo, *args: Any, **kwargs: Any) -> None:
        app.made.append(f"{bundle.name} {bundle.version}")
        init(self, bundle, *args, **kwargs)

    monkeypatch.setattr(Predictor, "__init__", noted)
    return app


def content(app: Any, model: str, **more: Any) -> bytes:
    """The mask's file, uncompressed: every byte of it."""
    answer = app.infer({"model": model, "image": "case1", "device": "cpu", "result_extension": ".nii", **more})
    return Path(answer["file"]).read_bytes()


def voxels(content: bytes) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(content).dataobj)


def data_of(app: Any, model: str) -> Path:
    return Path(app.studies) / "ctseg" / model


def held_in_the_middle(app: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let the next network that runs stop within its own forward pass: (it is there, it may go on)."""
    import torch

    there, go_on = threading.Event(), threading.Event()
    forward = torch.nn.Conv2d.forward

    def waiting(self: Any, image: Any) -> Any:
        if not there.is_set():
            there.set()
            assert go_on.wait(60)
        return forward(self, image)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", waiting)
    return there, go_on


def in_thread(work: Callable[[], bytes]) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_a_running_inference_ends_with_the_network_it_began_with(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old = content(app, ORGAN)
    shipped, data = app.bundles()[ORGAN], data_of(app, ORGAN)
    there, go_on = held_in_the_middle(app, monkeypatch)
    running, first = in_thread(lambda: content(app, ORGAN))
    assert there.wait(60)
    made = make_version(shipped, data, seed=7)  # while the network is in its first layer
    assert app.info()["models"][ORGAN]["version"] == made.version, "info does not wait for the inference"
    queued, second = in_thread(lambda: content(app, ORGAN))
    assert running.is_alive() and not first
    go_on.set()
    running.join(60)
    queued.join(60)
    new = content(app, ORGAN)
    assert first == [old], "the running inference was disturbed"
    assert second == [new] and new != old
    np.testing.assert_array_equal(
        voxels(new), Predictor(made, "cpu").predict(Path(app.studies) / "case1.nii.gz").label_map
    )
    app.trainer(ORGAN).versions().use(shipped.version)  # and back
    assert content(app, ORGAN) == old


def test_the_network_of_the_version_before_is_freed(app: Any) -> None:
    content(app, ORGAN)
    before = weakref.ref(app._networks.load(app._in_use(app.bundles()[ORGAN]), "cpu").network)
    make_version(app.bundles()[ORGAN], data_of(app, ORGAN), seed=7)
    content(app, ORGAN)
    gc.collect()
    assert before() is None


def test_one_network_for_all_who_ask(app: Any) -> None:
    """The bundle's own model, another bundle's input, a request of several organs, and the scores share it."""
    content(app, ORGAN)
    said = app.infer({"model": SECOND, "image": "case1", "device": "cpu"})["params"]["quality"]
    organs = app._networks.bundles()
    choices = choose_organs(["second", "organ"], {name: info for name, info in organs.items() if info.segments})
    app._networks.segment(Path(app.studies) / "case1.nii.gz", Selection(combined_bundle(choices), choices), "cpu")
    assert sorted(app.made) == [f"{ORGAN} 0.1.0", f"{SECOND} 0.1.0"]
    if inference_device() == "cpu":  # where the scores are computed
        app.next_sample({"strategy": "uncertainty", "model": SECOND})
        assert app._scores.get(SECOND).idle.wait(60)
        score = app._scores.get(SECOND).told()["scored"]["case1"]
        assert score["quality"] == said and 0 < said["organs"]["second"]["expected_dice"] < 1
        assert len(app.made) == 2


def test_an_input_organ_comes_from_its_version_in_use(app: Any, bundles: Path, tmp_path: Path) -> None:
    plain = content(app, SECOND)
    made = make_version(app.bundles()[ORGAN], data_of(app, ORGAN), seed=11)
    other = Path(shutil.copytree(bundles, tmp_path / "other"))
    assert made.weights is not None
    shutil.copyfile(made.weights, other / ORGAN / "models" / "model.pt")
    expected = Predictor(get_bundle(SECOND, other), "cpu").predict(Path(app.studies) / "case1.nii.gz").label_map
    app.made.clear()
    found = content(app, SECOND)
    np.testing.assert_array_equal(voxels(found), expected)
    assert found != plain and app.made == [f"{ORGAN} {made.version}"], "the second organ's own network was kept"
    app.trainer(ORGAN).versions().use("0.1.0")
    assert content(app, SECOND) == plain


def test_a_trained_version_finds_what_it_needs_in_the_servers_bundles(app: Any) -> None:
    """Its folder lies below the studies, where no other bundle is beside it."""
    made = make_version(app.bundles()[SECOND], data_of(app, SECOND), seed=5)
    told = app.info()["models"][SECOND]
    assert told["version"] == made.version and "Not usable" not in told["description"]
    assert content(app, SECOND)
    assert set(app.made) == {f"{SECOND} {made.version}", f"{ORGAN} 0.1.0"}


def test_a_checkpoint_without_the_networks_tensors_is_refused(app: Any, bundles: Path) -> None:
    """MONAI Label itself answers such a one with a mask."""
    import torch

    torch.save({}, bundles / ORGAN / "models" / "model.pt")
    with pytest.raises(HTTPException, match="do not fit the network") as caught:
        content(app, ORGAN)
    assert caught.value.status_code == 409


def test_an_organ_that_was_trained_here_only_serves_the_others(app: Any, bundles: Path) -> None:
    """The bundle as it came has no weights, its version in use has."""
    make_version(app.bundles()[ORGAN], data_of(app, ORGAN), seed=3)
    (bundles / ORGAN / "models" / "model.pt").unlink()
    assert "Not usable" not in app.info()["models"][SECOND]["description"]
    assert content(app, SECOND)
    (data_of(app, ORGAN) / "versions.json").unlink()
    assert f"needs {ORGAN}" in app.info()["models"][SECOND]["description"]
