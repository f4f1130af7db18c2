"""HU histograms of cases: which ones deviate from the rest, and which window of HU fits what is labelled.

**Deviating** is judged by two published rules put together. How far a case is: the 1-Wasserstein (earth mover's)
distance of its histogram to the median one, in HU, which is by how much its values must be moved on average; in one
dimension the area between the two quantile functions (Vallender, Theory Probab. Appl. 18:784, 1974). The median
histogram has, at each share of the voxels, the median over the cases of the value reached. When that is too far: the
modified z-score 0.6745 (d - median) / MAD above 3.5, and with MAD 0 (d - median) / (1.253314 MeanAD) (Iglewicz and
Hoaglin, How to Detect and Handle Outliers, 1993). That it must be at least `LEAST_HU` too is ours: in a set of nearly
equal cases the score alone would name one for nothing.

**The window** holds the 0.5th to the 99.5th percentile of what is labelled, as nnU-Net clips CT (Isensee et al., Nature
Methods 18:203, 2021); here each case counts the same, whatever its number of voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError

Counts = NDArray[np.int64]

LOWEST, HIGHEST = -1024, 3071  # HU; what lies beyond is counted at the end
BINS = HIGHEST - LOWEST + 1
AIR_BELOW = -900  # HU: air round the patient, padding; lungs lie above
FAR = 3.5
LEAST_HU = 5.0
FEWEST = 4  # cases; of three, two are always as far from the median as the third
PERCENTILES = (0.5, 99.5)
_SHARES = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True)
class CaseCounts:
    """The histograms of one case, a bin for each HU from `LOWEST` to `HIGHEST`.

    Attributes:
        case: its name.
        patient: whose.
        image: voxels that are no air.
        classes: label name -> its voxels; an organ that is not there has none.
    """

    case: str
    patient: str
    image: Counts
    classes: Mapping[str, Counts]

    @property
    def labelled(self) -> Counts:
        """Voxels of all classes together."""
        return np.sum(list(self.classes.values()), axis=0, dtype=np.int64)


@dataclass(frozen=True)
class Deviation:
    """How far a case is from the rest.

    Attributes:
        case: its name.
        distance: to the median histogram, in HU; None where the case has no such voxels.
        shift: its median minus the median histogram's, in HU: above 0 it is brighter.
        score: modified z-score of the distance; None with fewer than `FEWEST` cases.
        deviates: whether score and distance are too large.
    """

    case: str
    distance: float | None
    shift: float | None
    score: float | None
    deviates: bool


@dataclass(frozen=True)
class Loss:
    """What a window leaves out.

    Attributes:
        what: a class, "all labels" or "image without air".
        below: share of the voxels below it, mean over cases.
        above: the share above it.
        worst: the largest share outside of it in one case.
        worst_case: which.
        cases: how many have such voxels.
    """

    what: str
    below: float
    above: float
    worst: float
    worst_case: str
    cases: int


def count_hu(values: NDArray[Any]) -> Counts:
    """Return how many voxels have each HU (rounded, cut to the range)."""
    whole = np.clip(np.rint(values), LOWEST, HIGHEST).astype(np.int64).ravel() - LOWEST
    return np.bincount(whole, minlength=BINS).astype(np.int64)


def count_case(
    case: str, patient: str, array: NDArray[Any], labels: NDArray[Any], values: Mapping[int, str], names: Sequence[str]
) -> CaseCounts:
    """Count one case.

    Args:
        case: its name.
        patient: whose.
        array: (I, J, K) HU.
        labels: (I, J, K) integers.
        values: value above 0 -> class.
        names: every class.
    """
    image = count_hu(array)
    image[: AIR_BELOW - LOWEST] = 0
    classes = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    labelled = labels != 0
    hu, own = array[labelled], labels[labelled]  # few voxels, so that twenty classes cost little more than one
    for value, name in values.items():
        classes[name] += count_hu(hu[own == value])
    return CaseCounts(case, patient, image, classes)


def quantiles(counts: Counts, shares: NDArray[np.float64] = _SHARES) -> NDArray[np.float64]:
    """Return the HU below which each share (0 to 1) of the voxels lies; NaN without voxels.

    Voxels of a bin count as spread evenly over its one HU, so that two histograms that differ by less than 1 HU do so
    here too.
    """
    total = int(counts.sum())
    if not total:
        return np.full(np.shape(shares), np.nan)
    reached = np.concatenate([[0.0], np.cumsum(counts) / total])
    edges = np.arange(LOWEST, HIGHEST + 2) - 0.5
    return np.interp(shares, reached, edges)


def distance(one: Counts, other: Counts) -> float:
    """Return the 1-Wasserstein distance of two histograms in HU: the area between their cumulative shares."""
    reached = [np.cumsum(counts) / counts.sum() for counts in (one, other)]
    return float(np.abs(reached[0] - reached[1]).sum())


def deviations(histograms: Mapping[str, Counts]) -> list[Deviation]:
    """Return how far each case is from the median histogram.

    Args:
        histograms: case -> counts.
    """
    known = {case: quantiles(counts) for case, counts in histograms.items() if counts.any()}
    if not known:
        return [Deviation(case, None, None, None, False) for case in histograms]
    middle = np.median(np.stack(list(known.values())), axis=0)
    far = {case: float(np.abs(row - middle).mean()) for case, row in known.items()}
    scores = dict(zip(far, modified_z(list(far.values())), strict=True)) if len(far) >= FEWEST else {}
    found = []
    for case in histograms:
        score, own = scores.get(case), far.get(case)
        shift = float(np.median(known[case]) - np.median(middle)) if case in known else None
        deviates = score is not None and own is not None and score > FAR and own >= LEAST_HU
        found.append(Deviation(case, own, shift, score, deviates))
    return found


def modified_z(values: Sequence[float]) -> list[float]:
    """Return the modified z-score of each value (Iglewicz and Hoaglin 1993); 0 where all are equal."""
    array = np.asarray(values, dtype=np.float64)
    off = array - np.median(array)
    mad, mean_ad = float(np.median(np.abs(off))), float(np.abs(off).mean())
    if mad > 0:
        return [float(z) for z in 0.6745 * off / mad]
    return [float(z) for z in off / (1.253314 * mean_ad)] if mean_ad > 0 else [0.0] * len(array)


def propose_window(
    cases: Sequence[CaseCounts], percentiles: Sequence[float] = PERCENTILES
) -> tuple[float, float] | None:
    """Return the window in whole HU that holds these percentiles of what is labelled, each case counting the same.

    None where nothing is labelled.

    Raises:
        ConfigError: percentiles that are not rising within 0 to 100.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ConfigError(f"the percentiles {low:g} and {high:g} cannot work; expected two rising numbers, 0 to 100")
    shares = [labelled / labelled.sum() for case in cases if (labelled := case.labelled).any()]
    if not shares:
        return None
    reached = np.cumsum(np.mean(shares, axis=0))
    first = int(np.searchsorted(reached, low / 100 + 1e-12)) + LOWEST
    last = int(np.searchsorted(reached, high / 100 - 1e-12)) + LOWEST
    return (float(first), float(max(last, first + 1)))


