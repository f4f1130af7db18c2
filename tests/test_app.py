"""The MONAI Label app in this process: choosing bundles, refusing, and one predictor kept. No network is built."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_server import add_weights, oblique_affine, write_fake_bundle, write_phantom_ct

from ctseg.errors import BundleError, ConfigError, DeviceError, GeometryError, InputError, OutputError, ResourceError
from ctseg.registry import app_root, find_bundles, get_bundle
from ctseg.volume import Volume

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file


@pytest.fixture(scope="module")
def app_class() -> Iterator[type]:
    """The app as MONAI Label finds it; its sibling modules stay importable for the tests."""
    found = get_class_of_subclass_from_file("main", str(app_root() / "main.py"), "MONAILabelApp")
    assert found is not None and found.__name__ == "CtsegApp"
    yield found


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Two bundles with weights (one of two organs) and one without."""
    root = tmp_path / "bundles"
    write_fake_bundle(root, "aaa_ct_segmentation", {"aaa": 1})
    write_fake_bundle(root, "pair_ct_segmentation", {"left thing": 1, "right thing": 2})
    write_fake_bundle(root, "new_ct_segmentation", {"new": 1}, trained=False)
    return root


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two CTs in a folder, and a secret beside it."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in (1, 2):
        write_phantom_ct(folder / f"case{number}.nii.gz", (12, 10, 6), seed=number)
    write_phantom_ct(tmp_path / "secret.nii.gz", (12, 10, 6))
    return folder


