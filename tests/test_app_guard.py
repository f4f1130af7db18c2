"""What passes before a request reaches a route: the address, tokens, rules and sizes, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_app import sibling

from ctseg.errors import ConfigError
from ctseg.serving.users import User, add_user, hash_token

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from fastapi import HTTPException

TOKEN = "t" * 43
REVIEWER = User("r", "reviewer", hash_token(TOKEN))


def access(**conf: str) -> Any:
    return sibling("app_access").read_access(conf)


def test_without_anything_there_is_no_user_and_no_origin() -> None:
    found = access()
    assert (list(found.users), list(found.origins), found.largest_upload) == ([], [], 4 << 30)


def test_users_token_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_user(tmp_path / "users.txt", "anna", "annotator")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("CTSEG_TOKEN", "e" * 30)
    users = access(users=str(tmp_path / "users.txt"), token_file=str(tmp_path / "token")).users
    assert [(user.name, user.role) for user in users] == [
        ("anna", "annotator"),
        ("token-file", "admin"),
        ("token", "admin"),
    ]
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        access(token_file=str(tmp_path / "token"))
    monkeypatch.setenv("CTSEG_TOKEN", "short")
    with pytest.raises(ConfigError, match="CTSEG_TOKEN has 5 characters"):
        access()


@pytest.mark.parametrize(
    "origin", ["*", "http://*", "null", "viewer", "http://", "ftp://x", "http://a/path", "http://u@a", "http://a:x"]
)
def test_origins_are_named_in_full(origin: str) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        access(origins=f"http://fine:3000,{origin}")
    assert access(origins=" http://A:3000, https://b ").origins == ["http://a:3000", "https://b"]


def test_largest_upload() -> None:
    assert access(max_upload_mb="7").largest_upload == 7 << 20
    for text in ("0", "-1", "many", "1.5"):
        with pytest.raises(ConfigError, match="max_upload_mb"):
            access(max_upload_mb=text)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *[(host, True) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9", "x.localhost", "LOCALHOST")],
        *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.evil.org", "", None)],
    ],
)
def test_loopback(host: str | None, own: bool) -> None:
    assert sibling("app_access").is_loopback(host) is own


def test_where_the_server_listens() -> None:
    listen = sibling("app_access").listen_safely
    for arguments, given, used in (
        (["start_server", "--port", "1"], "0.0.0.0", "127.0.0.1"),
        (["--host", "127.0.0.1"], "127.0.0.1", "127.0.0.1"),
    ):
        config = SimpleNamespace(host=given, workers=1)
        listen(config, arguments, [])
        assert config.host == used
    for arguments in (["--host", "0.0.0.0"], ["-i", "0.0.0.0"], ["--host=0.0.0.0"], ["-i0.0.0.0"], ["--ho", "0.0.0.0"]):
        config = SimpleNamespace(host="0.0.0.0", workers=None)
        with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*there is no token"):
            listen(config, arguments, [])
        listen(config, arguments, [REVIEWER])
        assert config.host == "0.0.0.0"
    with pytest.raises(ConfigError, match="no token"):
        listen(None, [], [])
    with pytest.raises(ConfigError, match="4 workers"):
        listen(SimpleNamespace(host="127.0.0.1", workers=4), [], [REVIEWER])


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("PUT", "/datastore/label", "annotator"),
        ("DELETE", "/datastore/label", "reviewer"),
        ("PUT", "/datastore/", "annotator"),
        ("DELETE", "/datastore/", "admin"),
        ("DELETE", "/datastore/image", "admin"),
        ("POST", "/train/any_model", "reviewer"),
        ("DELETE", "/train/", "reviewer"),
        ("GET", "/train/", None),
        ("GET", "/logs/", "admin"),
        ("GET", "/logs/gpu", "admin"),
        ("GET", "/model/x", "admin"),
        ("GET", "/model/info/x", "admin"),
        ("POST", "/reload", "admin"),
        ("POST", "/predict/", None),
        ("POST", "/dicom-web/studies", "annotator"),
        ("POST", "/proxy/dicom/stow/studies/1.2", "annotator"),
        ("GET", "/info/", None),
    ],
)
def test_rules(method: str, path: str, role: str | None) -> None:
    rule = sibling("app_access").rule_for(method, path)
    assert (rule and rule.role) == role


class Inner:
    """The application behind the guard: it reads the body and says what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.running = self.most = 0
        self.wait: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            size = 0
            while True:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            if self.wait is not None:
                await self.wait.wait()
            who = sibling("app_audit").caller.get()
            self.seen.append((scope["method"], scope["path"], scope.get("root_path", ""), who, size))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            self.running -= 1


def guarded(inner: Any, folder: Path, **settings: Any) -> Any:
    told = sibling("app_access").Access(**settings)
    return sibling("app_guard").Guard(inner, told, sibling("app_audit").Audit(folder / "audit.jsonl"))