def losses(cases: Sequence[CaseCounts], window: Sequence[float]) -> list[Loss]:
    """Return what a window leaves out of each class, of all labels, and of the image without air.

    Args:
        cases: at least one.
        window: lowest and highest HU kept.
    """
    kinds: dict[str, dict[str, Counts]] = {
        name: {case.case: case.classes[name] for case in cases} for name in cases[0].classes
    }
    kinds["all labels"] = {case.case: case.labelled for case in cases}
    kinds["image without air"] = {case.case: case.image for case in cases}
    found = [_loss(what, histograms, window) for what, histograms in kinds.items()]
    return [loss for loss in found if loss is not None]


def _loss(what: str, histograms: Mapping[str, Counts], window: Sequence[float]) -> Loss | None:
    hu = np.arange(LOWEST, HIGHEST + 1)
    low, high = window
    rows: list[tuple[str, float, float]] = [
        (case, float(counts[hu < low].sum() / counts.sum()), float(counts[hu > high].sum() / counts.sum()))
        for case, counts in histograms.items()
        if counts.any()
    ]
    if not rows:
        return None
    worst = max(rows, key=lambda row: row[1] + row[2])
    below, above = (float(np.mean(shares)) for shares in ([row[1] for row in rows], [row[2] for row in rows]))
    return Loss(what, below, above, worst[1] + worst[2], worst[0], len(rows))


@dataclass(frozen=True)
class Found:
    """What is said of a data folder.

    Attributes:
        cases: their counts.
        image: how far each is, by the image without air.
        labels: how far each is, by what is labelled.
        window: proposed, in HU; None where nothing is labelled.
        own: the task's; None where it has none.
        losses: window's name ("proposed", "task") -> what it leaves out.
    """

    cases: Sequence[CaseCounts]
    image: Sequence[Deviation]
    labels: Sequence[Deviation]
    window: tuple[float, float] | None
    own: tuple[float, float] | None
    losses: Mapping[str, Sequence[Loss]]


def judge(cases: Sequence[CaseCounts], own: tuple[float, float] | None, percentiles: Sequence[float]) -> Found:
    """Return what is to be said of counted cases; `own` is the task's window."""
    window = propose_window(cases, percentiles)
    windows = {"proposed": window, "task": own}
    return Found(
        cases,
        deviations({case.case: case.image for case in cases}),
        deviations({case.case: case.labelled for case in cases}),
        window,
        own,
        {name: losses(cases, bounds) for name, bounds in windows.items() if bounds is not None},
    )
