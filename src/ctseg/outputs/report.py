"""The report of a run: what was measured, on which input, by which bundle and versions, in how many seconds.

It holds no path, patient name or date: a DICOM source is named by its series, a file by its own name.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib

from ctseg import __version__
from ctseg.files import REPORT_SCHEMA, file_sha256, written_beside
from ctseg.organs import Organ
from ctseg.outputs.meshes import SPACES
from ctseg.quality import summary
from ctseg.registry import BundleInfo
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.prediction import Part, Prediction
    from ctseg.presence.slices import SlicePresence

INTENDED_USE = "research only: not a medical device, not for diagnosis"
_PACKAGES = ("monai", "torch", "numpy")


def versions() -> dict[str, str]:
    """Versions of ctseg and of the packages that a mask depends on, read without importing them."""
    found = {"ctseg": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_of(volume: Volume) -> dict[str, Any]:
    """Return what a report says of its image: file name or series, format and grid, never a path."""
    named = {"series_uid": volume.series_uid} if volume.format == "dicom" else {"file": volume.source.name}
    return {
        **named,
        "format": volume.format,
        "shape": list(volume.shape),
        "spacing_mm": [round(length, 6) for length in volume.spacing],
        "axis_codes": "".join(str(code) for code in nib.orientations.aff2axcodes(volume.source_affine)),
    }


def runtime_entry(names: str) -> dict[str, str]:
    """Return what a report says of what ran the networks: names and versions."""
    from ctseg.light.sessions import version_of

    return {name: version_of(name) for name in names.split("+")}


def bundle_entry(info: BundleInfo) -> dict[str, Any]:
    """Return what a report says of the bundle that ran."""
    sha256 = info.weights_sha256 or (file_sha256(info.weights) if info.weights else None)
    return {"name": info.name, "version": info.version, "weights_sha256": sha256, "weights": info.status}


def _bundles(prediction: Prediction | SlicePresence) -> dict[str, Any]:
    """The bundle that ran, and those of a mask that several made."""
    info, parts = prediction.bundle, getattr(prediction, "parts", ())
    if not parts:
        return {"bundle": bundle_entry(info)}
    named = {"name": info.name, "version": info.version}
    return {"bundle": named, "bundles": [{**bundle_entry(part.bundle), **_slices(part)} for part in parts]}


def _slices(ran: Prediction | SlicePresence | Part) -> dict[str, Any]:
    slices = getattr(ran, "slices", None)  # a classifier runs on all
    return {"slices": dataclasses.asdict(slices) if slices else None}


def _organ(organ: Organ, info: BundleInfo, axis_codes: str) -> dict[str, Any]:
    snomed = {str(entry["name"]): entry.get("snomed") for entry in info.label_entries}
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))
    cut = [axis_codes[axis] if side > 0 else opposite[axis_codes[axis]] for axis, side in organ.edges]
    return {
        "name": organ.name,
        "code": organ.code,
        "snomed": snomed.get(organ.name),
        "found": organ.voxels > 0,
        "voxels": organ.voxels,
        "volume_ml": round(organ.volume_ml, 3),
        "bounding_box": [list(span) for span in organ.box] if organ.box else None,
        "touches_edge": organ.touches_edge,
        "edges_touched": cut,
    }


def _cautions(prediction: Prediction | SlicePresence) -> list[str]:
    """What the bundles of a result want to be said with it."""
    bundles = [one.bundle for one in getattr(prediction, "parts", ())] or [prediction.bundle]
    return [note for bundle in bundles for note in bundle.said_caution]


def build_report(
    prediction: Prediction | SlicePresence,
    organs: Iterable[Organ],
    seconds: Mapping[str, float],
    outputs: Iterable[Path],
) -> dict[str, Any]:
    """Return the report as plain JSON types, its keys in a fixed order.

    Args:
        prediction: what the network said, with its volume and bundle.
        organs: the measured labels, from `measure_organs`.
        seconds: stage names and their seconds, in order, without the total.
        outputs: the files written so far; their names and sha256 go in.

    Returns:
        The report. `bounding_box` is the first and last voxel index, inclusive, along each axis of the source;
        `edges_touched` the patient directions (R L A P S I) in which the organ reaches the edge of the scan.

    Raises:
        OSError: an output cannot be read back.
    """
    source = source_of(prediction.volume)
    stages = {name: round(float(value), 3) for name, value in seconds.items()}
    return {
        "schema": REPORT_SCHEMA,
        "intended_use": INTENDED_USE,
        "versions": versions(),
        **_bundles(prediction),
        "device": prediction.device,
        "runtime": runtime_entry(getattr(prediction, "runtime", "torch")),
        **_slices(prediction),
        "source": source,
        "quality": summary(getattr(prediction, "quality", {})),
        "organs": [_organ(organ, prediction.bundle, source["axis_codes"]) for organ in organs],
        "seconds": {**stages, "total": round(sum(float(value) for value in seconds.values()), 3)},
        "notes": [*prediction.volume.notes, *_cautions(prediction)],
        "mesh_coordinates": SPACES,
        "outputs": {file.name: {"sha256": file_sha256(file)} for file in outputs},
    }


def build_presence_report(
    found: SlicePresence, seconds: Mapping[str, float], outputs: Iterable[Path]
) -> dict[str, Any]:
    """Return the report of a classifier: that of a mask, with the table of its slices for organs and meshes.

    Raises:
        OSError: an output cannot be read back.
    """
    from ctseg.presence.table import table_json

    frame = build_report(found, [], seconds, outputs)
    return {
        ("presence" if key == "organs" else key): (table_json(found) if key == "organs" else value)
        for key, value in frame.items()
        if key not in ("mesh_coordinates", "slices")
    }


def write_report(report: Mapping[str, Any], path: Path) -> Path:
    """Write a report as indented JSON, beside and renamed, and return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    with written_beside(path) as beside:
        beside.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
