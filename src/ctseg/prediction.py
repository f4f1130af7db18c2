"""From a study to a label map on its own grid: the one path of the command line and the server.

The transforms, the network and the inferer are those that the bundle's `inference.json` declares, so that
`python -m monai.bundle run` gives the same voxels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.devices import as_device, inference_device
from ctseg.errors import BundleError, CtsegError
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo, verify_weights
from ctseg.volume import Volume


@dataclass(frozen=True)
class Prediction:
    """What a bundle found in a study.

    Attributes:
        volume: the study.
        label_map: uint8, shape of `volume`; the values are label codes, 0 is background.
        labels: label name -> code.
        seconds: stage -> seconds, in order: read, preprocess, network, postprocess.
        device: where the network ran, e.g. "cpu" or "cuda:0".
        bundle: the bundle that ran.
    """

    volume: Volume
    label_map: NDArray[np.uint8]
    labels: dict[str, int]
    seconds: dict[str, float]
    device: str
    bundle: BundleInfo


class Predictor:
    """A bundle with its network loaded once, ready for any number of studies.

    Args:
        bundle: a bundle that is ready: trained, or in need of no weights.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        BundleError: when the bundle is untrained, its weights are not the ones it names or do not fit its network.
        DeviceError: when the device is not there.
    """

    def __init__(self, bundle: BundleInfo, device: str = "auto") -> None:
        from monai.bundle import ConfigParser

        from ctseg.weights import load_weights

        self.bundle = bundle
        self.device = inference_device(device)
        weights = verify_weights(bundle)
        parser = ConfigParser()
        parser.read_config(bundle.path / "configs" / "inference.json")
        self._values: dict[str, Any] = dict(parser.get() or {})
        parser["bundle_root"] = str(bundle.path)
        parser["device"] = self.device
        self._preprocessing = self._part(parser, "preprocessing")
        self._postprocessing = _without_saving(self._part(parser, "postprocessing"))
        self._inferer = self._part(parser, "inferer")
        self._network = self._part(parser, "network").eval()
        if weights is not None:
            load_weights(self._network, weights)
        # One study at a time: two requests must neither mix nor hold two volumes' features at once.
        self._lock = threading.Lock()

    def predict(self, source: str | Path | Volume, progress: Callable[[str], None] | None = None) -> Prediction:
        """Segment one study.

        Args:
            source: a path that `ctseg.reading.read_volume` takes, or a volume read already.
            progress: called with the name of each stage when it begins.

        Raises:
            CtsegError: for input that cannot be used; see `read_volume`.
        """
        volume, item, seconds = self.answer(source, progress)
        return Prediction(
            volume=volume,
            label_map=np.asarray(item["pred"][0].cpu()).astype(np.uint8, copy=False),
            labels=self.bundle.labels,
            seconds=seconds,
            device=self.device,
            bundle=self.bundle,
        )

    def answer(
        self, source: str | Path | Volume, progress: Callable[[str], None] | None = None
    ) -> tuple[Volume, dict[str, Any], dict[str, float]]:
        """Return a study, the item that the bundle's pipeline makes of it (`image`, `pred`), and seconds by stage.

        What `pred` is, is the bundle's: a label map on the source's grid, or a classifier's probabilities.

        Raises:
            CtsegError: as `predict`.
        """
        seconds: dict[str, float] = {}
        with _stage("read", seconds, progress):
            volume = source if isinstance(source, Volume) else read_volume(source, modality=self.bundle.modality)
        with self._lock:
            return volume, self._run(volume, seconds, progress), seconds

    def value(self, name: str) -> Any:
        """Return a plain value of the bundle's `inference.json`, None where it has none of that name."""
        return self._values.get(name)

    def _run(self, volume: Volume, seconds: dict[str, float], progress: Callable[[str], None] | None) -> dict[str, Any]:
        import torch

        try:
            with torch.inference_mode():
                with _stage("preprocess", seconds, progress):
                    item: dict[str, Any] = self._preprocessing({"image": volume})
                    batch = item["image"][None].to(as_device(self.device))
                with _stage("network", seconds, progress):
                    item["pred"] = self._inferer(batch, self._network)[0]
                    del batch
                with _stage("postprocess", seconds, progress):
                    item = self._postprocessing(item)
        except RuntimeError as error:
            # MONAI wraps what a transform raises; the sentence inside is the one for the user.
            if isinstance(error.__cause__, CtsegError):
                raise error.__cause__ from error
            raise
        return item

    def _part(self, parser: Any, name: str) -> Any:
        try:
            return parser.get_parsed_content(name)
        except Exception as error:
            raise BundleError(
                f"{name!r} of bundle {self.bundle.name} cannot be built ({error.__cause__ or error}): its "
                "inference.json must name importable classes and known values; "
                "make it again with scripts/build_bundles."
            ) from error


def _without_saving(steps: Any) -> Any:
    """The steps of a pipeline without the one that writes files: a `Predictor`'s caller decides what is written."""
    from monai.transforms import Compose

    from ctseg.transforms import SaveMaskd, SavePresenced

    return Compose([step for step in steps.transforms if not isinstance(step, (SaveMaskd, SavePresenced))])


@contextmanager
def _stage(name: str, seconds: dict[str, float], progress: Callable[[str], None] | None) -> Iterator[None]:
    if progress is not None:
        progress(name)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
