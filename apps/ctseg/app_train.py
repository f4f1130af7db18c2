"""Training from the viewer: on the labels saved in the studies, never over the weights in use, never done for nothing.

MONAI Label's own task overwrites the shipped weights, ends "done" with nothing saved when no case validates, trains on
the CPU without a word and splits anew each time; none of that may happen to a user's model. Everything goes to
`STUDIES/ctseg/<bundle>/`: the datalist, the split ledger and the runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app_train_options import has_gpu, read_options, shown_options
from app_train_progress import read_stats
from app_train_run import Plan, end_with_the_server, in_helper_process, run_plan
from app_train_versions import told
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from ctseg.annotation.annotated import AnnotatedStudy, check_label_values, named_values, prepare_training_data
from ctseg.annotation.versions import Versions
from ctseg.errors import BundleError, ConfigError, CtsegError, InputError
from ctseg.registry import BundleInfo, get_bundle, verify_weights

logger = logging.getLogger(__name__)

FOLDER = "ctseg"  # below the studies; MONAI Label looks for images beside it and not in it


class TrainingTask(TrainTask):
    """One bundle's training."""

    def __init__(self, info: BundleInfo, data: Path | None) -> None:
        """Describe the bundle; nothing is read or written yet.

        Args:
            info: a bundle with a train.json.
            data: folder of this bundle's trainings; None when the studies are on a server.
        """
        super().__init__(
            f"Trains {info.name} on the labels saved in the studies; the new network is put beside them and taken "
            "into use when it is not worse than the one before on the validation cases"
        )
        self._path = info.path
        self._data = data

    def info(self) -> dict[str, Any]:
        """Return the description, the options with their defaults, and the bundle's version."""
        try:
            version = self._bundle().version
        except BundleError as error:
            return {"description": str(error), "config": {}, "version": ""}
        versions = self.versions()
        return {**super().info(), "version": version, "gpu": has_gpu(), **({} if versions is None else told(versions))}

    def config(self) -> dict[str, Any]:
        """Return the options that a viewer shows."""
        return shown_options(self._bundle())

    def stats(self) -> dict[str, Any]:
        """Return the progress of the running training, else what the last one came to."""
        return read_stats(self._data) if self._data else {}

    def plan(self, request: dict[str, Any], store: Datastore) -> Plan:
        """Check everything that can be checked before a training starts, and write its datalist and ledger.

        Args:
            request: see `read_options`; unknown keys are ignored.
            store: the studies.

        Raises:
            CtsegError: one sentence; nothing has started.
        """
        if self._data is None:
            raise ConfigError(
                "training from the viewer needs a folder of studies or a DICOMweb server, and these are on another "
                "kind of server; train on the command line (docs/training.md)"
            )
        bundle = self._bundle()
        options = read_options(request, bundle)
        versions = Versions(self._data, bundle)
        given = versions.current() if options.start == "current" or not bundle.weights else bundle
        start = verify_weights(given) if options.pretrained and given.weights else None
        studies = list(_annotated(store, options.label_tag, bundle.labels))
        data = prepare_training_data(studies, bundle.labels, self._data)
        return Plan(bundle, data, options, start, versions)

    def versions(self) -> Versions | None:
        """Return the bundle's networks; None when the studies are on a server and none can be made here."""
        return Versions(self._data, self._bundle()) if self._data else None

    def tidy(self) -> None:
        """Remove what killed trainings left half written."""
        try:
            versions = self.versions()
            if versions is not None:
                versions.tidy()
        except CtsegError as error:  # a broken bundle, or studies that cannot be written: said when it matters
            logger.warning("Nothing is tidied: %s", error)

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train to the end.

        Args:
            request: as for `plan`; `server` is the process with which this one ends.
            datastore: the studies.

        Returns:
            The statistics, with the folder of the new bundle.

        Raises:
            CtsegError: one sentence.
        """
        if in_helper_process():
            end_with_the_server(request.get("server"))
        plan = self.plan(request, datastore)
        studies = _annotated(datastore, plan.options.label_tag, plan.bundle.labels)
        check_label_values(plan.data.folder, studies, plan.bundle.labels)
        logger.info("Training %s on %s with %s", plan.bundle.name, plan.data.cases, plan.options)
        return run_plan(plan)

    def _bundle(self) -> BundleInfo:
        return get_bundle(self._path.name, self._path.parent)


def _annotated(store: Datastore, tag: str, organs: dict[str, int]) -> Iterator[AnnotatedStudy]:
    """Find the studies that have a label with this tag; one behind a link that leaves them is passed over."""
    for case in sorted(store.list_images()):
        if tag not in store.get_labels_by_image_id(case):
            continue
        image, label = store.get_image_uri(case), store.get_label_uri(case, tag)
        if not image or not label:
            continue
        told, about = store.get_label_info(case, tag) or {}, store.get_image_info(case)
        params = told.get("params")  # of an inference whose result was saved
        names = told.get("label_info") or (params.get("label_names") if isinstance(params, dict) else None)
        try:
            values = named_values(names, organs)
        except InputError as error:
            raise InputError(f"{case}: {error}") from error
        patient = about.get("PatientID") or about.get("patient")
        yield AnnotatedStudy(case, Path(image), Path(label), values, str(patient) if patient else None)
