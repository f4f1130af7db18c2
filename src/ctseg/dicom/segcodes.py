"""What a segment of a DICOM SEG is called: codes, names, colours, who drew it; and which label it stands for.

Segments are told apart by their SNOMED CT code and their name together, never by their order or number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctseg.errors import InputError, OutputError

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

# PS3.16, CID 7150: the category of every label that names no other one.
_ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")
# PS3.16, CID 7162: the families of algorithms; a threshold is nearest to the analysis of a histogram.
_LEARNED, _RULE = ("123110", "DCM", "Artificial Intelligence"), ("123105", "DCM", "Histogram Analysis")
# Codes that viewers write where nobody chose one; they say nothing about which organ it is.
_SAYS_NOTHING = frozenset(
    # the last is SNOMED RT's "Tissue", which OHIF writes
    {"85756007", "123037004", "91723000", "113343008", "91720002", "49755003", "260787004", "T-D0050"}
)
_LONGEST_TEXT = 64  # characters of a LO (PS3.5, 6.2)


@dataclass(frozen=True)
class Algorithm:
    """Who drew the segments (PS3.3, C.8.20.4).

    Attributes:
        type: "AUTOMATIC" for a model alone, "SEMIAUTOMATIC" for a corrected result, "MANUAL" for a hand.
        name: the model's name; not written for MANUAL.
        version: the model's version; not written for MANUAL.
        learned: whether the model is a trained network, and not a rule such as a threshold.
    """

    type: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "AUTOMATIC"
    name: str = "ctseg"
    version: str = ""
    learned: bool = True


def code_of(entry: Mapping[str, Any]) -> Code | None:
    """Return the SNOMED CT code of a label entry of a task; None where it has none."""
    from pydicom.sr.coding import Code

    snomed = entry.get("snomed") or {}
    if not snomed.get("value"):
        return None
    return Code(str(snomed["value"]), "SCT", str(snomed.get("meaning") or entry["name"])[:_LONGEST_TEXT])


def describe(labels: Sequence[Mapping[str, Any]], algorithm: Algorithm) -> list[SegmentDescription]:
    """Return one segment description for each label, numbered 1, 2, ... in the given order.

    Args:
        labels: entries of a task: `name`, `code`, and optionally `color` [r, g, b] and `snomed` {value, meaning,
            category: {value, meaning}}; without `snomed` the type is "Anatomical Structure" and the name must do.
        algorithm: who drew them.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.coding import Code

    identification = None
    if algorithm.type != "MANUAL":
        identification = AlgorithmIdentificationSequence(
            name=algorithm.name[:_LONGEST_TEXT],
            family=Code(*(_LEARNED if algorithm.learned else _RULE)),
            version=(algorithm.version or "unknown")[:_LONGEST_TEXT],
        )
    descriptions = []
    for number, entry in enumerate(labels, start=1):
        snomed = entry.get("snomed") or {}
        category = snomed.get("category") or dict(zip(("value", "meaning"), _ANATOMICAL_STRUCTURE, strict=True))
        description = SegmentDescription(
            segment_number=number,
            segment_label=str(entry["name"])[:_LONGEST_TEXT],
            segmented_property_category=Code(str(category["value"]), "SCT", str(category["meaning"])),
            segmented_property_type=code_of(entry) or Code(_ANATOMICAL_STRUCTURE[0], "SCT", _ANATOMICAL_STRUCTURE[1]),
            algorithm_type=algorithm.type,
            algorithm_identification=identification,
        )
        if entry.get("color"):
            description.RecommendedDisplayCIELabValue = cielab(entry["color"])
        descriptions.append(description)
    return descriptions


def cielab(color: Sequence[int]) -> list[int]:
    """Return an sRGB colour (0..255 each) as DICOM's CIELab, three unsigned 16-bit numbers (PS3.3, C.10.7.1.1).

    The white point is D65, as dcmqi and OHIF take it when they turn the value back; with the D50 of the standard's
    profile connection space the viewers would show a bluer colour than the task's.
    """
    from skimage.color import rgb2lab

    lightness, a, b = rgb2lab(np.asarray(color, dtype=np.float64)[None, None, :] / 255.0)[0, 0]
    scaled = (lightness * 65535 / 100, (a + 128) * 65535 / 255, (b + 128) * 65535 / 255)
    return [int(np.clip(np.rint(value), 0, 65535)) for value in scaled]


