"""MONAI Label's index of a folder, made safe: one writer at a time, whole files only, and what is on disk is told.

Stock writes `datastore_v2.json` in place (a killed server leaves half of it), takes its lock after it has changed what
it writes (two saves at once lose one), and hears of new files from a watcher that sometimes skips them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app_private import folder_mode
from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from ctseg.files import write_beside

logger = logging.getLogger(__name__)

# A folder's time moves in steps of the clock's tick: one that was changed this recently may be changed again unseen.
_RECENT_NS = 2_000_000_000
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}-.+")  # ctseg.files.written_beside


class SafeIndex(LocalDatastore):  # type: ignore[misc]
    """A folder of images with their labels; its index is shared with other processes through a lock file."""

    def __init__(self, folder: str, extensions: list[str], follow: bool, read_only: bool) -> None:
        """Open a folder.

        Args:
            folder: of the images.
            extensions: patterns of file names, such as "*.nii.gz".
            follow: look for new and removed files whenever something is asked.
            read_only: do not bring the index up to date at the start.
        """
        self._mutex = threading.RLock()
        self._depth = 0
        self._index_state: tuple[int, ...] = ()
        self._folders_state: tuple[int, ...] = ()
        self._follow = False  # not yet: the base class has not named its folders
        super().__init__(folder, extensions=extensions, auto_reload=False, read_only=read_only)
        self._follow = follow

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only one, of all threads and processes, that changes the folder; the index is read anew before."""
        with self._mutex:
            if self._depth:
                yield
                return
            with FileLock(self._lock_file):
                self._depth = 1
                try:
                    self._load()
                    yield
                finally:
                    self._depth = 0

    def _load(self) -> None:
        path = Path(self._datastore_config_path)
        state = _state_of(path)
        if state == self._index_state or not state:
            return
        try:
            self._datastore = LocalDatastoreModel.model_validate_json(path.read_bytes())
        except ValueError as error:
            aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
            logger.error("The index %s is damaged and was put aside as %s: %s", path.name, aside.name, error)
            path.rename(aside)
            return
        self._datastore.base_path = self._datastore_path
        self._index_state = state

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self.exclusive():
            pass

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self.exclusive():
            path = Path(self._datastore_config_path)
            content = self._datastore.model_dump(exclude={"base_path"})
            write_beside(path, json.dumps(content, indent=2, default=str).encode(), mode=self.file_mode)
            self._index_state = _state_of(path)

    @property
    def file_mode(self) -> int:
        """Rights of a file that is kept here: whoever may read the folder may read it."""
        return folder_mode(Path(self._datastore_path))

    def _reconcile_datastore(self) -> None:
        with self.exclusive():
            self._folders_state = self._look_at_folders()
            super()._reconcile_datastore()

    def _look_at_folders(self) -> tuple[int, ...]:
        labels = Path(self._datastore.label_path(None))
        folders = [Path(self._datastore.image_path()), labels]
        folders += sorted(path for path in labels.iterdir() if path.is_dir())
        return tuple(folder.stat().st_mtime_ns for folder in folders)

    def look(self) -> None:
        """Bring the index up to date when a folder, or the index itself, was changed by somebody else."""
        if not self._follow:
            return
        with self._mutex:
            state = self._look_at_folders()
            if state != self._folders_state or time.time_ns() - max(state) < _RECENT_NS:
                self._reconcile_datastore()
            elif _state_of(Path(self._datastore_config_path)) != self._index_state:
                self._init_from_datastore_file()

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """List the files of a folder, without those that are being written."""
        found: dict[str, str] = super()._list_files(path, patterns)
        return {name: file for name, file in found.items() if not name.startswith(".")}

    def sweep_unfinished(self, folders: list[Path]) -> None:
        """Remove what a killed process left half written; nobody else writes there while the lock is held."""
        with self.exclusive():
            for folder in folders:
                for path in folder.iterdir() if folder.is_dir() else ():
                    if _UNFINISHED.fullmatch(path.name) and path.is_file():
                        path.unlink(missing_ok=True)

    # What is asked: never while another thread is changing it, and never an old answer.

    def list_images(self) -> list[str]:
        """Return the ids of all images."""
        with self._mutex:
            self.look()
            return list(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images with a final label."""
        with self._mutex:
            self.look()
            return list(super().get_labeled_images(label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images without a final label."""
        with self._mutex:
            self.look()
            return list(super().get_unlabeled_images(label_tag, labels))

    def status(self) -> dict[str, Any]:
        """Return how many images and labels there are."""
        with self._mutex:
            self.look()
            return dict(super().status())

    def json(self) -> Any:
        """Return the index."""
        with self._mutex:
            self.look()
            return super().json()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image."""
        with self.exclusive():
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label."""
        with self.exclusive():
            super().update_label_info(label_id, label_tag, info)


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
