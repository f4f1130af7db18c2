"""The 1-bit frames of DICOM SEG, one by one, as the viewer asks for them.

The bits of all frames are packed without a gap (PS3.5, 8.1.1), so that a frame may begin within a byte. OHIF wants each
frame to begin with a byte, and Orthanc 1.10 answers 400 for a frame whose columns are no multiple of 8: we unpack.
"""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from threading import Lock

import numpy as np
from app_http import refused
from app_viewer_multipart import joined, parts_of
from app_viewer_proxy import StudiesProxy
from fastapi.responses import Response

from ctseg.dicom.segframes import frames_of

_FRAMES = re.compile(
    r"studies/(?P<study>[0-9.]+)/series/(?P<series>[0-9.]+)/instances/(?P<sop>[0-9.]+)/frames/(?P<which>[0-9,]+)"
)
_KEPT = 4  # instances; the viewer asks for all frames of one, then goes on


class SegFrames:
    """Answers requests for frames of 1-bit SEGs; keeps the last few, since they come one frame at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[bytes] | None] = OrderedDict()
        self._lock = Lock()

    def answer(self, pacs: StudiesProxy, path: str) -> Response | None:
        """Return the frames asked for, each beginning with a byte; None when the path means something else."""
        asked = _FRAMES.fullmatch(path)
        if asked is None or pacs.modality(asked["study"], asked["series"]) != "SEG":
            return None
        frames = self._frames(pacs, path.rsplit("/frames/", 1)[0], asked["sop"])
        if frames is None:
            return None
        numbers = [int(number) for number in asked["which"].split(",") if number]
        if not numbers or not all(1 <= number <= len(frames) for number in numbers):
            raise refused(404, f"the label has the frames 1 to {len(frames)}")
        body, kind = joined([frames[number - 1] for number in numbers], "application/octet-stream")
        return Response(body, media_type=kind, headers={"Cache-Control": "no-store"})

    def _frames(self, pacs: StudiesProxy, instance: str, sop: str) -> list[bytes] | None:
        with self._lock:  # held while fetching: the viewer's other fifteen requests want the same instance
            if sop not in self._kept:
                self._kept[sop] = _fetched(pacs, instance)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[sop]


def _fetched(pacs: StudiesProxy, instance: str) -> list[bytes] | None:
    import pydicom

    answer = pacs.get(instance, accept='multipart/related; type="application/dicom"; transfer-syntax=*')
    if answer.status_code == 404:
        raise refused(404, "the label is not on the studies' server any more; open the study again")
    if not answer.ok:
        raise refused(502, f"the studies' server answered {answer.status_code} when asked for a label")
    dataset = pydicom.dcmread(io.BytesIO(parts_of(answer.headers.get("content-type", ""), answer.content)[0]))
    if int(dataset.get("BitsAllocated", 0)) != 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return None
    frames = frames_of(dataset, "the label")
    return [np.packbits(frame.pixels.reshape(-1) > 0, bitorder="little").tobytes() for frame in frames]