def checked_labels(labels: Sequence[Mapping[str, Any]], error: type[InputError] | type[OutputError]) -> dict[str, int]:
    """Return name -> value, after checking that both are there once.

    Raises:
        InputError or OutputError, as `error` says: no label, a name or value that comes twice, a value not in 1..255.
    """
    values = {str(entry["name"]): int(entry["code"]) for entry in labels}
    if not values or len(values) != len(labels) or len(set(values.values())) != len(values):
        raise error(
            f"the labels {[entry['name'] for entry in labels]} are no list of distinct names and values; "
            "give each label one name and one value"
        )
    if not all(1 <= value <= 255 for value in values.values()):
        raise error(f"the labels' values {sorted(values.values())} are not within 1 to 255; number them so")
    return values


@dataclass(frozen=True)
class Segment:
    """One segment as a DICOM SEG describes it."""

    number: int
    name: str
    type: Code | None

    @classmethod
    def of(cls, item: Dataset) -> Segment:
        """Read an item of SegmentSequence."""
        from pydicom.sr.coding import Code

        kind = None
        for concept in item.get("SegmentedPropertyTypeCodeSequence") or ():
            value = concept.get("CodeValue") or concept.get("LongCodeValue")
            scheme = str(concept.get("CodingSchemeDesignator", ""))
            # What Slicer called "99" or SNM3 for SNOMED RT stands for SRT, which pydicom turns into SCT by its table.
            scheme = {"SNM3": "SRT", "99SDM": "SRT"}.get(scheme, scheme)
            if value:
                kind = Code(str(value), scheme, str(concept.get("CodeMeaning", "")))
        return cls(int(item.SegmentNumber), str(item.get("SegmentLabel", "")).strip(), kind)

    def __str__(self) -> str:
        shown = f"{self.name!r}"
        return f"{shown} ({self.type.meaning}, {self.type.scheme_designator} {self.type.value})" if self.type else shown


def value_of(segment: Segment, labels: Sequence[Mapping[str, Any]], what: str) -> int:
    """Return the value of the label that a segment stands for.

    A code that one label has decides, unless the name is another label's; a code that several labels share, or that
    says nothing (Tissue), leaves it to the name. A code of something else is believed, not the name beside it.

    Raises:
        InputError: no label fits, or code and name say different things.
    """
    by_name = [entry for entry in labels if _same_text(segment.name, str(entry["name"]))]
    by_code = [entry for entry in labels if _same_code(code_of(entry), segment.type)]
    both = [entry for entry in by_code if entry in by_name]
    if both:
        return int(both[0]["code"])
    if by_code and by_name:
        raise InputError(
            f"{what} has a segment {segment} whose code says {by_code[0]['name']} and whose name says "
            f"{by_name[0]['name']}; correct one of the two"
        )
    if len(by_code) == 1:
        return int(by_code[0]["code"])
    if by_name and (segment.type is None or _leaves_it_to_the_name(segment)):
        return int(by_name[0]["code"])
    known = ", ".join(
        f"{entry['name']} ({code.value})" if (code := code_of(entry)) else entry["name"] for entry in labels
    )
    raise InputError(
        f"{what} has a segment {segment} that is none of the known labels: {known} (SNOMED CT); "
        "rename it or give it the code of one of these"
    )


def _same_code(one: Code | None, other: Code | None) -> bool:
    try:
        return one is not None and other is not None and one == other
    except KeyError:  # a code of SNOMED RT that has no successor in pydicom's table
        return False


def _leaves_it_to_the_name(segment: Segment) -> bool:
    if segment.type is None:
        return True
    # MONAI Label writes one and the same code for everything, with the true name as its meaning.
    return segment.type.value in _SAYS_NOTHING or _same_text(segment.type.meaning, segment.name)


def _same_text(one: str, other: str) -> bool:
    return " ".join(one.replace("_", " ").split()).casefold() == " ".join(other.replace("_", " ").split()).casefold()
