"""The MONAI Label app in this process: which bundles it offers, what it answers, one predictor kept."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_app import (  # noqa: F401 - fixtures
    AppUnderTest,
    StubPredictor,
    build_app,
    fixture_app,
    fixture_bundles,
    fixture_studies,
    fixture_under_test,
    load_app_class,
    sibling,
)
from helpers_server import add_weights, oblique_affine, write_fake_bundle

from ctseg.devices import inference_device
from ctseg.errors import BundleError, DeviceError, GeometryError
from ctseg.presence.slices import SlicePresence
from ctseg.registry import app_root, find_bundles
from ctseg.volume import Volume

TOKEN = {"os.environ.get(TOKEN_VARIABLE", "os.environ[TOKEN_VARIABLE]"}
pytest.importorskip("monailabel", reason="the server's extra is not installed")


def test_models_are_all_or_those_named(bundles: Path) -> None:
    choose = sibling("app_choice").choose_bundles
    everything = ["aaa_ct_segmentation", "new_ct_segmentation", "pair_ct_segmentation"]
    for models in ({}, {"models": "all"}, {"models": " "}, {"unknown": "key"}):
        assert list(choose({"bundles": str(bundles), **models})) == everything
    named = choose(
        {"bundles": str(bundles), "models": " pair_ct_segmentation,,new_ct_segmentation,pair_ct_segmentation"}
    )
    assert list(named) == ["pair_ct_segmentation", "new_ct_segmentation"]


def test_unknown_model_names_the_known_ones(bundles: Path) -> None:
    with pytest.raises(BundleError, match=r"'nope'.*aaa_ct_seg.*, new_ct_seg.*, pair_ct_seg"):
        sibling("app_choice").choose_bundles({"bundles": str(bundles), "models": "pair_ct_segmentation,nope"})


def test_broken_bundle_is_left_out_and_named_when_asked_for(bundles: Path, tmp_path: Path) -> None:
    choose = sibling("app_choice").choose_bundles
    (bundles / "aaa_ct_segmentation" / "configs" / "metadata.json").write_text("{")
    assert "aaa_ct_segmentation" not in choose({"bundles": str(bundles)})
    with pytest.raises(BundleError, match="aaa_ct_segmentation is broken"):
        choose({"bundles": str(bundles), "models": "aaa_ct_segmentation"})
    with pytest.raises(BundleError, match="no bundle to serve"):
        choose({"bundles": str(tmp_path / "nowhere")})


def test_without_conf_the_shipped_bundles_are_served() -> None:
    shipped = [name for name, info in find_bundles().items() if not info.flat and (info.segments or info.classifies)]
    if not shipped:
        pytest.skip("no bundle ships in this tree yet")
    assert list(sibling("app_choice").choose_bundles({})) == shipped


def test_cases_are_not_scored_unasked_by_a_model_that_needs_a_caution(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "bundles", "a_ct_segmentation", {"a": 1})
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["ctseg"]["caution"] = "seen to miss organs"
    file.write_text(json.dumps(metadata))
    write_fake_bundle(tmp_path / "bundles", "b_ct_segmentation", {"b": 1})
    both = find_bundles(tmp_path / "bundles")
    for bundles, taken in ((both, "b_ct_segmentation"), ({folder.name: both[folder.name]}, "a_ct_segmentation")):
        scores = sibling("app_scores").AllScores(
            bundles, lambda info: info, None, lambda: None, lambda: tmp_path, "usual"
        )
        assert scores.get(None) is scores.get(taken) is not None


def test_an_inference_does_not_wait_for_all_that_the_app_can_tell(app: Any) -> None:
    """MONAI Label asks for `info()` in each inference and uses nothing of ours."""
    from contextvars import copy_context

    threads, seen = sibling("app_threads"), []

    async def api_run_inference(image: str, file: Any, session_id: str, label: Any = None) -> None:
        seen.append(app.info())

    asked = threads.plain(api_run_inference)
    copy_context().run(lambda: asked(image="case", file=None, session_id=""))
    assert seen == [{}] and app.info()["models"]


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
    assert {"random", "first", "uncertainty"} <= set(info["strategies"])
    assert set(info["scoring"]) == {"dice"}
    assert list(info["trainers"]) == list(models)
    assert info["labels"] == ["aaa", "new", "left thing", "right thing"]


def test_metaimages_are_studies_too(under_test: AppUnderTest) -> None:
    """MONAI Label's own list of extensions lacks them."""
    sitk = pytest.importorskip("SimpleITK")
    source = sitk.ReadImage(str(under_test.studies / "case1.nii.gz"))
    sitk.WriteImage(source, str(under_test.studies / "meta.mha"))
    app = load_app_class()(str(app_root()), str(under_test.studies), {"bundles": str(under_test.bundles)})
    assert "meta" in app.datastore().list_images()
    assert app.datastore().get_image_uri("meta").endswith("meta.mha")


