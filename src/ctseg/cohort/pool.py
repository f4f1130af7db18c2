"""Workers that share out a list of studies: each in a process of its own, and a new one for each that dies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctseg.childprocess import end_with_parent
from ctseg.cohort.records import FAILED, Record, Records
from ctseg.cohort.studies import CohortStudy
from ctseg.cohort.worker import UNFORESEEN, Settings
from ctseg.errors import CtsegError, ResourceError
from ctseg.outputs.folder import remove_leftovers

_WORKER = "ctseg.cohort.worker"  # the module whose `main` a worker runs
_PATIENCE_SECONDS = 5.0
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


@dataclasses.dataclass(frozen=True)
class Job:
    """A study to be done, and the key that its record gets."""

    study: CohortStudy
    key: str


class _Process:
    """A worker's process."""

    def __init__(self, settings: Settings) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        program = f"import sys; sys.path[:] = {sys.path!r}; from {_WORKER} import main; main()"
        threads = dict.fromkeys((*_THREAD_SETTINGS, _ITK_THREADS), str(settings.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads},  # handed on, not looked into
            start_new_session=True,  # a Ctrl-C in the terminal reaches only us
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )

    def load(self, settings: Settings) -> None:
        """Have it load its networks.

        Raises:
            CtsegError: a bundle or the device cannot be used, which is the same for every study.
        """
        told = self._ask(dataclasses.asdict(settings))
        if told is None:
            raise ResourceError(self.end())
        if told["status"] != "ready":
            raise CtsegError(told["reason"])

    def work(self, study: CohortStudy, out: Path) -> dict[str, Any]:
        """Have a study done and return the answer, also when the worker dies of it."""
        told = self._ask({"source": str(study.source), "out": str(out)})
        return {"status": FAILED, "reason": self.end(), UNFORESEEN: self._last_words()} if told is None else told

    def end(self) -> str:
        """Say how the process ended."""
        try:
            code = self._process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # it says nothing more, but lives
            self._process.kill()
            code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its worker was killed, most likely because memory ran out; take fewer --workers, or crop the image"
        how = f"by the signal {-code}" if code < 0 else f"with the code {code}"
        last = self._last_words().strip().splitlines()[-1:] if code > 0 else []
        return f"its worker ended {how}" + "".join(f" ({line})" for line in last)

    def stop(self) -> None:
        """End the process: asked first, killed after some seconds."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_PATIENCE_SECONDS)
                break
        self._process.stdout.close()  # type: ignore[union-attr]
        self._said.close()

    def _ask(self, content: dict[str, Any]) -> dict[str, Any] | None:
        try:
            self._process.stdin.write(json.dumps(content) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            for line in iter(self._process.stdout.readline, ""):  # type: ignore[union-attr]
                if line.startswith("{"):  # what is printed before the worker's own first line is no answer
                    return dict(json.loads(line))
        except (OSError, ValueError):
            pass  # it died
        return None

    def _last_words(self) -> str:
        try:
            self._said.seek(0)
            return self._said.read()[-4000:].decode("utf-8", "replace")
        except ValueError:
            return ""


class Pool:
    """Workers on this machine.

    Args:
        jobs: what is to be done, in order.
        settings: one for each worker.
        records: where results go.
    """

    def __init__(self, jobs: Sequence[Job], settings: Sequence[Settings], records: Records) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self._jobs.put(job)
        self._records = records
        self._done: queue.SimpleQueue[Record | CtsegError | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._processes: dict[int, _Process] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(one,), daemon=True) for one in settings[: len(jobs)]
        ]

    def run(self) -> Iterator[Record]:
        """Give each study's record when it is done and written; one that another run has in hand gives none.

        Raises:
            CtsegError: no study can be done: a bundle, the device, or the folder of results cannot be used.
        """
        for thread in self._threads:
            thread.start()
        working = len(self._threads)
        try:
            while working:
                told = self._done.get()
                if isinstance(told, CtsegError):
                    raise told
                if told is None:
                    working -= 1
                else:
                    yield told
        finally:
            self._stop()

    def _stop(self) -> None:
        self._ending.set()
        for process in list(self._processes.values()):
            process.stop()
        for thread in self._threads:
            thread.join(timeout=2 * _PATIENCE_SECONDS)

    def _serve(self, settings: Settings) -> None:
        try:
            while not self._ending.is_set():
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                with self._records.claimed(job.study) as ours:
                    if ours and not self._records.is_finished(self._records.read(job.study), job.key):
                        self._do(job, settings)
        except CtsegError as error:
            self._done.put(error)
        except Exception as error:
            self._done.put(CtsegError(f"the cohort cannot go on ({type(error).__name__}: {error}); please report it"))
        finally:
            if (process := self._processes.pop(settings.slot, None)) is not None:
                process.stop()
            self._done.put(None)

    def _do(self, job: Job, settings: Settings) -> None:
        if settings.slot not in self._processes:
            self._processes[settings.slot] = _Process(settings)
            self._processes[settings.slot].load(settings)
        out = self._records.out / job.study.name
        remove_leftovers(out)
        told = self._processes[settings.slot].work(job.study, out)
        if self._ending.is_set():
            remove_leftovers(out)
            return  # interrupted: it is begun anew the next time
        if UNFORESEEN in told:
            remove_leftovers(out)
            self._processes.pop(settings.slot).stop()
        record = Record(
            job.study,
            str(told["status"]),
            job.key,
            float(told.get("seconds", 0.0)),
            without_paths(str(told.get("reason", "")), job.study, out),
            str(told.get("device", "")),
            told.get("organs", {}),
            tuple(told.get("files", ())),
            str(told.get(UNFORESEEN, "")),
        )
        self._records.write(record)
        self._done.put(record)


def without_paths(text: str, study: CohortStudy, out: Path) -> str:
    """Return a sentence with the study's id in the place of its paths, which may say whose study it is."""
    for path in (out, study.source):
        for form in sorted({str(path), str(path.absolute()), str(path.resolve())}, key=len, reverse=True):
            text = text.replace(form, study.id)
    return text
