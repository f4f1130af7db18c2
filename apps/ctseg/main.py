"""The MONAI Label app: it finds the bundles on disk and serves them safely.

Start it with `monailabel start_server --app apps/ctseg --studies FOLDER`; `docs/server.md` has the options. MONAI Label
loads this file by its direct base class `MONAILabelApp` and takes the folder off `sys.path` afterwards, so everything
beside it is imported here at the top.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

from app_choice import choose_bundles, stop_start
from app_dicom import data_folder, open_studies_server
from app_dicom_infer import use_our_dicom_seg
from app_dicom_labels import known_entries
from app_http import harden, private_folder, refused, sentence_for
from app_infer import SegmentationTask
from app_sampling import BatchSegmentation, FirstCase, RandomCase
from app_studies import StudiesFolder, checked_tag, locate_image, remove_upload
from app_train import TrainingTask
from app_train_routes import training_routes
from app_train_run import in_helper_process
from app_viewer import viewer_routes
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.scoring.dice import Dice

from ctseg import __version__
from ctseg.errors import CtsegError
from ctseg.registry import BundleInfo

logger = logging.getLogger(__name__)


class CtsegApp(MONAILabelApp):
    """All bundles that segment, or those that `--conf models a,b` names."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        """Choose the bundles, open the studies and put the safe answers before MONAI Label's own.

        An unknown bundle name ends the process with one sentence: a server with other models than asked for would
        be found out much later.
        """
        conf = conf or {}
        try:
            self._bundles = choose_bundles(conf)
        except CtsegError as error:
            stop_start(str(error))
        self._private = private_folder()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="ctseg",
            description="Organ segmentation with MONAI bundles",
            version=__version__,
        )
        # Stock starts a process that imports everything anew after each sample; scores are computed when asked for.
        self._auto_update_scoring = False
        use_our_dicom_seg(self, known_entries(self._bundles.values()))
        harden(lambda: [*training_routes(self), *viewer_routes(self)])

    def init_datastore(self) -> Datastore:
        """Open the studies: a local folder whose ids cannot leave it, or what MONAI Label makes of an address."""
        if self.studies.startswith(("http://", "https://")):
            if settings.MONAI_LABEL_DATASTORE.lower() in ("xnat", "dsa"):  # other protocols, as MONAI Label speaks them
                return super().init_datastore()
            return open_studies_server(self.studies, str(self.conf.get("data") or ""), list(self._bundles.values()))
        try:
            return StudiesFolder(
                self.studies,
                extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        except OSError as error:
            stop_start(
                f"the studies folder {self.studies} cannot be used: {error.strerror or error}; the server keeps the "
                "labels in it, so name a folder that can be read and written"
            )

    def _download_dcmqi_tools(self) -> None:
        """Say that the converter is missing; the stock server downloads it while it starts."""
        if not shutil.which("itkimage2segimage"):
            logger.warning("itkimage2segimage is not on the PATH: DICOM SEG cannot be written; pip install dcmqi")

    def init_infers(self) -> dict[str, SegmentationTask]:
        """One task for each bundle, trained or not; they share a lock, so that two requests queue."""
        lock = threading.Lock()
        return {name: SegmentationTask(info, self._private, lock) for name, info in self._bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One task for each bundle that can be trained."""
        studies = data_folder(self._datastore)
        trainable = (info for info in self._bundles.values() if (info.path / "configs" / "train.json").is_file())
        return {info.name: TrainingTask(info, studies) for info in trainable}

    def init_strategies(self) -> dict[str, Strategy]:
        """Which case is offered next."""
        return {"random": RandomCase(), "first": FirstCase()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Scores that are computed on demand."""
        return {"dice": Dice()}

    def init_batch_infer(self) -> BatchInferTask:
        """Several cases in one request."""
        return BatchSegmentation()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment one image of the studies, of a session or just uploaded.

        Args:
            request: `model`, `image` (an id of the datastore, or a file that this server itself stored), and
                optionally `device`, `result_extension`, `result_dtype`, `result_compress`, `save_label`, `label_tag`.
                Everything else is ignored, other paths and `model_filename` in particular.
            datastore: where to look; None takes the app's own.

        Returns:
            `file` (the mask, in the private folder; MONAI Label deletes it once sent), `label`, `tag`, `params`.

        Raises:
            HTTPException: 4xx with one sentence for anything the caller can mend.
        """
        task = self._task(request.get("model"))
        store = datastore or self.datastore()
        tag = checked_tag(request.get("label_tag") or DefaultLabelTag.ORIGINAL)
        path, image_id = locate_image(request.get("image"), store, self._upload_folders())
        try:
            file, params = task({**request, "image": str(path)})
        except Exception as error:
            # The background task that deletes an upload never runs after an exception.
            remove_upload(path, self._private)
            if not isinstance(error, CtsegError):
                raise
            raise refused(*sentence_for(error, path, image_id or "the uploaded image")) from error
        label = file
        if image_id and str(request.get("save_label", False)).lower() in ("true", "1", "yes"):
            label = store.save_label(image_id, file, tag, {"model": request["model"], "params": params})
        return {"label": label, "tag": tag, "file": file, "params": params}

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer as `infer` does: the stock code opens any path that it is given as a whole-slide image."""
        return self.infer(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Offer a case by a known strategy."""
        strategy = request.get("strategy") or "random"
        if strategy not in self._strategies:
            known = ", ".join(self._strategies) or "none"
            raise refused(404, f"there is no strategy {strategy!r}; the known ones are: {known}; name one of them")
        sample: dict[str, Any] = super().next_sample({**request, "strategy": strategy})
        return sample

    def checked_training(self, model: str, request: dict[str, Any]) -> dict[str, Any]:
        """Check a request for a training and return what is handed to the training's process.

        Raises:
            HTTPException: 4xx with one sentence; nothing has started.
        """
        task = self.trainer(model)
        try:
            return task.plan(request, self.datastore()).options.as_request(model)
        except CtsegError as error:
            raise refused(*sentence_for(error, Path(self.studies).resolve(), "the studies")) from error

    def train(self, request: dict[str, Any]) -> Any:
        """Train to the end; MONAI Label calls it in the process that it starts for a training.

        Raises:
            SystemExit: with one sentence, in that process; elsewhere HTTPException.
        """
        try:
            return self.trainer(request.get("model"))(request, self.datastore())
        except CtsegError as error:
            if in_helper_process():
                raise SystemExit(f"ctseg: {error}") from error
            raise refused(*sentence_for(error, Path(self.studies).resolve(), "the studies")) from error

    def bundles(self) -> dict[str, BundleInfo]:
        """Return the bundles that are served, by name."""
        return dict(self._bundles)

    def model_labels(self, model: str) -> dict[str, int]:
        """Return a model's labels and their values in its masks. Raises HTTPException: 404 with the known names."""
        labels: dict[str, int] = self._task(model).info()["labels"]
        return labels

    def label_stored(self, image: str, label: str) -> None:
        """Learn that the viewer has stored a label (a DICOM SEG series) of an image (a series)."""
        self.on_save_label(image, label)

    def trainer_names(self) -> list[str]:
        """Return the names of the models that can be trained."""
        return list(self._trainers)

    def trainer(self, model: str | None) -> TrainingTask:
        """Return a model's train task.

        Raises:
            HTTPException: 404 with the known names.
        """
        task: TrainingTask | None = self._trainers.get(model) if isinstance(model, str) else None
        if task is None:
            known = ", ".join(self._trainers) or "none"
            raise refused(404, f"there is no model {model!r} to train; the known ones are: {known}; name one of them")
        return task

    def _task(self, model: Any) -> SegmentationTask:
        task = self._infers.get(model) if isinstance(model, str) else None
        if task is None:
            known = ", ".join(self._infers)
            raise refused(404, f"there is no model {model!r}; the known ones are: {known}; name one of them")
        return task

    def _upload_folders(self) -> list[Path]:
        """Folders outside the studies that hold images which this server itself stored."""
        sessions = self.sessions()
        return [self._private] if sessions is None else [self._private, Path(sessions.store_path)]
