"""Which slices of a study hold an organ: what a classification bundle answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import BundleError, ConfigError
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo
from ctseg.slicepositions import slice_positions
from ctseg.volume import Volume

if TYPE_CHECKING:
    pass

Run = tuple[int, int]


@dataclass(frozen=True)
class SliceTable:
    """Which organs are on each slice of a study, in the order of the source's slices.

    Attributes:
        volume: the study.
        labels: names of the organs, in the order of the columns of `probability`.
        probability: (S, L) float32, 0 to 1: how sure the network is that the organ is on the slice.
        positions: (S,) float64, ascending: index along `axis` of the source array of each slice's centre (a whole
            number but for rounding where the slices are the source's own).
        axis: the source array's cranio-caudal axis, 0, 1 or 2: the one closest to the patient's long axis.
        threshold: from this probability on the organ counts as present.
    """

    volume: Volume
    labels: tuple[str, ...]
    probability: NDArray[np.float32]
    positions: NDArray[np.float64]
    axis: int
    threshold: float

    @property
    def present(self) -> NDArray[np.bool_]:
        """(S, L): whether each organ counts as present on each slice."""
        return self.probability >= np.float32(self.threshold)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(S,): the number of each slice as a viewer counts it, from 1, along `axis` of the source."""
        return np.rint(self.positions).astype(np.int64) + 1

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """(S,): height of the middle of each slice in mm, RAS (grows to the head), as the source's affine has it."""
        middle = (np.asarray(self.volume.shape, dtype=np.float64) - 1) / 2
        points = np.tile(np.append(middle, 1.0), (len(self.positions), 1))
        points[:, self.axis] = self.positions
        heights: NDArray[np.float64] = points @ np.asarray(self.volume.source_affine, dtype=np.float64)[2]
        return heights

    def runs(self, label: str) -> list[Run]:
        """First and last slice number of each unbroken run of slices on which an organ is present, ascending."""
        return runs_of(self.numbers, self.present[:, self.labels.index(label)])


@dataclass(frozen=True)
class SlicePresence(SliceTable):
    """What a classification bundle answers.

    Attributes:
        seconds: stage -> seconds, in order: read, preprocess, network, postprocess.
        device: where the network ran, e.g. "cpu" or "cuda:0".
        bundle: the bundle that ran.
        runtime: what ran the network (`ctseg.export.runtimes`).
    """

    seconds: dict[str, float]
    device: str
    bundle: BundleInfo
    runtime: str = "torch"


def runs_of(numbers: Sequence[int] | NDArray[np.int64], present: Sequence[bool] | NDArray[np.bool_]) -> list[Run]:
    """Return first and last number of each unbroken run of present slices."""
    runs: list[Run] = []
    open_run = False
    for number, here in zip(numbers, present, strict=True):
        if here:
            runs.append((runs.pop()[0], int(number)) if open_run else (int(number), int(number)))
        open_run = bool(here)
    return runs


def gaps_between(runs: Sequence[Run]) -> list[Run]:
    """Return first and last number of each gap between runs."""
    return [(before[1] + 1, after[0] - 1) for before, after in pairwise(runs)]


class PresencePredictor:
    """A classification bundle with its network loaded once, ready for any number of studies.

    Args:
        bundle: a bundle that classifies and is trained.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        threshold: from this probability on an organ counts as present; None takes the bundle's own.
        runtime: what runs the network (`ctseg.export.runtimes`).

    Raises:
        BundleError: when the bundle makes masks, is untrained, or its weights are not the ones it names.
        ConfigError: for a threshold outside of 0 to 1.
        DeviceError: when the device is not there.
    """

    def __init__(
        self, bundle: BundleInfo, device: str = "auto", threshold: float | None = None, runtime: str = "torch"
    ) -> None:
        if not bundle.classifies:
            raise BundleError(
                f"bundle {bundle.name} is no classifier: expected one that says on which slices an organ is; "
                "ctseg tasks lists the kinds"
            )
        from ctseg.prediction import Predictor

        self._predictor = Predictor(bundle, device, runtime=runtime)
        self.runtime = self._predictor.runtime
        self.bundle = bundle
        self.device = self._predictor.device
        self.threshold = checked_threshold(self._predictor.value("threshold") if threshold is None else threshold)

    def predict(
        self,
        source: str | Path | Volume,
        progress: Callable[[str], None] | None = None,
        every_mm: float | None = None,
    ) -> SlicePresence:
        """Say of each slice of one study whether each organ is on it.

        Args:
            source: a path that `ctseg.reading.read_volume` takes, or a volume read already.
            progress: called with the name of each stage when it begins.
            every_mm: run the network only on slices about so far apart, and interpolate the probability between them;
                None runs every slice.

        Raises:
            CtsegError: for input that cannot be used; see `read_volume`.
        """
        step, whole = 1, None
        if every_mm is not None:
            whole = source if isinstance(source, Volume) else read_volume(source, modality=self.bundle.modality)
            source, step = every_nth_slice(whole, every_mm)
        volume, item, seconds = self._predictor.answer(source, progress)
        probability = np.asarray(item["pred"].cpu(), dtype=np.float32).T  # (L, S) -> (S, L)
        axis, positions = slice_positions(item["image"])
        order = np.argsort(positions, kind="stable")
        probability, positions = probability[order], positions[order] * step
        if whole is not None and step > 1:
            volume, asked = whole, np.arange(whole.shape[axis], dtype=np.float64)
            columns = [np.interp(asked, positions, column) for column in probability.T]
            probability, positions = np.stack(columns, axis=1).astype(np.float32), asked
        return SlicePresence(
            volume=volume,
            labels=tuple(self.bundle.labels),
            probability=probability,
            positions=positions,
            axis=axis,
            threshold=self.threshold,
            seconds=seconds,
            device=self.device,
            bundle=self.bundle,
            runtime=self.runtime,
        )


def every_nth_slice(volume: Volume, every_mm: float) -> tuple[Volume, int]:
    """Return a volume of every n-th slice along the body, as near to `every_mm` apart as slices lie, and n.

    The first slice stays the first one: index k of the result is index n k of the volume.
    """
    from ctseg.evaluation.pairing import axial_axis

    axis = axial_axis(volume.affine)
    step = max(1, round(every_mm / volume.spacing[axis]))
    if step == 1:
        return volume, 1
    scale = np.ones(4)
    scale[axis] = step
    chosen = tuple(slice(None, None, step if other == axis else 1) for other in range(3))
    thin = dataclasses.replace(
        volume, array=volume.array[chosen], affine=volume.affine * scale, source_affine=volume.source_affine * scale
    )
    return thin, step


def checked_threshold(value: Any) -> float:
    """Return a threshold of probability as a number.

    Raises:
        ConfigError: when it is none between 0 and 1.
    """
    try:
        threshold = float(value)
    except (TypeError, ValueError):
        threshold = -1.0
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"The threshold of presence is {value!r}: expected a probability, 0 to 1.")
    return threshold
