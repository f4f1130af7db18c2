"""One table over experiments: their figure beside ours, measured their way and by patient over all slices."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.evaluation.html import NO_VALUE, Page
from ctseg.experiments.runs import FINISHED, REPORT, STATE, read_state
from ctseg.files import write_beside

FILES = ("comparison.csv", "comparison.json", "comparison.md", "comparison.html")
COLUMNS = {
    "experiment": "experiment",
    "status": "status",
    "metric": "their metric",
    "theirs": "theirs",
    "ours_their_way": "ours, their way",
    "slices": "slices with the organ",
    "ours_patient_iou": "ours, IoU by patient",
    "ours_patient_dice": "ours, Dice by patient",
    "ours_patient_f1": "ours, F1 by patient",
    "thresholded_iou_at_half": "thresholded IoU, logit 0.5",
    "thresholded_iou": "thresholded IoU, logit 0",
    "patients": "patients measured",
    "training_patients": "patients trained on",
    "split": "split",
    "epochs": "epochs",
    "planned": "planned",
    "seconds": "seconds of training",
    "changed": "changed in the experiment",
    "data": "data",
    "bundle": "bundle",
    "reason": "why not",
}
THRESHOLDED = ("thresholded_iou_at_half", "thresholded_iou")
TITLE = "Experiments compared"
NOTES = (
    "Theirs: as its authors reported it, on their own data and patients; ours is on the data named in the table, so "
    "the two differ in more than the method.",
    "Their way, IoU: pooled over all pixels of all slices that have the organ, on the network's grid. Mistakes on "
    "slices without the organ do not count.",
    "Their way, thresholded IoU: ceil(clamp(20 (IoU - 0.5), 0, 10)) / 10 of each image, masks cut at a logit of 0.5.",
    "Their way, presence: F1 over all slices at the threshold of the bundle; recall and precision beside it.",
    "By patient: each patient's voxels (or slices) over all slices, then the mean over patients. This is the figure to "
    "trust. A patient for whom it is not defined, without the organ in both, is left out.",
    "The epoch that is measured was chosen on the validation patients, so figures of the split validation flatter.",
)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return a row for each experiment below a folder, in order of name.

    Raises:
        InputError: when the folder holds none.
    """
    folders = sorted(path.parent for path in out.glob(f"*/*/{STATE}"))
    rows = [row_of(folder) for folder in folders]
    if not rows:
        raise InputError(f"there are no experiments in {out}: expected TASK/NAME/{STATE}; run some there first")
    return rows


def row_of(folder: Path) -> dict[str, Any]:
    """Return the row of one experiment; a value that there is not is None."""
    state = read_state(folder)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"experiment": f"{folder.parent.name}/{folder.name}", "status": state.get("status"), "reason": ""}
    row |= {key: state[key] for key in ("bundle", "planned", "reason") if key in state}
    row |= _trained(folder)
    settings = state.get("settings") or {}
    if "--data" in settings:
        row["data"] = f"{Path(settings['--data']).name}, datalist {settings['the datalist'][:8]}"
    row["changed"] = "; ".join(_changes(state))
    row["training_patients"] = (state.get("patients") or {}).get("train")
    theirs: Mapping[str, float] = state.get("theirs") or {}
    row["metric"] = next((name for name in ("thresholded_iou", "iou", "f1", "recall") if name in theirs), None)
    row["theirs"] = theirs.get(str(row["metric"]))
    if state.get("status") == FINISHED:
        row["split"] = (state.get("evaluated") or {}).get("split")
        classified = (folder / REPORT / "presence.json").is_file()
        row |= (_presence if classified else _overlaps)(folder / REPORT)
        if row["thresholded_iou_at_half"] is not None and any(name.startswith("thresholded") for name in theirs):
            row |= {"metric": "thresholded_iou", "ours_their_way": row["thresholded_iou_at_half"]}
    for extra in ("recall", "precision"):
        row.setdefault(f"theirs_{extra}", theirs.get(extra))
        row.setdefault(f"ours_{extra}", None)
    return row