def test_nothing_else_is_offered_or_loaded(app: Any) -> None:
    """Stock apps bring SAM2, whose weights they download when they start."""
    assert not [name for name in app.info()["models"] if "sam" in name.lower()]
    assert not [name for name in sys.modules if name.startswith("monailabel.sam2")]


def test_no_organ_and_no_environment_variable_in_the_app() -> None:
    organs = {label.split()[-1] for info in find_bundles().values() for label in info.labels} | {"liver", "spleen"}
    for file in app_root().glob("*.py"):
        text = file.read_text()
        assert not re.search(rf"(?i)\b({'|'.join(organs)})\b", text), file.name
        # The token may come by the environment; nothing else does.
        reads = re.findall(r"os\.environ\S*|getenv", text)
        assert {read.rstrip(":),") for read in reads} <= (TOKEN if file.name == "app_access.py" else set()), file.name


def test_mask_is_the_prediction_on_the_source_grid(app: Any, studies: Path) -> None:
    answer = app.infer({"model": "aaa_ct_segmentation", "image": "case1"})
    assert answer["file"].endswith(".nii.gz") and "case1" not in answer["file"]
    mask, source = nib.load(answer["file"]), nib.load(studies / "case1.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.affine.tobytes() == source.affine.tobytes()
    expected = np.zeros(source.shape, np.uint8)
    expected[2:4, 3:6, 1:5] = 1
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
    assert Path(answer["file"]).parent.stat().st_mode & 0o077 == 0


def test_answer_says_volume_device_and_times(app: Any) -> None:
    params = app.infer({"model": "pair_ct_segmentation", "image": "case1"})["params"]
    # 24 voxels of 4 x 4 x 5 mm = 1920 mm3
    assert params["volumes_ml"] == {"left thing": pytest.approx(1.92), "right thing": 0.0}
    assert params["cut_by_the_scan"] == []
    assert params["label_names"] == {"left thing": 1}  # 3D Slicer counts the values that occur
    assert (params["device"], params["model"], params["version"]) == ("cpu", "pair_ct_segmentation", "0.3.0")
    latencies = params["latencies"]
    assert (latencies["pre"], latencies["infer"], latencies["post"]) == (0.3, 0.4, 0.8)
    assert latencies["transform"] == {"read": 0.1, "preprocess": 0.2, "network": 0.4, "postprocess": 0.8}


def test_nrrd_for_slicer_is_on_the_same_grid(app: Any, studies: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    request = {"model": "aaa_ct_segmentation", "image": "case1"}
    raw = app.infer({**request, "result_extension": ".nrrd", "result_dtype": "uint8"})["file"]
    packed = app.infer({**request, "result_extension": "nrrd", "result_dtype": "uint16", "result_compress": True})[
        "file"
    ]
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


def test_nrrd_of_another_shape_is_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), oblique_affine(), oblique_affine(), tmp_path, "nifti")
    with pytest.raises(GeometryError, match="same grid"):
        sibling("app_results").write_nrrd(np.zeros((3, 5, 4), np.uint8), volume, tmp_path / "mask.nrrd")