@pytest.fixture
def app(app_class: type, bundles: Path, studies: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app on those studies, with stub predictors."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(studies.parent / "sessions"))
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTO_UPDATE_SCORING", False)
    made = app_class(str(app_root()), str(studies), {"bundles": str(bundles)})
    for task in made._infers.values():
        task._load = StubPredictor
    StubPredictor.made.clear()
    return made


@dataclass
class StubPredictor:
    """Marks a block of 2 x 3 x 4 voxels as label 1; counts how often it is made and whether calls overlap."""

    bundle: Any
    device: str
    busy: bool = field(default=False)
    made = []  # noqa: RUF012 - shared on purpose
    overlaps = []  # noqa: RUF012

    def __post_init__(self) -> None:
        self.made.append((self.bundle.name, self.device))

    def predict(self, source: Path) -> Any:
        if not str(source).endswith((".nii", ".nii.gz")):
            raise InputError(f"{source} is no image; expected a NIfTI")
        self.overlaps.append(self.busy)
        self.busy = True
        time.sleep(0.02)
        image = nib.load(source)
        array = np.asarray(image.dataobj)
        volume = Volume(array, image.affine, image.affine, source, "nifti", image.header)
        label_map = np.zeros(array.shape, np.uint8)
        label_map[2:4, 3:6, 1:5] = 1
        self.busy = False
        seconds = {"read": 0.1, "preprocess": 0.2, "network": 0.4, "postprocess": 0.8}
        return SimpleNamespace(
            volume=volume,
            label_map=label_map,
            labels=self.bundle.labels,
            seconds=seconds,
            device="cpu",
            bundle=self.bundle,
        )


def refusal(app: Any, **request: Any) -> HTTPException:
    """The exception that an inference request is answered with."""
    with pytest.raises(HTTPException) as caught:
        app.infer({"model": "aaa_ct_segmentation", "image": "case1", **request})
    return caught.value


# --- which bundles


def test_models_are_all_or_those_named(app_class: type, bundles: Path) -> None:
    choose = sys.modules["app_choice"].choose_bundles
    everything = ["aaa_ct_segmentation", "new_ct_segmentation", "pair_ct_segmentation"]
    for models in ({}, {"models": "all"}, {"models": " "}, {"unknown": "key"}):
        assert list(choose({"bundles": str(bundles), **models})) == everything
    named = choose({"bundles": str(bundles), "models": " pair_ct_segmentation,,new_ct_segmentation,pair_ct_segmentation"})
    assert list(named) == ["pair_ct_segmentation", "new_ct_segmentation"]


def test_unknown_model_names_the_known_ones(app_class: type, bundles: Path) -> None:
    with pytest.raises(BundleError, match=r"'nope'.*aaa_ct_seg.*, new_ct_seg.*, pair_ct_seg"):
        sys.modules["app_choice"].choose_bundles({"bundles": str(bundles), "models": "pair_ct_segmentation,nope"})


def test_broken_bundle_is_left_out_and_named_when_asked_for(app_class: type, bundles: Path, tmp_path: Path) -> None:
    choose = sys.modules["app_choice"].choose_bundles
    (bundles / "aaa_ct_segmentation" / "configs" / "metadata.json").write_text("{")
    assert "aaa_ct_segmentation" not in choose({"bundles": str(bundles)})
    with pytest.raises(BundleError, match="aaa_ct_segmentation is broken"):
        choose({"bundles": str(bundles), "models": "aaa_ct_segmentation"})
    with pytest.raises(BundleError, match="no bundle to serve"):
        choose({"bundles": str(tmp_path / "nowhere")})


def test_without_conf_the_shipped_bundles_are_served(app_class: type) -> None:
    shipped = [name for name, info in find_bundles().items() if info.segments]
    if not shipped:
        pytest.skip("no bundle ships in this tree yet")
    assert list(sys.modules["app_choice"].choose_bundles({})) == shipped


# --- what is listed


def test_info_lists_every_bundle(app: Any) -> None:
    info = app.info()
    models = info["models"]
    assert list(models) == ["aaa_ct_segmentation", "new_ct_segmentation", "pair_ct_segmentation"]
    assert models["pair_ct_segmentation"]["labels"] == {"left thing": 1, "right thing": 2}
    assert models["aaa_ct_segmentation"]["description"] == "Segments aaa."
    for model in models.values():
        assert (model["type"], model["dimension"], model["version"]) == ("segmentation", 3, "0.3.0")
        assert "cpu" in model["config"]["device"]
        assert "model_filename" not in model["config"]
    assert [model["trained"] for model in models.values()] == [True, False, True]
    assert "monai.bundle run" in models["new_ct_segmentation"]["description"]
    assert set(info["strategies"]) == {"random", "first"}
    assert set(info["scoring"]) == {"dice"}
    assert list(info["trainers"]) == list(models)
    assert info["labels"] == ["aaa", "new", "left thing", "right thing"]


def test_no_organ_and_no_environment_variable_in_the_app() -> None:
    organs = {label.split()[-1] for info in find_bundles().values() for label in info.labels} | {"liver", "spleen"}
    for file in app_root().glob("*.py"):
        text = file.read_text()
        assert not re.search(rf"(?i)\b({'|'.join(organs)})\b", text), file.name
        assert "environ" not in text and "getenv" not in text, file.name


# --- inference


def test_mask_is_the_prediction_on_the_source_grid(app: Any, studies: Path) -> None:
    answer = app.infer({"model": "aaa_ct_segmentation", "image": "case1"})
    assert answer["file"].endswith(".nii.gz") and "case1" not in answer["file"]
    mask, source = nib.load(answer["file"]), nib.load(studies / "case1.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.affine.tobytes() == source.affine.tobytes()
    expected = np.zeros(source.shape, np.uint8)
    expected[2:4, 3:6, 1:5] = 1
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
    assert os.stat(Path(answer["file"]).parent).st_mode & 0o077 == 0


def test_answer_says_volume_device_and_times(app: Any) -> None:
    params = app.infer({"model": "pair_ct_segmentation", "image": "case1"})["params"]
    # 24 voxels of 4 x 4 x 5 mm = 1920 mm3
    assert params["volumes_ml"] == {"left thing": pytest.approx(1.92), "right thing": 0.0}
    assert params["label_names"] == {"left thing": 1}  # 3D Slicer counts the values that occur
    assert (params["device"], params["model"], params["version"]) == ("cpu", "pair_ct_segmentation", "0.3.0")
    latencies = params["latencies"]
    assert (latencies["pre"], latencies["infer"], latencies["post"]) == (0.3, 0.4, 0.8)
    assert latencies["transform"] == {"read": 0.1, "preprocess": 0.2, "network": 0.4, "postprocess": 0.8}


def test_nrrd_for_slicer_is_on_the_same_grid(app: Any, studies: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    request = {"model": "aaa_ct_segmentation", "image": "case1"}
    raw = app.infer({**request, "result_extension": ".nrrd", "result_dtype": "uint8"})["file"]
    packed = app.infer({**request, "result_extension": "nrrd", "result_dtype": "uint16", "result_compress": True})["file"]
    affine = nib.load(studies / "case1.nii.gz").affine
    header = Path(raw).read_bytes().partition(b"\n\n")[0].decode()
    rows = re.search(r"space directions: (.*)", header).group(1)  # type: ignore[union-attr]
    numbers = np.array([float(n) for n in re.findall(r"[-+.\de]+", rows)]).reshape(3, 3)
    assert numbers.T.tobytes() == (np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]).tobytes()
    nifti = sitk.ReadImage(app.infer(request)["file"])
    for file, pixel in ((raw, sitk.sitkUInt8), (packed, sitk.sitkUInt16)):
        mask = sitk.ReadImage(file)
        assert mask.GetPixelID() == pixel
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(nifti))
        for corner in ((0, 0, 0), (11, 9, 5)):
            expected = nifti.TransformIndexToPhysicalPoint(corner)
            np.testing.assert_allclose(mask.TransformIndexToPhysicalPoint(corner), expected, atol=1e-4)


def test_nrrd_of_another_shape_is_refused(app_class: type, tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), oblique_affine(), oblique_affine(), tmp_path, "nifti")
    with pytest.raises(GeometryError, match="same grid"):
        sys.modules["app_results"].write_nrrd(np.zeros((3, 5, 4), np.uint8), volume, tmp_path / "mask.nrrd")