def _changes(state: Mapping[str, Any]) -> list[str]:
    """What was run otherwise than the experiment's file says, so that nobody takes it for that."""
    own, planned = state.get("own_epochs"), state.get("planned")
    changes = [f"{planned} epochs instead of {own}"] if own is not None and own != planned else []
    usual = ("num_workers", "cache_dir", "cache_rate", "progress", "track")  # that change no result
    overrides: Mapping[str, Any] = (state.get("settings") or {}).get("--set") or {}
    return changes + [f"{place}={json.dumps(value)}" for place, value in overrides.items() if place not in usual]


def _trained(folder: Path) -> dict[str, Any]:
    """Epochs and seconds out of the history."""
    try:
        rows = list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))
        return {"epochs": int(rows[-1]["epoch"]), "seconds": round(sum(float(row["seconds"] or 0) for row in rows), 1)}
    except (OSError, ValueError, KeyError, IndexError):
        return {"epochs": 0, "seconds": None}


def _overlaps(report: Path) -> dict[str, Any]:
    pooled, iou, dice = (_read(report / f"{name}.json") for name in ("pooled_iou", "iou", "dice"))
    return {
        "metric": "iou",
        "ours_their_way": _finite(pooled.get("mean")),
        "slices": sum(int(counts["slices"]) for counts in (pooled.get("counts") or {}).values()) or None,
        "ours_patient_iou": _finite(iou.get("mean")),
        "ours_patient_dice": _finite(dice.get("mean")),
        "patients": dice.get("patients"),
        **{name: _finite(_read(report / f"{name}.json").get("mean")) for name in THRESHOLDED},
    }


def _presence(report: Path) -> dict[str, Any]:
    content = _read(report / "presence.json")
    entries: list[Mapping[str, Any]] = list((content.get("labels") or {}).values())
    of_patients = [entry for patients in (content.get("patients") or {}).values() for entry in patients.values()]
    return {
        "metric": "f1",
        "ours_their_way": _mean(entries, "f1"),
        "ours_recall": _mean(entries, "recall"),
        "ours_precision": _mean(entries, "precision"),
        "ours_patient_f1": _mean(of_patients, "f1"),
        "slices": sum(int(entry["support"]) for entry in entries) if entries else None,
        "patients": max((int(entry["patients"]) for entry in entries), default=None),
    }


def _mean(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return sum(values) / len(values) if values else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value == value else None


def write_table(out: Path) -> list[Path]:
    """Write the table of a folder as CSV, JSON, Markdown and HTML with the learning curves; return the files.

    Raises:
        InputError: when the folder holds no experiment.
        OutputError: when a file cannot be written.
    """
    rows = read_rows(out)
    texts = (_csv(rows), _json(rows), as_markdown(rows), _html(rows, out))
    for name, text in zip(FILES, texts, strict=True):
        write_beside(out / name, text.encode())
    return [out / name for name in FILES]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"notes": list(NOTES), "rows": list(rows)}, indent=2) + "\n"


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table in Markdown with its notes."""
    header, cells = _table(rows)
    lines = [f"# {TITLE}", "", *_markdown_table(header, cells), "", *(f"- {note}" for note in NOTES)]
    return "\n".join(lines) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(header), ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def _html(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    page = Page(TITLE)
    page.heading("The table")
    page.table("An experiment in each row", *_table(rows))
    page.bullets(NOTES, "note")
    page.heading("Learning curves")
    for row in rows:
        picture = out / str(row["experiment"]) / "curves.png"
        if picture.is_file():
            name = str(row["experiment"])
            page.subheading(name)
            page.picture(picture.read_bytes(), f"Learning curves of {name}", f"{row['epochs']} epochs")
    return page.text()


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for readers; a column that is empty in all rows is left out."""
    names = [name for name in COLUMNS if any(_text(row, name) != NO_VALUE for row in rows)]
    return [COLUMNS[name] for name in names], [[_text(row, name) for name in names] for row in rows]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        return NO_VALUE
    if name == "theirs" and row.get("theirs_recall") is not None and row["metric"] == "f1":
        return f"{value:.4f} (recall {row['theirs_recall']:.4f})"
    if name == "ours_their_way" and row.get("ours_recall") is not None:
        more = [f"{key} {row[f'ours_{key}']:.4f}" for key in ("recall", "precision") if row[f"ours_{key}"] is not None]
        return f"{value:.4f} ({'; '.join(more)})"
    return f"{value:.4f}" if isinstance(value, float) and name != "seconds" else str(value)
