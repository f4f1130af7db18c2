"""A worker of cohorts without a network: what a study's file says is what happens to it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ctseg.cohort import worker as cohortworker
from ctseg.errors import BundleError, InputError


class ScriptedWorker:
    """Stands in for `ctseg.cohort.worker.CohortWorker`; each study that it begins adds a line to OUT/../begun."""

    def __init__(self, settings: cohortworker.Settings) -> None:
        self.settings = settings
        if settings.codes == "broken":
            raise BundleError("the bundle is broken for every study")

    def segment(self, source: Path, out: Path) -> dict[str, Any]:
        with (out.parent.parent / "begun").open("a") as stream:
            stream.write(f"{source.name}\n")
        said = source.read_text()
        if said.startswith("bad"):
            raise InputError(f"{source} is no image;\n give {source.absolute()} again")
        if said.startswith("bug"):
            raise KeyError("spacing")
        staging = out / ".ctseg-half"
        staging.mkdir(parents=True, exist_ok=True)
        if said.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if said.startswith("hang"):
            time.sleep(60)
        staging.rmdir()
        (out / "mask.nii.gz").write_text(f"{said} {self.settings.device} {self.settings.slot} {self.settings.threads}")
        return {"organs": {"core": 1.5 if said == "ok" else None}, "files": ["mask.nii.gz"], "device": "cpu"}


def main() -> None:
    """Run the worker's own loop round it."""
    print("what a library prints is no answer")
    cohortworker.CohortWorker = ScriptedWorker  # type: ignore[assignment,misc]
    cohortworker.main()