def test_network_is_loaded_once_per_device_and_again_when_the_weights_change(app: Any, bundles: Path) -> None:
    request = {"model": "aaa_ct_segmentation", "image": "case1"}
    for image in ("case1", "case2", "case1"):
        app.infer({**request, "image": image, "model_filename": "/etc/passwd"})
    app.infer({**request, "device": "cpu"})
    assert StubPredictor.made == [("aaa_ct_segmentation", "auto"), ("aaa_ct_segmentation", "cpu")]
    add_weights(bundles / "aaa_ct_segmentation", b"better ones")
    app.infer(request)
    app.infer(request)
    assert StubPredictor.made[2:] == [("aaa_ct_segmentation", "auto")]


def test_untrained_bundle_answers_and_turns_real_without_a_restart(app: Any, bundles: Path) -> None:
    error = refusal(app, model="new_ct_segmentation")
    assert error.status_code == 409
    assert "untrained" in error.detail and "monai.bundle run" in error.detail
    add_weights(bundles / "new_ct_segmentation")
    assert app.info()["models"]["new_ct_segmentation"]["trained"] is True
    assert app.infer({"model": "new_ct_segmentation", "image": "case1"})["params"]["volumes_ml"] == {"new": 1.92}
    (bundles / "new_ct_segmentation" / "models" / "model.pt").unlink()
    assert "missing" in refusal(app, model="new_ct_segmentation").detail


def test_two_requests_at_once_do_not_mix(app: Any) -> None:
    StubPredictor.overlaps.clear()
    models = ["aaa_ct_segmentation", "pair_ct_segmentation"] * 3
    run = [threading.Thread(target=app.infer, args=({"model": m, "image": "case1"},)) for m in models]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert StubPredictor.overlaps == [False] * 6
    assert sorted(StubPredictor.made) == [("aaa_ct_segmentation", "auto"), ("pair_ct_segmentation", "auto")]


