"""A worker of a cohort: a process that loads the networks once and segments study after study.

It is started by `ctseg.cohort.pool` and speaks in lines of JSON: the first one in says what is to be done (`Settings`),
each further one names a study; each line out is an answer. What libraries print goes to the error stream. When the
input ends, so does the worker.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import CtsegError

UNFORESEEN = "unforeseen"


@dataclass(frozen=True)
class Settings:
    """What a worker does with every study.

    Attributes:
        task: a bundle's name or folder; None where the organs, or the only trained bundle, decide.
        organs: names in order of priority, or None.
        codes: see `ctseg.labelcodes`.
        kinds: kinds of output.
        faces: at most so many faces for each organ's surface; None keeps all.
        overwrite: whether files that are not from an earlier run may be replaced.
        device: "auto", "cpu", "cuda" or "cuda:N".
        slot: number of the worker on this machine, from 0: which GPU it takes.
        threads: how many threads it may use.
        runtime: what runs the networks (`ctseg.export.runtimes`).
        max_ram: bytes that it may take; None: no limit.
    """

    task: str | None
    organs: tuple[str, ...] | None
    codes: str
    kinds: tuple[str, ...]
    faces: int | None
    overwrite: bool
    device: str
    slot: int
    threads: int
    runtime: str = "torch"
    max_ram: int | None = None


class CohortWorker:
    """Networks loaded once, and what is done with each study.

    Raises:
        CtsegError: a bundle or a device cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        from ctseg.lean import import_monai

        import_monai()
        import torch

        from ctseg.devices import spread_device
        from ctseg.organchoice import select
        from ctseg.registry import get_bundle
        from ctseg.study import Predictors

        torch.set_num_threads(settings.threads)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.settings = settings
        self.predictors = Predictors(spread_device(settings.device, settings.slot, gpus), runtime=settings.runtime)
        named = get_bundle(settings.task) if settings.task is not None and settings.organs is None else None
        self.classifier = named if named is not None and named.classifies else None
        self.labels: Mapping[str, int] = {}
        if self.classifier is not None:
            self.predictors.classifier(self.classifier)
        else:
            selection = select(settings.organs, settings.task)
            selection.check_ready()
            self.labels = selection.labels
            for bundle in selection.bundles:
                self.predictors.segmenter(bundle)

    def segment(self, source: Path, out: Path) -> dict[str, Any]:
        """Segment one study into its folder.

        Returns:
            Its organs with ml (None where not found), the files' names, and the device.

        Raises:
            CtsegError: it cannot be read, or its results not be written.
        """
        from ctseg.outputs.folder import check_folder, file_names, write_outputs
        from ctseg.presence.output import presence_names, write_presence

        settings = self.settings
        if self.classifier is not None:
            check_folder(out, source, presence_names(settings.kinds), overwrite=settings.overwrite)
            found = self.predictors.classifier(self.classifier).predict(source)
            files, report = write_presence(found, out, settings.kinds)
            return {"organs": {}, "files": [file.name for file in files], "device": report["device"]}
        check_folder(out, source, file_names(settings.kinds, self.labels), overwrite=settings.overwrite)
        from ctseg.api import segment_volume

        prediction = segment_volume(
            source,
            organs=settings.organs,
            task=settings.task,
            codes=settings.codes,
            predictors=self.predictors,
            max_ram=settings.max_ram,
        ).prediction
        files, report = write_outputs(prediction, out, settings.kinds, faces=settings.faces)
        organs = {organ["name"]: organ["volume_ml"] if organ["found"] else None for organ in report["organs"]}
        return {"organs": organs, "files": [file.name for file in files], "device": report["device"]}


def answer(worker: CohortWorker, source: Path, out: Path) -> dict[str, Any]:
    """Segment a study and return what became of it, whatever happens but an interruption."""
    started = time.perf_counter()
    try:
        told = {"status": "finished", **worker.segment(source, out)}
    except CtsegError as error:
        told = {"status": "failed", "reason": " ".join(str(error).split())}
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        told = {
            "status": "failed",
            "reason": f"an error that ctseg did not foresee ({what[:300]}); please report it",
            UNFORESEEN: traceback.format_exc(),
        }
    return {**told, "seconds": time.perf_counter() - started}


def main() -> None:
    """Answer to lines of the input until it ends."""
    # Asked to end: as on Ctrl-C, so that unfinished files are taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints shall not be taken for an answer

    def tell(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    given = json.loads(sys.stdin.readline())
    organs = None if given["organs"] is None else tuple(given["organs"])
    try:
        worker = CohortWorker(Settings(**{**given, "organs": organs, "kinds": tuple(given["kinds"])}))
    except CtsegError as error:
        tell({"status": "broken", "reason": " ".join(str(error).split())})
        return
    tell({"status": "ready"})
    for line in sys.stdin:
        job = json.loads(line)
        told = answer(worker, Path(job["source"]), Path(job["out"]))
        tell(told)
        if UNFORESEEN in told:
            return  # a GPU that failed once fails for ever in this process: a new one takes over
