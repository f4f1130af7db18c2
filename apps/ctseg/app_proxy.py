"""The way to the DICOMweb server behind this one, for viewers that may speak to one address only.

Stock lends the archive's password to any caller, waits without end, follows the archive to other servers, hands on the
caller's own headers and drops the query. Who may call is decided before (`app_guard`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit

from app_http import refused
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from monailabel.config import settings

logger = logging.getLogger(__name__)

_SENT = ("accept", "accept-language", "content-type", "range")
_RETURNED = ("content-type", "content-range", "accept-ranges", "etag", "last-modified", "warning")
_CONNECT_SECONDS = 5.0
_BLOCK = 1 << 16
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@ -]*")


def proxy_routes(studies: str) -> list[APIRoute]:
    """Make the routes under `/proxy/dicom/`.

    Args:
        studies: the DICOMweb server's address, or a folder (then there is nothing to reach).
    """

    async def dicom(request: Request, path: str) -> Response:
        """Hand a request on to the configured server, and to no other."""
        if not studies.startswith(("http://", "https://")):
            raise refused(404, "the studies are a folder: there is no DICOMweb server behind this one")
        address = target(studies, path)
        return await run_in_threadpool(_fetch, request, address, await request.body())

    return [APIRoute("/proxy/dicom/{path:path}", dicom, methods=["GET", "POST"], include_in_schema=False)]


def target(studies: str, path: str) -> str:
    """Return the address that a path stands for.

    Args:
        studies: the DICOMweb server's address.
        path: as in the request, decoded: `studies/...`, or `wado/`, `qido/`, `stow/` and the same.

    Raises:
        HTTPException: 400 for a path that could lead out of the server's DICOMweb root.
    """
    operation, _, rest = path.partition("/")
    prefix = ""
    if operation in ("wado", "qido", "stow"):
        # Some viewers ask for metadata by qido.
        kind = "wado" if operation == "qido" and rest.endswith("metadata") else operation
        prefix, path = getattr(settings, f"MONAI_LABEL_{kind.upper()}_PREFIX") or "", rest
    parts = path.split("/")
    if any(part in (".", "..") or not _SEGMENT.fullmatch(part) for part in parts) or "" in parts[:-1]:
        raise refused(400, f"{path[:200]!r} is no DICOMweb path: expected plain names with single slashes between")
    middle = f"{prefix.strip('/')}/" if prefix else ""
    return f"{studies.rstrip('/')}/{middle}{quote(path, safe='/')}"


def _fetch(request: Request, address: str, body: bytes) -> Response:
    import requests

    headers = {name: value for name, value in request.headers.items() if name in _SENT} | _credentials(address)
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    try:
        answer = requests.request(
            request.method,
            address,
            params=request.url.query or None,
            data=body or None,
            headers=headers,
            auth=(user, password) if user and password and "Authorization" not in headers else None,
            timeout=(_CONNECT_SECONDS, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT),
            allow_redirects=False,  # to another server, with the password
            stream=True,
        )
    except requests.Timeout as error:
        raise refused(504, "the DICOMweb server does not answer in time; is it overloaded?") from error
    except requests.RequestException as error:
        logger.warning("The DICOMweb server cannot be reached: %s", error)
        raise refused(502, "the DICOMweb server cannot be reached; is it running?") from error
    if answer.is_redirect:
        answer.close()
        raise refused(502, "the DICOMweb server sent a redirect, which is not followed; give its final address")
    kept = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
    return StreamingResponse(_blocks(answer), answer.status_code, kept)


def _blocks(answer: Any) -> Iterator[bytes]:
    with closing(answer):
        yield from answer.iter_content(_BLOCK)


def _credentials(address: str) -> dict[str, str]:
    """Google's archive takes a token of its own instead of a password."""
    if not (urlsplit(address).hostname or "").endswith(".googleapis.com"):
        return {}
    import google.auth
    import google.auth.transport.requests

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return {"Authorization": f"Bearer {credentials.token}"}
