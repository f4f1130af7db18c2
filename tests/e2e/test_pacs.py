"""The app on a real DICOMweb server (a private Orthanc): images, labels and lists, as the PACS has them now."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from helpers_phantoms import write_dicom, write_nifti
from helpers_seg import EVEN, LABELS, ODD, errors_of, make_case, save, written_by_dcmqi

from ctseg.dicom.seg import Algorithm, read_seg, write_seg
from ctseg.reading import read_volume
from ctseg.registry import app_root
from ctseg.volume import Volume

pytest.importorskip("monailabel", reason="the server's extra is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its sign-in imports crypt
    from monailabel.endpoints import infer
from helpers_app import StubPredictor, load_app_class, sibling
from helpers_orthanc import client_of, emptied, running_orthanc, segs_of, store
from helpers_server import write_fake_bundle

# requests leaves the sockets of its pool to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def one_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc") / "data") as running:
        yield running


@pytest.fixture
def orthanc(one_orthanc: Any) -> Any:
    return emptied(one_orthanc)


def _bundles(root: Path) -> Path:
    """Liver 1 and spleen 4 in one bundle, the gallbladder, 1 too, in another; all with their SNOMED CT codes."""
    for name, entries in (("pair_ct_segmentation", LABELS[:2]), ("single_ct_segmentation", [{**LABELS[2], "code": 1}])):
        folder = write_fake_bundle(root, name, {entry["name"]: entry["code"] for entry in entries})
        file = folder / "configs" / "metadata.json"
        told = json.loads(file.read_text())
        told["ctseg"]["labels"] = entries
        file.write_text(json.dumps(told))
    return root


def _app(orthanc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "data") -> Any:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", orthanc.user)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", orthanc.password)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    bundles = tmp_path / "bundles"
    conf = {"bundles": str(bundles if bundles.exists() else _bundles(bundles)), "data": str(tmp_path / name)}
    monkeypatch.setattr("ctseg.prediction.Predictor", StubPredictor)
    return load_app_class()(str(app_root()), orthanc.address, conf)


@pytest.fixture
def app(orthanc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return _app(orthanc, tmp_path, monkeypatch)


def _put_case(orthanc: Any, folder: Path, **options: Any) -> tuple[Volume, np.ndarray, str]:
    """Store a CT; return it as read, a label map, and its series' UID."""
    volume, label_map = make_case(folder, **options)
    assert orthanc.load(folder)[1] == 0
    return volume, label_map, str(volume.series_uid)


def _refusal(call: Any, *arguments: Any) -> tuple[int, str]:
    from fastapi import HTTPException

    with pytest.raises(HTTPException) as caught:
        call(*arguments)
    return caught.value.status_code, str(caught.value.detail)


def test_lists_are_those_of_this_second(orthanc: Any, app: Any, tmp_path: Path) -> None:
    datastore = app.datastore()
    assert datastore.list_images() == []
    assert app.next_sample({"strategy": "first"}) == {}
    volume, label_map, first = _put_case(orthanc, tmp_path / "a")
    assert app.next_sample({"strategy": "first"})["id"] == first
    mask = write_nifti(tmp_path / "mask.nii.gz", label_map, volume.source_affine)
    names = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 4}]}
    assert datastore.save_label(first, str(mask), "final", names) == first
    assert datastore.get_labeled_images() == [first]
    assert app.next_sample({"strategy": "first"}) == {}
    second = _put_case(orthanc, tmp_path / "b")[2]
    assert datastore.get_unlabeled_images() == [second]
    assert app.next_sample({"strategy": "random"})["id"] == second
    assert datastore.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert set(datastore.json()["objects"]) == {first, second}
    assert list(datastore.json()["objects"][first]["labels"]) == ["final"]


