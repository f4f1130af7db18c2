"""`POST /predict/` as every service of ours must answer it: one class of tests, run against each of them.

The fixture `server` of the class that inherits gives a running service with the organs `core` and `shell` of
`helpers_organs`, and `later`, which cannot be used.
"""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import CORE, SHELL, expected_mask, phantom_hu
from numpy.typing import NDArray

SEEDS = {"case1": 0, "case2": 2}
ORGANS = '["core", "shell"]'
CODES = {"shell": SHELL, "core": CORE}


@dataclass(frozen=True)
class Server:
    """A running server and its folders."""

    url: str
    studies: Path
    work: Path


@dataclass(frozen=True)
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def mask(self) -> Any:
        """The NIfTI image in it."""
        return nib.Nifti1Image.from_bytes(gzip.decompress(self.content))

    @property
    def sentence(self) -> str:
        """The reason of a refusal."""
        detail = json.loads(self.content)["detail"]
        assert isinstance(detail, str) and "\n" not in detail and "Traceback" not in detail and "/tmp" not in detail
        return detail


def post(
    server: Server, path: str, upload: tuple[str, bytes] | None = None, method: str = "POST", **fields: str
) -> Answer:
    """Send a multipart request by the standard library alone."""
    border = uuid.uuid4().hex
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items()]
    if upload is not None:
        head = f'Content-Disposition: form-data; name="file"; filename="{upload[0]}"\r\n\r\n'
        parts.append(head.encode() + upload[1])
    body = b"".join(b"--" + border.encode() + b"\r\n" + part + b"\r\n" for part in parts) + f"--{border}--\r\n".encode()
    return raw(server, path, body, {"Content-Type": f"multipart/form-data; boundary={border}"}, method)


def raw(server: Server, path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> Answer:
    """Send a request as it is."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, {key.lower(): text for key, text in response.getheaders()}, response.read())
    finally:
        connection.close()


def ct_file(server: Server, name: str = "case1", upload_as: str = "ct.nii.gz") -> tuple[str, bytes]:
    """A CT of the studies as an upload."""
    content = (server.studies / f"{name}.nii.gz").read_bytes()
    return upload_as, content if upload_as.endswith(".gz") else gzip.decompress(content)


def wanted(name: str, *organs: str) -> NDArray[np.uint8]:
    """The mask of a study for organs in order of priority."""
    return expected_mask(phantom_hu(SEEDS[name]), *((organ, CODES[organ]) for organ in organs))


class PredictContract:
    """The tests; inherited, so that pytest runs them with the fixture `server` of the heir's module."""

    def test_predict_merges_in_the_order_of_the_list(self, server: Server) -> None:
        ct = nib.load(server.studies / "case1.nii.gz")
        for organs in (["core", "shell"], ["shell", "core"], ["shell"]):
            answer = post(server, "/predict/", ct_file(server), models=json.dumps(organs))
            assert answer.status == 200 and answer.headers["content-type"] == "application/gzip"
            assert answer.headers["content-disposition"] == 'attachment; filename="segmentation.nii.gz"'
            assert json.loads(answer.headers["x-labels"]) == {name: CODES[name] for name in organs}
            mask = answer.mask
            assert mask.get_data_dtype() == np.uint8 and mask.affine.tobytes() == ct.affine.tobytes()
            np.testing.assert_array_equal(np.asarray(mask.dataobj), wanted("case1", *organs))

    @pytest.mark.parametrize(
        ("upload", "fields", "said"),
        [
            (None, {"models": ORGANS}, "there is no file"),
            (("ct.png", b"png"), {"models": ORGANS}, "the file has .png: expected a NIfTI"),
            (("ct", b"?"), {"models": ORGANS}, "the file has no ending"),
            (("ct.nii.gz", b""), {}, "no organ is named"),
            ("ct", {"models": "[]"}, "no organ is named"),
            ("ct", {"models": ""}, "no organ is named"),
            ("ct", {"models": '["core"'}, "the field models is no valid JSON"),
            ("ct", {"models": "core"}, "the field models is no valid JSON"),
            ("ct", {"models": '"core"'}, 'the field models holds "core": expected a JSON list'),
            ("ct", {"models": '{"core": 1}'}, "expected a JSON list"),
            ("ct", {"models": "[1]"}, "expected a JSON list"),
            (
                "ct",
                {"models": '["nothing"]'},
                "there is no organ 'nothing'; the organs that can be asked for are: ",
            ),
            ("ct", {"models": '["core", "core"]'}, "named twice"),
            ("ct", {"models": '["core_ct_classification"]'}, "'core_ct_classification' is a classifier"),
            ("ct", {"models": '["spare"]'}, "core_ct_classification only says on which slices it is"),
            ("ct", {"models": ORGANS, "device": "abacus"}, "device 'abacus' is not known"),
            ("ct", {"models": ORGANS, "codes": "/etc/passwd"}, "there are no codes '/etc/passwd'"),
            ("ct", {"models": ORGANS, "file": "text"}, "the field file is text"),
        ],
    )
    def test_predict_refuses_with_400_and_the_reason(
        self, server: Server, upload: Any, fields: dict[str, str], said: str
    ) -> None:
        file = None if "file" in fields else ct_file(server) if upload == "ct" else upload
        answer = post(server, "/predict/", file, **fields)
        assert (answer.status, said in answer.sentence) == (400, True), answer.sentence

    def test_predict_refuses_broken_volumes_and_other_requests(self, server: Server) -> None:
        whole = ct_file(server)[1]
        flat = gzip.compress(nib.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)).to_bytes())
        for content in (b"", b"no image", whole[:-200], gzip.compress(b"no image"), flat):
            answer = post(server, "/predict/", ("ct.nii.gz", content), models='["shell"]')
            assert answer.status == 422 and "the uploaded image" in answer.sentence
        assert post(server, "/predict/", ct_file(server), models='["later"]').status == 409
        assert "not known" in post(server, "/predict/?output=ply", ct_file(server), models=ORGANS).sentence
        assert "send one of the two" in post(server, "/predict/?image=case1", ct_file(server), models=ORGANS).sentence
        assert post(server, "/predict/?image=../case1", models=ORGANS).status == 404
        as_json = raw(server, "/predict/", b"{}", {"Content-Type": "application/json"})
        assert as_json.status == 400 and "application/json: expected multipart/form-data" in as_json.sentence
        long = raw(
            server, "/predict/", b"", {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "9" * 13}
        )
        assert long.status == 413 and "larger than" in long.sentence
        broken = raw(server, "/predict/", b"no part", {"Content-Type": "multipart/form-data"})
        assert broken.status == 400
        assert raw(server, "/predict/", b"", {}, "GET").status == 405

    def test_concurrent_requests_do_not_mix(self, server: Server) -> None:
        answers: dict[int, tuple[str, list[str], Answer]] = {}

        def ask(number: int) -> None:
            name = f"case{number % 2 + 1}"
            organs = ["core", "shell"] if number % 3 else ["shell", "core"]
            answers[number] = name, organs, post(server, "/predict/", ct_file(server, name), models=json.dumps(organs))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 6
        for name, organs, answer in answers.values():
            np.testing.assert_array_equal(np.asarray(answer.mask.dataobj), wanted(name, *organs))
