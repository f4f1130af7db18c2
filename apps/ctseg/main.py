"""The MONAI Label app: it finds the bundles on disk and serves them safely.

Start it with `monailabel start_server --app apps/ctseg --studies FOLDER`; `docs/server.md` has the options. MONAI Label
loads this file by its direct base class `MONAILabelApp` and takes the folder off `sys.path` afterwards, so everything
beside it is imported here at the top.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from app_access import listen_safely, live_config, read_access
from app_active import scored_strategies
from app_audit import Audit
from app_choice import choose_bundles, offers, stop_start
from app_classify import ClassificationTask
from app_dicom import data_folder, open_studies_server
from app_dicom_infer import use_our_dicom_seg
from app_dicom_labels import known_entries
from app_http import harden, private_folder, refused, sentence_for, starts_a_server
from app_infer import SegmentationTask
from app_networks import Networks
from app_organs import organ_tasks
from app_predict import predict_routes
from app_proxy import proxy_routes
from app_routes import own_routes
from app_sampling import BatchSegmentation, FirstCase, RandomCase
from app_scores import AllScores, score_routes
from app_scoring import scoring_of
from app_sessions import PrivateSessions, session_routes
from app_studies import StudiesFolder, checked_tag, locate_image, remove_upload
from app_threads import inferring, stock_routes
from app_train import FOLDER, TrainingTask
from app_train_routes import training_routes
from app_train_run import end_with_sentence, in_helper_process
from app_train_versions import version_routes
from app_viewer import viewer_routes
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.scoring.dice import Dice

from ctseg import __version__
from ctseg.annotation.versions import Versions
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
            access = read_access(conf)
            self._scoring = scoring_of(conf)
            if starts_a_server():
                listen_safely(live_config(), sys.argv[1:], access.users)
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
        folder: Path | None = getattr(self._datastore, "folder", None)
        usual = folder / FOLDER / "audit.jsonl" if folder else None
        self._audit = Audit(Path(conf["audit"]) if conf.get("audit") else usual)
        if folder and in_helper_process():  # the server's own files are private, what a training makes is the folder's
            os.umask(0o777 & ~folder.stat().st_mode)
        # Stock starts a process that imports everything anew after each sample; scores are computed when asked for.
        self._auto_update_scoring = False
        if not in_helper_process():
            for task in self._trainers.values():
                task.tidy()
        use_our_dicom_seg(self, known_entries(self._bundles.values()))
        harden(self._routes, access, self._audit)

    def _routes(self) -> list[APIRoute]:
        """Our routes, then MONAI Label's in threads; the first of an address answers."""
        ours = [*training_routes(self), *version_routes(self._versions), *own_routes(self), *viewer_routes(self)]
        ours += [
            *score_routes(self._scores),
            *predict_routes(self, self._networks),
            *session_routes(self),
            *proxy_routes(self.studies),
        ]
        return [*ours, *stock_routes()]

    def info(self) -> dict[str, Any]:
        """Return what is served; within an inference nothing, for it takes as long as a small image."""
        found: dict[str, Any] = {} if inferring.get() else super().info()
        return found

    def _load_sessions(self, load: bool = False) -> PrivateSessions | None:
        """Open the sessions below the private folder, wherever MONAI Label's own would lie."""
        return PrivateSessions(settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def init_datastore(self) -> Datastore:
        """Open the studies: a local folder whose ids cannot leave it, or what MONAI Label makes of an address."""
        if self.studies.startswith(("http://", "https://")):
            if settings.MONAI_LABEL_DATASTORE.lower() in ("xnat", "dsa"):  # other protocols, as MONAI Label speaks them
                return super().init_datastore()
            return open_studies_server(self.studies, str(self.conf.get("data") or ""), list(self._bundles.values()))
        try:
            return StudiesFolder(
                self.studies,
                extensions=[*settings.MONAI_LABEL_DATASTORE_FILE_EXT, "*.mha"],
                follow=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
                organs=lambda: {name: code for info in self._bundles.values() for name, code in info.labels.items()},
            )
        except OSError as error:
            stop_start(
                f"the studies folder {self.studies} cannot be used: {error.strerror or error}; the server keeps the "
                "labels in it, so name a folder that can be read and written"
            )
        except CtsegError as error:
            stop_start(str(error))

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Say which version of the label was saved, and that it is the current one."""
        version = self._datastore.saved_version if isinstance(self._datastore, StudiesFolder) else None
        return {"version": version.number, "tag": version.tag} if version else {}

    def _download_dcmqi_tools(self) -> None:
        """Fetch nothing, as the stock server does while it starts: DICOM SEG is written by `ctseg.dicom.seg`."""

    def init_infers(self) -> dict[str, InferTask]:
        """One task for each bundle, trained or not, and for several together; they share networks and a lock."""
        self._networks = Networks(self._bundles, threading.Lock(), self._in_use)
        self._scores = AllScores(
            self._bundles, self._in_use, self._networks, self.datastore, self._data_folder, self._scoring
        )
        tasks: dict[str, InferTask] = {
            name: (ClassificationTask if info.classifies else SegmentationTask)(info, self._private, self._networks)
            for name, info in self._bundles.items()
        }
        several = organ_tasks(self._bundles, self._networks, self._private)
        return tasks | {name: task for name, task in several.items() if offers(self.conf, name)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One task for each bundle that can be trained."""
        data = self._data_folder()
        trainable = (info for info in self._bundles.values() if (info.path / "configs" / "train.json").is_file())
        return {info.name: TrainingTask(info, data / info.name if data else None) for info in trainable}

    def _data_folder(self) -> Path | None:
        """The folder of the trainings: beside the studies, or where those of a server are kept here."""
        folder = data_folder(self._datastore)
        return folder / FOLDER if folder else None

    def init_strategies(self) -> dict[str, Strategy]:
        """Which case is offered next."""
        return {"random": RandomCase(), "first": FirstCase(), **scored_strategies(self._scores)}

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
            `file` (the mask, in the private folder; MONAI Label deletes it once sent), `label`, `tag`, `params`. A
            classifier's answer is all in `params`: `file` and `label` are None, and nothing is saved as a label.

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
        if file and image_id and str(request.get("save_label", False)).lower() in ("true", "1", "yes"):
            label = store.save_label(image_id, file, tag, {"model": request["model"], "params": params})
            self._audit.record("prediction kept as label", case=image_id, tag=tag, model=request["model"])
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
                end_with_sentence(str(error))
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
        self._audit.record("label saved", case=image, label=label, tag="final")
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

    def _in_use(self, shipped: BundleInfo) -> BundleInfo:
        """A bundle's version in use: one that was trained here, or the shipped one."""
        data = self._data_folder()
        return Versions(data / shipped.name, shipped).current() if data else shipped

    def _versions(self, model: str) -> Versions:
        versions = self.trainer(model).versions()
        if versions is None:
            raise refused(404, f"{model} has no versions here: its studies are on a server, so nothing is trained here")
        return versions

    def _task(self, model: Any) -> InferTask:
        task = self._infers.get(model) if isinstance(model, str) else None
        if task is None:
            known = ", ".join(self._infers)
            raise refused(404, f"there is no model {model!r}; the known ones are: {known}; name one of them")
        return task

    def _upload_folders(self) -> list[Path]:
        """Folders outside the studies that hold images which this server itself stored."""
        sessions = self.sessions()
        return [self._private] if sessions is None else [self._private, Path(sessions.store_path)]
