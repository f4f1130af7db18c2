"""Studies on a DICOMweb server: images fetched and kept as files, labels kept there as DICOM SEG and nowhere else.

MONAI Label's own store keeps lists for two hours, reads back only the slices with a segment and numbers segments by the
order in which they come. Here lists are asked anew, and a label lies on exactly its image's grid, its values given by
SNOMED CT code and name, before anyone gets it.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from app_dicom_folder import kept_in
from app_dicom_labels import FoundLabel, Labels, known_entries
from app_dicom_pacs import Pacs, connect, patient_of
from app_dicom_saving import checked_mask, seg_of
from app_http import private_folder, refused, sentence_for
from app_studies import StudiesFolder, checked_tag, remove_upload
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ctseg.dicom.reading import read_dicom_grid
from ctseg.dicom.seg import read_seg
from ctseg.errors import CtsegError
from ctseg.files import write_beside, written_beside
from ctseg.outputs.writing import write_mask
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo
from ctseg.volume import Volume

logger = logging.getLogger(__name__)

_FINAL = DefaultLabelTag.FINAL.value
_PUT_RIGHT = "from_server"  # labels as files, below the store's folder


def open_studies_server(address: str, data: str, bundles: Sequence[BundleInfo]) -> SeriesOnServer:
    """Open a DICOMweb server as studies.

    Args:
        address: of its DICOMweb services, http or https.
        data: folder for what is fetched and for trainings (`--conf data FOLDER`); "" takes `kept_in`'s default.
        bundles: whose labels are known.
    """
    address = address.strip().rstrip("/")
    folder = kept_in(data, address)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # patients' images
    return SeriesOnServer(Pacs(connect(address)), folder, known_entries(bundles))


def data_folder(store: Datastore) -> Path | None:
    """Return the folder for the trainings of some studies; None where they are neither a folder nor on DICOMweb."""
    if isinstance(store, SeriesOnServer):
        return store.folder
    return Path(store._datastore_path).resolve() if isinstance(store, StudiesFolder) else None


class SeriesOnServer(DICOMWebDatastore):
    """The series of a DICOMweb server; an image id is a SeriesInstanceUID, and a label's id is its image's."""

    def __init__(self, pacs: Pacs, folder: Path, entries: Sequence[dict[str, Any]]) -> None:
        """Open the store; nothing is asked of the server yet.

        Args:
            pacs: the server.
            folder: what is fetched is kept here.
            entries: the known labels, each with a value of its own.
        """
        LocalDatastore.__init__(self, datastore_path=str(folder), auto_reload=False)
        self.folder = folder
        self._pacs, self._entries = pacs, list(entries)
        self._organs = {str(entry["name"]): int(entry["code"]) for entry in entries}
        self._labels = Labels(pacs, entries)
        self._modality = str(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER.get("Modality", "CT"))
        self._told: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._series_locks: dict[str, threading.RLock] = {}

    def name(self) -> str:
        """Return the server's address."""
        return self._pacs.address

    def list_images(self) -> list[str]:
        """Return the series that are on the server now."""
        found = self._pacs.series(**settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
        return sorted({str(entry.SeriesInstanceUID) for entry in found})

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with an accepted label on the server now."""
        labelled = self._labels.newest()
        return [image for image in self.list_images() if image in labelled]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the other images."""
        labelled = self._labels.newest()
        return [image for image in self.list_images() if image not in labelled]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return tag -> label id: what was saved here under other tags, and `final` when the server has a label."""
        own = {tag: name for tag, name in super().get_labels_by_image_id(image_id).items() if tag != _FINAL}
        return {**own, **({_FINAL: image_id} if image_id in self._labels.newest() else {})}

    # Images.

    def get_image_uri(self, image_id: str) -> str:
        """Return the image as NIfTI, made of the series as it is on the server now; "" for an unknown one."""
        with self._locked(image_id):
            folder = self._series_folder(image_id)
            file = folder.with_name(f"{image_id}.nii.gz")
            if not file.is_file():
                try:
                    volume = read_volume(folder, self._modality)
                except CtsegError as error:
                    raise refused(*sentence_for(error, folder, "the series")) from error
                with written_beside(file) as beside:
                    nib.save(nib.Nifti1Image(volume.array, volume.source_affine), beside)
                with self._lock:
                    self._reconcile_datastore()
        return str(file)

    def _locked(self, image_id: str) -> threading.RLock:
        """One download of a series at a time; those of other series do not wait for it."""
        with self._lock:
            return self._series_locks.setdefault(image_id, threading.RLock())

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the patient's id and what strategies noted."""
        info: dict[str, Any] = {"SeriesInstanceUID": image_id, **self._told.get(image_id, {})}
        series = self._pacs.one_series(image_id)
        if series is not None:
            info.update(StudyInstanceUID=str(series.StudyInstanceUID), Modality=str(series.get("Modality", "")))
            study = self._pacs.series(StudyInstanceUID=info["StudyInstanceUID"])
            info["PatientID"] = patient_of(series) or next(filter(None, map(patient_of, study)), "")
        return info

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Note something about an image, as long as this server runs."""
        self._told.setdefault(image_id, {}).update(info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: the images are the server's."""
        remove_upload(image_filename, private_folder())
        raise refused(409, "the studies are on a DICOMweb server; store the series there, it is offered at once")

    def remove_image(self, image_id: str) -> None:
        """Refuse: the images are the server's."""
        raise refused(409, "the studies are on a DICOMweb server; nothing is removed there from here")

    def volume(self, image_id: str) -> Volume:
        """Return where a series lies, without its pixels.

        Raises:
            HTTPException: 404 for an unknown series, 422 for one that is no even stack.
        """
        with self._locked(image_id):
            folder = self._series_folder(image_id)
        try:
            return read_dicom_grid(folder, self._modality)
        except CtsegError as error:
            raise refused(*sentence_for(error, folder, "the series")) from error

    def _series_folder(self, image_id: str) -> Path:
        """Return the folder of a series' files, fetched anew when the server's are others."""
        series = self._pacs.one_series(image_id)
        if series is None:
            raise ImageNotFoundException(f"there is no series {str(image_id)[:64]!r} on the studies' server")
        study, folder = str(series.StudyInstanceUID), self.folder / image_id
        there = self._pacs.instances(study, image_id)
        if sorted(file.stem for file in folder.glob("*.dcm")) != there:
            self._pacs.fetch(study, image_id, folder)
            folder.with_name(f"{image_id}.nii.gz").unlink(missing_ok=True)
        return folder

    # Labels.

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return a label as NIfTI on exactly its image's grid; "" when there is none."""
        if str(getattr(label_tag, "value", label_tag)) != _FINAL:
            return LocalDatastore.get_label_uri(self, label_id, checked_tag(label_tag))
        label = self._labels.newest().get(image_id or label_id)
        return str(self._put_right(label)) if label else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what the label's values mean (`label_info`) and which DICOM SEG it is."""
        if str(getattr(label_tag, "value", label_tag)) != _FINAL:
            return super().get_label_info(label_id, label_tag)
        label = self._labels.newest().get(label_id)
        if label is None:
            return {}
        names = [{"name": name, "idx": self._organs[name]} for name in label.names]
        return {"label_info": names, "SeriesInstanceUID": label.series, "StudyInstanceUID": label.study}

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note something about a label that is kept here; one on the server is not changed."""
        if label_tag == _FINAL:
            raise refused(409, "the label is on the studies' server and is not changed from here; save a new one")
        super().update_label_info(label_id, label_tag, info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is kept here; refuse for one on the server."""
        if str(getattr(label_tag, "value", label_tag)) == _FINAL:
            raise refused(409, "the label is on the studies' server, where nothing is removed from here")
        if label_tag not in super().get_labels_by_image_id(label_id):
            raise LabelNotFoundException(f"there is no label {label_id[:64]!r} with the tag {label_tag!r}")
        super().remove_label(label_id, label_tag)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label: with the tag `final` on the server as DICOM SEG, with any other in the store's folder.

        Raises:
            HTTPException: 4xx when the file is no mask, does not fit its image, or its values have no known names.
        """
        tag, file = checked_tag(label_tag), Path(label_filename)
        kept = private_folder() / f"label-{secrets.token_hex(8)}.nii.gz"
        try:
            volume = self.volume(image_id)
            label_map = checked_mask(file, volume)
            if tag == _FINAL:
                self._pacs.store(seg_of(label_map, volume, label_info or {}, self._entries))
                return image_id
            self.get_image_uri(image_id)
            write_mask(label_map, volume, kept)
            return str(LocalDatastore.save_label(self, image_id, str(kept), tag, label_info))
        except CtsegError as error:
            raise refused(*sentence_for(error, file, "the label")) from error
        finally:
            kept.unlink(missing_ok=True)
            remove_upload(file, private_folder())

    def _put_right(self, label: FoundLabel) -> Path:
        """Return the label's file, made from the SEG when that is another than last time."""
        file = self.folder / _PUT_RIGHT / f"{label.image}.nii.gz"
        seen = file.with_name(f"{label.image}.json")
        with self._locked(label.image):
            # Whatever changes the image's files changes their times, and so the label is placed anew.
            state = json.dumps([label.instance, _state(self._series_folder(label.image)), self._organs])
            if file.is_file() and seen.is_file() and seen.read_text() == state:
                return file
            folder = private_folder() / f"seg-{label.series}"
            try:
                self._pacs.fetch(label.study, label.series, folder)
                volume = self.volume(label.image)
                label_map, _ = read_seg(folder / f"{label.instance}.dcm", volume, self._entries)
                write_mask(label_map, volume, file)
                write_beside(seen, state.encode())
            except CtsegError as error:
                status, sentence = sentence_for(error, folder / f"{label.instance}.dcm", "the label")
                raise refused(status, f"the label of series {label.image} cannot be used: {sentence}") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return file

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return image and label of each labelled case, as files on one grid."""
        cases = []
        for image in self.get_labeled_images():
            cases.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, _FINAL)})
        return cases if full_path else [{key: Path(file).name for key, file in case.items()} for case in cases]

    def status(self) -> dict[str, Any]:
        """Return how many images there are, and how many have a label."""
        images, labelled = self.list_images(), self._labels.newest()
        done = sum(image in labelled for image in images)
        tags = Counter(tag for kept in self._datastore.objects.values() for tag in kept.labels if tag != _FINAL)
        return {"total": len(images), "completed": done, "label_tags": {**tags, **({_FINAL: done} if done else {})}}

    def json(self) -> dict[str, Any]:
        """Return every image with its labels, in the form of MONAI Label's store."""
        labelled, objects = self._labels.newest(), {}
        for image in self.list_images():
            kept = self._datastore.objects.get(image)
            labels = {tag: data.model_dump() for tag, data in kept.labels.items() if tag != _FINAL} if kept else {}
            if image in labelled:
                labels[_FINAL] = {"ext": ".nii.gz", "info": {"SeriesInstanceUID": labelled[image].series}}
            objects[image] = {"image": {"ext": ".nii.gz", "info": self._told.get(image, {})}, "labels": labels}
        return {**self._datastore.model_dump(exclude={"base_path", "objects"}), "objects": objects}


def _state(folder: Path) -> list[str]:
    return sorted(f"{file.name} {file.stat().st_mtime_ns}" for file in folder.glob("*.dcm"))
