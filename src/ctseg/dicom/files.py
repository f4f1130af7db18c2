"""A look at a DICOM file's bytes before GDCM gets it.

GDCM takes a damaged length for true and allocates it (seen: 6 GB and eight seconds for one wrong byte), and gives up
without a word that tells a truncated CT image from a file that is no image. Both are found here by walking over the
elements (PS3.5, 7.1 and 7.5) without looking into them.
"""

from __future__ import annotations

import struct
from pathlib import Path

_SHORT_VRS = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG_VRS = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS = ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD))
_DEEPEST = 16
_META_START = 132
_SOP_CLASS, _SYNTAX = b"\x02\x00\x02\x00UI", b"\x02\x00\x10\x00UI"
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN, _DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
_CT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2"))


def looks_like_dicom(start: bytes) -> bool:
    """Say by the first 132 bytes whether a file may be DICOM: the mark, or (files without preamble) a first group."""
    return start[128:_META_START] == b"DICM" or start[:2] in (b"\x02\x00", b"\x08\x00")


def may_be_dicom(file: Path) -> bool:
    """Say by its first bytes whether a file may be DICOM; one that cannot be read may not."""
    try:
        with file.open("rb") as stream:
            return looks_like_dicom(stream.read(132))
    except OSError:
        return False


def _meta_uid(data: bytes, tag: bytes) -> str:
    """Return a UID of the file meta information, which is always explicit little endian (PS3.10, 7.1)."""
    at = data.find(tag, 0, 1024)
    if at < 0:
        return ""
    value = at + len(tag) + 2
    return data[value : value + int.from_bytes(data[value - 2 : value], "little")].decode("latin-1").strip(" \0")


def is_ct_image(file: Path) -> bool:
    """Say whether the first bytes call the file a CT image, however damaged the rest may be."""
    with file.open("rb") as stream:
        return _meta_uid(stream.read(1024), _SOP_CLASS) in _CT_IMAGES


def is_whole(file: Path) -> bool:
    """Say whether every element of the file ends inside of it. What cannot be walked over is left to GDCM."""
    data = file.read_bytes()
    syntax = _meta_uid(data, _SYNTAX)
    if data[128:_META_START] != b"DICM" or syntax in ("", _BIG_ENDIAN, _DEFLATED):
        return True
    at = _META_START
    try:
        while at < len(data):
            at = _after(data, at, explicit=syntax != _IMPLICIT or data[at : at + 2] == b"\x02\x00")
    except (struct.error, RecursionError):
        return False
    except ValueError:
        return True
    return at == len(data)


def holds_its_pixels(file: Path, size: int) -> bool:
    """Say whether an uncompressed file is as long as its `size` bytes of pixels; GDCM would fill them up in silence."""
    with file.open("rb") as stream:
        syntax = _meta_uid(stream.read(1024), _SYNTAX)
    return syntax not in (_IMPLICIT, _EXPLICIT, _BIG_ENDIAN) or file.stat().st_size > size


def _after(data: bytes, at: int, explicit: bool, depth: int = 0) -> int:
    """Return where the element at `at` ends.

    Raises:
        struct.error: beyond the end of the data.
        RecursionError: sequences inside of sequences, deeper than any real ones.
        ValueError: an unknown value representation.
    """
    if depth > _DEEPEST:
        raise RecursionError
    group, _ = struct.unpack_from("<HH", data, at)
    kind = data[at + 4 : at + 6]
    if group == 0xFFFE or not explicit:
        (length,), value = struct.unpack_from("<I", data, at + 4), at + 8
    elif kind in _LONG_VRS:
        (length,), value = struct.unpack_from("<I", data, at + 8), at + 12
    elif kind in _SHORT_VRS:
        (length,), value = struct.unpack_from("<H", data, at + 6), at + 8
    else:
        raise ValueError(f"unknown value representation {kind!r}")
    if length != _UNDEFINED:
        if value + length > len(data):
            raise struct.error("beyond the end")
        return value + int(length)
    while struct.unpack_from("<HH", data, value) not in _DELIMITERS:
        # An unknown element of undefined length is a sequence in implicit form (PS3.5, 6.2.2).
        value = _after(data, value, explicit and kind != b"UN", depth + 1)
    return value + 8
