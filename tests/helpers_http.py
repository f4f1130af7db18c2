"""HTTP as an attacker sends it: no path is tidied, no redirect followed, nothing is retried."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def detail(self) -> str:
        """The sentence of a refusal."""
        detail: str = json.loads(self.body)["detail"]
        return detail

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
) -> Answer:
    """Send one request and read the whole answer; an iterable body is sent in chunks without a length."""
    sent = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    connection = http.client.HTTPConnection(host, port, timeout=300)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
            connection.request(method, path, body=body, headers=sent, encode_chunked=not isinstance(body, bytes | None))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def ask_json(port: int, method: str, path: str, content: Any, **named: Any) -> Answer:
    """Send JSON."""
    return ask(port, method, path, json.dumps(content).encode(), {"Content-Type": "application/json"}, **named)


def form(fields: Mapping[str, str] | None = None, **files: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Make a multipart body of fields and of files (name, content), and its headers."""
    boundary = secrets.token_hex(12)
    lines: list[bytes] = []
    for name, value in (fields or {}).items():
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()]
    for name, (filename, content) in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        lines += [head.encode() + b"Content-Type: application/octet-stream\r\n\r\n", content, b"\r\n"]
    lines.append(f"--{boundary}--\r\n".encode())
    return b"".join(lines), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def chunks(total: int, size: int = 1 << 16) -> Iterator[bytes]:
    """Make `total` bytes in pieces."""
    for start in range(0, total, size):
        yield b"x" * min(size, total - start)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Canary:
    """A listener that nobody should ever call."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(16)
        self._socket.settimeout(0.3)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def was_called(self) -> bool:
        """Whether anybody has connected."""
        try:
            self._socket.accept()[0].close()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
