"""A transform that a test's bundle waits in: the test decides how long a segmentation lasts, not the clock."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any


class Gate:
    """Leaves a file `started-...` in a folder, then waits as long as the file `hold` is there."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, data: Any) -> Any:
        if (self.folder / "hold").exists():
            (self.folder / f"started-{secrets.token_hex(6)}").touch()
            deadline = time.monotonic() + 300
            while (self.folder / "hold").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
        return data
