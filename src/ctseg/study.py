"""One study and everything found in it: read once, each bundle run once, shared by all who ask.

So a bundle that takes another organ's mask, or is gated by a classifier, does not compute these again for each organ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ctseg.dependencies import sibling
from ctseg.errors import BundleError, InputError
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo, fingerprint, get_bundle
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.prediction import Prediction, Predictor
    from ctseg.presence.slices import PresencePredictor, SlicePresence

Made = TypeVar("Made")
Bundle = str | Path | BundleInfo


class _Once(Generic[Made]):
    """Values by key, each made once however many threads ask for it; different keys do not wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._values: dict[Hashable, tuple[object, Made]] = {}

    def get(self, key: Hashable, make: Callable[[], Made], state: object = None) -> Made:
        """Return the value of `key`, made anew when `state` is not what it was made in."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            kept = self._values.get(key)
            if kept is None or kept[0] != state:
                self._values.pop(key, None)  # the old one is freed before the new one is made
                kept = self._values[key] = (state, make())
            return kept[1]


class Predictors:
    """Loaded networks, kept warm; any number of threads may ask.

    A network is loaded again when its bundle's files change on disk.

    Args:
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        root: folder of the bundles that names are looked up in; None takes the shipped ones.
        runtime: what runs the networks: "torch", "onnx", "openvino" or "auto" (`ctseg.export.runtimes`).
        in_use: gives the version to take of a bundle that is asked for by name, as another one's input or gate too.
            Then one network is kept for each name, that of the version asked for last; None keeps one for each folder.
    """

    def __init__(
        self,
        device: str = "auto",
        root: Path | None = None,
        runtime: str = "torch",
        in_use: Callable[[BundleInfo], BundleInfo] | None = None,
    ) -> None:
        self.device = device
        self.root = root
        self.runtime = runtime
        self._in_use = in_use
        self._segmenters: _Once[Predictor] = _Once()
        self._classifiers: _Once[PresencePredictor] = _Once()

    def bundle(self, name: Bundle) -> BundleInfo:
        """Return a bundle by its name, its folder's path, or as it is.

        Raises:
            BundleError: there is none of that name, or it is broken.
        """
        if isinstance(name, BundleInfo):
            return name
        found = get_bundle(name, self.root)
        return self._in_use(found) if self._in_use is not None and isinstance(name, str) else found

    def find(self, name: str, bundle: Path) -> BundleInfo:
        """Return the bundle of a name that the bundle in a folder needs, in its version in use.

        Raises:
            BundleError: as `ctseg.dependencies.sibling`.
        """
        found = sibling(name, bundle, self.root)
        return found if self._in_use is None else self._in_use(found)

    def _key(self, info: BundleInfo) -> tuple[Hashable, object]:
        """What a network is kept by, and the state in which it is still the bundle's."""
        return info.path if self._in_use is None else info.name, (info.path, fingerprint(info))

    def segmenter(self, name: Bundle) -> Predictor:
        """Return the loaded network of a bundle that answers with a mask.

        Raises:
            BundleError: unknown, untrained, broken, or not a segmenter.
            DeviceError: the device is not there.
        """
        info = self.bundle(name)
        if not info.segments:
            raise BundleError(
                f"bundle {info.name} makes no mask, but a segmenter is needed here; name one that segments "
                "(ctseg tasks lists them)"
            )
        from ctseg.prediction import Predictor

        key, state = self._key(info)
        return self._segmenters.get(
            key, lambda: Predictor(info, self.device, runtime=self.runtime, find=self.find), state
        )

    def classifier(self, name: Bundle) -> PresencePredictor:
        """Return the loaded network of a bundle that says on which slices an organ is.

        Raises:
            BundleError: unknown, untrained, broken, or not a classifier.
            DeviceError: the device is not there.
        """
        info = self.bundle(name)
        if not info.classifies:
            raise BundleError(
                f"bundle {info.name} says nothing about slices, but a classifier is needed here; name one that "
                "classifies (ctseg tasks lists them)"
            )
        from ctseg.presence.slices import PresencePredictor

        key, state = self._key(info)
        return self._classifiers.get(key, lambda: PresencePredictor(info, self.device, runtime=self.runtime), state)


class Study:
    """One image and what bundles find in it, each computed when first asked for and then kept.

    Args:
        source: a path that `ctseg.reading.read_volume` takes, or a volume read already.
        predictors: the loaded networks, to be shared between studies; None loads those that are needed.
        device: for `predictors` None: "auto", "cpu", "cuda" or "cuda:N".
        modality: of the image; "CT" switches the plausibility checks of HU on.
    """

    def __init__(
        self,
        source: str | Path | Volume,
        predictors: Predictors | None = None,
        device: str = "auto",
        modality: str = "CT",
    ) -> None:
        self.source = source
        self.modality = modality
        self.predictors = predictors or Predictors(device)
        self._volume: _Once[Volume] = _Once()
        self._predictions: _Once[Prediction] = _Once()
        self._presences: _Once[SlicePresence] = _Once()
        self._prepared: _Once[Any] = _Once()

    @property
    def volume(self) -> Volume:
        """The image, read when first asked for.

        Raises:
            InputError, GeometryError, ResourceError: as `ctseg.reading.read_volume`.
        """
        source = self.source
        if isinstance(source, Volume):
            return source
        return self._volume.get("", lambda: read_volume(source, modality=self.modality))

    def prediction(self, bundle_name: Bundle, progress: Callable[[str], None] | None = None) -> Prediction:
        """Return a segmenter's result on this study.

        Args:
            bundle_name: a name, the path of a bundle's folder, or a `BundleInfo`.
            progress: called with the name of each stage when it begins; not when the result is there already.

        Raises:
            CtsegError: for input or a bundle that cannot be used.
        """
        info = self.predictors.bundle(bundle_name)
        if info.modality.upper() != self.modality.upper():
            raise InputError(
                f"bundle {info.name} is made for {info.modality}, but the study was read as {self.modality}: "
                "choose a bundle for this kind of image."
            )
        predictor = self.predictors.segmenter(info)
        return self._predictions.get(info.path, lambda: predictor.predict(self, progress))

    def find(self, name: str, bundle: Path) -> BundleInfo:
        """Return the bundle of a name that the bundle in a folder needs; see `Predictors.find`."""
        return self.predictors.find(name, bundle)

    def prepared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the image as a step of preprocessing leaves it, made when first asked for under this key.

        What is returned is shared: whoever wants to write makes a copy.
        """
        return self._prepared.get(key, make)

    def presence(self, bundle_name: Bundle, every_mm: float | None = None) -> SlicePresence:
        """Return a classifier's result on this study, slice by slice.

        Args:
            bundle_name: as for `prediction`.
            every_mm: as for `ctseg.presence.slices.PresencePredictor.predict`.

        Raises:
            CtsegError: for input or a bundle that cannot be used.
        """
        info = self.predictors.bundle(bundle_name)
        classifier = self.predictors.classifier(info)
        return self._presences.get((info.path, every_mm), lambda: classifier.predict(self.volume, every_mm=every_mm))