def test_prediction_is_kept_as_a_label_when_asked(app: Any, studies: Path) -> None:
    answer = app.infer({"model": "aaa_ct_segmentation", "image": "case1", "save_label": "true", "label_tag": "auto-1"})
    assert (answer["label"], answer["tag"]) == ("case1", "auto-1")
    assert (studies / "labels" / "auto-1" / "case1.nii.gz").is_file()


@pytest.mark.parametrize(
    ("asked", "device"),
    [(None, "auto"), ("", "auto"), ([], "auto"), ("auto", "auto"), ("cpu", "cpu"), (["cpu"], "cpu"), ("cuda:x", "cpu")],
)
def test_device_from_a_client(app_class: type, monkeypatch: pytest.MonkeyPatch, asked: Any, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sys.modules["app_infer"].wanted_device(asked) == device


# --- refusals


@pytest.mark.parametrize(
    "image",
    ["", None, 7, ["case1"], "unknown", "../secret", "../secret.nii.gz", "a/../../secret", "/etc/passwd", "..", "."]
    + ["case1\x00", "sub/case1", "..\\secret", "labels", "http://127.0.0.1/x.nii.gz", "x" * 5000, "/" + "x" * 5000, "/etc\x00"],
)
def test_image_that_is_no_id_is_refused(app: Any, image: Any) -> None:
    error = refusal(app, image=image)
    assert error.status_code == 404
    assert len(error.detail) < 400
    assert StubPredictor.made == []


def test_absolute_paths_are_refused_but_uploads_are_taken(app: Any, studies: Path) -> None:
    assert refusal(app, image=str(studies.parent / "secret.nii.gz")).status_code == 404
    assert refusal(app, image=str(studies / "case1.nii.gz")).status_code == 404
    private = sys.modules["app_http"].private_folder()
    upload = write_phantom_ct(private / "tmpupload.nii.gz", (12, 10, 6))
    answer = app.infer({"model": "aaa_ct_segmentation", "image": str(upload), "save_label": True})
    assert answer["params"]["volumes_ml"] == {"aaa": 1.92}
    assert answer["label"] == answer["file"]  # an upload belongs to no case: nothing is saved
    assert refusal(app, image=f"{private}/../secret.nii.gz").status_code == 404
    upload.unlink()


def test_link_out_of_the_studies_is_refused(app: Any, studies: Path) -> None:
    (studies / "link.nii.gz").symlink_to(studies.parent / "secret.nii.gz")
    app.datastore().refresh()
    assert "link" in app.datastore().list_images()
    assert refusal(app, image="link").status_code == 404
    assert app.datastore().get_image_uri("link") == ""


def test_refused_upload_does_not_stay_on_disk(app: Any) -> None:
    upload = sys.modules["app_http"].private_folder() / "tmpbad.txt"
    upload.write_text("no image")
    error = refusal(app, image=str(upload))
    assert (error.status_code, error.detail) == (422, "the uploaded image is no image; expected a NIfTI")
    assert not upload.exists()


def test_unknown_model_and_forms_are_refused(app: Any) -> None:
    for model in ("nope", None, 3, ["aaa_ct_segmentation"]):
        error = refusal(app, model=model)
        assert error.status_code == 404 and "aaa_ct_segmentation" in error.detail
    assert refusal(app, result_extension=".exe").status_code == 400
    assert refusal(app, result_dtype="object").status_code == 400
    assert refusal(app, device={"a": 1}).status_code == 400
    assert refusal(app, label_tag="/tmp/evil").status_code == 400
    assert StubPredictor.made == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(BundleError, 409), (ResourceError, 413), (GeometryError, 422), (OutputError, 507), (DeviceError, 400)]
    + [(ConfigError, 400), (InputError, 422)],
)
def test_error_of_the_library_becomes_a_status_and_its_sentence(app_class: type, error: Any, status: int) -> None:
    path = Path("/srv/x/case1.nii.gz")
    found = sys.modules["app_http"].sentence_for(error(f"{path} has no grid; expected one"), path, "case1")
    assert found == (status, "case1 has no grid; expected one")


