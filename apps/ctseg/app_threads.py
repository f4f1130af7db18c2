"""MONAI Label's own addresses, answered in threads: stock, one inference blocks everybody.

Its routes are `async` functions that call blocking code. Here each is made again as a plain function, which FastAPI
runs in a thread, and what a caller sends is looked at before MONAI Label's code writes it to a file.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

from app_http import refused
from fastapi import UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile as _ANY_UPLOAD  # FastAPI's is a child of it

# Set while an inference is answered: MONAI Label then asks the app for all it knows, of which it uses nothing.
inferring: ContextVar[bool] = ContextVar("inferring", default=False)
_JSON_FIELDS = ("params", "info", "wsi")
_IMAGES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".zip", ".dcm")
_ID = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")


def stock_routes() -> list[APIRoute]:
    """Make MONAI Label's routes again; those of the sessions and of the DICOM proxy are ours (`app_sessions`...)."""
    from monailabel.endpoints import (
        activelearning,
        batch_infer,
        datastore,
        infer,
        info,
        logs,
        model,
        ohif,
        scoring,
        train,
        wsi_infer,
    )

    modules = (activelearning, batch_infer, datastore, info, logs, model, ohif, scoring, train, wsi_infer, infer)
    return [_in_a_thread(route) for module in modules for route in _routes_of(module)]


def _routes_of(module: ModuleType) -> Iterator[APIRoute]:
    for route in module.router.routes:
        # Weights are not replaced through the server at all (app_http).
        if isinstance(route, APIRoute) and not (module.__name__.endswith(".model") and route.methods != {"GET"}):
            yield route


def _in_a_thread(route: APIRoute) -> APIRoute:
    return APIRoute(
        route.path,
        plain(route.endpoint),
        methods=route.methods,
        summary=route.summary,
        tags=route.tags,
        deprecated=route.deprecated,
        include_in_schema=route.include_in_schema,
    )


def plain(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Make a plain function of an `async` one that never waits, with the same parameters, checked."""

    def called(**given: Any) -> Any:
        if endpoint.__name__ == "api_run_inference":
            given = _for_inference(given)
            inferring.set(True)  # of this request alone: each runs in a context of its own
        if endpoint.__name__ == "api_add_image" and not given["image"]:
            given["image"] = _id_of(given["file"])
        for name, value in given.items():
            if name in _JSON_FIELDS:
                check_object(name, value)
            if isinstance(value, _ANY_UPLOAD):
                rename_upload(value)
        result = endpoint(**given)
        return _run(result) if inspect.iscoroutine(result) else result

    called.__name__ = endpoint.__name__
    called.__doc__ = endpoint.__doc__
    called.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return called


def _for_inference(given: dict[str, Any]) -> dict[str, Any]:
    """Leave out the scribbles: no bundle takes them, and MONAI Label converts them with any file that `image` names."""
    if not given["image"] and not given["file"] and not given["session_id"]:
        raise refused(400, "no image is named: expected ?image=ID, ?session_id=ID or an uploaded file")
    return {**given, "label": None}


def _run(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError(f"{coroutine.__qualname__} waits for something and cannot be run in a thread")


def check_object(name: str, value: Any) -> None:
    """Refuse a field that should hold a JSON object and does not.

    Raises:
        HTTPException: 400.
    """
    try:
        content = json.loads(value or "{}") if isinstance(value, str) else value
    except ValueError as error:
        raise refused(400, f"the field {name} is no valid JSON: {error}") from error
    if content is not None and not isinstance(content, dict) and not hasattr(content, "model_dump"):
        raise refused(400, f"the field {name} holds a {type(content).__name__}, expected a JSON object {{...}}")


def extension_of(name: str | None) -> str:
    """Return the extension of an upload's name when files of that kind are taken, else "".

    3D Slicer sends whole paths, in which a folder or the name may be a patient's: only this part is used.
    """
    lower = (name or "").lower()
    found = next((one for one in _IMAGES if lower.endswith(one)), "")
    return ".nrrd" if found == ".seg.nrrd" else found


def rename_upload(upload: UploadFile) -> None:
    """Give an upload a name of ours: MONAI Label makes a file name of all that follows its first dot, and logs it.

    Raises:
        HTTPException: 415 for a file of a kind that is not taken.
    """
    extension = extension_of(upload.filename)
    if not extension:
        raise refused(415, f"a file of this kind is not taken; expected a name that ends in {', '.join(_IMAGES)}")
    upload.filename = f"upload{extension}"


def _id_of(upload: UploadFile) -> str:
    """The image id that MONAI Label would make of the file's name."""
    name = PureWindowsPath(PurePosixPath(upload.filename or "").name).name
    stem = name[: len(name) - len(extension_of(name))].removesuffix(".seg")
    if not _ID.fullmatch(stem):
        raise refused(400, "the uploaded file has no name that could be its id; name one with ?image=ID")
    return stem
