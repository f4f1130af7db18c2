"""Programs that run beside this one and end with it, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Child:
    """A program in a process group of its own: a Ctrl-C in the terminal reaches only us, and we end it in order."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            command: program and arguments.
            log: what it prints goes here; replaced.
            environment: variables that it has besides ours.

        Raises:
            OSError: it cannot be started.
        """
        self.log = log
        log.touch(mode=0o600)
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},  # handed on, not looked into
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def said(self, lines: int = 1) -> str:
        """Return the last lines of what it printed."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return " ".join(line.strip() for line in text.strip().splitlines()[-lines:])

    def stop(self, patience: float) -> None:
        """End it and everything that it started: asked first, killed after `patience` seconds."""
        for how, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            self._signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=seconds)
                break
        self._signal(signal.SIGKILL)  # what it left behind in its group

    def _signal(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, how)


def end_with_parent() -> None:
    """In the child, before its program starts: have the kernel ask it to end when we are gone, even killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
