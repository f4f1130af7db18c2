"""What is known of each study of a cohort: a record for each, and the manifest made of them.

A record is written when a study is done, a manifest after each one; both in one step, so that neither is ever half.
Records lie in OUT/.cohort, where several processes can write at once: each study has its own file and its own lock.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.cohort.studies import CohortStudy, source_state
from ctseg.errors import OutputError
from ctseg.files import write_beside

SCHEMA = "ctseg-cohort/1"
FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
MANIFEST = "manifest"
_FIELDS = ("id", "name", "status", "seconds", "reason", "device", "source")


@dataclass(frozen=True)
class Record:
    """What became of a study.

    Attributes:
        study: which one.
        status: `FINISHED`, `FAILED`, or `WAITING` for one that was not begun or was interrupted.
        key: what its result was made from (`work_key`).
        seconds: from opening the study to its last file; 0 while it waits.
        reason: why it failed, in one sentence, else "".
        device: where the network ran, else "".
        organs: organ -> ml; None where it was not found.
        files: names of the files in its result folder.
        traceback: of an error that nobody foresaw, else "".
    """

    study: CohortStudy
    status: str = WAITING
    key: str = ""
    seconds: float = 0.0
    reason: str = ""
    device: str = ""
    organs: Mapping[str, float | None] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    traceback: str = ""


def work_key(study: CohortStudy, settings: Mapping[str, Any]) -> str:
    """Return what stays the same as long as a result needs no renewal: the study's files and what is done with them.

    Args:
        study: the study; names, sizes and times of its files count.
        settings: options and bundles, as plain JSON types.
    """
    try:
        state: object = source_state(study.source)
    except OSError as error:
        state = str(error.strerror)  # reading it will say so in a sentence
    return hashlib.sha256(json.dumps([SCHEMA, state, settings], sort_keys=True).encode()).hexdigest()[:32]


class Records:
    """The records of a cohort below its folder of results.

    Args:
        out: the folder of the results.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / ".cohort"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write into {out}: {error.strerror}; name another folder with -o") from error

    def names(self) -> dict[str, str]:
        """Return relative path -> name of every study that has a record or stands in the manifest."""
        known: dict[str, str] = {}
        manifest = _json_of(self.out / f"{MANIFEST}.json")
        for entry in (*manifest.get("studies", ()), *map(_json_of, sorted(self.folder.glob("*.json")))):
            if isinstance(entry, dict) and isinstance(entry.get("source"), str) and isinstance(entry.get("name"), str):
                known[entry["source"]] = entry["name"]
        return known

    def read(self, study: CohortStudy) -> Record:
        """Return a study's record; one that waits where there is none that can be read."""
        entry = _json_of(self.folder / f"{study.id}.json")
        if entry.get("schema") != SCHEMA or entry.get("source") != study.relative or entry.get("name") != study.name:
            return Record(study)
        return Record(
            study,
            str(entry.get("status", WAITING)),
            str(entry.get("key", "")),
            float(entry.get("seconds", 0.0)),
            str(entry.get("reason", "")),
            str(entry.get("device", "")),
            dict(entry.get("organs", {})),
            tuple(entry.get("files", ())),
            str(entry.get("traceback", "")),
        )

    def is_finished(self, record: Record, key: str) -> bool:
        """Whether a study needs no more work: done with the same key, and its files are there."""
        folder = self.out / record.study.name
        there = bool(record.files) and all((folder / name).is_file() for name in record.files)
        return record.status == FINISHED and record.key == key and there

    def write(self, record: Record) -> None:
        """Write a record. Raises OutputError as `ctseg.files.written_beside` does."""
        entry = {"schema": SCHEMA, **_entry(record), "key": record.key, "traceback": record.traceback}
        write_beside(self.folder / f"{record.study.id}.json", _text(entry))

    @contextmanager
    def claimed(self, study: CohortStudy) -> Iterator[bool]:
        """Give True while this process alone may work on a study, False when another one does."""
        import fcntl  # late: not on Windows, where the command line is to start all the same

        with (self.folder / f"{study.id}.lock").open("wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # the lock goes with the file, even when the process is killed

    def write_manifest(self, studies: Sequence[CohortStudy]) -> list[Record]:
        """Write OUT/manifest.csv and OUT/manifest.json from the records of all studies, and return these.

        Raises:
            OutputError: as `ctseg.files.written_beside`.
        """
        import fcntl

        with (self.folder / "manifest.lock").open("wb") as stream:  # else an older one could replace a newer one
            fcntl.flock(stream, fcntl.LOCK_EX)
            records = [self.read(study) for study in studies]
            counts = {status: sum(one.status == status for one in records) for status in (FINISHED, FAILED, WAITING)}
            content = {"schema": SCHEMA, "counts": counts, "studies": [_entry(record) for record in records]}
            write_beside(self.out / f"{MANIFEST}.json", _text(content))
            write_beside(self.out / f"{MANIFEST}.csv", _csv(records).encode("utf-8", "surrogateescape"))
        return records


def _entry(record: Record) -> dict[str, Any]:
    study = record.study
    return {
        "id": study.id,
        "name": study.name,
        "status": record.status,
        "seconds": round(record.seconds, 2),
        "reason": record.reason,
        "device": record.device,
        "source": study.relative,
        "organs": dict(record.organs),
        "files": list(record.files),
    }


def _csv(records: Sequence[Record]) -> str:
    """A line a study; a column for each organ in ml, empty where it was not found or not looked for."""
    organs = list(dict.fromkeys(name for record in records for name in record.organs))
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow([*_FIELDS, *(f"{name}_ml" for name in organs)])
    for record in records:
        entry = _entry(record)
        table.writerow([*(entry[name] for name in _FIELDS), *(record.organs.get(name) for name in organs)])
    return stream.getvalue()


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()  # ASCII: also of names that are no valid UTF-8


def _json_of(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
