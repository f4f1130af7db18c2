"""The DICOM SEGs on the studies' server: which image each belongs to, and which of them a human has accepted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app_dicom_pacs import Pacs
from fastapi import HTTPException
from pydicom.dataset import Dataset

from ctseg.dicom.segcodes import Segment, value_of
from ctseg.errors import InputError
from ctseg.registry import BundleInfo

logger = logging.getLogger(__name__)

# MONAI Label's own server writes AUTOMATIC for whatever an annotator saves, under this name.
_STOCK_NAME = "MONAILABEL"


@dataclass(frozen=True)
class FoundLabel:
    """A DICOM SEG.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID of the SEG.
        instance: SOPInstanceUID of the SEG.
        image: SeriesInstanceUID of the image that it was drawn on.
        when: ContentDate and ContentTime; a later one is newer.
        names: the known labels that it describes, found or not.
        accepted: a human has drawn, corrected or saved it; False for what a model put there by itself.
    """

    study: str
    series: str
    instance: str
    image: str
    when: tuple[str, str, str]
    names: tuple[str, ...]
    accepted: bool


def known_entries(bundles: Iterable[BundleInfo]) -> list[dict[str, Any]]:
    """Return each label of all bundles once, by name, each with a value of its own: the first bundle's where free."""
    entries: dict[str, dict[str, Any]] = {}
    taken: set[int] = set()
    for entry in (entry for bundle in bundles for entry in bundle.label_entries):
        if entry["name"] not in entries:
            free = next(value for value in (int(entry["code"]), *range(1, 256)) if value not in taken)
            entries[entry["name"]] = {**entry, "code": free}
            taken.add(free)
    return list(entries.values())


class Labels:
    """The SEGs of the server. What one says of itself is read once; which there are is asked each time."""

    def __init__(self, pacs: Pacs, entries: Sequence[dict[str, Any]]) -> None:
        self._pacs, self._entries = pacs, list(entries)
        self._read: dict[tuple[str, str], list[FoundLabel]] = {}

    def newest(self) -> dict[str, FoundLabel]:
        """Return image -> its newest accepted label that names at least one known organ and no unknown one."""
        newest: dict[str, FoundLabel] = {}
        for series in self._pacs.series(Modality="SEG"):
            for label in self._labels_of(series):
                if label.accepted and (label.image not in newest or newest[label.image].when < label.when):
                    newest[label.image] = label
        return newest

    def _labels_of(self, series: Dataset) -> list[FoundLabel]:
        study, uid = str(series.StudyInstanceUID), str(series.SeriesInstanceUID)
        # A series may get a second instance; servers that do not count them are asked each time.
        key = (uid, str(series.get("NumberOfSeriesRelatedInstances", "")))
        if key not in self._read:
            try:
                headers = self._pacs.metadata(study, uid)
            except (HTTPException, ValueError, KeyError, AttributeError, TypeError) as error:
                logger.warning("Label passed over: the header of SEG series %s is not readable (%s)", uid, error)
                return []
            found = [self._found(study, uid, header) for header in headers]
            self._read[key] = [label for label in found if label is not None]
        return self._read[key]

    def _found(self, study: str, series: str, header: Dataset) -> FoundLabel | None:
        images = {str(item.get("SeriesInstanceUID", "")) for item in header.get("ReferencedSeriesSequence") or ()}
        if len(images) != 1:
            logger.warning("Label passed over: SEG series %s references %d series, expected one", series, len(images))
            return None
        segments = list(header.get("SegmentSequence") or ())
        names = {int(entry["code"]): str(entry["name"]) for entry in self._entries}
        used, described = _used(header), []
        for item in segments:
            try:
                described.append(names[value_of(Segment.of(item), self._entries, "it")])
            except (InputError, AttributeError, ValueError) as error:
                # Viewers leave empty segments behind; an unknown one matters where it has a voxel.
                if not used or int(item.get("SegmentNumber", 0)) in used:
                    logger.warning("Label passed over: SEG series %s: %s", series, error)
                    return None
        if not described:
            return None
        when = (str(header.get("ContentDate", "")), str(header.get("ContentTime", "")), series)
        return FoundLabel(
            study=study,
            series=series,
            instance=str(header.SOPInstanceUID),
            image=images.pop(),
            when=when,
            names=tuple(dict.fromkeys(described)),
            accepted=any(_by_a_human(item) for item in segments),
        )


def _used(header: Dataset) -> set[int]:
    """Numbers of the segments that have a frame; empty for a label map, whose frames do not say."""
    return {
        int(item.get("ReferencedSegmentNumber", 0))
        for group in header.get("PerFrameFunctionalGroupsSequence") or ()
        for item in group.get("SegmentIdentificationSequence") or ()
    }


def _by_a_human(segment: Dataset) -> bool:
    automatic = str(segment.get("SegmentAlgorithmType", "")) == "AUTOMATIC"
    return not automatic or str(segment.get("SegmentAlgorithmName", "")) == _STOCK_NAME
