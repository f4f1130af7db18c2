"""What a multipart request of ours brings: its fields, and its file, kept in the private folder while it is needed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from app_http import private_folder, refused
from fastapi import Request
from starlette.datastructures import FormData, UploadFile

ENDINGS = (".nii.gz", ".nii")


async def multipart(request: Request) -> AsyncIterator[FormData]:
    """Give a request's form, and take its temporary files away afterwards.

    Read by hand and not as parameters, so that what is wrong is answered with one sentence. How long a body may be is
    the guard's to check, for all requests alike (`app_guard`).

    Raises:
        HTTPException: 400 for one that is no multipart.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise refused(400, f"the request is {kind.partition(';')[0] or 'empty'}: expected multipart/form-data")
    async with request.form(max_files=1, max_fields=20) as form:
        yield form


@contextmanager
def stored_file(form: FormData) -> Iterator[Path | None]:
    """Give the request's `file` as a NIfTI in the private folder, under a random name; None where there is none.

    Raises:
        HTTPException: 400 when `file` is no file, or its name ends otherwise than a NIfTI's.
    """
    upload = form.get("file")
    if upload is None or upload == "":
        yield None
        return
    if not isinstance(upload, UploadFile):
        raise refused(400, "the field file is text: expected a file, a NIfTI (.nii or .nii.gz)")
    name = (upload.filename or "").lower()
    ending = next((known for known in ENDINGS if name.endswith(known)), None)
    if ending is None:
        found = Path(name).suffix[:20] or "no ending"
        raise refused(400, f"the file has {found}: expected a NIfTI (.nii or .nii.gz)")
    path = private_folder() / f"upload-{secrets.token_hex(8)}{ending}"
    try:
        with path.open("xb") as stream:
            path.chmod(0o600)
            shutil.copyfileobj(upload.file, stream, 1 << 20)
        yield path
    finally:
        path.unlink(missing_ok=True)
