"""Sessions: images that a viewer sends for a while. They lie in the private folder and go with the server."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from app_http import refused
from app_private import private_folder
from app_threads import extension_of
from fastapi import File, UploadFile
from fastapi.routing import APIRoute
from monailabel.utils.sessions import Sessions

_ID = re.compile(r"[0-9a-f-]{8,64}")
_FILES = File(...)
_DICOM_MAGIC = (128, b"DICM")  # DICOM PS3.10, 7.1: a preamble of 128 bytes, then the prefix


class PrivateSessions(Sessions):  # type: ignore[misc]
    """MONAI Label's sessions, whose ids never become a path elsewhere."""

    def __init__(self, expiry: int) -> None:
        """Open the folder below the private one."""
        folder = private_folder() / "sessions"
        folder.mkdir(mode=0o700, exist_ok=True)
        super().__init__(str(folder), expiry)

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> Any:
        """Return a session, or None."""
        if not _ID.fullmatch(session_id):
            return None
        return super().get_session(session_id, update_ts, fetch_cache)

    def remove_session(self, session_id: str) -> None:
        """Remove a session and its images."""
        if _ID.fullmatch(session_id):
            super().remove_session(session_id)

    def remove_expired(self) -> int:
        """Remove the sessions whose time has passed; returns how many."""
        before = len(self)
        for folder in Path(self.store_path).iterdir():
            if self.get_session(folder.name, update_ts=False) is None:
                shutil.rmtree(folder, ignore_errors=True)
        count: int = super().remove_expired() if before else 0
        return count


def session_routes(app: Any) -> list[APIRoute]:
    """Make the routes under `/session/`.

    Args:
        app: our `MONAILabelApp`.
    """
    from monailabel.endpoints import session as stock

    def create_session(uncompress: bool = False, expiry: int = 0, files: list[UploadFile] = _FILES) -> dict[str, Any]:
        """Keep the images; `uncompress` is not needed: a zip is read as it is, and never unpacked to the disk."""
        received = private_folder() / f"received-{secrets.token_hex(8)}"
        received.mkdir(mode=0o700)
        try:
            images = [_store(upload, received, number) for number, upload in enumerate(files, start=1)]
            source = images[0] if len(images) == 1 else received
            session_id, session = _sessions(app).add_session(str(source), expiry, False)
        finally:
            shutil.rmtree(received, ignore_errors=True)
        return {"session_id": session_id, "session_info": session.to_json()}

    def get_session(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
        _sessions(app)
        return stock.get_session(session_id, update_ts, image)

    def remove_session(session_id: str) -> Any:
        _sessions(app)
        return stock.remove_session(session_id)

    return [
        APIRoute("/session/", create_session, methods=["PUT"], response_model=None),
        APIRoute("/session/{session_id}", get_session, methods=["GET"], response_model=None),
        APIRoute("/session/{session_id}", remove_session, methods=["DELETE"], response_model=None),
    ]


def _sessions(app: Any) -> Sessions:
    sessions = app.sessions()
    if sessions is None:
        raise refused(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
    return sessions


def _store(upload: UploadFile, folder: Path, number: int) -> Path:
    """Write one file under a name of ours."""
    extension = extension_of(upload.filename)
    if not extension:
        start = upload.file.read(sum(map(len, (b" " * _DICOM_MAGIC[0], _DICOM_MAGIC[1]))))
        upload.file.seek(0)
        if start[_DICOM_MAGIC[0] :] != _DICOM_MAGIC[1]:
            raise refused(415, "a file of this kind is not taken; expected NIfTI, NRRD, MetaImage, DICOM or a zip")
        extension = ".dcm"
    path = folder / f"image{number:05d}{extension}"
    with path.open("wb") as stream:
        shutil.copyfileobj(upload.file, stream)
    return path
