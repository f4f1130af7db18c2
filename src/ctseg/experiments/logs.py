"""What a training's log says to who waits: its epochs, and its last words when it failed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

LONGEST = 400  # characters of a reason
_EPOCH = re.compile(r"Epoch\[(\d+)\] Metrics -- (.*train_loss: \S+.*)")
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b.*")


def tell_epochs(log: Path, read: int, say: Callable[[str], None]) -> int:
    """Say the epochs among the whole lines of the log from a place on; return how far it was read."""
    with log.open("rb") as stream:
        stream.seek(read)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        if match := _EPOCH.search(line):
            say(f"    epoch {match[1]}  {match[2].strip()}")
    return read + len(whole)


def last_words(log: Path, begin: int) -> str:
    """The sentence of a process that failed: ours, else the error at the end of its traceback, else its last line."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    ours = [line.removeprefix("ctseg: ") for line in lines if line.startswith(("ctseg: ", "Training runs on CUDA"))]
    errors = [line for line in lines if _ERROR.fullmatch(line)]
    words = (ours or errors or lines)[-1]
    return words[:LONGEST] + ("" if ours else f" (see {log})")
