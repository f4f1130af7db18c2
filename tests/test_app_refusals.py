"""What the MONAI Label app refuses: paths for names and unknown things; and that nothing is left behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers_app import (  # noqa: F401 - fixtures
    StubPredictor,
    fixture_app,
    fixture_bundles,
    fixture_studies,
    fixture_under_test,
    sibling,
)
from helpers_server import add_weights, write_mask_of, write_phantom_ct

from ctseg.errors import BundleError, ConfigError, DeviceError, GeometryError, InputError, OutputError, ResourceError
from ctseg.registry import app_root, get_bundle

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException


def refusal(app: Any, **request: Any) -> HTTPException:
    """The exception that an inference request is answered with."""
    with pytest.raises(HTTPException) as caught:
        app.infer({"model": "aaa_ct_segmentation", "image": "case1", **request})
    return caught.value


NO_IDS = ["", None, 7, ["case1"], "unknown", "labels", "sub/case1", "case1\x00", "/etc\x00", "x" * 5000]
PATHS = ["../secret", "../secret.nii.gz", "a/../../secret", "..\\secret", "/etc/passwd", "/" + "x" * 5000, "..", "."]


@pytest.mark.parametrize("image", [*NO_IDS, *PATHS, "http://127.0.0.1/x.nii.gz"])
def test_image_that_is_no_id_is_refused(app: Any, image: Any) -> None:
    error = refusal(app, image=image)
    assert error.status_code == 404
    assert len(error.detail) < 400
    assert StubPredictor.made == []


def test_absolute_paths_are_refused_but_uploads_are_taken(app: Any, studies: Path) -> None:
    assert refusal(app, image=str(studies.parent / "secret.nii.gz")).status_code == 404
    assert refusal(app, image=str(studies / "case1.nii.gz")).status_code == 404
    private = sibling("app_http").private_folder()
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
    upload = sibling("app_http").private_folder() / "tmpbad.txt"
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
    [
        (BundleError, 409),
        (ResourceError, 413),
        (InputError, 422),
        (GeometryError, 422),
        (ConfigError, 400),
        (DeviceError, 400),
        (OutputError, 507),
    ],
)
def test_error_of_the_library_becomes_a_status_and_its_sentence(error: Any, status: int) -> None:
    path = Path("/srv/x/case1.nii.gz")
    found = sibling("app_http").sentence_for(error(f"{path} has no grid; expected one"), path, "case1")
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


def test_untrained_bundle_answers_and_turns_real_without_a_restart(app: Any, bundles: Path) -> None:
    error = refusal(app, model="new_ct_segmentation")
    assert error.status_code == 409
    assert "untrained" in error.detail and "monai.bundle run" in error.detail
    add_weights(bundles / "new_ct_segmentation")
    assert app.info()["models"]["new_ct_segmentation"]["trained"] is True
    assert app.infer({"model": "new_ct_segmentation", "image": "case1"})["params"]["volumes_ml"] == {"new": 1.92}
    (bundles / "new_ct_segmentation" / "models" / "model.pt").unlink()
    assert "missing" in refusal(app, model="new_ct_segmentation").detail


def test_next_sample(app: Any, studies: Path) -> None:
    assert app.next_sample({"strategy": "first"})["id"] == "case1"
    assert app.next_sample({})["id"] in ("case1", "case2")
    mask = write_mask_of(studies, 1)
    app.datastore().save_label("case1", mask, "final", {})
    assert app.next_sample({"strategy": "first"})["id"] == "case2"
    # Asked twice within a second for the only case left: the stock strategy fails on weights that are all zero.
    now = int(time.time()) + 1
    app.datastore().update_image_info("case2", {"strategy": {"random": {"ts": now}}})
    while int(time.time()) != now:
        time.sleep(0.02)
    assert app.next_sample({"strategy": "random"})["id"] == "case2"
    app.datastore().save_label("case2", mask, "final", {})
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
