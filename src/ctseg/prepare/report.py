"""What a preparation leaves for a person: a report as JSON and CSV, and a page of pictures."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import __version__
from ctseg.errors import CtsegError, InputError
from ctseg.files import write_beside
from ctseg.ledger import SPLITS
from ctseg.prepare.pairchecks import Measured, read_pair
from ctseg.prepare.pairtypes import Pair
from ctseg.prepare.preparing import Prepared, Taken
from ctseg.prepare.sample_pictures import COLORS, SOFT_TISSUE, choose_samples, draw_sample
from ctseg.registry import BundleInfo

REPORT = "prepare-report"
SAMPLES = "samples.html"

_STYLE = """
body{margin:0;padding:24px;background:#0b0d10;color:#e6e9ed;font:15px/1.5 system-ui,sans-serif}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:28px 0 8px}p{margin:4px 0}
table{border-collapse:collapse}td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:top}th{color:#9aa4af}
.grid{display:flex;flex-wrap:wrap;gap:16px}figure{margin:0;background:#15181d;padding:8px;border-radius:6px}
figure img{display:block;max-width:100%;height:auto}figcaption{font-size:13px;color:#c3cad2;margin-top:6px}
.name{font-weight:600;color:#fff}.key{display:inline-block;width:11px;height:11px;margin:0 5px 0 12px}
"""

_VIEW = (
    "Radiological view: R is the patient's right, A the front, S the head. Is every organ outlined, on the right side, "
    "the right way up?"
)
_FLAT_VIEW = "Each image without and with its mask. Is what it names outlined, the right way up, and nothing else?"


def summarise(prepared: Prepared, bundle: BundleInfo, source: Path) -> dict[str, Any]:
    """Return the report: what was seen, each case with its voxels, each refusal with its reason, and the sums."""
    names = structures(prepared)
    cases = [
        {
            "case_id": case.item["case_id"],
            "patient": case.item["patient"],
            "split": case.split,
            "shape": list(case.measured.shape),
            "spacing_mm": [round(mm, 4) for mm in case.measured.spacing],
            "values": list(case.measured.image_range),
            "voxels": case.measured.voxels,
            "notes": list(case.measured.notes),
        }
        for case in prepared.taken
    ]
    splits = {
        split: {
            "patients": len({case.item["patient"] for case in prepared.taken if case.split == split}),
            "cases": sum(case.split == split for case in prepared.taken),
            "voxels": {
                name: sum(case.measured.voxels.get(name, 0) for case in prepared.taken if case.split == split)
                for name in names
            },
        }
        for split in SPLITS
    }
    return {
        "ctseg": __version__,
        "source": str(source.resolve()),
        "kind": prepared.collection.kind,
        "saw": prepared.collection.saw,
        "task": bundle.name,
        "unit": "pixels" if bundle.flat else "voxels",
        "structures": drawn_structures(prepared, bundle),
        "splits": splits,
        "cases_with": {name: sum(case.measured.voxels.get(name, 0) > 0 for case in prepared.taken) for name in names},
        "notes": list(prepared.notes),
        "refused": [{"case_id": refusal.case_id, "reason": refusal.reason} for refusal in prepared.refused],
        "cases": cases,
    }


def structures(prepared: Prepared) -> list[str]:
    """Return the structures that the label values stand for, in order."""
    return list(dict.fromkeys(name for case in prepared.taken for name in case.measured.voxels))


def drawn_structures(prepared: Prepared, bundle: BundleInfo) -> list[str]:
    """Return the ones the task is about, and those that were asked for beside them."""
    return [name for name in structures(prepared) if name in bundle.labels or name in prepared.asked]


def write_report(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the report as JSON, and its cases, taken and refused, as CSV."""
    names = list(report["cases_with"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["case_id", "status", "patient", "split", "shape", "spacing_mm", *(f"voxels {n}" for n in names), "words"]
    )
    for case in report["cases"]:
        shape, spacing = (" x ".join(map(str, case[key])) for key in ("shape", "spacing_mm"))
        counts = [case["voxels"].get(name, 0) for name in names]
        notes = "; ".join(case["notes"])
        writer.writerow([case["case_id"], "taken", case["patient"], case["split"], shape, spacing, *counts, notes])
    for refusal in report["refused"]:
        writer.writerow([refusal["case_id"], "refused", "", "", "", "", *([""] * len(names)), refusal["reason"]])
    paths = [out / f"{REPORT}.json", out / f"{REPORT}.csv"]
    write_beside(paths[0], (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_beside(paths[1], text.getvalue().encode())
    return paths


def write_samples(prepared: Prepared, bundle: BundleInfo, report: Mapping[str, Any], path: Path, number: int) -> Path:
    """Write one self-contained HTML page: the sums, every refusal, and pictures of some cases with their labels.

    Args:
        prepared: what was taken; the chosen cases are read again.
        bundle: its colours and modality.
        report: from `summarise`.
        path: where to.
        number: of pictures at most.
    """
    names = drawn_structures(prepared, bundle)
    colors = {name: bundle.colors.get(name, COLORS[i % len(COLORS)]) for i, name in enumerate(names)}
    window = (bundle.shown_window or SOFT_TISSUE) if bundle.modality.upper() == "CT" else None
    chosen = choose_samples([_of(case.measured.voxels, names) for case in prepared.taken], number)
    figures = [_figure(prepared.taken[index], prepared, bundle, colors, window) for index in chosen]
    keys = "".join(f'<span class="key" style="background:rgb{color}"></span>{_e(n)}' for n, color in colors.items())
    body = "\n".join(
        [
            f"<h1>{_e(bundle.name)}: {len(prepared.taken)} cases taken, {len(prepared.refused)} refused</h1>",
            f"<p>{_e(prepared.collection.saw)}</p>",
            *(f"<p>Note: {_e(note)}</p>" for note in prepared.notes),
            *_sums(report, names),
            *_refusals(prepared),
            f"<h2>{len(figures)} of {len(prepared.taken)} cases{keys}</h2>",
            f"<p>{_FLAT_VIEW if bundle.flat else _VIEW} The smallest, the largest and an empty label of each structure "
            "are among them.</p>",
            f'<div class="grid">{"".join(figures)}</div>',
        ]
    )
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(bundle.name)}: samples</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )
    write_beside(path, page.encode())
    return path


def _of(voxels: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: voxels.get(name, 0) for name in names}


def _e(text: str) -> str:
    return html.escape(str(text))


def _sums(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield "<table><tr><th>split</th><th>patients</th><th>cases</th>"
    yield "".join(f"<th>{report['unit']} of {_e(name)}</th>" for name in names) + "</tr>"
    for split, sums in report["splits"].items():
        counts = "".join(f"<td>{sums['voxels'].get(name, 0):,}</td>" for name in names)
        yield f"<tr><td>{split}</td><td>{sums['patients']}</td><td>{sums['cases']}</td>{counts}</tr>"
    yield "</table>"


def _refusals(prepared: Prepared) -> Iterator[str]:
    if not prepared.refused:
        return
    yield f"<h2>Refused: {len(prepared.refused)}</h2><table>"
    for refusal in prepared.refused:
        yield f"<tr><td>{_e(refusal.case_id)}</td><td>{_e(refusal.reason)}</td></tr>"
    yield "</table>"


def _figure(
    case: Taken,
    prepared: Prepared,
    bundle: BundleInfo,
    colors: Mapping[str, tuple[int, int, int]],
    window: tuple[float, float] | None,
) -> str:
    item, measured = case.item, case.measured
    try:
        pair = read_pair(case.candidate, item, bundle.modality, prepared.codes, resize=True)
        drawn = {int(v): colors[name] for v, name in item["mask_values"].items() if name in colors}
        content = _flat_sample(pair, drawn) if bundle.flat else draw_sample(pair.image, pair.labels, drawn, window)
        code = base64.b64encode(content).decode()
        picture = f'<img alt="{_e(item["case_id"])}" src="data:image/png;base64,{code}">'
    except CtsegError as error:  # read once already, so only when it changed meanwhile
        picture = f"<p>{_e(str(error))}</p>"
    volumes = ", ".join(f"{name} {_amount(measured, name, bundle.flat)}" for name in colors)
    values = " to ".join(f"{value:g}" for value in measured.image_range)
    size = " x ".join(map(str, measured.shape))
    words = "".join(f"<br>{_e(note)}" for note in measured.notes)
    return (
        f'<figure>{picture}<figcaption><span class="name">{_e(item["case_id"])}</span> patient '
        f"{_e(item['patient'])}, {case.split}<br>{_e(volumes)}<br>{size}, values {values}{words}</figcaption></figure>"
    )


def _amount(measured: Measured, name: str, flat: bool) -> str:
    voxels = measured.voxels.get(name, 0)
    return f"{voxels / (measured.shape[0] * measured.shape[1]):.1%}" if flat else f"{voxels * measured.voxel_ml:.1f} ml"


def _flat_sample(pair: Pair, colors: Mapping[int, tuple[int, int, int]]) -> bytes:
    from ctseg.flat.items import FlatVolume
    from ctseg.flat.sheets import draw_sheet, draw_tile

    if not isinstance(pair.image, FlatVolume) or pair.image.image is None:
        raise InputError("its image is no flat image")
    picture, labels = pair.image.image.brightness(), pair.labels[:, :, 0]
    outlined = draw_tile(picture, [(labels == value, color) for value, color in colors.items()])
    return draw_sheet([[draw_tile(picture)], [outlined]])
