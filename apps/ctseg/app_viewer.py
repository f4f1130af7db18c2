"""The page for annotators: OHIF with our panel under `/viewer/`, and the studies' DICOMweb under `/dicom-web/`.

OHIF's own files are fetched by `scripts/setup_viewer`; ours lie in `viewer/`. Every address that the page uses is
relative to the one it was opened with, so a token in front of it (`/t/<token>/viewer/`) goes along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app_http import refused
from app_viewer_proxy import StudiesProxy
from app_viewer_run import Asked, run_model
from app_viewer_segs import SegFrames
from app_viewer_stow import store_label
from fastapi import Depends, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from starlette.concurrency import run_in_threadpool

_OURS = Path(__file__).resolve().parent / "viewer"
_FETCHED = Path(__file__).resolve().parents[2] / ".viewer"
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}
_LARGEST_LABEL = 512 * 1024 * 1024  # bytes; 1-bit frames of 2000 slices with 5 organs in 512 x 512 are 330 MB
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The viewer is not set up</title>
<p>The viewer is not set up on this server: run <code>scripts/setup_viewer</code> there once (it fetches OHIF, 50 MB),
then load this page again.</p></html>"""


def viewer_routes(app: Any) -> list[APIRoute]:
    """Make the routes of the page.

    Args:
        app: our `MONAILabelApp`: its `infer`, `datastore()`, `bundles()`, `model_labels(model)`,
            `label_stored(series, label)`, `studies` and `conf` (`viewer`: where OHIF lies).
    """
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    fetched = Path(str(app.conf.get("viewer") or "").strip() or _FETCHED).resolve()
    studies = str(app.studies)
    pacs = StudiesProxy(studies) if studies.startswith(("http://", "https://")) else None
    frames = SegFrames()

    def asked_pacs() -> StudiesProxy:
        if pacs is None:
            raise refused(
                409,
                "the studies of this server are a folder of files, and the viewer shows DICOM: start the server with "
                "--studies http://.../dicom-web, or use 3D Slicer",
            )
        return pacs

    def viewer_page(path: str = "") -> Response:
        """Answer with a file of ours or of OHIF; OHIF's own addresses (`/viewer/segmentation`) all are its one page."""
        return _page(path, fetched)

    def viewer_dicom(path: str, request: Request, user: Any = user) -> Response:
        """Pass a search or a retrieval on to the studies' server."""
        return _passed_on(asked_pacs(), frames, path, request)

    async def viewer_store(request: Request, study: str = "", user: Any = user) -> Response:
        """Check a label that the page stores, put it right, and only then pass it on (STOW-RS)."""
        to = asked_pacs()
        body = await _body_of(request)
        kind = request.headers.get("content-type", "")
        return await run_in_threadpool(store_label, to, app, kind, body, study)

    def viewer_run(asked: Asked, user: Any = user) -> dict[str, Any]:
        """Run a model on a series and store its mask beside it."""
        return run_model(app, asked_pacs(), asked)

    def route(path: str, endpoint: Any, *methods: str) -> APIRoute:
        return APIRoute(path, endpoint, methods=list(methods), include_in_schema=False, response_model=None)

    return [
        route("/viewer/run", viewer_run, "POST"),
        route("/viewer/{path:path}", viewer_page, "GET", "HEAD"),
        route("/dicom-web/studies", viewer_store, "POST"),
        route("/dicom-web/studies/{study}", viewer_store, "POST"),
        route("/dicom-web/{path:path}", viewer_dicom, "GET"),
    ]


def _page(path: str, fetched: Path) -> Response:
    index = fetched / "index.html"
    if not index.is_file():
        return HTMLResponse(_MISSING, status_code=503)
    for folder in (_OURS, fetched):
        file = (folder / path).resolve()
        if file.is_file() and file.is_relative_to(folder):
            named_by_content = folder == fetched and ".bundle." in file.name and file.suffix == ".js"
            keep = "public, max-age=31536000, immutable" if named_by_content else "no-cache"
            kind = _TYPES.get(file.suffix)
            return FileResponse(
                file, media_type=kind, headers={"Cache-Control": keep, "Referrer-Policy": "no-referrer"}
            )
    if "." in path or "/" in path:
        raise refused(404, "the viewer has no such file")
    return FileResponse(index, headers={"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"})


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_LABEL:
            raise refused(413, f"the label is larger than {_LARGEST_LABEL >> 20} MB; no CT's label should be")
    return bytes(body)


def _passed_on(pacs: StudiesProxy, frames: SegFrames, path: str, request: Request) -> Response:
    unpacked = frames.answer(pacs, path)
    if unpacked is not None:
        return unpacked
    answer = pacs.get(path, request.url.query, request.headers.get("accept", "*/*"))
    content = answer.content
    kind = answer.headers.get("content-type", "application/octet-stream")
    if "json" in kind:
        # Addresses inside are the studies' server's own, which the page neither reaches nor should know.
        own = str(request.url).split("/dicom-web/", 1)[0] + "/dicom-web"
        content = content.replace(pacs.address.encode(), own.encode())
    return Response(content, answer.status_code, media_type=kind, headers={"Cache-Control": "no-store"})
