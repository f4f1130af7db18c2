"""The answer of a classifier in words, as a table (CSV) and as plain JSON types."""

from __future__ import annotations

import csv
import io
from typing import Any

from ctseg.presence.slices import Run, SliceTable, gaps_between


def table_csv(found: SliceTable) -> str:
    """Return one line a slice: number from 1, index from 0, height in mm, and of each organ probability and 0 or 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    organs = [f"{label}_{what}" for label in found.labels for what in ("probability", "present")]
    writer.writerow(["slice", "index", "position_mm", *organs])
    for row in _rows(found):
        values = [v for label in found.labels for v in (f"{row['probability'][label]:.4f}", int(row["present"][label]))]
        writer.writerow([row["slice"], row["index"], f"{row['position_mm']:.2f}", *values])
    return text.getvalue()


def table_json(found: SliceTable) -> dict[str, Any]:
    """Return the same as plain JSON types, with a summary of each organ.

    `axis` is the source's array axis that the slices follow; `position_mm` is RAS, growing to the head; `runs` and
    `gaps` are first and last slice numbers, both included.
    """
    return {
        "threshold": found.threshold,
        "axis": found.axis,
        "organs": [_summary(found, label) for label in found.labels],
        "slices": list(_rows(found)),
    }


def summary_line(found: SliceTable, label: str) -> str:
    """Return one line on an organ, e.g. "liver: present on 41 of 112 slices: 69-80, 83-112 (gap: 81-82)"."""
    runs, total = found.runs(label), len(found.positions)
    if not runs:
        return f"{label}: absent on all {total} slices"
    count = sum(last - first + 1 for first, last in runs)
    gaps = gaps_between(runs)
    said = f" ({'gap' if len(gaps) == 1 else 'gaps'}: {_spans(gaps)})" if gaps else ""
    return f"{label}: present on {count} of {total} slices: {_spans(runs)}{said}"


def _spans(spans: list[Run]) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _summary(found: SliceTable, label: str) -> dict[str, Any]:
    runs = found.runs(label)
    return {
        "name": label,
        "found": bool(runs),
        "slices_present": sum(last - first + 1 for first, last in runs),
        "slices": len(found.positions),
        "runs": [list(run) for run in runs],
        "gaps": [list(gap) for gap in gaps_between(runs)],
        "summary": summary_line(found, label),
    }


def _rows(found: SliceTable) -> list[dict[str, Any]]:
    present, heights = found.present, found.positions_mm
    return [
        {
            "slice": int(number),
            "index": int(number) - 1,
            "position_mm": round(float(heights[row]), 3),
            "probability": {
                label: round(float(found.probability[row, column]), 5) for column, label in enumerate(found.labels)
            },
            "present": {label: bool(present[row, column]) for column, label in enumerate(found.labels)},
        }
        for row, number in enumerate(found.numbers)
    ]
