"""The studies folder: what is saved fits its image, is never lost, and never lies outside."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app_audit import caller
from app_http import refused, sentence_for
from app_ids import checked_tag, is_name, lies_in, locate_image, remove_upload
from app_index import SafeIndex
from app_private import folder_mode, private_folder
from app_versions import Version, Versions, copy_durably
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.exception import ImageNotFoundException

from ctseg.annotation.annotated import named_values
from ctseg.errors import CtsegError
from ctseg.files import file_sha256
from ctseg.prepare.labelchecks import check_label, grid_of

__all__ = ["LABEL_EXTENSIONS", "StudiesFolder", "checked_tag", "locate_image", "remove_upload"]

logger = logging.getLogger(__name__)

LABEL_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_IMAGE_EXTENSIONS = (*LABEL_EXTENSIONS, ".mha")
_VERSIONS = Path("ctseg") / "versions"


@contextmanager
def _upload_removed_on_refusal(file: str) -> Iterator[None]:
    """MONAI Label deletes an upload after it has answered, but not when the answer is an exception."""
    try:
        yield
    except Exception:
        remove_upload(file, private_folder())
        raise


@contextmanager
def _refused_with(names: Mapping[str, str]) -> Iterator[None]:
    """Turn an error of the library into the refusal of a request; `names` are said for the server's paths."""
    try:
        yield
    except CtsegError as error:
        status, sentence = sentence_for(error, Path("/"), "/")
        for path, name in names.items():
            sentence = sentence.replace(path, name)
        raise refused(status, sentence) from error


