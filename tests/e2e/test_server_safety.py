"""The running server attacked: each attack of docs/security.md, sent as an attacker would."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers_http import Answer, Canary, ask, ask_json, chunks, content_of, form
from helpers_server import free_port, server_command, server_environment, started_server
from helpers_site import MODEL, PICKLED, Site

ESCAPES = [
    "../secret",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\secret",
    "a/../../secret",
    "....//secret",
    "%2e%2e%2fsecret",
    "..%2fsecret",
    "case1/../../secret",
    "link",
    "case1\x00",
    "\x00",
    ".",
    "..",
    "~/x",
    "file:///etc/passwd",
    "x" * 3000,
]


def admin(site: Site, method: str, path: str, *rest: Any, **named: Any) -> Answer:
    return ask(site.port, method, path, *rest, token=site.tokens.get("admin"), **named)


def is_refusal(answer: Answer, *statuses: int) -> bool:
    """A 4xx with a sentence that gives nothing away."""
    right = answer.status in statuses if statuses else 400 <= answer.status < 500
    return right and b"Traceback" not in answer.body and b"root:" not in answer.body


# Who may call


def routes_of(site: Site) -> list[tuple[str, str]]:
    paths = admin(site, "GET", "/openapi.json").json()["paths"]
    known = [
        (method.upper(), re.sub(r"{.*?}", "x", path))
        for path, methods in paths.items()
        for method in methods
        if method in ("get", "put", "post", "delete", "head")
    ]
    hidden = [("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/ohif/"), ("GET", "/static/x.js")]
    hidden += [("GET", "/proxy/dicom/studies"), ("POST", "/reload"), ("POST", "/predict/"), ("GET", "/nothing/here")]
    return known + hidden


def test_no_route_answers_without_a_token(guarded_site: Site) -> None:
    routes = routes_of(guarded_site)
    assert len(routes) > 30
    wrong = "w" * 43
    basic = base64.b64encode(f"admin:{guarded_site.tokens['admin']}".encode()).decode()
    for method, path in routes:
        answer = ask(guarded_site.port, method, path)
        assert answer.status == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/info/", "/logs/", "/datastore/?output=all"):
        for headers in ({"Authorization": f"Bearer {wrong}"}, {"Authorization": f"Basic {basic}"}):
            assert ask(guarded_site.port, "GET", path, headers=headers).status == 401
        for prefix in (f"/t/{wrong}", "/t/", "/t//", "/t/x", "//t", f"/T/{guarded_site.tokens['admin']}"):
            assert ask(guarded_site.port, "GET", prefix + path).status == 401
        cookie = {"Cookie": f"ctseg_token={wrong}"}
        assert ask(guarded_site.port, "GET", path, headers=cookie).status == 401


def test_token_by_header_by_path_and_by_cookie(guarded_site: Site) -> None:
    port, token = guarded_site.port, guarded_site.tokens["annotator"]
    assert ask(port, "GET", "/info/", token=token).status == 200
    assert ask(port, "GET", f"/t/{token}/info/").status == 200
    redirect = ask(port, "GET", f"/t/{token}/info")
    assert redirect.status in (200, 307)
    assert token in redirect.headers.get("location", token)
    page = ask(port, "GET", f"/t/{token}/ohif/")
    cookie = page.headers["set-cookie"]
    assert page.status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert page.headers["referrer-policy"] == "no-referrer"
    assert ask(port, "GET", "/info/", headers={"Cookie": cookie.partition(";")[0]}).status == 200
    assert "set-cookie" not in ask(port, "GET", f"/t/{token}/info/").headers
    ask(port, "GET", f"/t/{token}/openapi.json")
    assert token not in ask(port, "GET", "/openapi.json", token=guarded_site.tokens["admin"]).text


def test_roles(guarded_site: Site) -> None:
    port, tokens = guarded_site.port, guarded_site.tokens
    annotator, reviewer = tokens["annotator"], tokens["reviewer"]
    for method, path in (
        ("GET", "/logs/?lines=0"),
        ("GET", f"/model/{MODEL}"),
        ("GET", f"/model/info/{MODEL}"),
        ("PUT", f"/model/{MODEL}"),
        ("DELETE", f"/model/{MODEL}"),
        ("POST", "/reload"),
        ("DELETE", "/datastore/image?id=case1"),
        ("DELETE", "/datastore/?id=case1"),
    ):
        for token in (annotator, reviewer):
            answer = ask(port, method, path, token=token)
            assert answer.status == 403 and "admin" in answer.detail, path
    for method, path in (
        ("POST", f"/train/{MODEL}"),
        ("POST", "/train/"),
        ("DELETE", "/train/"),
        ("POST", f"/batch/infer/{MODEL}"),
        ("DELETE", "/batch/infer"),
        ("DELETE", "/datastore/label?id=case1&tag=final"),
    ):
        assert ask(port, method, path, token=annotator).status == 403, path
        assert ask(port, method, f"/t/{annotator}{path}").status == 403, path
    assert ask_json(port, "POST", f"/train/{MODEL}", {"device": "cpu"}, token=reviewer).status == 422  # no labels yet
    assert (guarded_site.studies / "case1.nii.gz").is_file()


def test_audit_says_who_when_what_and_no_token(guarded_site: Site) -> None:
    port, token = guarded_site.port, guarded_site.tokens["reviewer"]
    assert ask_json(port, "POST", f"/t/{token}/train/{MODEL}", {"max_epochs": 0}).status == 400
    body, headers = form({"params": "{}"}, label=("J Doe 1.2.1950.nii.gz", b"no mask"))
    assert ask(port, "PUT", "/datastore/label?image=case1", body, headers, token=token).status == 422
    file = guarded_site.studies / "ctseg" / "audit.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [{key: line[key] for key in line if key != "when"} for line in lines if line["who"] == "reviewer-1"]
    assert {"who": "reviewer-1", "what": "training started", "model": MODEL, "status": 400} in told
    label = {"who": "reviewer-1", "what": "label saved", "case": "case1", "tag": "final", "status": 422}
    assert label in told
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00", line["when"]) for line in lines)
    assert file.stat().st_mode & 0o777 == 0o600
    written = file.read_text() + guarded_site.server.log.read_text()
    assert not any(token in written for token in guarded_site.tokens.values())
    assert "Doe" not in written


def test_listens_where_it_should(open_site: Site, guarded_site: Site) -> None:
    """Linux answers on all of 127.0.0.0/8: a server that listens on 127.0.0.1 only is not there."""
    with pytest.raises(ConnectionRefusedError):
        ask(open_site.port, "GET", "/info/", host="127.0.0.2")
    assert ask(guarded_site.port, "GET", "/info/", host="127.0.0.2", token=guarded_site.tokens["admin"]).status == 200


def test_refuses_to_listen_wider_without_a_token(tmp_path: Path, open_site: Site) -> None:
    (tmp_path / "studies").mkdir()
    conf = ("bundles", str(open_site.work / "bundles"))
    done = subprocess.run(
        server_command(tmp_path / "studies", free_port(), conf, host="0.0.0.0"),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=server_environment(tmp_path),
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ctseg: the server would listen on 0.0.0.0") and "there is no token" in last
    assert "Traceback" not in done.stdout + done.stderr


# Which web pages may call


def test_strange_pages_are_shut_out(open_site: Site, guarded_site: Site) -> None:
    for site in (open_site, guarded_site):
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://viewer.example:3001"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
            preflight = ask(site.port, "OPTIONS", "/datastore/label", headers=asked)
            read = admin(site, "GET", "/info/", headers={"Origin": origin})
            for answer in (preflight, read):
                assert "access-control-allow-origin" not in answer.headers
            for method, path in (("POST", f"/infer/{MODEL}?image=case1"), ("PUT", "/session/"), ("DELETE", "/train/")):
                answer = admin(site, method, path, headers={"Origin": origin})
                assert answer.status == 403 and "web page" in answer.detail
        named = {"Origin": "http://viewer.example:3000"}
        assert admin(site, "GET", "/info/", headers=named).headers["access-control-allow-origin"] == named["Origin"]
        preflight = ask(site.port, "OPTIONS", "/info/", headers={**named, "Access-Control-Request-Method": "GET"})
        assert preflight.status == 200
        assert admin(site, "DELETE", "/train/", headers=named).status == 200
        same = {"Origin": f"http://127.0.0.1:{site.port}"}
        assert admin(site, "DELETE", "/train/", headers=same).status == 200


def test_rebound_names_are_shut_out_where_there_is_no_token(open_site: Site, guarded_site: Site) -> None:
    evil = {"Host": "evil.example"}
    answer = ask(open_site.port, "GET", "/datastore/?output=all", headers=evil)
    assert answer.status == 403 and "tokens" in answer.detail
    assert ask(open_site.port, "GET", "/info/", headers={"Host": f"localhost:{open_site.port}"}).status == 200
    assert admin(guarded_site, "GET", "/info/", headers=evil).status == 200  # the token is what counts


# Ids, paths, parameters


@pytest.fixture
def unchanged(guarded_site: Site) -> Iterator[bytes]:
    """What lies outside the studies and the labels in them stay as they were; yields the secret."""
    outside = [guarded_site.work / name for name in ("bundles", "plain", "users.txt", "secret.nii.gz")]

    def state() -> list[Any]:
        found: list[Any] = [path.read_bytes() if path.is_file() else content_of(path) for path in outside]
        return [*found, sorted(path.name for path in guarded_site.work.iterdir()), content_of(guarded_site.studies)]

    def settled() -> list[Any]:
        left: list[Any] = state()
        for own in ("ctseg/audit.jsonl", "datastore_v2.json", ".lock"):
            left[-1].pop(own, None)
        return left

    before = settled()
    secret = (guarded_site.work / "secret.nii.gz").read_bytes()
    yield secret
    assert settled() == before


def test_nothing_outside_is_read(guarded_site: Site, unchanged: bytes) -> None:
    for escape in ESCAPES:
        for address in (
            f"/datastore/image?image={quote(escape, safe='')}",
            f"/datastore/label?label={quote(escape, safe='')}&tag=final",
            f"/datastore/label?label=case1&tag={quote(escape, safe='')}",
            f"/session/{quote(escape, safe='')}?image=true",
            f"/model/{quote(escape, safe='')}",
            f"/static/{quote(escape, safe='')}",
            f"/ohif/{quote(escape, safe='')}",
            f"/proxy/dicom/{quote(escape, safe='')}",
        ):
            answer = admin(guarded_site, "GET", address)
            assert unchanged not in answer.body and b"root:" not in answer.body, address
            assert is_refusal(answer) or address.startswith("/ohif/"), (address, answer.status)
        answer = admin(guarded_site, "GET", f"/datastore/image/info?image={quote(escape, safe='')}")
        assert b"root:" not in answer.body
        if escape != "link":
            assert is_refusal(admin(guarded_site, "HEAD", f"/datastore/image?image={quote(escape, safe='')}"))
    for path in (
        "/../secret.nii.gz",
        "/static/../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
    ):
        assert is_refusal(admin(guarded_site, "GET", path))
    assert admin(guarded_site, "GET", "/datastore/image?image=case1").status == 200


def test_nothing_outside_is_segmented(guarded_site: Site, unchanged: bytes) -> None:
    secret = str(guarded_site.work / "secret.nii.gz")
    for escape in [*ESCAPES, secret, str(guarded_site.studies / "case1.nii.gz"), 7, ["case1"], {"a": 1}, True]:
        query = quote(escape, safe="") if isinstance(escape, str) else "case1"
        body, headers = form({"params": json.dumps({} if isinstance(escape, str) else {"image": escape})})
        assert is_refusal(admin(guarded_site, "POST", f"/infer/{MODEL}?image={query}", body, headers)), escape
        body, headers = form({"params": json.dumps({"image": escape})})
        assert is_refusal(admin(guarded_site, "POST", f"/infer/{MODEL}?image=case1", body, headers)), escape
        wsi = ask_json(
            guarded_site.port,
            "POST",
            f"/infer/wsi/{MODEL}?image=case1",
            {"params": {"image": escape}},
            token=guarded_site.tokens["admin"],
        )
        assert is_refusal(wsi), escape
    for session in ESCAPES:
        body, headers = form({"params": "{}"})
        address = f"/infer/{MODEL}?session_id={quote(session, safe='')}"
        assert is_refusal(admin(guarded_site, "POST", address, body, headers)), session


def test_nothing_outside_is_written(guarded_site: Site, unchanged: bytes) -> None:
    ct = (guarded_site.studies / "case1.nii.gz").read_bytes()
    for escape in ESCAPES:
        body, headers = form({"params": "{}"}, file=("x.nii.gz", ct))
        for address in ("/datastore/image", "/datastore/"):
            answer = admin(guarded_site, "PUT", f"{address}?image={quote(escape, safe='')}", body, headers)
            assert is_refusal(answer, 400, 409), (escape, answer.status)
        body, headers = form({"params": "{}"}, file=(f"{escape[:100]}.nii.gz".replace("\0", ""), ct))
        if escape not in ("link", "x" * 3000):  # its last part may be a plain name
            assert admin(guarded_site, "PUT", "/datastore/image", body, headers).status in (200, 400)
            added = re.split(r"[/\\]", escape.replace("\0", ""))[-1]
            (guarded_site.studies / f"{added}.nii.gz").unlink(missing_ok=True) if added != "case1" else None
        body, headers = form({"params": "{}"}, label=("x.nii.gz", ct))
        for query in (f"image={quote(escape, safe='')}", f"image=case1&tag={quote(escape, safe='')}"):
            if query != "image=case1&tag=link":
                assert is_refusal(admin(guarded_site, "PUT", f"/datastore/label?{query}", body, headers)), query
        kept = form({"params": json.dumps({"save_label": True, "label_tag": escape})})
        if escape not in ("link", "x" * 3000):
            assert is_refusal(admin(guarded_site, "POST", f"/infer/{MODEL}?image=case1", *kept)), escape
        for extension in (escape, f"/../../x{escape}.nii.gz"):
            wanted = form({"params": json.dumps({"result_extension": extension})})
            assert is_refusal(admin(guarded_site, "POST", f"/infer/{MODEL}?image=case1", *wanted)), escape
        assert admin(guarded_site, "DELETE", f"/datastore/label?id={quote(escape, safe='')}&tag=final").status == 200
        assert is_refusal(admin(guarded_site, "DELETE", f"/datastore/image?id={quote(escape, safe='')}"))
        assert is_refusal(admin(guarded_site, "DELETE", f"/session/{quote(escape, safe='')}"))


def test_tag_folder_that_is_a_link_is_not_written_through(guarded_site: Site, tmp_path: Path) -> None:
    from helpers_server import write_mask_of

    link = guarded_site.studies / "labels" / "linked"
    link.symlink_to(tmp_path)
    try:
        mask = Path(write_mask_of(guarded_site.studies, 2)).read_bytes()
        body, headers = form({"params": "{}"}, label=("m.nii.gz", mask))
        answer = admin(guarded_site, "PUT", "/datastore/label?image=case2&tag=linked", body, headers)
        assert answer.status == 400 and "link" in answer.detail
        assert list(tmp_path.iterdir()) == []
    finally:
        link.unlink()


def test_odd_requests_are_answered_with_a_sentence(guarded_site: Site) -> None:
    for content in ("{", "[1]", "7", '"x"', '{"a"', "null x"):
        body, headers = form({"params": content, "info": content})
        for method, path in (
            ("POST", f"/infer/{MODEL}?image=case1"),
            ("PUT", "/datastore/label/info?label=case1&tag=final"),
            ("PUT", "/datastore/image/info?image=case1"),
        ):
            assert is_refusal(admin(guarded_site, method, path, body, headers), 400, 404, 422), (path, content)
    for path in ("/train/", "/infer/nope?image=case1", "/activelearning/nope", "/scoring/nope", "/batch/infer/nope"):
        assert is_refusal(admin(guarded_site, "POST", path, b"{", {"Content-Type": "application/json"})), path
    assert is_refusal(admin(guarded_site, "POST", f"/infer/{MODEL}"))
    assert is_refusal(admin(guarded_site, "GET", "/datastore/dataset"), 404)


# What is sent


def test_uploads_are_limited_in_size_and_kind(guarded_site: Site) -> None:
    port, token = guarded_site.port, guarded_site.tokens["admin"]
    address = f"/infer/{MODEL}"
    large, headers = form({"params": "{}"}, file=("big.nii.gz", b"x" * (3 << 20)))
    assert ask(port, "POST", address, large, headers, token=token).status == 413
    in_chunks = (large[start : start + 65536] for start in range(0, len(large), 65536))
    assert ask(port, "POST", address, in_chunks, {**headers, "Transfer-Encoding": "chunked"}, token=token).status == 413
    json_headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    assert ask(port, "POST", "/train/", chunks(3 << 20), json_headers, token=token).status == 413
    claimed = {**headers, "Content-Length": str(10 << 30)}
    assert ask(port, "PUT", "/session/", b"x", claimed, token=token).status == 413
    for name in ("x.exe", "x.py", "x.html", "x", "x.nii.gz.sh", "x.tar.gz"):
        body, headers = form({"params": "{}"}, file=(name, b"#!/bin/sh\n"))
        assert ask(port, "POST", address, body, headers, token=token).status == 415, name
        assert ask(port, "PUT", "/datastore/image?image=new", body, headers, token=token).status == 415, name
        body, headers = form({}, files=(name, b"#!/bin/sh\n"))
        assert ask(port, "PUT", "/session/?uncompress=true", body, headers, token=token).status == 415, name
    body, headers = form({"params": "{}"}, file=("x.nii.gz", b"text"))
    assert is_refusal(ask(port, "POST", address, body, headers, token=token), 422)
    assert is_refusal(ask(port, "PUT", "/datastore/image?image=new", body, headers, token=token), 422)
    assert not (guarded_site.studies / "new.nii.gz").exists()
    until(lambda: uploads(guarded_site) == [])


def private_folder(site: Site) -> Path:
    (folder,) = (site.work / "tmp").glob("ctseg-server-*")
    return folder


def uploads(site: Site) -> list[Path]:
    return [path for path in private_folder(site).rglob("*") if path.is_file()]


def until(condition: Any, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def held(site: Site) -> Iterator[None]:
    """Every segmentation waits inside."""
    for old in site.gate.glob("started-*"):
        old.unlink()
    (site.gate / "hold").touch()
    try:
        yield
    finally:
        (site.gate / "hold").unlink()


def test_uploads_and_sessions_are_private_and_go(guarded_site: Site) -> None:
    port, token = guarded_site.port, guarded_site.tokens["annotator"]
    ct = (guarded_site.studies / "case1.nii.gz").read_bytes()
    body, headers = form({}, files=("P Doe/image.nii.gz", ct))
    session = ask(port, "PUT", "/session/", body, headers, token=token).json()["session_id"]
    body, headers = form({"params": '{"device": "cpu"}'}, file=("P Doe/image.nii.gz", ct))
    answers: list[Answer] = []
    with held(guarded_site):
        upload = threading.Thread(
            target=lambda: answers.append(ask(port, "POST", f"/infer/{MODEL}", body, headers, token=token))
        )
        upload.start()
        until(lambda: list(guarded_site.gate.glob("started-*")))
        folder = private_folder(guarded_site)
        stored = uploads(guarded_site)
        assert len(stored) >= 3  # the upload, the session's image and its note
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in stored)
        inner = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        assert all(path.stat().st_mode & 0o777 == 0o700 for path in inner)
        assert "Doe" not in " ".join(map(str, folder.rglob("*")))
    upload.join()
    assert answers[0].status == 200
    assert ask(port, "GET", f"/session/{session}", token=token).status == 200
    assert ask(port, "DELETE", f"/session/{session}", token=token).status == 200
    assert ask(port, "GET", f"/session/{session}", token=token).status == 404
    until(lambda: uploads(guarded_site) == [])
    assert not (guarded_site.work / "sessions").exists()


def test_no_address_from_a_request_is_fetched(guarded_site: Site) -> None:
    canary = Canary()
    url = f"{canary.url}/x.nii.gz"
    encoded = quote(url, safe="")
    params = dict.fromkeys(("image", "label", "model_filename", "pretrained", "dataset", "tracking_uri", "path"), url)
    params |= {"images": [url], "bundle_path": url, "session": {"image": url}, "logging": url, "output": url}
    body, headers = form({"params": json.dumps(params)})
    for method, path in (
        ("POST", f"/infer/{MODEL}?image={encoded}"),
        ("POST", f"/infer/{encoded}?image=case1"),
        ("POST", f"/infer/{MODEL}?session_id={encoded}"),
        ("GET", f"/datastore/image?image={encoded}"),
        ("GET", f"/datastore/label?label={encoded}&tag={encoded}"),
        ("PUT", f"/datastore/label?image={encoded}"),
        ("GET", f"/proxy/dicom/{encoded}"),
        ("GET", f"/proxy/dicom//127.0.0.1:{canary.port}/x"),
        ("GET", f"/session/{encoded}"),
        ("GET", f"/ohif/{encoded}"),
        ("GET", url),  # an absolute address in the request line, as to a proxy
        ("CONNECT", f"127.0.0.1:{canary.port}"),
    ):
        admin(guarded_site, method, path, body, headers)
    for path in (f"/train/{MODEL}", "/train/", f"/infer/wsi/{MODEL}?image={encoded}", "/activelearning/first"):
        ask_json(guarded_site.port, "POST", path, {**params, "max_epochs": 0}, token=guarded_site.tokens["admin"])
    batch = {**params, "max_workers": 1, "multi_gpu": False}
    address = f"/batch/infer/{MODEL}?run_sync=true"
    ask_json(guarded_site.port, "POST", address, batch, token=guarded_site.tokens["admin"])
    assert not canary.was_called()
    canary.close()


def test_pickled_weights_are_not_run(guarded_site: Site) -> None:
    body, headers = form({"params": '{"device": "cpu"}'})
    answer = admin(guarded_site, "POST", f"/infer/{PICKLED}?image=case1", body, headers)
    assert answer.status == 409 and "tensors" in answer.detail
    weights = guarded_site.work / "bundles" / PICKLED / "models" / "model.pt"
    params = json.dumps({"model_filename": str(weights), "path": str(weights), "pretrained": str(weights)})
    answer = admin(guarded_site, "POST", f"/infer/{MODEL}?image=case1", *form({"params": params}))
    assert answer.status == 200
    for method in ("PUT", "DELETE"):
        body, headers = form({}, file=("model.pt", weights.read_bytes()))
        assert admin(guarded_site, method, f"/model/{MODEL}", body, headers).status == 403
    assert not (guarded_site.work / "unpickled").exists()


# The archive behind the server


@dataclass
class Archive:
    """A DICOMweb server that knows no study; it notes what it is asked and can be slow or send elsewhere."""

    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    elsewhere: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {key.lower(): value for key, value in self.headers.items()}
                archive.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                if "/slow" in self.path:
                    time.sleep(20)
                if "/moved" in self.path:
                    self.send_response(302)
                    self.send_header("Location", archive.elsewhere)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Set-Cookie", "archive=secret")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"[]")

            do_GET = do_POST = _answer

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@dataclass(frozen=True)
class ArchiveSite:
    """A server whose studies are on an archive, its token, the archive, and a listener elsewhere."""

    port: int
    token: str
    archive: Archive
    canary: Canary
    work: Path
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def archive_site(tmp_path_factory: pytest.TempPathFactory, guarded_site: Site) -> Iterator[ArchiveSite]:
    work = tmp_path_factory.mktemp("archive")
    archive, canary = Archive(), Canary()
    archive.elsewhere = f"{canary.url}/stolen"
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), archive.handler())
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    token = "archive-token-0123456789"
    (work / "token").write_text(token)
    (work / "token").chmod(0o600)
    conf = [("bundles", str(guarded_site.work / "bundles")), ("token_file", str(work / "token"))]
    environment = {
        "MONAI_LABEL_DICOMWEB_USERNAME": "pacs",
        "MONAI_LABEL_DICOMWEB_PASSWORD": "pacs-password",
        "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT": "1",
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "cache"),
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
    }
    (work / "tmp").mkdir()
    studies = f"http://127.0.0.1:{httpd.server_port}/dicom-web"
    with started_server(studies, work, *conf, **environment) as server:
        yield ArchiveSite(server.port, token, archive, canary, work, server.process)
    httpd.shutdown()
    httpd.server_close()
    canary.close()


def test_proxy_serves_callers_with_a_token_from_the_configured_server_only(archive_site: ArchiveSite) -> None:
    port, token, archive, canary = archive_site.port, archive_site.token, archive_site.archive, archive_site.canary
    archive.asked.clear()
    for path in ("/proxy/dicom/studies", "/proxy/dicom/wado/studies", "/proxy/dicom/stow/studies"):
        assert ask(port, "GET", path).status == 401
        assert ask(port, "POST", path, b"x").status == 401
    for escape in (f"http://127.0.0.1:{canary.port}/x", f"/127.0.0.1:{canary.port}/x", "../admin", "%2e%2e/admin"):
        for prefix in ("", "wado/", "qido/", "stow/"):
            assert is_refusal(ask(port, "GET", f"/proxy/dicom/{prefix}{escape}", token=token), 400), escape
    assert archive.asked == []
    sent = {"Cookie": "ctseg_token=x", "X-Forwarded-Host": "evil", "Accept": "application/dicom+json"}
    answer = ask(port, "GET", "/proxy/dicom/qido/studies?limit=5&PatientID=a%26b", headers=sent, token=token)
    assert (answer.status, answer.body) == (200, b"[]")
    assert "set-cookie" not in answer.headers
    method, path, headers, _ = archive.asked[-1]
    assert (method, path) == ("GET", "/dicom-web/studies?limit=5&PatientID=a%26b")
    assert headers["authorization"] == "Basic " + base64.b64encode(b"pacs:pacs-password").decode()
    assert "cookie" not in headers and "x-forwarded-host" not in headers and token not in str(headers)
    ask(port, "POST", "/proxy/dicom/stow/studies", b"dicom", {"Content-Type": "multipart/related"}, token=token)
    assert archive.asked[-1][0] == "POST" and archive.asked[-1][3] == b"dicom"


def test_proxy_follows_nobody_and_waits_for_nobody(archive_site: ArchiveSite) -> None:
    port, token, canary = archive_site.port, archive_site.token, archive_site.canary
    assert ask(port, "GET", "/proxy/dicom/studies/moved", token=token).status == 502
    assert not canary.was_called()
    answers: list[Answer] = []
    slow = threading.Thread(target=lambda: answers.append(ask(port, "GET", "/proxy/dicom/studies/slow", token=token)))
    slow.start()
    assert ask(port, "GET", "/train/?check_if_running=true", token=token).status == 404  # others do not wait
    slow.join()
    assert answers[0].status == 504 and "in time" in answers[0].detail


def test_images_of_an_archive_are_series_uids(archive_site: ArchiveSite) -> None:
    port, token, archive, canary = archive_site.port, archive_site.token, archive_site.archive, archive_site.canary
    archive.asked.clear()
    for image in ("../x", "/etc/passwd", f"http://127.0.0.1:{canary.port}/x", "1.2/../../x", "abc"):
        body, headers = form({"params": "{}"})
        answer = ask(port, "POST", f"/infer/{MODEL}?image={quote(image, safe='')}", body, headers, token=token)
        assert is_refusal(answer, 404), image
    assert not any("abc" in path or "1.2" in path or "WADO" in path for _, path, _, _ in archive.asked)
    assert all(path.startswith("/dicom-web/series?Modality=") for _, path, _, _ in archive.asked)
    assert not canary.was_called()


# The end


def test_uploads_go_when_the_server_is_stopped(archive_site: ArchiveSite, guarded_site: Site) -> None:
    """The last test: it stops the server. (That they go when it is killed: test_label_saving.py.)"""
    port, token, work, process = archive_site.port, archive_site.token, archive_site.work, archive_site.process
    body, headers = form({}, files=("image.nii.gz", (guarded_site.studies / "case1.nii.gz").read_bytes()))
    assert ask(port, "PUT", "/session/", body, headers, token=token).status == 200
    assert [path for path in (work / "tmp").rglob("*") if path.is_file()]
    process.send_signal(signal.SIGTERM)
    process.wait(200)
    until(lambda: list((work / "tmp").glob("ctseg-server-*")) == [])
