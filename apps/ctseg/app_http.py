"""What the server answers when it cannot do what it is asked: a status and one sentence, never a traceback."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from ctseg.errors import BundleError, CtsegError, InputError, LedgerError, OutputError, ResourceError

_PREFIX = "ctseg-server-"

# The first class that fits decides; what the caller cannot mend is the server's fault and stays a 5xx.
_STATUS: tuple[tuple[type[CtsegError], int], ...] = (
    (BundleError, 409),
    (ResourceError, 413),
    (InputError, 422),
    (OutputError, 507),
    (LedgerError, 500),
    (CtsegError, 400),
)


def refused(status: int, sentence: str) -> HTTPException:
    """Make the exception that FastAPI answers with `{"detail": sentence}`."""
    return HTTPException(status_code=status, detail=sentence)


def sentence_for(error: CtsegError, path: Path, name: str) -> tuple[int, str]:
    """Return the status for an error of the library, and its sentence with the image's name for the server's path."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return status, str(error).replace(str(path), name)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True
    return True


@cache
def private_folder() -> Path:
    """Make a folder that only this user can enter; it goes with the process.

    A server's uploads and masks go there (the stock server leaves them world-readable in /tmp). What a killed server
    left is removed by the next one: the folder's name carries the process id.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        if old.stat().st_uid == os.getuid() and not _is_alive(old.name.removeprefix(_PREFIX).partition("-")[0]):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _answer_of(error: MONAILabelException) -> tuple[int, str]:
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return 404, error.msg
    mendable = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
    return (400 if mendable else 500), error.msg


def _answer(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, json.JSONDecodeError):
        status, sentence = 400, f"the parameters of the request are no valid JSON: {error}"
    else:
        status, sentence = _answer_of(error)
    return JSONResponse({"detail": sentence}, status_code=status)


def harden(more: Callable[[], Sequence[APIRoute]]) -> None:
    """Put our answers before MONAI Label's own in the running server; nothing to do in its helper processes.

    Args:
        more: makes more routes of ours that go before MONAI Label's of the same address.
    """
    module = sys.modules.get("monailabel.app")
    if module is None:
        return
    server = module.app
    # Uploads are written by MONAI Label itself, to whatever tempfile gives.
    tempfile.tempdir = str(private_folder())
    for kind in (MONAILabelException, json.JSONDecodeError):
        server.exception_handlers[kind] = _answer

    def keep_weights(model: str) -> None:
        """Refuse to replace or delete weights: the stock route does it to the shipped file, for any caller."""
        raise refused(
            403,
            f"the weights of {model!r} are not changed through the server; train, and start the server on the result",
        )

    ours = [*more(), APIRoute("/model/{model}", keep_weights, methods=["PUT", "DELETE"], include_in_schema=False)]
    names = {route.endpoint.__name__ for route in ours}  # `/reload` makes the app anew in the same server
    others = [
        route
        for route in server.router.routes
        if not (isinstance(route, APIRoute) and route.endpoint.__name__ in names)
    ]
    server.router.routes[:] = [*ours, *others]
    server.middleware_stack = server.build_middleware_stack()
