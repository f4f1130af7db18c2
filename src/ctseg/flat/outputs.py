"""What a run on a flat image leaves: the mask as PNG of the image's own size, a picture of it, areas in a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import ConfigError
from ctseg.files import REPORT_SCHEMA, file_sha256, write_beside
from ctseg.outputs.folder import FLAT_KINDS, REPORT, fill_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctseg.flat.images import FlatImage
    from ctseg.prediction import Prediction

MASK, PREVIEW = "mask.png", "preview.png"
_WIDEST = 640  # pixels of the preview's pictures


def flat_names(kinds: Collection[str]) -> list[str]:
    """Names of the files that a run with these kinds of output writes."""
    return [name for kind, name in zip(FLAT_KINDS, (MASK, PREVIEW, REPORT), strict=True) if kind in kinds]


def measure_flat(
    labels: NDArray[Any], codes: Mapping[str, int], spacing: tuple[float, float] | None
) -> list[dict[str, Any]]:
    """Measure each structure.

    Args:
        labels: (H, W).
        codes: structure -> value.
        spacing: mm between rows and columns; None: no area in mm2 is known.

    Returns:
        For each structure its pixels, share of the image, area in mm2 or None, number of pieces (pixels that touch by
        an edge or corner), first and last row and column, and whether it touches the image's edge.
    """
    import numpy as np
    from scipy import ndimage

    found = []
    for name, code in codes.items():
        mask = labels == code
        pixels = int(mask.sum())
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = [[int(n[0]), int(n[-1])] for n in (rows, columns)] if pixels else None
        edge = bool(pixels) and bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        found.append(
            {
                "name": name,
                "code": int(code),
                "found": pixels > 0,
                "pixels": pixels,
                "share": round(pixels / mask.size, 6),
                "area_mm2": round(pixels * spacing[0] * spacing[1], 3) if spacing else None,
                "pieces": int(ndimage.label(mask, np.ones((3, 3)))[1]),
                "rows_columns": box,
                "touches_edge": edge,
            }
        )
    return found


def flat_report(
    prediction: Prediction, image: FlatImage, found: list[dict[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the report as plain JSON types; it names the image by its file's name alone."""
    from ctseg.outputs.report import INTENDED_USE, bundle_entry, runtime_entry, versions
    from ctseg.quality import summary

    snomed = {str(entry["name"]): entry.get("snomed") for entry in prediction.bundle.label_entries}
    return {
        "schema": REPORT_SCHEMA,
        "intended_use": INTENDED_USE,
        "versions": versions(),
        "bundle": bundle_entry(prediction.bundle),
        "device": prediction.device,
        "runtime": runtime_entry(prediction.runtime),
        "source": source_entry(image),
        "quality": summary(prediction.quality),
        "structures": [{**one, "snomed": snomed.get(one["name"])} for one in found],
        "seconds": {name: round(float(value), 3) for name, value in seconds.items()},
        "notes": list(image.notes),
    }


def source_entry(image: FlatImage) -> dict[str, Any]:
    """Return what a report says of a flat image."""
    frame = {"frame": image.frame, "frames": image.frames} if image.frames > 1 else {}
    spacing = [round(mm, 6) for mm in image.spacing] if image.spacing else None
    return {"file": image.source.name, **frame, "rows": image.size[0], "columns": image.size[1], "kind": image.kind,
            "spacing_mm": spacing}  # fmt: skip


def write_flat(
    prediction: Prediction, image: FlatImage, out: Path, kinds: Collection[str] = FLAT_KINDS
) -> tuple[list[Path], dict[str, Any]]:
    """Write the results of one flat image into a folder; all files or none.

    Args:
        prediction: of a flat bundle.
        image: that it was made of.
        out: the folder. `ctseg.outputs.folder.check_folder` is the caller's to ask first.
        kinds: which of `FLAT_KINDS`.

    Returns:
        The files written, and the report (also when "json" is not among the kinds).

    Raises:
        OutputError: a file cannot be written.
    """
    from ctseg.outputs.report import write_report

    labels = prediction.label_map[:, :, 0]
    found = measure_flat(labels, prediction.labels, image.spacing)

    def fill(staging: Path) -> tuple[list[Path], dict[str, Any]]:
        from ctseg.flat.writing import write_flat_mask

        files, started = [], time.perf_counter()
        if "mask" in kinds:
            files.append(write_flat_mask(labels, prediction.labels, staging / MASK, prediction.bundle.colors))
        if "png" in kinds:
            files.append(write_preview(image, labels, prediction, staging / PREVIEW))
        seconds = {**prediction.seconds, "write": time.perf_counter() - started}
        seconds["total"] = sum(seconds.values())
        report = flat_report(prediction, image, found, seconds)
        report["outputs"] = {file.name: {"sha256": file_sha256(file)} for file in files}
        return files + ([write_report(report, staging / REPORT)] if "json" in kinds else []), report

    return fill_folder(out, fill)


def write_preview(image: FlatImage, labels: NDArray[Any], prediction: Prediction, path: Path) -> Path:
    """Write the image, and beside it the image with each structure outlined in its colour, as one PNG."""
    from ctseg.flat.sheets import draw_sheet, draw_tile
    from ctseg.prepare.sample_pictures import COLORS

    colours = prediction.bundle.colors
    drawn = [
        (labels == code, colours.get(name, COLORS[number % len(COLORS)]))
        for number, (name, code) in enumerate(prediction.labels.items())
    ]
    picture = image.brightness()
    columns = [[draw_tile(picture, longest=_WIDEST)], [draw_tile(picture, drawn, longest=_WIDEST)]]
    what = ", ".join(f"{name} {'found' if mask.any() else 'not found'}" for name, (mask, _) in
                     zip(prediction.labels, drawn, strict=True))  # fmt: skip
    write_beside(path, draw_sheet(columns, ["", f"{what} - research only, not for diagnosis"]))
    return path


def with_load(prediction: Prediction, seconds: float) -> Prediction:
    """Return a prediction whose first stage is the loading of the network."""
    return dataclasses.replace(prediction, seconds={"load": seconds, **prediction.seconds})


def wanted_flat_kinds(asked: Collection[str] | None, bundle: str) -> tuple[str, ...]:
    """Return the kinds of output that were asked for, or all.

    Raises:
        ConfigError: for one that a flat bundle does not write.
    """
    if wrong := sorted(set(asked or ()) - set(FLAT_KINDS)):
        raise ConfigError(
            f"bundle {bundle} writes no {', '.join(wrong)}: expected one or more of {','.join(FLAT_KINDS)}"
        )
    return tuple(kind for kind in FLAT_KINDS if not asked or kind in asked)