@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["whole bytes", "odd bits"])
@pytest.mark.parametrize("grid", ["flipped", "oblique"])
def test_a_saved_label_goes_there_and_comes_back_voxel_by_voxel(
    orthanc: Any, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], grid: str
) -> None:
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct", shape=shape, grid=grid)
    image = nib.load(app.datastore().get_image_uri(series))
    assert np.array_equal(np.asarray(image.dataobj), volume.array)
    # The client's own values, the other way round: names decide.
    other = np.choose(label_map, [0, 9, 0, 0, 2]).astype(np.uint8)
    mask = write_nifti(tmp_path / "mask.nii.gz", other, volume.source_affine)
    names = [{"name": "spleen", "idx": 2}, {"name": "Liver", "idx": 9}]
    app.datastore().save_label(series, str(mask), "final", {"label_info": names})

    (seg,) = segs_of(orthanc)
    kept = {item.SegmentLabel: item for item in seg.SegmentSequence}
    assert {name: item.SegmentedPropertyTypeCodeSequence[0].CodeValue for name, item in kept.items()} == {
        "liver": "10200004",
        "spleen": "78961009",
    }
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    path = save(seg, tmp_path / "kept.dcm")
    assert errors_of(path) == []
    assert np.array_equal(read_seg(path, volume, LABELS)[0], label_map)

    fresh = _app(orthanc, tmp_path, monkeypatch, "other data").datastore()
    assert fresh.get_labels_by_image_id(series) == {"final": series}
    back = nib.load(fresh.get_label_uri(series, "final"))
    told = {entry["name"]: entry["idx"] for entry in fresh.get_label_info(series, "final")["label_info"]}
    array = np.asarray(back.dataobj)
    assert array.shape == volume.shape
    assert np.allclose(back.affine, volume.source_affine, atol=1e-4)
    assert np.array_equal(array == told["liver"], label_map == 1)
    assert np.array_equal(array == told["spleen"], label_map == 4)
    (case,) = fresh.datalist()
    assert np.array_equal(np.asarray(nib.load(case["label"]).dataobj), array)


def test_a_label_of_another_program_with_few_slices_is_put_right(orthanc: Any, app: Any, tmp_path: Path) -> None:
    """As MONAI Label's own store breaks it: segments in another order, only some slices."""
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct")
    label_map[:, :, 4:] = 0
    (tmp_path / "work").mkdir()
    store(orthanc, written_by_dcmqi(label_map, volume, tmp_path / "ct", tmp_path / "work"))
    file = app.datastore().get_label_uri(series, "final")
    array = np.asarray(nib.load(file).dataobj)
    assert array.shape == volume.shape
    told = {entry["name"]: entry["idx"] for entry in app.datastore().get_label_info(series, "final")["label_info"]}
    assert told == {"spleen": 4, "liver": 1}
    assert np.array_equal(array, label_map)
    before = Path(file).stat().st_mtime_ns
    assert Path(app.datastore().get_label_uri(series, "final")).stat().st_mtime_ns == before  # not made twice


def test_the_newest_accepted_label_counts_and_a_models_proposal_does_not(
    orthanc: Any, app: Any, tmp_path: Path
) -> None:
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct")
    proposal = write_seg(label_map, volume, None, LABELS[:2], tmp_path / "a.dcm", Algorithm("AUTOMATIC", "m", "1"))
    store(orthanc, proposal)
    assert app.datastore().get_unlabeled_images() == [series]
    maps = [label_map, np.where(label_map == 1, 1, 0).astype(np.uint8)]
    for number, one in enumerate(maps):
        path = write_seg(one, volume, None, LABELS[:2], tmp_path / f"{number}.dcm", Algorithm("MANUAL"))
        seg = pydicom.dcmread(path)
        seg.ContentTime = f"12000{9 - number}"  # the second is older
        store(orthanc, save(seg, path))
        array = np.asarray(nib.load(app.datastore().get_label_uri(series, "final")).dataobj)
        assert np.array_equal(array, label_map)


def test_an_empty_segment_that_nobody_named_does_no_harm(orthanc: Any, app: Any, tmp_path: Path) -> None:
    """As a viewer leaves it behind: 'Segment 1', without a voxel."""
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct")
    entries = [*LABELS[:2], {"name": "Segment 1", "code": 9}]
    store(orthanc, write_seg(label_map, volume, None, entries, tmp_path / "a.dcm", Algorithm("MANUAL")))
    assert app.datastore().get_labeled_images() == [series]
    assert app.datastore().get_label_info(series, "final")["label_info"] == [
        {"name": "liver", "idx": 1},
        {"name": "spleen", "idx": 4},
    ]
    assert np.array_equal(np.asarray(nib.load(app.datastore().get_label_uri(series, "final")).dataobj), label_map)