async def send_one(guard: Any, method: str, path: str, chunks: tuple[bytes, ...] = (), **headers: str) -> int:
    sent: list[Any] = []
    parts = iter(chunks)

    async def receive() -> Any:
        part = next(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": raw}
    await guard(scope, receive, send)
    return int(sent[0]["status"])


def test_token_in_the_path_is_invisible_to_routes(tmp_path: Path) -> None:
    inner = Inner()
    guard = guarded(inner, tmp_path, users=[REVIEWER])

    async def run() -> list[int]:
        return [
            await send_one(guard, "GET", f"/t/{TOKEN}/info/"),
            await send_one(guard, "GET", f"/t/{TOKEN}"),
            await send_one(guard, "GET", f"/t/{TOKEN}x/info/"),
            await send_one(guard, "GET", "/info/"),
            await send_one(guard, "GET", "/info/", authorization=f"Bearer {TOKEN}"),
            await send_one(guard, "GET", "/info/", authorization=f"bearer  {TOKEN} "),
            await send_one(guard, "GET", "/info/", authorization=TOKEN),
            await send_one(guard, "GET", "/logs/", authorization=f"Bearer {TOKEN}"),
            await send_one(guard, "PUT", f"/t/{TOKEN}/datastore/label?image=a%0Ab&tag=x"),
            await send_one(guard, "POST", f"/t/{TOKEN}/dicom-web/studies/1.2.3"),
        ]

    assert asyncio.run(run()) == [200, 200, 401, 401, 200, 200, 401, 403, 200, 200]
    root = f"/t/{TOKEN}"
    assert inner.seen[0] == ("GET", f"{root}/info/", root, "r", 0)
    assert inner.seen[1][1:3] == (f"{root}/", root)
    line, stored = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert (json.loads(stored)["what"], json.loads(stored)["case"]) == ("DICOM stored", "1.2.3")
    told = json.loads(line)
    assert (told["who"], told["case"], told["tag"], told["status"]) == ("r", "a\nb", "x", 200)
    assert TOKEN not in line + stored


def test_bodies_are_counted_in_chunks(tmp_path: Path) -> None:
    inner = Inner()
    guard = guarded(inner, tmp_path, largest_upload=100)

    async def run() -> list[int]:
        return [
            await send_one(guard, "PUT", "/session/", (b"x" * 60, b"x" * 40)),
            await send_one(guard, "PUT", "/session/", (b"x" * 60, b"x" * 41)),
            await send_one(guard, "PUT", "/session/", (), content_length="101"),
            await send_one(guard, "PUT", "/session/", (b"x" * 101,), content_length="3"),
        ]

    assert asyncio.run(run()) == [200, 413, 413, 413]
    assert [seen[-1] for seen in inner.seen] == [100]


def test_more_segmentations_than_places_wait_without_a_thread(tmp_path: Path) -> None:
    inner = Inner()
    guard = guarded(inner, tmp_path)

    async def run() -> tuple[int, int, list[int]]:
        inner.wait = asyncio.Event()
        heavy = [asyncio.create_task(send_one(guard, "POST", "/predict/")) for _ in range(30)]
        while inner.running < 16:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        held = inner.running
        light = asyncio.create_task(send_one(guard, "GET", "/info/"))
        for _ in range(10):
            await asyncio.sleep(0)
        with_light = inner.running
        inner.wait.set()
        return held, with_light, [*await asyncio.gather(*heavy), await light]

    held, with_light, statuses = asyncio.run(run())
    assert (held, with_light) == (16, 17)
    assert statuses == [200] * 31


def test_websockets_are_closed(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded(Inner(), tmp_path)({"type": "websocket", "path": "/"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.fixture
def archive() -> Iterator[Any]:
    yield sibling("app_proxy").target


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("studies", "http://pacs/dicom-web/studies"),
        ("qido/studies/1.2/series", "http://pacs/dicom-web/studies/1.2/series"),
        ("wado/studies/1.2/metadata", "http://pacs/dicom-web/studies/1.2/metadata"),
        ("studies/1.2/series/3/rendered/", "http://pacs/dicom-web/studies/1.2/series/3/rendered/"),
    ],
)
def test_addresses_in_the_archive(archive: Any, path: str, address: str) -> None:
    assert archive("http://pacs/dicom-web/", path) == address


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/../b", "a/./b", "/x", "//evil/x", "http://evil/x", "a//b", "a?b", "a#b", "a\\b", "a%2e/x"]
)
def test_paths_that_leave_the_archive_are_refused(archive: Any, path: str) -> None:
    for prefix in ("", "wado/", "qido/", "stow/"):
        with pytest.raises(HTTPException) as caught:
            archive("http://pacs/dicom-web", prefix + path)
        assert caught.value.status_code == 400