class StudiesFolder(SafeIndex):
    """A folder of images, whose ids and tags are checked before they become a path and whose labels are all kept."""

    def __init__(
        self,
        folder: str,
        extensions: list[str],
        follow: bool = True,
        read_only: bool = False,
        organs: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Open a folder; a save that a killed server left half done is finished.

        Args:
            folder: of the images; labels lie in `labels/<tag>/` below it, versions in `ctseg/versions/`.
            extensions: patterns of image names.
            follow: see files that others put there or remove, at once.
            read_only: change nothing at the start.
            organs: makes name -> value of what is served: the values of a label that comes without names.
        """
        self._organs = organs
        self._saved = threading.local()
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._versions = Versions(Path(folder) / _VERSIONS, folder_mode(Path(folder)))
        super().__init__(folder, extensions, follow, read_only)
        if not read_only:
            self._finish_pending()
            labels = Path(self._datastore.label_path(None))
            kept = list((Path(folder) / _VERSIONS).glob("*/*"))
            self.sweep_unfinished([Path(folder), *labels.glob("*"), *kept, Path(folder) / _VERSIONS])

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an uploaded image into the folder; one with the id of another image is refused."""
        with _upload_removed_on_refusal(image_filename):
            file, extension = Path(image_filename), _extension(image_filename, _IMAGE_EXTENSIONS)
            new_id = image_id or file.name[: -len(extension)]
            if not is_name(new_id) or "%" in new_id:  # somebody may decode it once more
                raise refused(400, f"{new_id[:200]!r} is no image id: expected a plain name without slashes")
            with _refused_with({str(file): "the uploaded image"}):
                grid_of(file)
                with self.exclusive():
                    self._add(new_id, file, extension, image_info or {})
            return new_id

    def _add(self, image_id: str, file: Path, extension: str, info: dict[str, Any]) -> None:
        target = Path(self._datastore.image_path()) / f"{image_id}{extension}"
        known = image_id in self._datastore.objects
        if known or target.is_symlink() or target.exists():
            if target.is_file() and lies_in(target, self.folder) and file_sha256(target) == file_sha256(file):
                return
            raise refused(409, f"there is another image {image_id!r} already, which is not replaced; choose another id")
        copy_durably(file, target, self.file_mode)
        about = {**info, "ts": int(time.time()), "name": target.name}
        self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=about, ext=extension))
        self._update_datastore_file()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take a label of a known image: checked, kept as a version, then made the current one.

        Raises:
            HTTPException: 4xx when it does not fit, 507 when it cannot be written; the label before it stays.
        """
        with _upload_removed_on_refusal(label_filename):
            file, extension = Path(label_filename), _extension(label_filename, LABEL_EXTENSIONS)
            tag = checked_tag(label_tag)
            if image_id not in self.list_images():
                raise ImageNotFoundException(f"there is no image {image_id[:200]!r} in the studies to save a label for")
            image = self.get_image_uri(image_id)
            if not image:
                raise refused(404, f"the image {image_id!r} is not in the studies folder itself")
            info = dict(label_info or {})
            of_label = {str(file): f"the label for {image_id}", file.name: f"for {image_id}"}
            with _refused_with({**of_label, image: f"the image {image_id}"}):
                check_label(file, Path(image), self._names(info))
                with self.exclusive():
                    self._saved.version = self._keep(image_id, tag, file, extension, info)
            return image_id

    @property
    def saved_version(self) -> Version | None:
        """The version that this thread saved last."""
        return getattr(self._saved, "version", None)

    @property
    def folder(self) -> Path:
        """The folder of the studies."""
        return Path(self._datastore_path)

    def _names(self, info: Mapping[str, Any]) -> dict[int, str]:
        params = info.get("params")
        told = info.get("label_info") or (params.get("label_names") if isinstance(params, dict) else None)
        organs = self._organs()
        named = named_values(told, organs)
        return {value: name for name, value in organs.items()} if named is None else named

    def _keep(self, case: str, tag: str, file: Path, extension: str, info: dict[str, Any]) -> Version:
        self._finish_pending()
        self._keep_foreign(case, tag)
        about = {**info, "ts": int(time.time()), "name": f"{case}{extension}", "saved_by": caller.get()}
        version = self._versions.keep(tag, case, file, extension, about)
        try:
            with self._versions.being_made_current(version):
                self._make_current(version)
        except BaseException:
            if self._current_sha(case, tag) != version.sha256:  # nothing of it is in use: as if never sent
                self._versions.forget_pending()
                self._versions.drop(version)
            raise
        return version

    def _keep_foreign(self, case: str, tag: str) -> None:
        """Keep a label that was not saved through here (put there by hand, or by another server) before it goes."""
        label = self._datastore.label(case, tag)
        path = self._label_file(case, tag, label.ext) if label else None
        if label is None or path is None or not path.is_file() or not lies_in(path, self.folder):
            return
        sha = file_sha256(path)
        if sha != label.info.get("sha256") and all(version.sha256 != sha for version in self._versions.of(tag, case)):
            self._versions.keep(tag, case, path, label.ext, dict(label.info))

    def _make_current(self, version: Version) -> None:
        case, tag = version.case, version.tag
        target = self._label_file(case, tag, version.extension)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.parent.chmod(self.folder.stat().st_mode & 0o777)
        if not lies_in(target.parent, self.folder):
            raise refused(400, f"the folder of the tag {tag!r} is a link that leaves the studies; nothing is written")
        copy_durably(self._versions.file(version), target, self.file_mode)
        info = {**version.info, "version": version.number, "sha256": version.sha256}
        objects = self._datastore.objects
        if case in objects:
            objects[case].labels[tag] = DataModel(info=info, ext=version.extension)
            self._update_datastore_file()
        for other in LABEL_EXTENSIONS:  # it would come back as the label when this one is removed
            if other != version.extension:
                self._label_file(case, tag, other).unlink(missing_ok=True)

    def _finish_pending(self) -> None:
        with self.exclusive():
            version = self._versions.pending()
            if version is not None:
                logger.warning("Finishing the save of a label for %s that was interrupted", version.case)
                self._make_current(version)
            self._versions.forget_pending()

    def _label_file(self, case: str, tag: str, extension: str) -> Path:
        return Path(self._datastore.label_path(tag)) / f"{case}{extension}"

    def _current_sha(self, case: str, tag: str) -> str:
        for extension in LABEL_EXTENSIONS:
            with suppress(OSError):
                return file_sha256(self._label_file(case, tag, extension))
        return ""

    def _add_non_existing_labels(self, tag: str) -> int:
        """Find labels that the index does not know; one that was saved through here gets its names back."""
        before = {case for case, entry in self._datastore.objects.items() if tag in entry.labels}
        added: int = super()._add_non_existing_labels(tag)
        for case, entry in self._datastore.objects.items():
            newest = self._versions.newest(tag, case) if tag in entry.labels and case not in before else None
            if newest is not None and self._current_sha(case, tag) == newest.sha256:
                entry.labels[tag].info = {**newest.info, "version": newest.number, "sha256": newest.sha256}
        return added

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a case's current label; its versions stay."""
        with self.exclusive():
            super().remove_label(label_id, label_tag)

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its current labels."""
        with self.exclusive():
            if not self.get_image_uri(image_id):
                raise ImageNotFoundException(f"there is no image {str(image_id)[:200]!r} in the studies")
            super().remove_image(image_id)

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of a known image; "" for others and for links that leave the folder."""
        with self._mutex:
            self.look()
            return self._inside(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a known label; "" for others and for links that leave the folder."""
        with self._mutex:
            return self._inside(super().get_label_uri(label_id, label_tag))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return image and label of each case with a final label; none that lies behind a link to elsewhere."""
        with self._mutex:
            self.look()
            pairs: list[dict[str, Any]] = super().datalist(full_path)
        return [pair for pair in pairs if all(lies_in(Path(path), self.folder) for path in pair.values())]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return the path of a zip with the labelled cases."""
        if not self.datalist():
            raise refused(404, "there is no labelled case to download")
        archive: str = super().get_dataset_archive(limit_cases)
        return archive

    def _inside(self, uri: str) -> str:
        return uri if uri and lies_in(Path(uri), self.folder) else ""


def _extension(file: str, known: tuple[str, ...]) -> str:
    found = next((one for one in known if file.lower().endswith(one)), None)
    if found is None:
        suffix = Path(file).suffix or "no suffix"
        raise refused(415, f"a file with {suffix} is not taken; expected one of: {', '.join(known)}")
    return found