def test_labels_that_cannot_be_used_do_not_count(
    orthanc: Any, app: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct")
    stranger = [{"name": "kidney", "code": 1, "snomed": {"value": "64033007", "meaning": "Kidney"}}]
    one = (label_map == 1).astype(np.uint8)
    store(orthanc, write_seg(one, volume, None, stranger, tmp_path / "a.dcm", Algorithm("MANUAL")))
    assert app.datastore().get_labeled_images() == []
    assert "is none of the known labels" in caplog.text
    seg = pydicom.dcmread(write_seg(label_map, volume, None, LABELS, tmp_path / "b.dcm", Algorithm("MANUAL")))
    seg.FrameOfReferenceUID = "1.2.3"
    store(orthanc, save(seg, tmp_path / "b.dcm"))
    status, sentence = _refusal(app.datastore().get_label_uri, series, "final")
    assert status == 422
    assert "lies in another frame of reference" in sentence
    assert str(tmp_path) not in sentence


@pytest.mark.parametrize("model", ["pair_ct_segmentation", "single_ct_segmentation"])
def test_output_dicom_seg_names_the_organ_and_the_model(orthanc: Any, app: Any, tmp_path: Path, model: str) -> None:
    from fastapi import BackgroundTasks

    volume, _, series = _put_case(orthanc, tmp_path / "ct", grid="sagittal")
    tasks = BackgroundTasks()
    answer = infer.run_inference(tasks, model, series, "", "{}", None, None, infer.ResultType.dicom_seg)
    path = Path(answer.path)
    assert answer.media_type == "application/dicom"
    seg = pydicom.dcmread(path)
    entries = LABELS[:2] if model.startswith("pair") else LABELS[2:]
    codes = [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in seg.SegmentSequence]
    assert codes == [entry["snomed"]["value"] for entry in entries]
    assert seg.SegmentSequence[0].SegmentAlgorithmName == model
    assert errors_of(path) == []
    expected = np.zeros(volume.shape, bool)
    expected[2:4, 3:6, 1:5] = True  # what the stub marks
    back, names = read_seg(path, volume, LABELS)
    assert np.array_equal(back > 0, expected)
    assert set(np.unique(back)) == {0, names[entries[0]["name"]]}
    asyncio.run(tasks())
    assert not path.exists()


def test_what_is_no_mask_or_does_not_fit_is_refused(orthanc: Any, app: Any, tmp_path: Path) -> None:
    volume, label_map, series = _put_case(orthanc, tmp_path / "ct")
    keep = app.datastore().save_label
    names = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 4}]}
    (tmp_path / "text.nii.gz").write_text("no mask")
    shifted = volume.source_affine.copy()
    shifted[0, 3] += 5
    cases = {
        "small": (label_map[1:], volume.source_affine, "expected the same grid"),
        "shifted": (label_map, shifted, "lies 5.00 mm away"),
        "soft": (label_map * np.float32(0.3), volume.source_affine, "cannot be used"),
        "unnamed": (label_map * 2, volume.source_affine, "has the values 2 (not named), 8 (not named)"),
    }
    for name, (array, affine, sentence) in cases.items():
        for tag in ("final", "original") if name != "unnamed" else ("final",):
            status, said = _refusal(keep, series, str(write_nifti(tmp_path / "m.nii.gz", array, affine)), tag, names)
            assert (status, sentence in said) == (422, True), said
            assert str(tmp_path) not in said
    assert _refusal(keep, series, str(tmp_path / "text.nii.gz"), "final", names)[0] == 422
    good = write_nifti(tmp_path / "good.nii.gz", label_map, volume.source_affine)
    from monailabel.interfaces.exception import ImageNotFoundException

    for image in ("1.2.3", "../../etc", "..", "1/2"):
        with pytest.raises(ImageNotFoundException):
            keep(image, str(good), "final", names)
    assert segs_of(orthanc) == []
    assert keep(series, str(good), "original", names) == series
    kept = app.datastore().get_label_uri(series, "original")
    assert np.array_equal(np.asarray(nib.load(kept).dataobj), label_map)
    assert app.datastore().get_labeled_images() == []
    for call, arguments in (("remove_image", (series,)), ("remove_label", (series, "final"))):
        assert _refusal(getattr(app.datastore(), call), *arguments)[0] == 409
    assert _refusal(app.datastore().add_image, "x", str(good), {})[0] == 409


def test_a_series_that_changed_is_fetched_anew(orthanc: Any, app: Any, tmp_path: Path) -> None:
    volume, _ = make_case(tmp_path / "ct")
    last = volume.slices[-1].path
    last.rename(tmp_path / "last.dcm")
    orthanc.load(tmp_path / "ct")
    series = str(volume.series_uid)
    shape = nib.load(app.datastore().get_image_uri(series)).shape
    assert shape == (*volume.shape[:2], volume.shape[2] - 1)
    store(orthanc, tmp_path / "last.dcm")
    image = nib.load(app.datastore().get_image_uri(series))
    assert np.array_equal(np.asarray(image.dataobj), volume.array)