def test_network_is_loaded_once_per_device_and_again_when_the_weights_change(app: Any, bundles: Path) -> None:
    request = {"model": "aaa_ct_segmentation", "image": "case1"}
    for image in ("case1", "case2", "case1"):
        app.infer({**request, "image": image, "model_filename": "/etc/passwd"})
    app.infer({**request, "device": inference_device()})  # the same by its name
    assert StubPredictor.made == [("aaa_ct_segmentation", inference_device())]
    add_weights(bundles / "aaa_ct_segmentation", b"better ones")
    app.infer(request)
    app.infer(request)
    assert StubPredictor.made[1:] == [("aaa_ct_segmentation", inference_device())]


def test_two_requests_at_once_do_not_mix(app: Any) -> None:
    StubPredictor.overlaps.clear()
    models = ["aaa_ct_segmentation", "pair_ct_segmentation"] * 3
    run = [threading.Thread(target=app.infer, args=({"model": m, "image": "case1"},)) for m in models]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert StubPredictor.overlaps == [False] * 6
    assert sorted(StubPredictor.made) == [
        ("aaa_ct_segmentation", inference_device()),
        ("pair_ct_segmentation", inference_device()),
    ]


def test_prediction_is_kept_as_a_label_when_asked(app: Any, studies: Path) -> None:
    answer = app.infer({"model": "aaa_ct_segmentation", "image": "case1", "save_label": "true", "label_tag": "auto-1"})
    assert (answer["label"], answer["tag"]) == ("case1", "auto-1")
    assert (studies / "labels" / "auto-1" / "case1.nii.gz").is_file()


@pytest.mark.parametrize("asked", [None, "", [], "auto", "cpu", ["cpu"], "cuda", "cuda:1"])
def test_device_from_a_client_without_a_gpu(monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sibling("app_infer").wanted_device(asked) == "cpu"


def test_device_from_a_client_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA Any")
    wanted = sibling("app_infer").wanted_device
    assert [wanted(asked) for asked in ("", "cpu", "cuda", "NVIDIA Any:1")] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    for unknown in ("cuda:2", "abacus", {"a": 1}):
        with pytest.raises(DeviceError, match="device"):
            wanted(unknown)


class StubClassifier:
    """Finds the organ on the second of the slices."""

    def __init__(self, bundle: Any, device: str, runtime: str = "torch") -> None:
        self.bundle = bundle

    def predict(self, source: Path, every_mm: float | None = None) -> SlicePresence:
        """Answer as `ctseg.presence.slices.PresencePredictor` does."""
        image = nib.load(source)
        volume = Volume(np.asarray(image.dataobj), image.affine, image.affine, source, "nifti", image.header)
        probability = np.full((image.shape[2], 1), 0.1, np.float32)
        probability[1] = 0.8
        positions = np.arange(float(image.shape[2]))
        return SlicePresence(
            volume, tuple(self.bundle.labels), probability, positions, 2, 0.5, {"network": 0.4}, "cpu", self.bundle
        )


def test_a_classifier_is_listed_as_such_and_answers_with_a_table(tmp_path: Path, monkeypatch: Any) -> None:
    write_fake_bundle(tmp_path / "bundles", "zzz_ct_classification", {"zzz": 1})
    file = tmp_path / "bundles" / "zzz_ct_classification" / "configs" / "metadata.json"
    file.write_text(file.read_text().replace('"format": "segmentation"', '"format": "classification"'))
    app, studies = (one := build_app(tmp_path, monkeypatch)).app, one.studies
    assert app.info()["models"]["zzz_ct_classification"]["type"] == "classification"
    assert app.info()["models"]["aaa_ct_segmentation"]["type"] == "segmentation"
    monkeypatch.setattr("ctseg.presence.slices.PresencePredictor", StubClassifier)
    answer = app.infer({"model": "zzz_ct_classification", "image": "case1", "save_label": True})
    assert answer["file"] is None and answer["label"] is None
    assert not list(studies.rglob("*mask*"))
    presence = json.loads(json.dumps(answer["params"]))["presence"]
    assert [row["present"]["zzz"] for row in presence["slices"]] == [False, True, False, False, False, False]
    assert presence["organs"][0]["summary"] == "zzz: present on 1 of 6 slices: 2"
    assert answer["params"]["label_names"] == {"zzz": 1}
    with pytest.raises(Exception, match="nope"):
        app.infer({"model": "zzz_ct_classification", "image": "nope"})
