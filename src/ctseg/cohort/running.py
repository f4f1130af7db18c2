"""A folder of studies segmented one after the other or side by side: gone on with where it was left, and told.

Every study has a result folder and a record of its own (`ctseg.cohort.records`); one that failed stops no other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctseg.cohort.pool import Job, Pool
from ctseg.cohort.records import FAILED, FINISHED, Record, Records, work_key
from ctseg.cohort.share import Share
from ctseg.cohort.studies import CohortStudy, counted, find_sources, name_studies
from ctseg.cohort.worker import Settings
from ctseg.errors import ConfigError, OutputError


@dataclass(frozen=True)
class Cohort:
    """What is to be done.

    Attributes:
        folder: where the studies are.
        out: where the results go.
        settings: what is done with each study.
        made_with: what a result was made with, as plain JSON types: a study is done again when it differs.
        workers: how many processes on this machine.
        only: see `ctseg.cohort.studies.find_sources`.
        by_id: see `ctseg.cohort.studies.name_studies`.
        share: the part that is this process's.
    """

    folder: Path
    out: Path
    settings: Settings
    made_with: dict[str, Any]
    workers: int = 1
    only: str | None = None
    by_id: bool = False
    share: Share = field(default_factory=Share)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        records: of every study of the cohort, also of other shares.
        share: the studies that were this process's.
        interrupted: whether it was ended before all were done.
    """

    records: list[Record]
    share: list[CohortStudy]
    interrupted: bool = False

    def count(self, status: str) -> int:
        """How many studies of this share have a status."""
        own = {study.id for study in self.share}
        return sum(record.status == status and record.study.id in own for record in self.records)

    @property
    def all_well(self) -> bool:
        """Whether every study of this share is finished."""
        return self.count(FINISHED) == len(self.share)


def run_cohort(cohort: Cohort, say: Callable[[str], None]) -> Outcome:
    """Segment the studies of a folder that have no result yet, and return what became of all.

    Args:
        cohort: what is to be done.
        say: gets a line at the start, and one after each study: ids and sentences without paths.

    Raises:
        CtsegError: nothing can be done: no study, no bundle, no device, or the results cannot be written.
    """
    if cohort.workers < 1:
        raise ConfigError(f"{cohort.workers} workers can do nothing: expected 1 or more")
    if cohort.out.resolve() == cohort.folder.resolve():
        raise OutputError(f"cannot write into {cohort.out}: it is the input itself; name another folder with -o")
    sources = find_sources(cohort.folder, cohort.out, cohort.only)
    records = Records(cohort.out)
    studies = name_studies(cohort.folder, sources, records.names(), cohort.by_id)
    share = cohort.share.of(studies)
    jobs = _open_jobs(cohort, share, records)
    say(_greeting(cohort, len(studies), len(share), len(jobs)))
    records.write_manifest(studies)
    pool = Pool(jobs, _worker_settings(cohort, len(jobs)), records)
    started, done, interrupted = time.monotonic(), 0, False
    try:
        for record in pool.run():
            done += 1
            records.write_manifest(studies)
            say(progress_line(record, done, len(jobs), time.monotonic() - started))
    except KeyboardInterrupt:
        interrupted = True
    return Outcome(records.write_manifest(studies), share, interrupted)


def _open_jobs(cohort: Cohort, share: Sequence[CohortStudy], records: Records) -> list[Job]:
    """The studies of a share that have no result yet, or an old one; the latter wait again."""
    jobs = []
    for study in share:
        job = Job(study, work_key(study, cohort.made_with))
        record = records.read(study)
        if records.is_finished(record, job.key):
            continue
        jobs.append(job)
        if record.status == FINISHED:
            records.write(Record(study))
    return jobs


def _worker_settings(cohort: Cohort, jobs: int) -> list[Settings]:
    workers = max(1, min(cohort.workers, jobs))
    threads = threads_for_each(workers * cohort.share.local_count)
    first = cohort.share.local_index * cohort.workers
    return [replace(cohort.settings, slot=first + number, threads=threads) for number in range(workers)]


def threads_for_each(workers: int, cores: int | None = None) -> int:
    """Return how many threads each of several workers may use: together no more than there are cores.

    Args:
        workers: of all processes on this machine.
        cores: None takes those that this process may run on.
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def _greeting(cohort: Cohort, studies: int, share: int, jobs: int) -> str:
    part = f", of which {share} are this share's" if cohort.share.count > 1 else ""
    before = f", {share - jobs} finished before" if share > jobs else ""
    return f"{counted(studies)}{part}{before}, {jobs} to do"


def progress_line(record: Record, done: int, of: int, seconds: float) -> str:
    """Return what is said after a study.

    Args:
        record: its record.
        done: how many studies this run has done.
        of: how many it has to do.
        seconds: since its start; the time that remains is reckoned from the studies done.
    """
    what = f"{record.status} in {record.seconds:.1f} s"
    if record.status == FAILED:
        what += f": {record.reason}"
    left = f", about {duration(seconds / done * (of - done))} left" if done < of else ""
    return f"{done} of {of}{left}: study {record.study.id} {what}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
