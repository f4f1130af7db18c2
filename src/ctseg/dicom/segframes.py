"""The frames of a DICOM SEG, one by one: their pixels, the segment they belong to, and where they lie.

Understood are bitmaps (one bit a pixel; packed without gaps as PS3.5, 8.2 asks for, or padded to whole bytes for every
frame as OHIF stores them) and label maps (a segment number in each pixel; any compression that pydicom undoes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        pixels: (rows, columns) unsigned integers: segment numbers, 0 is background.
        images: SOPInstanceUIDs of the images that it was drawn on, none or one or more.
        position: LPS mm of the centre of its first pixel, or None where it is not stated.
        orientation: six cosines along a row and along a column, LPS, or None.
        pixel_spacing: mm (between rows, between columns), or None.
    """

    pixels: NDArray[Any]
    images: tuple[str, ...]
    position: Numbers | None
    orientation: Numbers | None
    pixel_spacing: Numbers | None


def frames_of(seg: Dataset, what: str) -> Iterator[Frame]:
    """Give the frames of a SEG in stored order.

    Raises:
        InputError: pixel data that is missing, too short, fractional, or in a form that is not understood.
    """
    groups = list(seg.get("PerFrameFunctionalGroupsSequence") or ())
    shared = (seg.get("SharedFunctionalGroupsSequence") or [None])[0]
    count = int(seg.get("NumberOfFrames") or 1)
    if len(groups) != count:
        raise InputError(f"{what} has {count} frames but describes {len(groups)} of them; store it again")
    planes = _label_planes(seg, what) if _is_label_map(seg) else _bit_planes(seg, what)
    for number, (pixels, group) in enumerate(zip(planes, groups, strict=True), start=1):
        if not _is_label_map(seg):
            pixels = pixels * np.uint16(_segment_number(group, shared, number, what))
        yield Frame(
            pixels=pixels,
            images=_images_of(group),
            position=_numbers(group, shared, "PlanePositionSequence", "ImagePositionPatient", 3),
            orientation=_numbers(group, shared, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
            pixel_spacing=_numbers(group, shared, "PixelMeasuresSequence", "PixelSpacing", 2),
        )


def slice_step(seg: Dataset) -> float | None:
    """Return the distance of its planes in mm as the SEG states it, else its slices' thickness, else None."""
    shared = (seg.get("SharedFunctionalGroupsSequence") or [None])[0]
    first = (seg.get("PerFrameFunctionalGroupsSequence") or [None])[0]
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        stated = _numbers(first, shared, "PixelMeasuresSequence", keyword, 1)
        if stated and stated[0] > 0:
            return stated[0]
    return None


def _is_label_map(seg: Dataset) -> bool:
    return str(seg.get("SegmentationType", "")).upper() == "LABELMAP"


def _label_planes(seg: Dataset, what: str) -> NDArray[Any]:
    try:
        planes = np.asarray(seg.pixel_array)
    except Exception as error:  # pydicom's handlers raise whatever their decoders raise
        raise InputError(f"{what} has pixels that cannot be decoded ({error}); store it uncompressed") from error
    return planes if planes.ndim == 3 else planes[None]


def _bit_planes(seg: Dataset, what: str) -> Iterator[NDArray[np.uint8]]:
    kind = str(seg.get("SegmentationType", "")).upper()
    if kind != "BINARY" or int(seg.get("BitsAllocated", 0)) != 1:
        raise InputError(
            f"{what} keeps its segments as {kind or 'something unnamed'} with {seg.get('BitsAllocated')} bits, but a "
            "BINARY bitmap or a LABELMAP is read; store it as one of these"
        )
    if seg.file_meta.TransferSyntaxUID.is_compressed:
        raise InputError(
            f"{what} is a compressed bitmap ({seg.file_meta.TransferSyntaxUID.name}), which nothing decodes reliably; "
            "store it as bitmap in explicit VR little endian"
        )
    if not seg.file_meta.TransferSyntaxUID.is_little_endian:
        raise InputError(f"{what} is a big endian bitmap; store it in explicit VR little endian")
    size, count = int(seg.Rows) * int(seg.Columns), int(seg.get("NumberOfFrames") or 1)
    data = bytes(seg.get("PixelData") or b"")
    stride = frame_stride(len(data), size, count, _by_ohif(seg), what)
    for number in range(count):
        start = number * stride
        part = np.frombuffer(data[start // 8 : (start + size + 7) // 8], dtype=np.uint8)
        bits = np.unpackbits(part, bitorder="little")[start % 8 : start % 8 + size]
        yield bits.reshape(int(seg.Rows), int(seg.Columns))


def frame_stride(length: int, size: int, count: int, padded_first: bool, what: str) -> int:
    """Return after how many bits the next frame of a bitmap begins: at once, or at the next whole byte.

    Which of the two it is shows in the length, which may be one byte longer to be even. Where both lengths are the same
    (two or three small frames) the standard's form is taken, unless the maker is known for the other.

    Args:
        length: bytes of PixelData.
        size: pixels of a frame.
        count: frames.
        padded_first: take whole bytes where both fit.
        what: the file's name in the sentence.

    Raises:
        InputError: neither fits.
    """
    padded = (size + 7) // 8 * 8
    fitting = [bits for bits in (size, padded) if 0 <= length - (bits * count + 7) // 8 <= (bits * count + 7) // 8 % 2]
    if not fitting:
        raise InputError(
            f"{what} has {length} bytes of pixels, but {count} frames of {size} pixels take {(size * count + 7) // 8}; "
            "it is damaged, store it again"
        )
    return fitting[-1] if padded_first else fitting[0]


def _by_ohif(seg: Dataset) -> bool:
    names = (
        seg.file_meta.get("ImplementationVersionName", ""),
        seg.get("Manufacturer", ""),
        seg.get("SeriesDescription", ""),
    )
    return any("dcmjs" in str(name).lower() or "ohif" in str(name).lower() for name in names)


def _segment_number(group: Dataset, shared: Dataset | None, number: int, what: str) -> int:
    for place in (group, shared):
        for item in (place.get("SegmentIdentificationSequence") if place is not None else None) or ():
            return int(item.ReferencedSegmentNumber)
    raise InputError(f"{what} does not say which segment its frame {number} belongs to; store it again")


def _images_of(group: Dataset) -> tuple[str, ...]:
    return tuple(
        str(image.ReferencedSOPInstanceUID)
        for derivation in group.get("DerivationImageSequence") or ()
        for image in derivation.get("SourceImageSequence") or ()
        if image.get("ReferencedSOPInstanceUID")
    )


def _numbers(group: Dataset | None, shared: Dataset | None, sequence: str, keyword: str, count: int) -> Numbers | None:
    for place in (group, shared):
        for item in (place.get(sequence) if place is not None else None) or ():
            value = item.get(keyword)
            if value is not None and value != "":
                numbers = tuple(float(number) for number in (value if count > 1 else [value]))
                if len(numbers) == count and all(np.isfinite(numbers)):
                    return numbers
    return None