def test_uploads_and_labels_stay_in_the_studies(app: Any, studies: Path) -> None:
    store = app.datastore()
    ct = str(studies / "case1.nii.gz")
    before = sorted(studies.parent.rglob("*"))
    for image_id in ("../x", "/tmp/x", "a/../../x", "..", ".hidden", "x\n"):
        with pytest.raises(HTTPException) as caught:
            store.add_image(image_id, ct, {})
        assert caught.value.status_code == 400
    for tag in ("../../x", "/tmp/x", "", ".."):
        with pytest.raises(HTTPException) as caught:
            store.save_label("case1", ct, tag, {})
        assert caught.value.status_code == 400
    with pytest.raises(HTTPException) as caught:
        store.add_image("fine", str(app_root() / "main.py"), {})
    assert caught.value.status_code == 415
    assert sorted(studies.parent.rglob("*")) == before
    assert store.add_image("case 3 (new)", ct, {}) == "case 3 (new)"
    assert (studies / "case 3 (new).nii.gz").is_file()


def test_training_is_refused_with_the_command(app: Any, bundles: Path) -> None:
    weights = (bundles / "aaa_ct_segmentation" / "models" / "model.pt").read_bytes()
    for request in ({"model": "aaa_ct_segmentation"}, {"model": "aaa_ct_segmentation", "pretrained": False}, {}):
        with pytest.raises(HTTPException, match="python -m monai.bundle run") as caught:
            app.train(request)
        assert caught.value.status_code == 409
    with pytest.raises(HTTPException) as caught:
        app.train({"model": "nope"})
    assert caught.value.status_code == 404
    assert (bundles / "aaa_ct_segmentation" / "models" / "model.pt").read_bytes() == weights


# --- next sample, batch


def test_next_sample(app: Any, studies: Path) -> None:
    assert app.next_sample({"strategy": "first"})["id"] == "case1"
    assert app.next_sample({})["id"] in ("case1", "case2")
    app.datastore().save_label("case1", str(studies / "case1.nii.gz"), "final", {})
    assert app.next_sample({"strategy": "first"})["id"] == "case2"
    # Asked twice within a second for the only case left: the stock strategy fails on weights that are all zero.
    now = int(time.time()) + 1
    app.datastore().update_image_info("case2", {"strategy": {"random": {"ts": now}}})
    while int(time.time()) != now:
        time.sleep(0.02)
    assert app.next_sample({"strategy": "random"})["id"] == "case2"
    app.datastore().save_label("case2", str(studies / "case2.nii.gz"), "final", {})
    assert app.next_sample({"strategy": "random"}) == {}
    with pytest.raises(HTTPException, match="random, first") as caught:
        app.next_sample({"strategy": "nope"})
    assert caught.value.status_code == 404


def test_batch_goes_on_past_a_bad_case(app: Any, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (studies / "bad.nrrd").write_bytes(b"NRRD0004\n")
    app.datastore().refresh()
    request = {"model": "aaa_ct_segmentation", "device": "cuda", "multi_gpu": True, "gpus": "all", "max_workers": 1}
    result = app.batch_infer({**request, "images": "all"})
    assert result["bad"] == {"error": "bad is no image; expected a NIfTI"}
    assert [result[image]["label"] for image in ("case1", "case2")] == ["case1", "case2"]
    for image in ("case1", "case2"):
        assert (studies / "labels" / "original" / f"{image}.nii.gz").is_file()


def test_bundle_that_breaks_while_served_is_said(app: Any, bundles: Path) -> None:
    (bundles / "aaa_ct_segmentation" / "configs" / "metadata.json").write_text("{")
    model = app.info()["models"]["aaa_ct_segmentation"]
    assert model["trained"] is False and "is broken" in model["description"]
    assert refusal(app).status_code == 409
    assert get_bundle("pair_ct_segmentation", bundles).trained
