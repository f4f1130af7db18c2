"""The inference task: the same networks as the command line, loaded once and kept (`app_networks`)."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app_networks import Networks
from app_results import wanted_dtype, wanted_extension, write_result
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from ctseg.devices import inference_device
from ctseg.errors import BundleError, DeviceError
from ctseg.organs import measure_organs
from ctseg.quality import summary
from ctseg.registry import BundleInfo, get_bundle, verify_weights

if TYPE_CHECKING:
    from ctseg.prediction import Prediction

logger = logging.getLogger(__name__)


def wanted_device(asked: Any) -> str:
    """Turn what a client sends into a torch device.

    Viewers send "cuda" by default, or the GPU's name as listed in `/info/`, or the whole list; without a GPU
    "cuda" becomes the CPU, and the answer says which device it was.

    Raises:
        DeviceError: a device that is not known or not there.
    """
    first = asked[0] if isinstance(asked, list) and asked else asked
    if not first:
        return inference_device()
    if not isinstance(first, str):
        raise DeviceError(f"the device {first!r} is not known: expected auto, cpu, cuda or cuda:N; choose one of these")
    return inference_device(str(name_to_device(first)))


class SegmentationTask(InferTask):
    """One bundle. It is listed trained or not, and looks for its weights anew at each request."""

    def __init__(self, info: BundleInfo, results: Path, networks: Networks) -> None:
        """Describe the bundle; nothing is loaded yet.

        Args:
            info: the bundle.
            results: folder for the masks that are sent.
            networks: the loaded networks; they know which version to take of the bundle.
        """
        super().__init__(InferType.SEGMENTATION, info.labels, 3, info.description, {})
        self._folder = info.path
        self._results = results
        self._networks = networks
        devices = device_list()
        self._config = {"device": devices if "cpu" in devices else [*devices, "cpu"]}

    def is_valid(self) -> bool:
        """Listed always: a bundle without weights says what to do, and does not vanish."""
        return True

    def info(self) -> dict[str, Any]:
        """Return type, labels (name to value), dimension, description, version, `trained`, `status`, the options."""
        answer: dict[str, Any] = super().info()
        try:
            bundle = self._bundle()
        except BundleError as error:
            return {**answer, "description": str(error), "version": "", "trained": False, "status": "broken"}
        answer.update(version=bundle.version, labels=bundle.labels, trained=bundle.trained, status=bundle.status)
        answer.update(description=bundle.description, modality=bundle.modality, evidence=bundle.evidence)
        if bundle.caution:
            answer.update(caution=bundle.caution, description=f"{bundle.description} Caution: {bundle.caution}.")
        if problem := _why_untrained(bundle) if not bundle.ready else self._networks.problem(bundle):
            answer["description"] = f"{bundle.description} Not usable yet: {problem}"
        return answer

    def get_path(self, validate: bool = True) -> str | None:
        """Return the weights' file; None when it is not there (and `validate` holds) or not named."""
        try:
            weights = self._bundle().weights
        except BundleError:
            return None
        return str(weights) if weights and (weights.is_file() or not validate) else None

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment one image.

        Args:
            request: `image` (a path that the app has checked), `device`, and the result's form (`write_result`).

        Returns:
            The mask's file, and what is said about it.

        Raises:
            CtsegError: one sentence, for everything that the caller can mend.
        """
        begin = time.perf_counter()
        wanted_extension(request), wanted_dtype(request)  # before the work, not after
        device = wanted_device(request.get("device"))
        bundle = self._bundle()
        if not bundle.ready:
            verify_weights(bundle)  # raises the sentence that says what to do
        prediction = self._networks.predict(bundle, Path(request["image"]), device)
        start = time.perf_counter()
        file = write_result(prediction.label_map, prediction.volume, self._results, request)
        end = time.perf_counter()
        answer = described(prediction, write=end - start, total=end - begin)
        logger.info("Segmented with %s on %s: %s", bundle.name, prediction.device, answer["latencies"])
        return str(file), answer

    def _bundle(self) -> BundleInfo:
        return self._networks.in_use(get_bundle(self._folder.name, self._folder.parent))


def _why_untrained(bundle: BundleInfo) -> str:
    try:
        verify_weights(bundle)
    except BundleError as error:
        return str(error)
    return ""


def described(prediction: Prediction, write: float, total: float) -> dict[str, Any]:
    """Return the JSON part of the answer; its keys and `latencies` are those that MONAI Label's viewers know."""
    organs = measure_organs(prediction.label_map, prediction.labels, prediction.volume.source_affine)
    # 3D Slicer names the segments in the order of the values that occur, so an absent label must not be among them.
    present = {organ.name: organ.code for organ in organs if organ.voxels}
    seconds = {stage: round(value, 3) for stage, value in prediction.seconds.items()}
    return {
        "label_names": present or dict(prediction.labels),
        "volumes_ml": {organ.name: round(organ.volume_ml, 3) for organ in organs},
        "cut_by_the_scan": [organ.name for organ in organs if organ.touches_edge],
        "latencies": {
            "pre": round(seconds.get("read", 0.0) + seconds.get("preprocess", 0.0), 3),
            "infer": seconds.get("network", 0.0),
            "invert": 0.0,
            "post": seconds.get("postprocess", 0.0),
            "write": round(write, 3),
            "total": round(total, 3),
            "transform": seconds,
        },
        "device": prediction.device,
        "slices": dataclasses.asdict(prediction.slices) if prediction.slices else None,
        "model": prediction.bundle.name,
        "version": prediction.bundle.version,
        "quality": summary(prediction.quality),
        "notes": list(prediction.volume.notes),
        "centroids": {},
    }
