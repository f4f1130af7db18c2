"""Several organs over HTTP, on a running server: the model of several organs, `POST /predict/`, `POST /surfaces/`."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import COMPOSITE, CORE, SHELL, write_organ_bundles, write_phantom
from helpers_predict import CODES, ORGANS, SEEDS, PredictContract, Server, ct_file, post, raw, wanted
from helpers_server import running_server
from numpy.typing import NDArray

pytest.importorskip("monailabel", reason="the server's extra is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("several")
    bundles, studies = write_organ_bundles(work / "bundles"), work / "studies"
    studies.mkdir()
    for name, seed in SEEDS.items():
        write_phantom(studies / f"{name}.nii.gz", seed)
    (work / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(work / "tmp"))  # of the server alone, to be looked at
        with running_server(studies, work, ("bundles", str(bundles))) as url:
            yield Server(url, studies, work)


def test_info_lists_the_model_of_several_organs(server: Server) -> None:
    info = json.loads(raw(server, "/info/", b"", {}, "GET").content)
    model = info["models"][COMPOSITE]
    assert model["labels"] == {"shell": SHELL, "core": CORE} and model["organs"] == ["core", "shell"]
    assert (model["type"], model["trained"], model["dimension"]) == ("segmentation", True, 3)
    assert model["config"]["organs"] == ["core,shell", "core", "shell"]


@pytest.mark.parametrize(
    ("asked", "organs"),
    [
        ({}, ("core", "shell")),
        ({"organs": ["shell", "core"]}, ("shell", "core")),
        ({"organs": "shell, core"}, ("shell", "core")),
        ({"organs": ["core"]}, ("core",)),
        ({"organs": ["core,shell", "core", "shell"]}, ("core", "shell")),  # the options sent back as they were listed
    ],
)
def test_the_model_takes_the_list_in_its_params(server: Server, asked: dict[str, Any], organs: tuple[str, ...]) -> None:
    address = f"/infer/{COMPOSITE}?image=case1&output=image"
    answer = post(server, address, params=json.dumps({"device": "cpu", **asked}))
    assert answer.status == 200 and 'filename="segmentation.nii.gz"' in answer.headers["content-disposition"]
    ct = nib.load(server.studies / "case1.nii.gz")
    np.testing.assert_array_equal(np.asarray(answer.mask.dataobj), wanted("case1", *organs))
    assert answer.mask.affine.tobytes() == ct.affine.tobytes()


@pytest.mark.parametrize("upload_as", ["a b.nii", "ct.nii.gz"])
def test_the_model_takes_an_upload_and_answers_with_volumes(server: Server, upload_as: str) -> None:
    params = json.dumps({"organs": ["shell", "core"]})
    answer = post(server, f"/infer/{COMPOSITE}?output=image", ct_file(server, "case2", upload_as), params=params)
    assert 'filename="segmentation.nii.gz"' in answer.headers["content-disposition"]
    np.testing.assert_array_equal(np.asarray(answer.mask.dataobj), wanted("case2", "shell", "core"))
    told = json.loads(post(server, f"/infer/{COMPOSITE}?output=json", ct_file(server), params=params).content)
    ml = 1.5 * 1.5 * 3.0 / 1000
    voxels = {name: int((wanted("case1", "shell", "core") == code).sum()) for name, code in CODES.items()}
    assert told["volumes_ml"] == {name: pytest.approx(count * ml, abs=1e-3) for name, count in voxels.items()}
    assert told["label_names"] == CODES and told["organs"] == ["shell", "core"]


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({"organs": ["nothing"]}, 400, "there is no organ 'nothing'"),
        ({"organs": ["core_ct_classification"]}, 400, "is a classifier"),
        ({"organs": {"core": 1}}, 400, "expected a list of names"),
        ({"organs": ["later"]}, 409, "many_ct_segmentation is untrained"),
        ({"task": "nothing"}, 400, "there is no task 'nothing'"),
    ],
)
def test_the_model_refuses_with_a_sentence(server: Server, params: dict[str, Any], status: int, said: str) -> None:
    answer = post(server, f"/infer/{COMPOSITE}?image=case1", params=json.dumps(params))
    assert answer.status == status and said in answer.sentence


def test_predict_takes_a_study_by_its_name(server: Server) -> None:
    by_id = post(server, "/predict/?image=case2", models='["core", "shell"]')
    np.testing.assert_array_equal(np.asarray(by_id.mask.dataobj), wanted("case2", "core", "shell"))
    assert "number of faces" in post(server, "/predict/?output=stl&faces=-1", ct_file(server), models=ORGANS).sentence


class TestPredict(PredictContract):
    """The MONAI Label server."""


def read_mesh(content: bytes, kind: str) -> Any:
    """The meshes of a file by trimesh."""
    trimesh = pytest.importorskip("trimesh")
    return trimesh.load(io.BytesIO(content), file_type=kind)


def extent_lps(name: str, *organs: str, organ: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner in LPS mm of an organ's voxels, faces included, worked out by nibabel's affine."""
    found = np.argwhere(wanted(name, *organs) == CODES[organ])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.array(
        [[-1.5, 0, 0, 21.5], [0, -1.5, 0, 30.25], [0, 0, 3.0, -140.0], [0, 0, 0, 1.0]]
    )
    corners = np.array([found.min(axis=0) - 0.5, found.max(axis=0) + 0.5]) @ affine[:3, :3].T + affine[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)


