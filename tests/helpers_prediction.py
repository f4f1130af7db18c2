"""A made-up result without a network: an asymmetric body in a small CT, and a Predictor that returns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ctseg.registry import BundleInfo
from ctseg.volume import Volume

# left-posterior-superior, anisotropic, off the origin; one voxel is 2 * 2 * 5 = 20 cubic mm = 0.02 ml
LPS = np.array([[-2.0, 0.0, 0.0, 30.0], [0.0, -2.0, 0.0, 40.0], [0.0, 0.0, 5.0, -100.0], [0.0, 0.0, 0.0, 1.0]])


def make_volume(affine: np.ndarray = LPS, source: Path = Path("case.nii.gz"), **changes: Any) -> Volume:
    """A CT of 30 x 24 x 10 voxels: air, a body, a brighter organ."""
    array = np.full((30, 24, 10), -1000, np.int16)
    array[3:27, 3:21] = 20
    array[make_labels() == 1] = 110
    return Volume(array, affine, affine, source, "nifti", **changes)


def make_labels() -> np.ndarray:
    """Label 1: 8 * 6 * 4 = 192 voxels and a foot of 4 * 2 * 4 = 32 that no flip maps on itself; label 3 is absent."""
    labels = np.zeros((30, 24, 10), np.uint8)
    labels[5:13, 6:12, 4:8] = 1
    labels[13:17, 6:8, 4:8] = 1
    return labels


@dataclass(frozen=True)
class FakePrediction:
    """The fields of `ctseg.prediction.Prediction`, without importing torch."""

    volume: Volume
    label_map: np.ndarray
    bundle: BundleInfo
    device: str = "cpu"
    seconds: dict[str, float] = field(
        default_factory=lambda: {"read": 0.5, "preprocess": 0.25, "network": 2.0, "postprocess": 0.125}
    )

    labels: dict[str, int] = field(default_factory=dict)
    slices: Any = None
    parts: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Unless others are given, the labels are the bundle's."""
        if not self.labels:
            object.__setattr__(self, "labels", self.bundle.labels)


class FakePredictor:
    """Stands in for `ctseg.prediction.Predictor`; what it was made with is kept for the tests to look at."""

    made: ClassVar[list[tuple[str, str]]] = []
    result: ClassVar[Any] = None

    def __init__(self, bundle: BundleInfo, device: str = "auto", find: Any = None) -> None:
        self.bundle = bundle
        FakePredictor.made.append((bundle.name, device))

    def predict(self, source: Path, progress: Callable[[str], None] | None = None) -> FakePrediction:
        """Return the made-up body for any path, or raise what `result` holds."""
        source = getattr(source, "source", source)  # of a study
        if progress is not None:
            progress("network")
        if isinstance(FakePredictor.result, BaseException):
            raise FakePredictor.result
        labels = make_labels() if FakePredictor.result is None else FakePredictor.result
        return FakePrediction(make_volume(source=source, notes=("A made-up note.",)), labels, self.bundle)
