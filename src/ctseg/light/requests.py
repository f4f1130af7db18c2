"""What a request of the light API brings: its fields, its file, and what a mistake is answered with."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctseg.errors import BundleError, CtsegError, InputError, OutputError, ResourceError

VOLUMES = (".nii.gz", ".nii")
# What a mistake is answered with, the first class that fits; as the MONAI Label app does.
_STATUS: tuple[tuple[type[CtsegError], int], ...] = (
    (BundleError, 409),
    (ResourceError, 413),
    (InputError, 422),
    (OutputError, 507),
    (CtsegError, 400),
)


def refused(status: int, sentence: str) -> HTTPException:
    """Make the exception that is answered with `{"detail": sentence}`."""
    return HTTPException(status, sentence)


def refusal_of(error: CtsegError, path: Path, name: str) -> HTTPException:
    """Make the answer for an error of the library; its sentence has the image's name for the path on this machine."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return refused(status, " ".join(str(error).replace(str(path), name).replace(path.name, name).split()))


def json_list(form: FormData, name: str, what: str) -> Any:
    """Return a field's JSON; None where it is missing or empty.

    Raises:
        HTTPException: 400 for what is no JSON.
    """
    text = form.get(name)
    if isinstance(text, UploadFile):
        raise refused(400, f"the field {name} is a file: expected {what}")
    if text is None or not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(400, f"the field {name} is no valid JSON ({error}): expected {what}") from error


def text_of(form: FormData, name: str) -> str:
    """Return a field's text, "" where there is none."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


@contextmanager
def stored_file(form: FormData, folder: Path, endings: Sequence[str], what: str) -> Iterator[Path]:
    """Give the request's `file` in a private folder, under a random name; it goes when the block ends.

    Args:
        form: the fields.
        folder: that only this user can enter.
        endings: of names that are taken.
        what: is expected, for the sentence.

    Raises:
        HTTPException: 400 when there is no file, or its name ends otherwise.
    """
    upload = form.get("file")
    if upload is None or upload == "":
        raise refused(400, f"there is no file: send the field file with {what}")
    if not isinstance(upload, UploadFile):
        raise refused(400, f"the field file is text: expected a file, {what}")
    name = (upload.filename or "").lower()
    ending = next((known for known in endings if name.endswith(known)), None)
    if ending is None:
        found = Path(name).suffix[:20] or "no ending"
        raise refused(400, f"the file has {found}: expected {what}")
    path = folder / f"upload-{secrets.token_hex(8)}{ending}"
    try:
        with path.open("xb") as stream:
            path.chmod(0o600)
            shutil.copyfileobj(upload.file, stream, 1 << 20)
        yield path
    finally:
        path.unlink(missing_ok=True)


class Guard:
    """What every request passes first: this machine's name, no other site's page, the token, the size.

    Args:
        app: what answers.
        largest: bytes of a request's body.
        token: that callers must show as `Authorization: Bearer TOKEN`; None asks for none, and answers only to the
            names of this machine.
    """

    def __init__(self, app: ASGIApp, largest: int, token: str | None = None) -> None:
        self._app = app
        self._largest = largest
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, read, answered = Headers(scope=scope), 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._largest:
                raise self._too_large()
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            self._check(headers)
            await self._app(scope, counted, sent)
        except HTTPException as error:
            if not answered:
                answer = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
                await answer(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        import hmac
        from urllib.parse import urlsplit

        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if self._token is None and host not in ("127.0.0.1", "localhost", "::1"):
            raise refused(403, f"without a token this service answers as 127.0.0.1 or localhost, not as {host[:100]}")
        if self._token is not None:
            scheme, _, shown = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), self._token.encode()):
                raise HTTPException(
                    401, "a token is needed: send it as 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"}
                )
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            raise refused(403, "the request comes from a page of another site")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._largest:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        return refused(413, f"the request is larger than {self._largest >> 20} MiB, which is all that is taken here")
