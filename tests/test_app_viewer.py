"""The viewer's page, its proxy to the studies' server, and the labels that pass it; no browser, no Orthanc."""

from __future__ import annotations

import copy
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers_seg import LABELS, make_case, padded_to_bytes
from helpers_viewer import file_of

pytest.importorskip("monailabel", reason="the server needs monailabel: scripts/setup server")
pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom: scripts/setup dev")

from helpers_app import sibling

from ctseg.dicom.seg import read_seg, write_seg

# MONAI Label's own imports: passlib's of the standard library.
pytestmark = pytest.mark.filterwarnings("ignore:'crypt' is deprecated:DeprecationWarning")

STUDY, SERIES, SOP = "1.2.3", "1.2.3.4", "1.2.3.4.5"
DICOM_JSON = "application/dicom+json"


class StudiesServer:
    """Answers what it was told to, as a DICOMweb server; keeps what is stored."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.stored: list[bytes] = []
        self.asked: list[str] = []
        self.delay = 0.0
        self.store_answer = b"{}"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                time.sleep(outer.delay)
                self._send(*outer.answers.get(self.path.partition("?")[0], (404, "text/plain", b"")))

            def do_POST(self) -> None:
                outer.asked.append(self.path)
                outer.stored.append(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(200, DICOM_JSON, outer.store_answer)

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/pacs/dicom-web"

    def answer(self, path: str, body: bytes | str, kind: str = DICOM_JSON, status: int = 200) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.answers[f"/pacs/dicom-web/{path}"] = (status, kind, content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def studies() -> Iterator[StudiesServer]:
    server = StudiesServer()
    server.answer("series", series_json(SERIES, STUDY))
    server.answer(f"studies/{STUDY}/series", series_json(SERIES, STUDY, "SEG"))
    yield server
    server.close()


def series_json(series: str, study: str, modality: str = "CT") -> str:
    values = {"00080060": modality, "0020000D": study, "0020000E": series}
    return "[{" + ",".join(f'"{tag}": {{"vr": "UI", "Value": ["{value}"]}}' for tag, value in values.items()) + "}]"


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A folder as `scripts/setup_viewer` leaves it, with a secret beside it."""
    folder = tmp_path / "fetched"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>OHIF</title>")
    (folder / "app.bundle.0f61.js").write_text("1;")
    (folder / "assets" / "a.png").write_bytes(b"png")
    (tmp_path / "secret.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    return folder


def stub_app(studies: str, fetched: Path, **more: Any) -> SimpleNamespace:
    bundle = SimpleNamespace(label_entries=tuple(LABELS))
    known = {"abdomen_ct_segmentation": bundle}
    return SimpleNamespace(studies=studies, conf={"viewer": str(fetched)}, bundles=lambda: known, **more)


def client_of(app: Any) -> Any:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    server = FastAPI()
    server.router.routes[:] = sibling("app_viewer").viewer_routes(app)
    return TestClient(server)


@pytest.fixture
def client(studies: StudiesServer, fetched: Path) -> Any:
    return client_of(stub_app(studies.url, fetched))


# -- The page ----------------------------------------


def test_every_address_of_the_viewer_is_its_one_page(client: Any) -> None:
    for path in ("", "segmentation?StudyInstanceUIDs=1.2.3"):
        answer = client.get(f"/viewer/{path}")
        assert (answer.status_code, answer.text) == (200, "<title>OHIF</title>")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["referrer-policy"] == "no-referrer"  # an address may hold a token


def test_ours_go_before_those_of_ohif(client: Any) -> None:
    assert "panelModule.ctseg" in client.get("/viewer/app-config.js").text
    panel = client.get("/viewer/ctseg.mjs")
    assert panel.headers["content-type"].startswith("text/javascript")
    assert "immutable" in client.get("/viewer/app.bundle.0f61.js").headers["cache-control"]
    assert client.get("/viewer/assets/a.png").content == b"png"


@pytest.mark.parametrize("path", ["..%2fsecret.html", "%2e%2e/secret.html", "link.html", "no.js", "%2fetc%2fpasswd"])
def test_no_file_outside_is_sent(client: Any, path: str) -> None:
    answer = client.get(f"/viewer/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_viewer_that_was_not_fetched_says_what_to_do(studies: StudiesServer, tmp_path: Path) -> None:
    answer = client_of(stub_app(studies.url, tmp_path / "nothing")).get("/viewer/")
    assert answer.status_code == 503
    assert "scripts/setup_viewer" in answer.text


# -- The proxy ----------------------------------------


def test_searches_are_passed_on_without_the_servers_own_address(client: Any, studies: StudiesServer) -> None:
    studies.answer("studies", f'[{{"00081190": {{"vr": "UR", "Value": ["{studies.url}/studies/1.2.3"]}}}}]')
    answer = client.get("/dicom-web/studies?limit=5&PatientID=a*")
    assert studies.asked == ["/pacs/dicom-web/studies?limit=5&PatientID=a*"]
    assert answer.json()[0]["00081190"]["Value"] == ["http://testserver/dicom-web/studies/1.2.3"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["system", "..%2f..%2fsystem", "studies/..%2f..%2fsystem", "instances/a/file", "studies/1.2.3/series/x"]
)
def test_nothing_but_dicomweb_is_asked_of_the_studies_server(client: Any, studies: StudiesServer, path: str) -> None:
    assert client.get(f"/dicom-web/{path}").status_code == 404
    assert studies.asked == []


def test_a_studies_server_that_is_slow_or_down_is_a_sentence(
    client: Any, studies: StudiesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sibling("app_viewer_proxy"), "_SECONDS", (0.5, 0.1))
    studies.delay = 0.3
    slow = client.get("/dicom-web/studies")
    assert (slow.status_code, "too long" in slow.json()["detail"]) == (504, True)
    studies.close()
    down = client.get("/dicom-web/studies")
    assert (down.status_code, "is it running" in down.json()["detail"]) == (502, True)


def test_a_folder_of_files_has_no_dicomweb(fetched: Path, tmp_path: Path) -> None:
    client = client_of(stub_app(str(tmp_path), fetched))
    assert client.get("/viewer/").status_code == 200
    answer = client.get("/dicom-web/studies")
    assert (answer.status_code, "folder of files" in answer.json()["detail"]) == (409, True)


def test_frames_of_one_bit_begin_with_a_byte_each(client: Any, studies: StudiesServer) -> None:
    # Three frames of 3 x 5: a full one, an empty one, one with its first and last pixel; 45 bits without gaps.
    frames = np.zeros((3, 15), np.uint8)
    frames[0] = 1
    frames[2, [0, 14]] = 1
    content = bytes([0b11111111, 0b01111111, 0, 0b01000000, 0, 0b00010000])
    assert np.packbits(frames.reshape(-1), bitorder="little").tobytes() == content
    serve_instance(studies, bare_seg(3, 5, 3, content))
    path = f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{SOP}/frames"
    parts_of = sibling("app_viewer_multipart").parts_of
    both = client.get(f"{path}/1,3")
    assert parts_of(both.headers["content-type"], both.content) == [b"\xff\x7f", b"\x01\x40"]
    one = client.get(f"{path}/2")
    assert parts_of(one.headers["content-type"], one.content) == [b"\0\0"]
    assert client.get(f"{path}/4").status_code == 404
    assert len([address for address in studies.asked if address.endswith(SOP)]) == 1, "fetched once for all its frames"


def bare_seg(rows: int, columns: int, count: int, content: bytes) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

    seg = Dataset()
    seg.file_meta = FileMetaDataset()
    seg.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    seg.file_meta.MediaStorageSOPClassUID = seg.SOPClassUID = SegmentationStorage
    seg.file_meta.MediaStorageSOPInstanceUID = seg.SOPInstanceUID = SOP
    seg.SegmentationType, seg.BitsAllocated, seg.Modality = "BINARY", 1, "SEG"
    seg.Rows, seg.Columns, seg.NumberOfFrames, seg.PixelData = rows, columns, count, content
    seg.PerFrameFunctionalGroupsSequence = []
    for _ in range(count):
        group, segment = Dataset(), Dataset()
        segment.ReferencedSegmentNumber = 1
        group.SegmentIdentificationSequence = [segment]
        seg.PerFrameFunctionalGroupsSequence.append(group)
    seg.is_little_endian, seg.is_implicit_VR = True, False
    return seg


def serve_instance(studies: StudiesServer, dataset: Any) -> None:
    body, kind = sibling("app_viewer_multipart").joined([file_of(dataset)], "application/dicom")
    studies.answer(f"studies/{STUDY}/series/{SERIES}/instances/{SOP}", body, kind)


# -- Labels that are stored ----------------------------------------


@pytest.fixture(scope="module", params=[(37, 29, 9), (32, 24, 10)], ids=["odd", "even"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A CT, two organs on it, and their SEG in the form in which OHIF stores it."""
    folder = tmp_path_factory.mktemp("case")
    volume, label_map = make_case(folder / "ct", request.param)
    seg = pydicom.dcmread(write_seg(label_map, volume, None, LABELS, folder / "seg.dcm"))
    seg = padded_to_bytes(seg)
    seg.Manufacturer = "OHIF"
    for segment in seg.SegmentSequence:
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D0050", "SRT", "Tissue"
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "SEMIAUTOMATIC", "liver_ct_segmentation"
    return SimpleNamespace(volume=volume, label_map=label_map, seg=seg, folder=folder)


@pytest.fixture
def page(case: SimpleNamespace, studies: StudiesServer, fetched: Path) -> Any:
    """A client whose datastore has the case's CT; `told` lists the labels that the app heard of."""
    told: list[tuple[str, str]] = []
    studies.answer("series", series_json(case.volume.series_uid, str(case.seg.StudyInstanceUID)))
    store = SimpleNamespace(volume=lambda _: case.volume)
    app = stub_app(studies.url, fetched, datastore=lambda: store, label_stored=lambda *both: told.append(both))
    client = client_of(app)
    client.told = told
    return client


def sent(client: Any, *datasets: Any, path: str = "studies") -> Any:
    body, kind = sibling("app_viewer_multipart").joined([file_of(one) for one in datasets], "application/dicom")
    return client.post(f"/dicom-web/{path}", content=body, headers={"Content-Type": kind})


def stored_seg(studies: StudiesServer, folder: Path) -> Path:
    (body,) = studies.stored
    file = folder / "stored.dcm"
    file.write_bytes(body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
    return file


def test_a_label_is_written_anew_voxel_by_voxel(page: Any, case: Any, studies: StudiesServer, tmp_path: Path) -> None:
    answer = sent(page, case.seg)
    assert answer.status_code == 200, answer.text
    file = stored_seg(studies, tmp_path)
    label_map, _ = read_seg(file, case.volume, LABELS)
    np.testing.assert_array_equal(label_map, case.label_map)
    seg = pydicom.dcmread(file)
    bits = int(seg.Rows) * int(seg.Columns) * int(seg.NumberOfFrames)
    assert len(seg.PixelData) == (bits + 7) // 8 + (bits + 7) // 8 % 2, "the frames follow each other without a gap"
    assert seg.SeriesInstanceUID != case.seg.SeriesInstanceUID
    assert page.told == [(case.volume.series_uid, seg.SeriesInstanceUID)]
    found = {s.SegmentLabel: s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence}
    assert found == {"liver": "10200004", "spleen": "78961009", "gallbladder": "28231008"}
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert {s.SegmentAlgorithmName for s in seg.SegmentSequence} == {"liver_ct_segmentation"}


def test_highdicom_reads_what_is_stored(page: Any, case: Any, studies: StudiesServer, tmp_path: Path) -> None:
    from highdicom.seg import segread

    assert sent(page, case.seg).status_code == 200
    seg = segread(stored_seg(studies, tmp_path))
    number = next(n for n in seg.segment_numbers if seg.get_segment_description(n).segment_label == "liver")
    uids = [image.image_uid for image in case.volume.slices]
    planes = seg.get_pixels_by_source_instance(uids, segment_numbers=[number], ignore_spatial_locations=True,
                                               assert_missing_frames_are_empty=True)[..., 0]  # fmt: skip
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), case.label_map == 1)


def test_a_label_that_the_studies_server_does_not_take_is_not_said_to_be_stored(
    page: Any, case: Any, studies: StudiesServer
) -> None:
    studies.store_answer = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'
    answer = sent(page, case.seg)
    assert (answer.status_code, "did not take" in answer.json()["detail"]) == (502, True)
    assert page.told == []
    studies.store_answer = b'{"00081198": {"vr": "SQ"}}'  # Orthanc's way to say that nothing failed
    assert sent(page, case.seg).status_code == 200


def test_a_label_drawn_by_hand_is_manual(page: Any, case: Any, studies: StudiesServer, tmp_path: Path) -> None:
    seg = copy.deepcopy(case.seg)
    for segment in seg.SegmentSequence:
        segment.SegmentAlgorithmType = "MANUAL"
    assert sent(page, seg).status_code == 200
    stored = pydicom.dcmread(stored_seg(studies, tmp_path))
    assert {s.SegmentAlgorithmType for s in stored.SegmentSequence} == {"MANUAL"}


def unknown_organ(seg: Any) -> None:
    seg.SegmentSequence[0].SegmentLabel = "Segment 1"


def another_frame_of_reference(seg: Any) -> None:
    seg.FrameOfReferenceUID = "1.2.3.9"


def another_image(seg: Any) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.9"
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 9999]


def cut(seg: Any) -> None:
    seg.PixelData = seg.PixelData[: len(seg.PixelData) // 4 * 2]


def two_series(seg: Any) -> None:
    second = copy.deepcopy(seg.ReferencedSeriesSequence[0])
    second.SeriesInstanceUID = "1.2.3.9"
    seg.ReferencedSeriesSequence.append(second)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        (unknown_organ, 422, "known labels"),
        (another_frame_of_reference, 422, "frame of reference"),
        (another_image, 422, "lies nowhere"),
        (cut, 422, "bytes of pixels"),
        (two_series, 422, "2 series"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(
    page: Any, case: Any, studies: StudiesServer, change: Any, status: int, word: str
) -> None:
    seg = copy.deepcopy(case.seg)
    change(seg)
    answer = sent(page, seg)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["detail"]
    assert studies.stored == [] and page.told == []


def test_other_messages_are_refused(page: Any, case: Any, studies: StudiesServer) -> None:
    image = copy.deepcopy(case.seg)
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    assert sent(page, image).status_code == 415
    assert "one label at a time" in sent(page, case.seg, case.seg).json()["detail"]
    assert "another study" in sent(page, case.seg, path="studies/1.9.9").json()["detail"]
    text = page.post("/dicom-web/studies", content=b"x", headers={"Content-Type": "text/plain"})
    assert (text.status_code, "multipart" in text.json()["detail"]) == (400, True)
    body, kind = sibling("app_viewer_multipart").joined([file_of(case.seg)], "application/dicom")
    half = page.post("/dicom-web/studies", content=body[: len(body) // 2], headers={"Content-Type": kind})
    assert (half.status_code, "cut" in half.json()["detail"]) == (400, True)
    junk, kind = sibling("app_viewer_multipart").joined([b"no DICOM"], "application/dicom")
    unread = page.post("/dicom-web/studies", content=junk, headers={"Content-Type": kind})
    assert (unread.status_code, "no readable DICOM" in unread.json()["detail"]) == (400, True)
    assert studies.stored == []


def test_a_label_too_large_is_refused(page: Any, studies: StudiesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sibling("app_viewer"), "_LARGEST_LABEL", 1000)
    answer = page.post("/dicom-web/studies", content=b"x" * 1001, headers={"Content-Type": "multipart/related"})
    assert answer.status_code == 413


# -- Running a model ----------------------------------------


def test_a_mask_of_a_run_is_stored_beside_its_series(
    case: Any, studies: StudiesServer, fetched: Path, tmp_path: Path
) -> None:
    from ctseg.outputs.writing import write_mask

    studies.answer("series", series_json(case.volume.series_uid, "1.2.3"))
    asked: list[dict[str, Any]] = []

    def infer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        file = write_mask(case.label_map, case.volume, sibling("app_http").private_folder() / "mask.nii")
        params = {"version": "0.4.0", "volumes_ml": {"liver": 1.5}, "device": "cpu", "quality": 0.93, "path": "/secret"}
        return {"file": str(file), "params": params}

    store = SimpleNamespace(volume=lambda _: case.volume)
    labels = {"liver": 1, "spleen": 4, "gallbladder": 2}
    app = stub_app(studies.url, fetched, datastore=lambda: store, infer=infer, model_labels=lambda _: labels)
    body = {"model": "abdomen_ct_segmentation", "series": case.volume.series_uid}
    answer = client_of(app).post("/viewer/run", json=body)
    assert answer.status_code == 200, answer.text
    assert (asked[0]["model"], asked[0]["image"]) == ("abdomen_ct_segmentation", case.volume.series_uid)
    told = answer.json()
    file = stored_seg(studies, tmp_path)
    seg = pydicom.dcmread(file)
    assert (told.pop("study"), told.pop("series")) == ("1.2.3", seg.SeriesInstanceUID)
    assert told == {
        "model": "abdomen_ct_segmentation",
        "version": "0.4.0",
        "volumes_ml": {"liver": 1.5},
        "device": "cpu",
        "quality": 0.93,
    }
    assert seg.SeriesDescription == "abdomen_ct_segmentation 0.4.0"
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"AUTOMATIC"}
    label_map, _ = read_seg(file, case.volume, LABELS)
    np.testing.assert_array_equal(label_map, case.label_map)
    assert not (sibling("app_http").private_folder() / "mask.nii").exists()


def test_a_run_of_a_path_is_refused(client: Any, studies: StudiesServer) -> None:
    assert client.post("/viewer/run", json={"model": "m", "series": "../../etc"}).status_code == 422
    studies.answer("series", "[]")
    gone = client.post("/viewer/run", json={"model": "m", "series": "1.2.9"})
    assert (gone.status_code, "no such series" in gone.json()["detail"]) == (404, True)


# -- The envelope ----------------------------------------


def test_parts_are_bytes_whatever_is_in_them() -> None:
    module = sibling("app_viewer_multipart")
    contents = [b"", b"\r\n--\r\n\r\n", bytes(range(256)), b"--b--"]
    body, kind = module.joined(contents, "application/dicom")
    assert module.parts_of(kind, body) == contents
    by_hand = b"--b\r\nContent-Type: application/dicom\r\nContent-Length: 2\r\n\r\nhi\r\n--b--\r\nepilogue"
    assert module.parts_of('multipart/related; type="application/dicom"; boundary="b"', by_hand) == [b"hi"]
    assert module.parts_of("multipart/related; boundary=b", io.BytesIO(by_hand).read()) == [b"hi"]
