"""A label that the viewer stores: checked against its CT, written anew in good form, and only then passed on.

OHIF pads each 1-bit frame to whole bytes, which no other reader expects, and names every organ "Tissue". So nothing of
its file is kept but the voxels and the organs' names: the label is read onto the CT's grid and written as we write our
own, with the codes, names and colours of the bundles.
"""

from __future__ import annotations

import io
from typing import Any

from app_dicom_labels import known_entries
from app_http import refused
from app_viewer_multipart import parts_of
from app_viewer_proxy import StudiesProxy
from app_viewer_run import place_of, said, store
from fastapi.responses import JSONResponse

from ctseg.dicom.seg import Algorithm
from ctseg.dicom.segreading import label_map_of

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_TYPE, _TISSUE = "SegmentedPropertyTypeCodeSequence", "T-D0050"
_WHAT = "the label"


def store_label(pacs: StudiesProxy, app: Any, kind: str, body: bytes, study: str = "") -> JSONResponse:
    """Take a STOW-RS request with one DICOM SEG (PS3.18, 10.5).

    Args:
        pacs: where to store it.
        app: our app, for the CT and the known organs.
        kind: the Content-Type header.
        body: the message.
        study: the study that the address names, "" for any.

    Returns:
        The answer of STOW-RS, with the instance that was stored.

    Raises:
        HTTPException: 4xx with one sentence; nothing was stored.
    """
    parts = parts_of(kind, body)
    if len(parts) != 1:
        raise refused(400, f"the message holds {len(parts)} instances; store one label at a time")
    dataset = _read(parts[0])
    series = _series_of(dataset)
    own_study = pacs.study_of(series)
    if study not in ("", own_study):
        raise refused(409, "the label belongs to another study than the one it was stored in; open its own study")
    volume = place_of(app, series)
    entries = known_entries(app.bundles().values())
    with said(volume.source, "the series"):
        label_map, _ = label_map_of(dataset, volume, entries, _WHAT)
    drawn = _drawn(dataset, entries, set(label_map[label_map > 0].tolist()))
    if not drawn:
        raise refused(422, "the label names no organ that this server knows; choose an organ of one of its models")
    description = f"Label: {', '.join(str(entry['name']) for entry in drawn)}"
    stored = store(pacs, label_map, volume, drawn, _algorithm(dataset), description)
    app.label_stored(series, stored)
    return JSONResponse(_answer(stored), media_type="application/dicom+json")


def _read(content: bytes) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        is_label = str(dataset.get("SOPClassUID", "")) in _SEGMENTATIONS and "PixelData" in dataset
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError, NotImplementedError) as error:
        raise refused(400, "what was stored is no readable DICOM file; nothing was kept, submit it again") from error
    if not is_label:
        raise refused(415, "only labels (DICOM SEG) are stored through the viewer")
    for segment in dataset.get("SegmentSequence") or ():
        if [str(code.get("CodeValue", "")) for code in segment.get(_TYPE) or ()] == [_TISSUE]:
            del segment[_TYPE]  # the viewer calls every organ so: its name decides
    return dataset


def _series_of(dataset: Any) -> str:
    series = {str(item.get("SeriesInstanceUID", "")) for item in dataset.get("ReferencedSeriesSequence") or ()}
    if len(series) != 1:
        raise refused(422, f"the label was drawn on {len(series)} series; expected one")
    return series.pop()


def _drawn(dataset: Any, entries: list[dict[str, Any]], values: set[int]) -> list[dict[str, Any]]:
    """The organs that were looked at: those with voxels, and those that the label names and has none of."""
    named = {str(item.get("SegmentLabel", "")).casefold() for item in dataset.get("SegmentSequence") or ()}
    return [entry for entry in entries if entry["code"] in values or str(entry["name"]).casefold() in named]


def _algorithm(dataset: Any) -> Algorithm:
    """A model's mask that a human has looked at is semiautomatic; what was drawn on an empty one is manual."""
    made = [item for item in dataset.get("SegmentSequence") or () if str(item.get("SegmentAlgorithmType")) != "MANUAL"]
    if not made:
        return Algorithm("MANUAL", "ctseg")
    return Algorithm("SEMIAUTOMATIC", str(made[0].get("SegmentAlgorithmName") or "ctseg"))


def _answer(series: str) -> dict[str, Any]:
    reference = {"0020000E": {"vr": "UI", "Value": [series]}}
    return {"00081199": {"vr": "SQ", "Value": [reference]}}
