"""Start and stop the window: a server on this computer only, which answers only who has its key."""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import sys
import tempfile
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from ctseg.errors import ConfigError, InputError
from ctseg.registry import bundles_root, find_bundles

HOST = "127.0.0.1"
COOKIE = "ctseg_window"


class KeyGate:
    """ASGI middleware: the address with the key sets a cookie, and nothing answers without it.

    Other users of this computer, and web pages that guess the port, reach nothing.
    """

    def __init__(self, app: Any, key: str) -> None:
        """Wrap `app`; `key` opens it."""
        self._app = app
        self._key = key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403, set the cookie, or hand the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if self._knows(scope):
            await self._app(scope, receive, send)
            return
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [""])[0]
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif secrets.compare_digest(given.encode(), self._key.encode()):
            cookie = f"{COOKIE}={self._key}; Path=/; HttpOnly; SameSite=Strict"
            await _answer(send, 303, b"", (b"location", b"/"), (b"set-cookie", cookie.encode()))
        else:
            await _answer(send, 403, b"this window opens with the address that ctseg app printed, which has a key")

    def _knows(self, scope: Any) -> bool:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            morsel = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and secrets.compare_digest(morsel.value.encode(), self._key.encode())


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    usual = ((b"content-type", b"text/plain; charset=utf-8"), (b"referrer-policy", b"no-referrer"))
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *headers]})
    await send({"type": "http.response.body", "body": body})


def run_window(
    source: Path | None, *, port: int = 0, device: str = "auto", browser: bool = True, bundles: Path | None = None
) -> None:
    """Open the window and return when it is ended.

    Args:
        source: an image to begin with.
        port: on 127.0.0.1; 0 takes a free one.
        device: where networks run.
        browser: open the address in the default browser.
        bundles: folder of the bundles; None takes the shipped ones.

    Raises:
        InputError: there is no such image.
        ConfigError: the port is taken, or there are no bundles in the folder.
    """
    if source is not None and not source.exists():
        raise InputError(f"there is no file or folder {source}; give an image, or nothing to choose one on the page")
    if bundles is not None and not find_bundles(bundles):
        raise ConfigError(f"there is no bundle in {bundles}; name a folder of bundles, such as {bundles_root()}")
    free = _free_port(port)
    from nicegui import app, ui

    from ctseg.study import Predictors
    from ctseg.window.page import build_page

    private = Path(tempfile.mkdtemp(prefix="ctseg-window-"))  # mode 700
    key = secrets.token_urlsafe(24)
    app.add_middleware(KeyGate, key=key)
    address = f"http://{HOST}:{free}/?key={key}"
    predictors = Predictors(device, bundles)

    @ui.page("/")
    async def page() -> None:
        await build_page(predictors, private, source)

    app.on_startup(lambda: print(f"ctseg: the window is at {address}\nctseg: Ctrl-C ends it", file=sys.stderr))
    logging.getLogger("nicegui").setLevel(logging.WARNING)
    try:
        ui.run(
            host=HOST,
            port=free,
            title="ctseg",
            show=address if browser else False,
            reload=False,
            show_welcome_message=False,
            endpoint_documentation="none",
            favicon=_ICON,
        )
    finally:
        shutil.rmtree(private, ignore_errors=True)


_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="#20262d"/>'
    '<path d="M3 9c0-4 8-5 10-2-1 4-4 5-6 5S3 11 3 9z" fill="#dd8265"/></svg>'
)


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} is taken ({error.strerror}); name another with --port, or none") from error
        return int(probe.getsockname()[1])
