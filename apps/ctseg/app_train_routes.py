"""The addresses under `/train/` that start a training: checked first, then in MONAI Label's own training process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from app_http import refused
from fastapi import Depends, HTTPException
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes

_UNDER_WAY = ("SUBMITTED", "RUNNING")
_starting = threading.Lock()

# Returns the checked request of a model, or raises the refusal.
Check = Callable[[str, dict[str, Any]], dict[str, Any]]


def training_routes(app: Any) -> list[APIRoute]:
    """Make the routes; they are plain functions, so that the server answers others while they wait.

    Args:
        app: our `MONAILabelApp`, with `checked_training(model, request)` and `trainer(model)`.
    """
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))

    def train_one(
        model: str,
        params: dict[str, Any] | None = None,
        run_sync: bool = False,
        enqueue: bool = False,
        user: Any = admin,
    ) -> Any:
        """Train one model; 429 while another training runs, unless it may queue."""
        task = _start(app.checked_training, model, params or {}, enqueue)
        return _ended(app, model, task) if run_sync else task

    def train_all(params: dict[str, Any] | None = None, run_sync: bool = False, user: Any = admin) -> dict[str, Any]:
        """Train one model after the other; `params` may hold options by model. Refused when none can start."""
        answers: dict[str, Any] = {}
        refusals: list[HTTPException] = []
        for model in app.trainer_names():
            own = (params or {}).get(model)
            try:
                task = _start(app.checked_training, model, own if isinstance(own, dict) else {}, bool(answers))
                result = _ended(app, model, task) if run_sync else task
                answers[model] = {"result": result, "detail": None}
            except HTTPException as error:
                refusals.append(error)
        if not answers:
            raise refusals[0] if refusals else refused(404, "no bundle that is served here can be trained")
        return answers

    return [
        APIRoute("/train/", train_all, methods=["POST"], include_in_schema=False),
        APIRoute("/train/{model}", train_one, methods=["POST"], include_in_schema=False),
    ]


def _start(check: Check, model: str, params: dict[str, Any], enqueue: bool) -> dict[str, Any]:
    with _starting:
        if processes("train") and not enqueue:
            raise refused(429, "a training is running already; wait for it, or stop it (DELETE /train/)")
        request = {**check(model, params), "server": os.getpid()}
        task: dict[str, Any] = AsyncTask.run("train", request=request, enqueue=True)[0]
        # Its process starts in another thread: only then does the next request see it.
        deadline = time.monotonic() + 5.0
        while not enqueue and task["status"] == "SUBMITTED" and time.monotonic() < deadline:
            time.sleep(0.01)
        return task


def _ended(app: Any, model: str, task: dict[str, Any]) -> Any:
    while task["status"] in _UNDER_WAY:
        time.sleep(0.2)
    if task["status"] != "DONE":
        last = next((line for line in reversed(task.get("details") or []) if line.startswith("ctseg: ")), "")
        raise refused(
            500, last.removeprefix("ctseg: ") or f"the training ended as {task['status']}; see the server's log"
        )
    return app.trainer(model).stats()
