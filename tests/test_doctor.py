"""`ctseg doctor`: each line is right about a machine, a folder and a server that are known, and nothing ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers_bundles import make_bundle

from ctseg.cli import main
from ctseg.doctor import geometry as doctorgeometry
from ctseg.doctor import machine as doctormachine
from ctseg.doctor import servers as doctorservers
from ctseg.doctor.findings import NOTE, OK, PROBLEM, Finding, examine
from ctseg.errors import InputError


def _found(checks: list[doctormachine.Check]) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(checks)}


def test_a_check_that_fails_is_a_line_of_the_list() -> None:
    def refused() -> Iterator[Finding]:
        raise InputError("no such thing")

    def broken() -> Iterator[Finding]:
        yield Finding("broken", OK, "the first half")
        raise ImportError("libfoo.so: cannot open")

    findings = list(examine([("refused", refused), ("broken", broken), ("last", lambda: [Finding("last", OK, "")])]))
    assert [(finding.name, finding.status) for finding in findings] == [
        ("refused", PROBLEM),
        ("broken", OK),
        ("broken", PROBLEM),
        ("last", OK),
    ]
    assert findings[0].found == "no such thing" and "ImportError: libfoo.so" in findings[2].found


@pytest.mark.parametrize(
    ("required", "versions", "said"),
    [
        ("torch>=2.6,!=2.9.*", {"torch": "2.15.0"}, []),
        ("torch>=2.6,!=2.9.*", {"torch": "2.9.1"}, ["torch 2.9.1, expected torch!=2.9.*,>=2.6"]),
        ("torch>=2.6", {"torch": "2.11.0+cu126"}, []),
        ("nibabel>=5.2", {}, ["nibabel is missing, expected nibabel>=5.2"]),
        ('numpy<2; extra == "server"', {"numpy": "2.2.0"}, []),
        ('numpy<2; extra == "server"', {"numpy": "2.2.0", "monailabel": "0.8.5"}, ["numpy 2.2.0, expected numpy<2"]),
        ('tomli; python_version < "3"', {}, []),
    ],
)
def test_requirements_against_what_is_installed(required: str, versions: dict[str, str], said: list[str]) -> None:
    assert [finding.found for finding in doctormachine.unmet([required], versions)] == said


@pytest.mark.parametrize(
    ("versions", "word"),
    [
        ({"torch": "2.9.0"}, "mixed precision"),
        ({"monailabel": "0.8.5", "pydicom": "3.0.1"}, "pydicom-seg"),
        ({"monailabel": "0.8.5", "numpy": "2.0.0"}, "numpymaxflow"),
        ({"monailabel": "0.8.5", "dicomweb-client": "0.60.1"}, "dicomweb-client"),
        ({"pydicom": "3.0.1", "numpy": "2.0.0", "torch": "2.15.0"}, ""),
        ({"monailabel": "0.8.5", "pydicom": "2.4.5", "numpy": "1.26.4", "dicomweb-client": "0.59.3"}, ""),
    ],
)
def test_pairs_known_to_fail(versions: dict[str, str], word: str) -> None:
    found = list(doctormachine.bad_pairs(versions))
    assert len(found) == bool(word)
    assert not found or (word in found[0].found and found[0].advice)


def test_this_machine_has_no_problem_and_its_masks_lie_right() -> None:
    found = _found([check for check in doctormachine.machine_checks() if check[0] != "known bad pairs"])
    assert {name for name, finding in found.items() if finding.status == PROBLEM} == set()
    assert found["round trip NIfTI"].status == OK
    assert found["round trip SEG"].status in (OK, NOTE)
    assert found["bundle"].status in (OK, NOTE)


def test_every_bundle_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path, "a_ct_segmentation")
    (tmp_path / "a_ct_segmentation" / "models" / "model.pt").write_bytes(b"others")
    make_bundle(tmp_path, "b_ct_segmentation", weights=None)
    make_bundle(tmp_path, "c_ct_segmentation")
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: tmp_path)
    found = list(doctormachine._bundles())
    assert [finding.status for finding in found] == [PROBLEM, NOTE, OK]
    assert "sha256" in found[0].found and "untrained" in found[1].found


def test_a_mask_in_the_wrong_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctseg.outputs import writing

    right = writing.write_mask
    monkeypatch.setattr(writing, "write_mask", lambda mask, volume, path: right(np.roll(mask, 1, 0), volume, path))
    finding = next(iter(doctorgeometry.round_trips()))
    assert finding.status == PROBLEM and "mm off" in finding.found


def test_a_seg_in_the_wrong_place_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    from ctseg.dicom import segreading as segmentreading

    right = segmentreading.read_seg

    def mirrored(*arguments: object) -> object:
        mask, values = right(*arguments)  # type: ignore[arg-type]
        return mask[::-1], values

    assert doctorgeometry._dicom(tmp_path / "a").status == OK
    monkeypatch.setattr(segmentreading, "read_seg", mirrored)
    assert doctorgeometry._dicom(tmp_path / "b").status == PROBLEM


def test_a_folder_of_studies(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "a.nii.gz").touch()
    (tmp_path / "IM001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "note.txt").touch()
    found = _found(doctorservers.studies_checks(str(tmp_path)))
    assert found["studies"] == Finding("studies", OK, f"{tmp_path}: 1 images and 1 DICOM files")
    assert found["disk"].status in (OK, NOTE)
    assert _found(doctorservers.studies_checks(str(tmp_path / "no")))["studies"].status == PROBLEM
    (tmp_path / "empty").mkdir()
    assert _found(doctorservers.studies_checks(str(tmp_path / "empty")))["studies"].status == NOTE


class _Pages(BaseHTTPRequestHandler):
    pages: dict[str, tuple[int, str]] = {}  # noqa: RUF012
    origin = ""

    def do_GET(self) -> None:
        status, body = self.pages.get(self.path.partition("?")[0], (404, "{}"))
        if self.headers.get("Authorization") != "Bearer secret" and self.path.startswith("/info"):
            status, body = 401, "{}"
        self.send_response(status)
        if self.origin:
            self.send_header("Access-Control-Allow-Origin", self.origin)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def pages() -> Iterator[str]:
    """A server of fixed pages; its address."""
    server = HTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_orthanc_without_gdcm_is_noted(pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "/dicom-web/studies": (200, "[]"),
        "/plugins": (200, '["dicom-web"]'),
        "/system": (200, '{"Version": "1.10.1"}'),
    }
    monkeypatch.setattr(_Pages, "pages", own)
    found = _found(doctorservers.studies_checks(f"{pages}/dicom-web/"))
    assert found["dicomweb"].status == OK and found["orthanc"].status == NOTE and "JPEG 2000" in found["orthanc"].found
    own["/plugins"] = (200, '["dicom-web", "gdcm"]')
    assert _found(doctorservers.studies_checks(f"{pages}/dicom-web"))["orthanc"].status == OK
    assert _found(doctorservers.studies_checks(f"{pages}/wrong"))["dicomweb"].status == PROBLEM
    own["/dicom-web/studies"] = (401, "")
    locked = _found(doctorservers.studies_checks(f"{pages}/dicom-web"))["dicomweb"]
    assert locked.status == NOTE and "MONAI_LABEL_DICOMWEB_USERNAME" in locked.advice


def test_a_server_its_token_viewers_and_origins(pages: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = json.dumps({"name": "ctseg", "version": "1", "models": {"b": {}, "a": {}}})
    monkeypatch.setattr(_Pages, "pages", {"/info/": (200, info), "/ohif/": (200, "<html></html>")})
    token = tmp_path / "token"
    token.write_text("secret\n")
    found = _found(doctorservers.server_checks(pages, str(token)))
    assert found["server"] == Finding("server", OK, "ctseg 1: a, b")
    assert (found["viewer"].status, found["ohif"].status, found["cors"].status) == (NOTE, OK, OK)
    monkeypatch.setattr(_Pages, "origin", "*")
    assert _found(doctorservers.server_checks(pages, str(token)))["cors"].status == PROBLEM
    assert "wants a token" in _found(doctorservers.server_checks(pages, None))["server"].found
    with pytest.raises(InputError, match="cannot be read"):
        doctorservers.server_checks(pages, str(tmp_path / "none"))


def test_nobody_answers() -> None:
    found = _found(doctorservers.studies_checks("http://127.0.0.1:9/dicom-web"))["dicomweb"]
    assert found.status == PROBLEM and "nobody answers" in found.found


def test_the_command_ends_with_1_when_something_is_bad(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctormachine, "machine_checks", lambda: [])
    assert main(["doctor", str(tmp_path)]) == 0
    assert "1 note above" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["doctor", str(tmp_path / "none"), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["status"] == PROBLEM
