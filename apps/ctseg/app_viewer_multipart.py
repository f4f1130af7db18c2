"""`multipart/related`, the envelope in which DICOMweb sends instances and frames (PS3.18, 8.6.1.2)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from email.message import Message

from app_http import refused

_MARK = "ctseg-part"  # and a random number, since a mark must not occur inside a part


def parts_of(kind: str, body: bytes) -> list[bytes]:
    """Return the contents of the parts, without their headers.

    Args:
        kind: the Content-Type header, which names the boundary.
        body: the message.

    Raises:
        HTTPException: 400 when it is no such message.
    """
    header = Message()
    header["Content-Type"] = kind
    boundary = header.get_boundary()
    if header.get_content_maintype() != "multipart" or not boundary:
        raise refused(400, "expected multipart/related with a boundary, as DICOMweb sends instances")
    found = []
    # A boundary stands at the start of a line; the first has no line before it.
    for piece in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]:
        if piece.startswith(b"--"):
            return found
        headers_end = piece.find(b"\r\n\r\n")
        if headers_end < 0:
            raise refused(400, "a part of the message has no end to its headers; was it cut?")
        found.append(piece[headers_end + 4 :])
    raise refused(400, "the message has no end; was it cut on the way?")


def joined(contents: Sequence[bytes], kind: str) -> tuple[bytes, str]:
    """Return a message of parts of one media type, and its Content-Type header."""
    mark = f"{_MARK}-{secrets.token_hex(16)}"
    head = f"\r\n--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode()
    body = b"".join(head + content for content in contents) + f"\r\n--{mark}--\r\n".encode()
    return body, f'multipart/related; type="{kind}"; boundary={mark}'
