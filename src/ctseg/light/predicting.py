"""From an image to a label map on its own grid with an exported network: the way of `ctseg segment`, without torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import BundleError, ConfigError
from ctseg.grids.labels import resample_labels
from ctseg.items import volume_of
from ctseg.light.described import Exported
from ctseg.light.finishing import Labelled, finished
from ctseg.light.inferring import infer
from ctseg.light.preparing import Placed, loaded, prepare, prepared
from ctseg.organchoice import OrganChoice
from ctseg.organmerging import predict_organs
from ctseg.prediction import Prediction, SlicesRun
from ctseg.presence.gate import Gate
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.light.models import Models
    from ctseg.light.sessions import Session

_NEED_OTHERS = ("add_organs", "gate")


class LightPredictor:
    """An exported network, opened once, for any number of images; one image at a time.

    Args:
        model: its description.
        session: the network.
        others: where networks are found that this one needs; None for one that needs none.
    """

    def __init__(self, model: Exported, session: Session, others: Models | None = None) -> None:
        self.model = model
        self.session = session
        self.others = others
        self._lock = threading.Lock()

    def predict(self, source: str | Path | Volume) -> Prediction:
        """Segment one image.

        Args:
            source: a path that `ctseg.reading.read_volume` takes, or a volume read already.

        Raises:
            CtsegError: for input that cannot be used, or a description that does not fit the network.
        """
        if self.model.answer != "segmentation":
            raise BundleError(f"{self.model.name} makes no mask: it says on which slices an organ is; use /presence/")
        seconds: dict[str, float] = {}
        volume = self._read(source, seconds)
        image, logits, run, gate = self._run(volume, seconds)
        start = time.perf_counter()
        steps = self.model.told["postprocessing"]
        label_map = finished(Labelled(logits, image.affine), steps, volume.affine, volume.shape)
        seconds["postprocess"] = time.perf_counter() - start
        return Prediction(
            volume=volume,
            label_map=label_map,
            labels=self.model.info.labels,
            seconds=seconds,
            device="cpu",
            bundle=self.model.info,
            slices=SlicesRun(run, image.sizes[2], gate) if run is not None else None,
            runtime=self.session.runtime,
        )

    def presence(self, source: str | Path | Volume) -> tuple[Volume, NDArray[np.float32], NDArray[np.float64], int]:
        """Say of each slice how sure a classifier is that each organ is on it.

        Returns:
            The volume; probabilities (S, L); the slices' places (S,) along the source's axis, ascending; that axis.

        Raises:
            CtsegError: as `predict`; BundleError for a network that makes masks.
        """
        if self.model.answer != "classification":
            raise BundleError(f"{self.model.name} is no classifier: it makes masks; use /predict/")
        volume = self._read(source, {})
        image, logits, _, _ = self._run(volume, {})
        probability = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32).T
        axis, places = slice_places(image, volume)
        order = np.argsort(places, kind="stable")
        return volume, probability[order], places[order], axis

    def probability_every(
        self, volume: Volume, every_mm: float | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return probabilities (S, L) and places (S,), run on slices about so far apart and interpolated between."""
        if every_mm is None:
            return self.presence(volume)[1:3]
        from ctseg.presence.slices import every_nth_slice

        thin, step = every_nth_slice(volume, float(every_mm))
        _, probability, places, axis = self.presence(thin)
        if step == 1:
            return probability, places
        asked = np.arange(volume.shape[axis], dtype=np.float64)
        columns = [np.interp(asked, places * step, column) for column in probability.T]
        return np.stack(columns, axis=1).astype(np.float32), asked

    def read(self, path: str | Path) -> Volume:
        """Read an image of the kind that the network looks at: a volume, or a flat image.

        Raises:
            CtsegError: as `ctseg.items.volume_of`.
        """
        info = self.model.info
        return volume_of(path, {"flat": True}, info.modality) if info.flat else read_volume(path, info.modality)

    def _read(self, source: str | Path | Volume, seconds: dict[str, float]) -> Volume:
        start = time.perf_counter()
        volume = source if isinstance(source, Volume) else self.read(source)
        seconds["read"] = time.perf_counter() - start
        return volume

    def _run(
        self, volume: Volume, seconds: dict[str, float]
    ) -> tuple[Placed, NDArray[np.float32], int | None, str | None]:
        start = time.perf_counter()
        image, opened, gate = self._prepared(volume, seconds)
        seconds["preprocess"] = max(0.0, time.perf_counter() - start - seconds.pop("waited", 0.0))
        inferer = {key: value for key, value in self.model.told["inferer"].items() if key != "way"}
        start = time.perf_counter()
        with self._lock:
            logits, run = infer(image.array, self.session, self.model.told["inferer"]["way"], opened, **inferer)
        seconds["network"] = time.perf_counter() - start
        return image, logits, run, gate

    def _prepared(
        self, volume: Volume, seconds: dict[str, float]
    ) -> tuple[Placed, NDArray[np.bool_] | None, str | None]:
        """Take the steps in order; masks of other organs and the gate come from other exported networks."""
        (image, steps), opened, gate = loaded(volume, self.model.steps), None, None
        for step in steps:
            if step["step"] not in _NEED_OTHERS:
                image = prepare(image, step)
                continue
            start = time.perf_counter()
            if step["step"] == "add_organs":
                image = self._with_organs(image, volume, step)
            else:
                gate = str(step["gate"])
                opened = self._opened_slices(image, volume, step)
            waited = time.perf_counter() - start
            seconds["waited"] = seconds.get("waited", 0.0) + waited
        return prepared(image, []), opened, gate

    def _other(self, name: str) -> LightPredictor:
        if self.others is None:
            raise BundleError(f"{self.model.name} needs the exported model {name} beside it, and there is none")
        return self.others.get(name)

    def _with_organs(self, image: Placed, volume: Volume, step: Mapping[str, Any]) -> Placed:
        channels = [image.array.astype(np.float32)]
        for organ, name in step["models"].items():
            other = self._other(str(name))
            if organ not in other.model.info.labels:
                raise ConfigError(f"{name} knows no {organ}: expected one of {', '.join(other.model.info.labels)}")
            mask = other.predict(volume).label_map == other.model.info.labels[organ]
            there = resample_labels(mask.astype(np.uint8), volume.affine, image.affine, image.sizes, order="nearest")
            channels.append(there[None].astype(np.float32))
        return Placed(np.concatenate(channels), image.affine)

    def _opened_slices(self, image: Placed, volume: Volume, step: Mapping[str, Any]) -> NDArray[np.bool_]:
        other = self._other(str(step["gate"]))
        probability, places = other.probability_every(volume, step.get("every_mm"))
        columns = [list(other.model.info.labels).index(label) for label in step["labels"]]
        threshold = float(other.model.told.get("threshold", 0.5))
        present = (probability[:, columns] >= np.float32(threshold)).any(axis=1)
        axis, wanted = slice_places(image, volume)
        rule = Gate(float(step["margin_mm"]), float(step["gap_mm"]), int(step["min_slices"]))
        return rule.open_slices(present, places, wanted, float(np.linalg.norm(volume.affine[:3, axis])))


def slice_places(image: Placed, volume: Volume) -> tuple[int, NDArray[np.float64]]:
    """Return which axis of the source a prepared image's slices follow, and where on it each lies."""
    to_source = np.linalg.inv(volume.affine) @ image.affine
    axis = int(np.abs(to_source[:3, 2]).argmax())
    i, j, count = image.sizes
    centres = np.array([[(i - 1) / 2, (j - 1) / 2, k, 1.0] for k in range(count)])
    return axis, centres @ to_source[axis]


def segment(models: Models, source: Volume, choices: Sequence[OrganChoice]) -> Prediction:
    """Segment the chosen organs, each by the exported network that its choice names, and merge them.

    Raises:
        CtsegError: as `LightPredictor.predict`.
    """
    return predict_organs(choices, predictor_of(models, source))


def predictor_of(models: Models, source: Volume) -> Callable[[BundleInfo], Prediction]:
    """Return what runs a network on one image; its name is the bundle's."""
    return lambda info: models.get(info.name).predict(source)
