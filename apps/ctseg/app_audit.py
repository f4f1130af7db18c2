"""Who did what to which case, and when: one line of JSON for each label, image and training."""

from __future__ import annotations

import json
import logging
import os
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

caller: ContextVar[str] = ContextVar("caller", default="server")  # who sent the request that is being answered
_LONGEST = 200


class Audit:
    """Appends lines to a file that only the server's user can read."""

    def __init__(self, file: Path | None) -> None:
        """Name the file; None writes to the server's log alone."""
        self._file = file

    def record(self, what: str, **about: Any) -> None:
        """Write one line: the time (UTC), the user, what was done, and `about` without its empty values.

        A line is appended in one write, so that lines of several processes do not mix. That it cannot be written is
        said in the log and stops nobody's work.
        """
        line: dict[str, Any] = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "who": caller.get(),
            "what": what,
        }
        line |= {key: _short(value) for key, value in about.items() if value not in (None, "")}
        text = json.dumps(line, ensure_ascii=False)
        logger.info("Audit: %s", text)
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, (text + "\n").encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            logger.error("The audit line could not be written to %s: %s", self._file, error)


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float | bool) else str(value)[:_LONGEST]