def near(bounds: NDArray[np.float64], extent: tuple[NDArray[np.float64], NDArray[np.float64]], unit: float) -> bool:
    """Whether a surface ends within a voxel of the mask's faces."""
    return bool((np.abs(bounds - np.array(extent)) <= np.array([1.5, 1.5, 3.0]).max() * unit).all())


def test_surfaces_in_scanner_coordinates(server: Server) -> None:
    for kind, content_type in (("stl", "model/stl"), ("obj", "model/obj")):
        one = post(server, f"/predict/?output={kind}", ct_file(server), models='["shell"]')
        assert one.headers["content-type"] == content_type
        assert one.headers["content-disposition"] == f'attachment; filename="shell.{kind}"'
        mesh = read_mesh(one.content, kind)
        assert mesh.is_watertight and mesh.volume > 0
        ml = (wanted("case1", "shell") == SHELL).sum() * 1.5 * 1.5 * 3.0
        assert mesh.volume == pytest.approx(ml, rel=0.02)
        assert near(mesh.bounds, extent_lps("case1", "shell", organ="shell"), 1.0)
    both = post(server, "/predict/?output=stl&faces=500", ct_file(server), models='["core", "shell"]')
    assert both.headers["content-type"] == "application/zip" and "surfaces.zip" in both.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(both.content)) as archive:
        assert archive.namelist() == ["core.stl", "shell.stl"]
        core = read_mesh(archive.read("core.stl"), "stl")
        assert near(core.bounds, extent_lps("case1", "core", "shell", organ="core"), 1.0) and len(core.faces) <= 500


def test_one_coloured_scene_in_metres_with_y_up(server: Server) -> None:
    answer = post(server, "/predict/?output=glb", ct_file(server), models='["core", "shell"]')
    assert answer.headers["content-type"] == "model/gltf-binary" and answer.content[:4] == b"glTF"
    assert 'filename="organs.glb"' in answer.headers["content-disposition"]
    scene = read_mesh(answer.content, "glb")
    assert set(scene.geometry) == {"core", "shell"}
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # x = left, y = head, z = front
    for organ, color in (("core", (40, 40, 200)), ("shell", (200, 40, 40))):
        mesh = scene.geometry[organ]
        low, high = (corner @ turn.T * 0.001 for corner in extent_lps("case1", "core", "shell", organ=organ))
        assert near(mesh.bounds, (np.minimum(low, high), np.maximum(low, high)), 0.001)
        assert mesh.is_watertight and mesh.volume > 0
        strongest = int(np.argmax(mesh.visual.material.baseColorFactor[:3]))
        assert strongest == int(np.argmax(color))
    each = post(server, "/predict/?output=glb&each=true", ct_file(server), models='["core", "shell"]')
    with zipfile.ZipFile(io.BytesIO(each.content)) as archive:
        assert archive.namelist() == ["core.glb", "shell.glb"]


def test_surfaces_of_a_finished_mask(server: Server) -> None:
    mask = post(server, "/predict/?image=case2", models='["core", "shell"]').content
    named = post(server, "/surfaces/?output=stl", ("m.nii.gz", mask), labels='{"first": 7, "second": 3}')
    with zipfile.ZipFile(io.BytesIO(named.content)) as archive:
        assert sorted(archive.namelist()) == ["first.stl", "second.stl"]
        first = read_mesh(archive.read("first.stl"), "stl")
    assert near(first.bounds, extent_lps("case2", "core", "shell", organ="core"), 1.0)
    unnamed = read_mesh(post(server, "/surfaces/", ("m.nii.gz", mask)).content, "glb")
    assert set(unnamed.geometry) == {"label_3", "label_7"}
    assert "has no label 'final'" in post(server, "/surfaces/?image=case2").sentence
    saved = post(server, f"/infer/{COMPOSITE}?image=case2", params='{"save_label": true, "label_tag": "final"}')
    assert saved.status == 200
    scene = read_mesh(post(server, "/surfaces/?image=case2&tag=final").content, "glb")
    assert set(scene.geometry) == {"core", "shell"}
    for file, fields, status, said in (
        (None, {}, 400, "there is no mask"),
        (("m.png", b""), {}, 400, "expected a NIfTI"),
        (("m.nii.gz", mask), {"labels": "{"}, 400, "no valid JSON"),
        (("m.nii.gz", mask), {"labels": '{"a": "b"}'}, 422, "label"),
        (("m.nii.gz", mask), {"labels": '{"label_3": 7}'}, 422, "two values of the mask have one name"),
        (("m.nii.gz", mask), {"labels": "[" * 100_000}, 400, "no valid JSON"),
        (("m.nii.gz", ct_file(server)[1]), {}, 422, "is no label map"),
    ):
        answer = post(server, "/surfaces/", file, **fields)
        assert (answer.status, said in answer.sentence) == (status, True), answer.sentence
    assert "the output 'nifti'" in post(server, "/surfaces/?output=nifti", ("m.nii.gz", mask)).sentence


def test_nothing_is_left_behind(server: Server) -> None:
    post(server, "/predict/?output=glb", ct_file(server), models=ORGANS)
    post(server, "/predict/", ("ct.nii.gz", b"no image"), models=ORGANS)
    post(server, f"/infer/{COMPOSITE}?output=image", ct_file(server), params="{}")
    (private,) = (server.work / "tmp").glob("ctseg-server-*")
    assert private.stat().st_mode & 0o777 == 0o700
    for _ in range(600):  # MONAI Label deletes after it has answered
        left = [file for file in private.rglob("*") if file.is_file()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
