"""The loaded networks of the server: one for each bundle and device, that of the version in use, for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.dependencies import dependency_problem, sibling
from ctseg.errors import BundleError
from ctseg.organchoice import Selection
from ctseg.registry import BundleInfo, find_bundles

if TYPE_CHECKING:
    from ctseg.prediction import Prediction
    from ctseg.presence.slices import SlicePresence
    from ctseg.study import Study


class Networks:
    """The networks of the served bundles and of those that these need, one set for each device.

    A bundle that needs another one (its mask as input, its answer as gate) gets that one's version in use. When another
    version is taken into use, the network of the one before goes as soon as nobody runs it any more; a request that is
    running keeps the network that it began with.

    Args:
        served: the bundles that are offered.
        lock: held while a network runs; all tasks share it, because they share the memory and the device.
        in_use: gives the version to take of a bundle, one that was trained here or its own.
    """

    def __init__(
        self,
        served: Mapping[str, BundleInfo],
        lock: threading.Lock,
        in_use: Callable[[BundleInfo], BundleInfo] = lambda bundle: bundle,
    ) -> None:
        self._served = frozenset(served)
        self._root = next(iter(served.values())).path.parent
        self._lock = lock
        self.in_use = in_use
        self._by_device: dict[str, Any] = {}
        self._making = threading.Lock()

    def bundles(self) -> dict[str, BundleInfo]:
        """Return the served bundles as they lie on disk now, and the classifiers, to be known by name."""
        found = find_bundles(self._root)
        offered = {name: info for name, info in found.items() if name in self._served or not info.segments}
        return {name: self.in_use(info) for name, info in offered.items()}

    def find(self, name: str, bundle: Path) -> BundleInfo:
        """Return the bundle of a name that the bundle in a folder needs, in its version in use.

        Raises:
            BundleError: there is none, or it is broken.
        """
        return self.in_use(sibling(name, bundle, self._root))

    def problem(self, info: BundleInfo) -> str:
        """Return in one sentence what is wrong with what a bundle needs, or "" when nothing is."""
        return dependency_problem(info, self.find)

    def load(self, info: BundleInfo, device: str) -> Any:
        """Return a bundle's network, loaded when first asked for: a `Predictor` or a `PresencePredictor`."""
        networks = self._on(device)
        return networks.classifier(info) if info.classifies else networks.segmenter(info)

    def study(self, image: Path, modality: str, device: str) -> Study:
        """Return a study whose other bundles' results come from these networks."""
        from ctseg.study import Study

        return Study(image, self._on(device), modality=modality)

    def predict(self, info: BundleInfo, image: Path, device: str) -> Prediction:
        """Segment one image with one bundle; requests queue.

        Raises:
            CtsegError: for an image or a bundle that cannot be used.
        """
        with self._lock:
            return self.study(image, info.modality, device).prediction(info)

    def classify(self, info: BundleInfo, image: Path, device: str) -> SlicePresence:
        """Say on which slices of one image the organs of a classifier are; requests queue.

        Raises:
            CtsegError: for an image or a bundle that cannot be used.
        """
        with self._lock:
            found: SlicePresence = self.load(info, device).predict(image)
        return found

    def segment(self, image: Path, selection: Selection, device: str) -> Prediction:
        """Segment one image with several bundles; requests queue.

        Raises:
            CtsegError: for an image or a bundle that cannot be used.
        """
        from ctseg.api import predict_selection

        try:
            selection.check_ready(self.find)
        except BundleError as error:  # where the folders lie is no client's business
            raise BundleError(str(error).replace(str(self._root), "bundles")) from error
        with self._lock:
            return predict_selection(image, selection, self._on(device))

    def _on(self, device: str) -> Any:
        from ctseg.study import Predictors

        with self._making:
            return self._by_device.setdefault(device, Predictors(device, self._root, in_use=self.in_use))
