"""Which case to annotate next: strategies of active learning, each a pure choice from scores and a random generator.

`random`, `first` and the foreground-aware `foreground` (Lüth et al., "nnActive", arXiv:2511.19183, 2025) need no more
than a prediction. `uncertainty` is class-stratified predictive entropy with power noise, after ClaSP PE (Lüth et al.,
"Finally outshining the random baseline", arXiv:2601.13677, 2026), here for whole cases and not for patches; the noise
on the logarithm of the score is that of Kirsch et al., "Stochastic batch acquisition" (TMLR 2023). `diversity` takes
the cases nearest to the centres of k-means on the encoder's features; `disagreement` those on which several runs of the
network agree least, with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError

FOREGROUND_SHARE = 0.66  # of the foreground-aware picks; the rest is plainly random
_LEAST = 1e-6


@dataclass(frozen=True)
class CaseScore:
    """What is known of a case without a label.

    Attributes:
        case_id: its name.
        entropy: organ -> mean entropy in bits where the organ is possible.
        voxels: organ -> how many voxels the network gives it.
        disagreement: organ -> 1 - mean Dice between runs; empty where there was one run only.
        features: of the encoder, pooled; empty where they were not taken.
        expected_dice: organ -> the Dice that the network expects of its mask (`ctseg.quality`); those it found only.
    """

    case_id: str
    entropy: Mapping[str, float] = field(default_factory=dict)
    voxels: Mapping[str, int] = field(default_factory=dict)
    disagreement: Mapping[str, float] = field(default_factory=dict)
    features: tuple[float, ...] = ()
    expected_dice: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """What a strategy chooses from.

    Attributes:
        candidates: the cases without a label; at least one.
        labelled: those with one, with their features where these are known.
        organs: names of the task's organs.
    """

    candidates: Sequence[CaseScore]
    labelled: Sequence[CaseScore] = ()
    organs: Sequence[str] = ()


def first(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return the first cases by name."""
    return sorted(case.case_id for case in pool.candidates)[:count]


def random(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return cases drawn evenly, none twice."""
    names = sorted(case.case_id for case in pool.candidates)
    return [names[index] for index in rng.permutation(len(names))[:count]]


def foreground(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return cases drawn at random, two of three from those where the network sees an organ."""
    chosen: list[str] = []
    for _ in range(min(count, len(pool.candidates))):
        left = sorted((case for case in pool.candidates if case.case_id not in chosen), key=lambda case: case.case_id)
        seen = [case for case in left if any(case.voxels.values())]
        from_these = seen if seen and rng.random() < FOREGROUND_SHARE else left
        chosen.append(from_these[int(rng.integers(len(from_these)))].case_id)
    return chosen


def uncertainty(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return the cases with the highest entropy, organ by organ in turn, with noise that fades as labels come in."""
    return _by_score(pool, count, rng, lambda case: case.entropy)


def disagreement(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return the cases on which the runs of the network agree least, organ by organ in turn, with the same noise."""
    return _by_score(pool, count, rng, lambda case: case.disagreement)


def diversity(pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return cases that differ from one another and from those with a label: one nearest to each centre of k-means.

    Centres are as many as picks and labelled cases together; those nearest to a labelled case are taken already.
    """
    from scipy.cluster.vq import kmeans2

    candidates = sorted((case for case in pool.candidates if case.features), key=lambda case: case.case_id)
    labelled = [case for case in pool.labelled if case.features]
    if len(candidates) <= count:
        return (_names(candidates) + random(_without(pool, _names(candidates)), count, rng))[:count]
    points = _standardised(np.asarray([case.features for case in [*candidates, *labelled]], dtype=np.float64))
    centres, _ = kmeans2(points, min(count + len(labelled), len(points)), minit="++", seed=rng)
    centres = centres[np.isfinite(centres).all(axis=1)]
    own = points[: len(candidates)]
    to_labelled = (
        _distances(centres, points[len(candidates) :]).min(axis=1) if labelled else np.full(len(centres), np.inf)
    )
    chosen: list[int] = []
    for centre in np.argsort(-to_labelled, kind="stable")[:count]:
        order = np.argsort(_distances(centres[centre][None], own)[0], kind="stable")
        chosen.append(next(int(index) for index in order if index not in chosen))
    names = [candidates[index].case_id for index in chosen]
    return names + random(_without(pool, names), count - len(names), rng)


STRATEGIES: dict[str, Callable[[Pool, int, np.random.Generator], list[str]]] = {
    "random": random,
    "first": first,
    "foreground": foreground,
    "uncertainty": uncertainty,
    "diversity": diversity,
    "disagreement": disagreement,
}
# What a strategy needs to be known of each candidate; the others choose without a network.
NEEDS = {
    "foreground": ("voxels",),
    "uncertainty": ("entropy",),
    "diversity": ("features",),
    "disagreement": ("disagreement",),
}


def choose(strategy: str, pool: Pool, count: int, rng: np.random.Generator) -> list[str]:
    """Return the names of `count` cases to annotate, in order; fewer where there are fewer.

    Raises:
        ConfigError: an unknown strategy, with the known ones.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"The strategy {strategy!r} is not known: expected one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[strategy](pool, count, rng) if pool.candidates and count > 0 else []


def noise_scale(labelled: int) -> float:
    """How strong the noise on the logarithm of a score is: 1 without labels, less with each (ours: 1/(1+n/5))."""
    return 1.0 / (1.0 + labelled / 5.0)


def _by_score(
    pool: Pool, count: int, rng: np.random.Generator, scores: Callable[[CaseScore], Mapping[str, float]]
) -> list[str]:
    organs = list(pool.organs) or sorted({name for case in pool.candidates for name in scores(case)})
    left = sorted(pool.candidates, key=lambda case: case.case_id)
    scale, chosen = noise_scale(len(pool.labelled)), []
    start = int(rng.integers(len(organs))) if organs else 0
    for turn in range(min(count, len(left))):
        noise = rng.gumbel(size=len(left)) * scale
        organ = organs[(start + turn) % len(organs)] if organs else ""
        values = [np.log(max(scores(case).get(organ, 0.0), _LEAST)) for case in left]
        chosen.append(left.pop(int(np.argmax(values + noise))).case_id)
    return chosen


def _names(cases: Sequence[CaseScore]) -> list[str]:
    return [case.case_id for case in cases]


def _without(pool: Pool, names: Sequence[str]) -> Pool:
    return Pool([case for case in pool.candidates if case.case_id not in names], pool.labelled, pool.organs)


def _standardised(points: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = points.std(axis=0)
    moved: NDArray[np.float64] = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return moved


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    found: NDArray[np.float64] = cdist(a, b)
    return found
