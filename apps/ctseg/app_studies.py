"""The studies folder: image ids and label tags are names, never paths, so that nobody reads or writes outside."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app_http import private_folder, refused
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")
_SERIES_UID = re.compile(r"[0-9.]{1,64}")


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and bool(_NAME.fullmatch(text))


def checked_tag(tag: Any) -> str:
    """Return a label tag as plain text (`final`, `original`, `version-2`).

    Raises:
        HTTPException: 400 when it is no plain name: it becomes a folder below the studies.
    """
    text = str(getattr(tag, "value", tag))
    if not _is_name(text):
        raise refused(400, f"{text!r} is no label tag: expected a plain name without slashes, such as final")
    return text


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _was_stored(image: str, folder: Path) -> bool:
    # os.path.exists, unlike Path.exists, also answers for a name that is too long or holds a NUL.
    exists = os.path.isabs(image) and os.path.exists(image)  # noqa: PTH110, PTH117
    return exists and _lies_in(Path(image), folder)


def remove_upload(path: str | Path, folder: Path) -> None:
    """Delete a file that a request brought, and nothing else."""
    if _lies_in(Path(path), folder):
        Path(path).unlink(missing_ok=True)


@contextmanager
def _upload_removed_on_refusal(file: str) -> Iterator[None]:
    """MONAI Label deletes an upload after it has answered, but not when the answer is an exception."""
    try:
        yield
    except Exception:
        remove_upload(file, private_folder())
        raise


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
    if not _is_name(image):
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


class StudiesFolder(LocalDatastore):
    """MONAI Label's folder of images, with every id and tag checked before it becomes a path."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an uploaded image into the folder."""
        with _upload_removed_on_refusal(image_filename):
            self._check_extension(image_filename)
            if image_id and not _is_name(image_id):
                raise refused(400, f"{image_id[:200]!r} is no image id: expected a plain name without slashes")
            new_id: str = super().add_image(image_id, image_filename, image_info)
            return new_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take a label for a known image into the folder of its tag."""
        with _upload_removed_on_refusal(label_filename):
            self._check_extension(label_filename)
            if image_id not in self.list_images():
                raise ImageNotFoundException(f"there is no image {image_id[:200]!r} in the studies to save a label for")
            label_id: str = super().save_label(image_id, label_filename, checked_tag(label_tag), label_info)
            return label_id

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of a known image; "" for others and for links that leave the folder."""
        return self._inside(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a known label; "" for others and for links that leave the folder."""
        return self._inside(super().get_label_uri(label_id, label_tag))

    def _inside(self, uri: str) -> str:
        return uri if uri and _lies_in(Path(uri), Path(self._datastore_path)) else ""

    def _check_extension(self, file: str) -> None:
        known = [pattern.removeprefix("*") for pattern in self._extensions]
        if not file.endswith(tuple(known)):
            suffix = Path(file).suffix or "no suffix"
            raise refused(415, f"a file with {suffix} is not taken; expected one of: {', '.join(known)}")
