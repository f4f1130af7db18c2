"""From a study to a label map on its own grid: the one path of the command line and the server.

The transforms, the network and the inferer are those that the bundle's `inference.json` declares, so that
`python -m monai.bundle run` gives the same voxels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ctseg.dependencies import Find, check_dependencies, sibling
from ctseg.devices import as_device, inference_device
from ctseg.errors import BundleError
from ctseg.items import volume_of
from ctseg.quality import Quality, calibrations_of, estimate
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo, verify_weights
from ctseg.stages import sentences, stage, tell_apart
from ctseg.volume import Volume

if TYPE_CHECKING:
    import torch
    from torch import nn

Seen = TypeVar("Seen")


class StudyLike(Protocol):
    """What a `Predictor` asks of a `ctseg.study.Study`."""

    @property
    def volume(self) -> Volume:
        """The image."""


@dataclass(frozen=True)
class SlicesRun:
    """How many slices a network was run on.

    Attributes:
        run: slices that were run.
        of: slices of its grid (that of the network's spacing, not the source's).
        gate: the classifier bundle that chose them; None where none did.
    """

    run: int
    of: int
    gate: str | None = None


@dataclass(frozen=True)
class Part:
    """A bundle that ran for a mask of several organs, and how many slices it was run on."""

    bundle: BundleInfo
    slices: SlicesRun | None = None


@dataclass(frozen=True)
class Prediction:
    """What a bundle found in a study.

    Attributes:
        volume: the study.
        label_map: uint8, shape of `volume`; the values are label codes, 0 is background.
        labels: label name -> code.
        seconds: stage -> seconds, in order: read, the names of other bundles that were waited for, preprocess,
            network, postprocess.
        device: where the network ran, e.g. "cpu" or "cuda:0".
        bundle: the bundle that ran; of several organs' merged mask, what its labels are.
        slices: how many slices were run; None for a network that does not go slice by slice, and for a merged mask.
        parts: the bundles that ran for a merged mask, else empty.
        quality: what is to be thought of the mask of each organ that was found (`ctseg.quality`).
        runtime: what ran the network: "torch", "onnx" or "openvino" (`ctseg.export.runtimes`).
    """

    volume: Volume
    label_map: NDArray[np.uint8]
    labels: dict[str, int]
    seconds: dict[str, float]
    device: str
    bundle: BundleInfo
    slices: SlicesRun | None = None
    parts: tuple[Part, ...] = ()
    quality: dict[str, Quality] = field(default_factory=dict)
    runtime: str = "torch"


class Predictor:
    """A bundle with its network loaded once, ready for any number of studies.

    Args:
        bundle: a bundle that is ready: trained, or in need of no weights, and so are those that it needs.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        overrides: values in place of those in the bundle's `inference.json`, e.g. `{"gate": None}`.
        runtime: "torch", "onnx", "openvino" or "auto" (`ctseg.export.runtimes`).
        find: how the bundles that it needs are looked up.

    Raises:
        BundleError: when the bundle or one that it needs is untrained, its weights are not the ones it names or do not
            fit its network, or it was not exported for the runtime.
        DeviceError: when the device is not there.
    """

    def __init__(
        self,
        bundle: BundleInfo,
        device: str = "auto",
        overrides: Mapping[str, Any] | None = None,
        runtime: str = "torch",
        find: Find = sibling,
    ) -> None:
        from monai.bundle import ConfigParser

        from ctseg.export.runtimes import chosen_runtime, runtime_network
        from ctseg.ondevice import prepare_there
        from ctseg.weights import load_weights

        self.bundle = bundle
        self.device = inference_device(device)
        weights = verify_weights(bundle)
        check_dependencies(bundle, find)
        parser = ConfigParser()
        parser.read_config(bundle.path / "configs" / "inference.json")
        self._values: dict[str, Any] = dict(parser.get() or {})
        parser["bundle_root"] = str(bundle.path)
        parser["device"] = self.device
        for name, value in (overrides or {}).items():
            parser[name] = value
        self._gate: str | None = self._part(parser, "gate") if "gate" in parser else None
        self._preprocessing = self._part(parser, "preprocessing")
        prepare_there(self._preprocessing, self.device)
        self._postprocessing = _without_saving(self._part(parser, "postprocessing"))
        self._inferer = self._part(parser, "inferer")
        self.runtime = chosen_runtime(bundle, runtime, self.device)
        if self.runtime == "torch":
            self._network = self._part(parser, "network").eval()
            if weights is not None:
                load_weights(self._network, weights)
        else:
            self._network = runtime_network(bundle, self.runtime)
        self._calibrations = calibrations_of(bundle.quality, bundle.name)
        # One study at a time: two requests must neither mix nor hold two volumes' features at once.
        self._lock = threading.Lock()

    def predict(
        self, source: str | Path | Volume | StudyLike, progress: Callable[[str], None] | None = None
    ) -> Prediction:
        """Segment one study.

        Args:
            source: a path that `ctseg.reading.read_volume` takes, a volume read already, or a `ctseg.study.Study`,
                whose results of other bundles are then used and not computed again.
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
            slices=self._slices_run(item),
            quality=item.get("quality", {}),
            runtime=self.runtime,
        )

    def answer(
        self, source: str | Path | Volume | StudyLike, progress: Callable[[str], None] | None = None
    ) -> tuple[Volume, dict[str, Any], dict[str, float]]:
        """Return a study, the item that the bundle's pipeline makes of it (`image`, `pred`), and seconds by stage.

        What `pred` is, is the bundle's: a label map on the source's grid, or a classifier's probabilities.

        Raises:
            CtsegError: as `predict`.
        """
        seconds: dict[str, float] = {}
        with stage("read", seconds, progress):
            volume, study = self._read(source)
        with self._lock:
            return volume, self._run(volume, study, seconds, progress), seconds

    @property
    def network(self) -> Any:
        """The bundle's network with its weights, for whoever runs it in another way."""
        return self._network

    @property
    def parts(self) -> tuple[Any, Any]:
        """The preprocessing and the inferer, as the bundle declares them."""
        return self._preprocessing, self._inferer

    @property
    def finishing(self) -> Any:
        """The postprocessing as the bundle declares it, without what writes files."""
        return self._postprocessing

    def explore(
        self,
        source: str | Path | Volume | StudyLike,
        look: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor], nn.Module], Seen],
    ) -> Seen:
        """Look at an image as the network sees it: for scores that need more than a mask.

        Args:
            source: as for `predict`.
            look: gets the image (1, C, ...) on this predictor's device, how it is run (other requests may come between
                two runs), and the network. What it returns is returned.

        Raises:
            CtsegError: as `predict`.
        """
        import torch

        volume, study = self._read(source)
        opened: dict[str, Any] = {"image": volume} if study is None else {"image": volume, "study": study}

        def run(image: torch.Tensor) -> torch.Tensor:
            with self._lock:
                logits: torch.Tensor = self._inferer(image, self._network)
            return logits

        with torch.inference_mode(), sentences():
            return look(self._preprocessing(opened)["image"][None].to(as_device(self.device)), run, self._network)

    def value(self, name: str) -> Any:
        """Return a plain value of the bundle's `inference.json`, None where it has none of that name."""
        return self._values.get(name)

    def _read(self, source: str | Path | Volume | StudyLike) -> tuple[Volume, StudyLike | None]:
        if isinstance(source, Volume):
            return source, None
        if isinstance(source, str | Path):
            if self.bundle.flat:
                return volume_of(source, {"flat": True}, self.bundle.modality), None
            return read_volume(source, modality=self.bundle.modality), None
        return source.volume, source

    def _run(
        self,
        volume: Volume,
        study: StudyLike | None,
        seconds: dict[str, float],
        progress: Callable[[str], None] | None,
    ) -> dict[str, Any]:
        import torch

        from ctseg.transforms.organs import WAITED

        with sentences(), torch.inference_mode():
            with stage("preprocess", seconds, progress, self.device):
                opened: dict[str, Any] = {"image": volume} if study is None else {"image": volume, "study": study}
                item: dict[str, Any] = self._preprocessing(opened)
                batch = item["image"][None].to(as_device(self.device))
            tell_apart(seconds, item["image"].meta.pop(WAITED, {}))
            with stage("network", seconds, progress, self.device):
                item["pred"] = self._inferer(batch, self._network)[0]
                del batch
            told = getattr(item["pred"], "meta", {})  # which the way back to the source's grid drops
            item["slices_run"] = {key: told.get(key) for key in ("slices_run", "slices")}
            with stage("postprocess", seconds, progress, self.device):
                if self.bundle.segments and self.bundle.needs_weights:
                    names = [str(entry["name"]) for entry in self.bundle.label_entries]
                    item["quality"] = estimate(item["pred"], names, self._calibrations)
                item = self._postprocessing(item)
        return item

    def _slices_run(self, item: Mapping[str, Any]) -> SlicesRun | None:
        told = item["slices_run"]
        return SlicesRun(told["slices_run"], told["slices"], self._gate) if told["slices"] is not None else None

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

    from ctseg.transforms import SaveFlatMaskd, SaveMaskd, SavePresenced

    saving = (SaveMaskd, SavePresenced, SaveFlatMaskd)
    return Compose([step for step in steps.transforms if not isinstance(step, saving)])
