"""Image ids and label tags are names, never paths, so that nobody reads or writes outside the studies."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app_http import refused
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}")
_SERIES_UID = re.compile(r"[0-9.]{1,64}")


def is_name(text: Any) -> bool:
    """Whether a text can be an image id or a tag: no slash, no leading dot, no control character, at most 200."""
    return isinstance(text, str) and bool(_NAME.fullmatch(text))


def checked_tag(tag: Any) -> str:
    """Return a label tag as plain text (`final`, `original`, `version-2`).

    Raises:
        HTTPException: 400 when it is no plain name: it becomes a folder below the studies.
    """
    text = str(getattr(tag, "value", tag))
    if not is_name(text) or "%" in text:
        raise refused(400, f"{text[:200]!r} is no label tag: expected a plain name without slashes, such as final")
    return text


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, all links followed, lies in a folder."""
    return path.resolve().is_relative_to(folder.resolve())


def _was_stored(image: str, folder: Path) -> bool:
    # os.path.exists, unlike Path.exists, also answers for a name that is too long or holds a NUL.
    exists = os.path.isabs(image) and os.path.exists(image)  # noqa: PTH110, PTH117
    return exists and lies_in(Path(image), folder)


def remove_upload(path: str | Path, folder: Path) -> None:
    """Delete a file that a request brought, and nothing else."""
    if lies_in(Path(path), folder):
        Path(path).unlink(missing_ok=True)


def locate_image(image: Any, store: Datastore, uploads: Sequence[Path]) -> tuple[Path, str | None]:
    """Find the file or folder that a request means.

    Args:
        image: an image id of the datastore, or the absolute path of something that this server stored itself.
        store: the studies.
        uploads: the folders in which this server stores what it is sent.

    Returns:
        The path, and the image id (None for an upload, which belongs to no case).

    Raises:
        HTTPException: 404, for anything else: unknown ids, other paths, and links that leave the studies folder.
    """
    if isinstance(image, str) and any(_was_stored(image, folder) for folder in uploads):
        return Path(image).resolve(), None
    if not is_name(image):
        raise refused(
            404, f"{str(image)[:200]!r} names no image: expected the id of an image in the studies, or an upload"
        )
    path_text = _uri_of(image, store)
    if not path_text or not Path(path_text).exists():
        raise refused(404, f"there is no image {image!r} in the studies; /datastore/?output=all lists those that are")
    return Path(path_text), image


def _uri_of(image: str, store: Datastore) -> str:
    if isinstance(store, DICOMWebDatastore) and not _SERIES_UID.fullmatch(image):
        return ""  # it joins the id to its cache folder unchecked
    try:
        return str(store.get_image_uri(image))
    except (LookupError, OSError, ValueError) as error:
        logger.warning("An image could not be fetched: %s", error)
        raise refused(
            404, f"the image {image!r} could not be fetched from the studies' server; is it there?"
        ) from error
