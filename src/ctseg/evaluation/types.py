"""How to measure, and what was measured: the values that the parts of an evaluation pass on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError

Labels = Mapping[str, tuple[int, int]]
SliceRow = tuple[str, str, int, int, int, int, int]  # case, organ, slice from 1, TP, FP, FN, TN


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        labels: name -> (value in the prediction, value in the reference).
        beta: of F-beta; 1 weighs precision and recall alike, 2 counts recall more.
        tolerance_mm: of NSD: how far a surface may be off and still count as met.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        ConfigError: when a value cannot work.
    """

    labels: Labels
    beta: float = 1.0
    tolerance_mm: float = 3.0
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low in (("beta", self.beta, 0), ("tolerance", self.tolerance_mm, 0)):
            if not low < value < float("inf"):
                raise ConfigError(f"The {name} {value:g} cannot work: expected a number above 0.")
        if not 100 <= self.resamples <= 100_000:
            raise ConfigError(f"{self.resamples} draws of the bootstrap cannot work: expected 100 to 100000.")
        if not self.labels:
            raise ConfigError("No label is named: expected at least one, for example liver=1:5.")


@dataclass(frozen=True)
class Evaluation:
    """A data set scored.

    Attributes:
        results: what `evaluation.json` holds, as JSON types; see docs/evaluation.md.
        slices: a row per case, label and slice that has the organ in either mask: case, label, slice from 1, and voxels
            TP, FP, FN, TN.
        pairs: case -> (prediction, reference) of the cases that were scored.
    """

    results: dict[str, Any]
    slices: list[SliceRow]
    pairs: dict[str, tuple[Path, Path]]