def test_jpeg_2000_and_two_patients_with_the_same_files(orthanc: Any, app: Any, tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    expected = {}
    for number in (1, 2):
        array = np.arange(64 * 66 * 4, dtype=np.int16).reshape(64, 66, 4) % 900 - 400 + number
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        series = write_dicom(tmp_path / f"{number}", array, affine, compression="jpeg2000")
        orthanc.load(tmp_path / f"{number}")
        expected[series] = array
    for series, array in expected.items():
        file = app.datastore().get_image_uri(series)
        assert np.array_equal(np.asarray(nib.load(file).dataobj), array)
        assert np.array_equal(read_volume(Path(file).with_name(series)).array, array)


def test_training_takes_the_labels_of_the_server(orthanc: Any, app: Any, tmp_path: Path) -> None:
    for number in range(4):

        def patient(image: Any, k: int, number: int = number) -> None:
            image.PatientID = f"p{number}"

        volume, label_map, series = _put_case(orthanc, tmp_path / f"{number}", edit=patient)
        mask = write_nifti(tmp_path / "mask.nii.gz", label_map, volume.source_affine)
        names = {"label_info": {"liver": 1, "spleen": 4}}
        app.datastore().save_label(series, str(mask), "final", names)
        assert app.datastore().get_image_info(series)["PatientID"] == f"p{number}"
    plan = app.trainer("pair_ct_segmentation").plan({"device": "cpu"}, app.datastore())
    assert sum(len(cases) for cases in plan.data.cases.values()) == 4
    assert plan.data.cases["train"] and plan.data.cases["validation"]
    assert plan.data.folder.is_relative_to(tmp_path / "data")
    (listed, *_) = json.loads((plan.data.folder / "datalist.json").read_text())["cases"]
    assert read_volume(listed["label"], "label").shape == read_volume(listed["image"]).shape
    assert listed["mask_values"] == {"1": "liver", "4": "spleen"}
    # The folder that was named, whatever the server's port: the ledger and the trainings are found at the next start.
    assert plan.data.folder.parents[1] == (tmp_path / "data").resolve()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_a_server_that_is_gone_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        app = _app(orthanc, tmp_path, monkeypatch)
    status, sentence = _refusal(app.datastore().list_images)
    assert status == 502
    assert "the studies' server does not answer" in sentence
    assert orthanc.password not in sentence


def test_known_labels_have_values_of_their_own() -> None:
    from types import SimpleNamespace

    bundles = [
        SimpleNamespace(label_entries=({"name": "a", "code": 1}, {"name": "b", "code": 4})),
        SimpleNamespace(label_entries=({"name": "c", "code": 1}, {"name": "a", "code": 3})),
    ]
    known = sibling("app_dicom_labels").known_entries(bundles)
    assert [(entry["name"], entry["code"]) for entry in known] == [("a", 1), ("b", 4), ("c", 2)]


def test_orthanc_keeps_one_copy_of_what_is_loaded_twice(orthanc: Any, tmp_path: Path) -> None:
    make_case(tmp_path / "studies" / "ct")
    (tmp_path / "studies" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "studies" / ".hidden").mkdir()
    make_case(tmp_path / "studies" / ".hidden" / "ct")
    assert orthanc.load(tmp_path / "studies") == (9, 1)
    assert orthanc.load(tmp_path / "studies") == (0, 0)
    assert (orthanc.series("CT"), orthanc.series("SEG")) == (1, 0)
    assert len(client_of(orthanc).search_for_series()) == 1


def test_orthanc_answers_nobody_else(orthanc: Any) -> None:
    import socket

    import requests

    port = int(orthanc.address.split(":")[2].split("/")[0])
    hosts = ["127.0.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it only shows which address this computer would use
            hosts.append(probe.getsockname()[0])
        except OSError:
            pass
    for host in hosts:
        for sign_in in (
            None,
            (orthanc.user, "guessed"),
            *([] if host == "127.0.0.1" else [(orthanc.user, orthanc.password)]),
        ):
            answer = requests.get(f"http://{host}:{port}/dicom-web/series", auth=sign_in, timeout=20)
            assert answer.status_code in (401, 403)
