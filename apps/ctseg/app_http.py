"""What the server answers when it cannot do what it is asked: a status and one sentence, never a traceback."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from app_access import Access
from app_audit import Audit
from app_guard import Guard
from app_private import private_folder, remove_when_the_process_ends
from fastapi import HTTPException, Request
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from ctseg.errors import BundleError, CtsegError, InputError, LedgerError, OutputError, ResourceError

__all__ = ["harden", "private_folder", "refused", "sentence_for", "starts_a_server"]

_STOCK_ROUTES = "routes_of_monailabel"

logger = logging.getLogger(__name__)

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


def _answer_of(error: MONAILabelException) -> tuple[int, str]:
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return 404, error.msg
    mendable = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
    return (400 if mendable else 500), error.msg


def _answer(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, json.JSONDecodeError):
        status, sentence = 400, f"the parameters of the request are no valid JSON: {error}"
    elif isinstance(error, CtsegError):
        status, sentence = sentence_for(error, Path("/"), "/")
    elif isinstance(error, OSError):
        status, sentence = _answer_of_the_system(error)
    elif isinstance(error, MONAILabelException):
        status, sentence = _answer_of(error)
    else:
        status, sentence = 500, "the server made an error, which is in its log"
    if status >= 500:
        logger.error("Answered with %d: %s", status, sentence, exc_info=error)
    return JSONResponse({"detail": sentence}, status_code=status)


def _answer_of_the_system(error: OSError) -> tuple[int, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507, "the server's disk is full: nothing was saved; make room and send it again"
    if error.errno == errno.ENAMETOOLONG:
        return 400, "a name in the request is too long; choose a shorter one"
    return 500, f"the server cannot read or write a file ({error.strerror or type(error).__name__}); see its log"


def starts_a_server() -> bool:
    """Whether a server is about to listen: not in a helper process, and not when `/reload` makes the app anew."""
    module = sys.modules.get("monailabel.app")
    return module is not None and not hasattr(module.app.state, _STOCK_ROUTES)


def harden(more: Callable[[], Sequence[APIRoute]], access: Access, audit: Audit) -> None:
    """Put our answers before MONAI Label's own in the running server; nothing to do in its helper processes.

    Args:
        more: makes routes of ours that go before MONAI Label's of the same address.
        access: who may call.
        audit: where it is kept who did what.
    """
    module = sys.modules.get("monailabel.app")
    if module is None:
        return
    server = module.app
    # Uploads are written by MONAI Label itself, to whatever tempfile gives, with whatever rights are usual.
    if tempfile.tempdir != str(private_folder()):
        tempfile.tempdir = str(private_folder())
        remove_when_the_process_ends(private_folder())
    os.umask(0o077)
    for kind in (MONAILabelException, json.JSONDecodeError, CtsegError, OSError):
        server.exception_handlers[kind] = _answer

    def keep_weights(model: str) -> None:
        """Refuse to replace or delete weights: the stock route does it to the shipped file, for any caller."""
        raise refused(
            403,
            f"the weights of {model!r} are not changed through the server; train, and start the server on the result",
        )

    ours = [*more(), APIRoute("/model/{model}", keep_weights, methods=["PUT", "DELETE"], include_in_schema=False)]
    if starts_a_server():
        setattr(server.state, _STOCK_ROUTES, list(server.router.routes))
    kept = getattr(server.state, _STOCK_ROUTES)
    server.router.routes[:] = [*ours, *kept]
    server.root_path_in_servers = False  # it may hold a token
    server.user_middleware[:] = [Middleware(Guard, access=access, audit=audit)]
    if access.origins:
        cors = {"allow_origins": list(access.origins), "allow_methods": ["*"], "allow_headers": ["*"]}
        server.user_middleware.insert(0, Middleware(CORSMiddleware, **cors))
    server.middleware_stack = server.build_middleware_stack()
