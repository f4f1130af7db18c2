"""The output folder of a classifier's answer: table, plot, report; and the lines at the end of a run."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.files import write_beside
from ctseg.outputs.folder import REPORT, fill_folder

if TYPE_CHECKING:
    from ctseg.presence.slices import SlicePresence

PRESENCE_KINDS = ("csv", "png", "json")
TABLE, PLOT = "presence.csv", "presence.png"


def presence_names(kinds: Collection[str]) -> list[str]:
    """Names of the files that a run with these kinds of output writes."""
    return [name for kind, name in zip(PRESENCE_KINDS, (TABLE, PLOT, REPORT), strict=True) if kind in kinds]


def write_presence(
    found: SlicePresence, out: Path, kinds: Collection[str] = PRESENCE_KINDS
) -> tuple[list[Path], dict[str, Any]]:
    """Write a classifier's answer into a folder; all files or none.

    Args:
        found: the answer.
        out: the folder, made when it is not there. `ctseg.outputs.folder.check_folder` is the caller's to ask first.
        kinds: which of `PRESENCE_KINDS` to write.

    Returns:
        The files written, and the report (also when "json" is not among the kinds).

    Raises:
        OutputError: a file cannot be written.
    """
    from ctseg.outputs.report import build_presence_report, write_report
    from ctseg.presence.plot import write_presence_plot
    from ctseg.presence.table import table_csv

    def fill(staging: Path) -> tuple[list[Path], dict[str, Any]]:
        files: list[Path] = []
        started = time.perf_counter()
        if "csv" in kinds:
            write_beside(staging / TABLE, table_csv(found).encode())
            files.append(staging / TABLE)
        if "png" in kinds:
            files.append(write_presence_plot(found, staging / PLOT, found.bundle.colors))
        seconds = {**found.seconds, "write": time.perf_counter() - started}
        report = build_presence_report(found, seconds, files)
        return files + ([write_report(report, staging / REPORT)] if "json" in kinds else []), report

    return fill_folder(out, fill)


def presence_summary(report: dict[str, Any], out: Path, files: Collection[Path]) -> str:
    """Return what is said at the end of a run: a line for each organ, seconds, notes, files."""
    stages = "  ".join(f"{stage} {value:.1f} s" for stage, value in report["seconds"].items())
    lines = ["", *(f"  {organ['summary']}" for organ in report["presence"]["organs"])]
    lines += [f"  (present from a probability of {report['presence']['threshold']:g} on; slices count from 1)", ""]
    lines += [f"  on {report['device']}: {stages}", ""]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"{out}: {'  '.join(file.name for file in files)}", report["intended_use"]]
    return "\n".join(lines)
