"""What a person looks at before believing a transform: pictures of CT and mask before and after, and angles in figures.

A transform file does not say which way it is meant. So each case is shown three times: as the files lie, with the CT
turned by the transform, and with the CT turned by its inverse; only one of the last two can fit its mask.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.files import write_beside
from ctseg.prepare.sample_pictures import COLORS, draw_sample
from ctseg.turning.itktransforms import PointTransform
from ctseg.turning.resampling import turn_labels, turn_volume
from ctseg.volume import Volume

BRAIN_WINDOW = (-10.0, 90.0)  # HU, to see by
BRAIN_TISSUE = (0.0, 80.0)  # HU: brain, its water and fresh blood (Hounsfield units in any textbook), not bone or air
TABLE, PAGE = "turns.csv", "turns.html"
_CAPTIONS = {
    "before": "as the files lie",
    "after": "CT turned by the transform",
    "inverse": "CT turned by its inverse",
}
_STYLE = """body{margin:0;padding:24px;background:#0b0d10;color:#e6e9ed;font:15px/1.5 system-ui,sans-serif}
h1{font-size:22px}table{border-collapse:collapse;margin:12px 0}td,th{padding:3px 14px 3px 0;text-align:right}
th{color:#9aa4af}figure{margin:0 0 24px}img{max-width:100%;height:auto}figcaption{font-weight:600}"""


@dataclass(frozen=True)
class Turned:
    """A case with its transform, looked at.

    Attributes:
        row: what the table says of it.
        picture: PNG of before, after and inverse.
    """

    row: dict[str, Any]
    picture: bytes


def look_at(case: str, ct: Volume, transform: PointTransform, mask: Volume | None = None) -> Turned:
    """Measure a transform and draw what it does.

    Args:
        case: name for the table.
        ct: the scanner's image.
        transform: from the turned space to the scanner's.
        mask: the label map that was drawn in the turned space; None shows the images alone.
    """
    stages = {name: _stage(name, ct, transform, mask) for name in _CAPTIONS if name != "inverse" or mask is not None}
    colors = _colors(mask)
    pictures = {name: draw_sample(image, labels, colors, BRAIN_WINDOW) for name, (image, labels) in stages.items()}
    row = describe(case, ct, transform)
    for name, (image, labels) in stages.items():
        row[f"brain_{name}"] = _share(image.array, labels) if mask is not None else None
    return Turned(row, _sheet(case, pictures))


def describe(case: str, ct: Volume, transform: PointTransform) -> dict[str, Any]:
    """Return a transform's kind, Euler angles in degrees and how far it moves the middle of the image."""
    x, y, z = transform.euler_degrees
    middle = np.asarray(ct.affine) @ [*((np.asarray(ct.shape) - 1) / 2), 1.0]
    moved = float(np.linalg.norm((transform.ras @ middle - middle)[:3]))
    return {
        "case": case,
        "kind": transform.kind.partition("_")[0],
        "rigid": transform.rigid,
        "x_nod_degrees": round(x, 3),
        "y_tilt_degrees": round(y, 3),
        "z_turn_degrees": round(z, 3),
        "angle_degrees": round(transform.turn_degrees, 3),
        "middle_moves_mm": round(moved, 2),
        "largest_scale": round(transform.scales[0], 4),
    }


def write_turns(cases: Iterable[Turned], out: Path) -> list[Path]:
    """Write the table as CSV and the page with table and pictures.

    Raises:
        OutputError: when a file cannot be written.
    """
    found = list(cases)
    rows = [turned.row for turned in found]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figures = "".join(
        f"<figure><figcaption>{_e(turned.row['case'])}</figcaption>"
        f'<img alt="{_e(turned.row["case"])} before and after" '
        f'src="data:image/png;base64,{base64.b64encode(turned.picture).decode()}"></figure>'
        for turned in found
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Turned heads</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{len(rows)} turned heads</h1>\n"
        "<p>Does the mask fit the head after the turn, and not after the inverse? If it is the other way round, the "
        "files hold the opposite transform: pass --inverse. Radiological view: R is the patient's right, A the front, "
        "S the head.</p>\n"
        f"{_table(rows)}\n{figures}\n</body></html>\n"
    )
    paths = [out / TABLE, out / PAGE]
    write_beside(paths[0], text.getvalue().encode())
    write_beside(paths[1], page.encode())
    return paths


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for a terminal."""
    header = ("case", "nod x", "tilt y", "turn z", "angle", "moves mm", "in brain tissue: before / after / inverse")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        shares = [row[f"brain_{name}"] for name in _CAPTIONS if row.get(f"brain_{name}") is not None]
        lines.append(
            (
                str(row["case"]),
                *(f"{row[key]:.2f}" for key in ("x_nod_degrees", "y_tilt_degrees", "z_turn_degrees", "angle_degrees")),
                f"{row['middle_moves_mm']:.1f}",
                " / ".join(f"{share:.0%}" for share in shares) or "no mask",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _stage(name: str, ct: Volume, transform: PointTransform, mask: Volume | None) -> tuple[Volume, NDArray[np.uint8]]:
    """An image with the mask as it lies on it."""
    if name == "before":
        if mask is None:
            return ct, np.zeros(ct.shape, np.uint8)
        still = PointTransform(np.eye(4))
        return ct, turn_labels(mask.array, mask.affine, still, ct.affine, ct.shape)
    used = transform if name == "after" else transform.inverse()
    if mask is None:
        return turn_volume(ct, used, mode="linear"), np.zeros(ct.shape, np.uint8)
    return turn_volume(ct, used, mask.affine, mask.shape, mode="linear"), mask.array.astype(np.uint8)


def _colors(mask: Volume | None) -> dict[int, tuple[int, int, int]]:
    if mask is None:
        return {}
    values = [int(value) for value in np.unique(mask.array) if value]
    return {value: COLORS[number % len(COLORS)] for number, value in enumerate(values)}


def _share(image: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Share of the mask's voxels that lie on brain tissue by their HU."""
    under = image[labels > 0]
    low, high = BRAIN_TISSUE
    return round(float(((under >= low) & (under <= high)).mean()), 4) if under.size else None


def _sheet(case: str, pictures: Mapping[str, bytes]) -> bytes:
    """One picture below the other, each with its caption."""
    from PIL import Image, ImageDraw

    opened = {name: Image.open(io.BytesIO(content)) for name, content in pictures.items()}
    line = 22
    width = max(picture.width for picture in opened.values())
    sheet = Image.new("RGB", (width, sum(picture.height + line for picture in opened.values())), (11, 13, 16))
    pen, top = ImageDraw.Draw(sheet), 0
    for name, picture in opened.items():
        pen.text((4, top + 5), f"{case}: {_CAPTIONS[name]}", fill=(230, 233, 237))
        sheet.paste(picture, (0, top + line))
        top += picture.height + line
    content = io.BytesIO()
    sheet.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_e(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_e('' if value is None else str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _e(text: str) -> str:
    return html.escape(str(text))
