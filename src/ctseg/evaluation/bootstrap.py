"""Means and pooled values over a data set, with bootstrap intervals that draw whole patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.evaluation.scoring import overlaps

CONFIDENCE = 0.95
Samples = NDArray[np.float64]


class PatientBootstrap:
    """Draws patients with replacement, each with all of its cases; the same draws for every value.

    Intervals are the 2.5th and 97.5th percentile over the draws (Efron's percentile bootstrap). There is none when
    fewer than two patients have a value.

    Args:
        patients: the patient of each case.
        resamples: how many draws.
        seed: of the draws; the same seed gives the same intervals.
    """

    def __init__(self, patients: Sequence[str], resamples: int = 2000, seed: int = 0) -> None:
        names, self.patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        # (1 + resamples, cases): how often each case counts; the first row is the data as it is.
        weights = np.vstack([np.ones((1, len(names)), dtype=np.int64), drawn])
        self._weights = weights[:, self.patient_of].astype(np.float64)

    def mean(self, values: Sequence[float | None]) -> dict[str, Any]:
        """Return value, low, high, n (cases with a value) and patients of the mean over cases that have a value."""
        numbers = _numbers(values)
        return self.interval(self.mean_samples(values), ~np.isnan(numbers))

    def mean_samples(self, values: Sequence[float | None]) -> Samples:
        """Return the mean in the data and in each draw, NaN where no case has a value; (1 + resamples,)."""
        numbers = _numbers(values)
        known = ~np.isnan(numbers)
        with np.errstate(invalid="ignore"):
            return np.asarray(self._weights @ np.where(known, numbers, 0.0) / (self._weights @ known.astype(float)))

    def sums(self, values: NDArray[Any]) -> Samples:
        """Return the sum over cases in the data and in each draw; (1 + resamples,)."""
        return np.asarray(self._weights @ np.asarray(values, dtype=np.float64))

    def pooled(self, counts: NDArray[Any], beta: float = 1.0) -> dict[str, dict[str, Any]]:
        """Return every metric of overlap from counts (cases, 4) of TP, FP, FN, TN summed over the cases."""
        samples = overlaps(self._weights @ np.asarray(counts, dtype=np.float64), beta)
        every = np.ones(len(self.patient_of), dtype=bool)
        return {name: self.interval(values, every) for name, values in samples.items()}

    def interval(self, samples: Samples, used: NDArray[np.bool_]) -> dict[str, Any]:
        """Return value, low, high, n and patients from the value in the data and in each draw."""
        n, patients = int(used.sum()), len(np.unique(self.patient_of[used]))
        value = None if np.isnan(samples[0]) else float(samples[0])
        drawn = samples[1:][~np.isnan(samples[1:])]
        low = high = None
        if value is not None and patients > 1 and drawn.size:
            tail = 50 * (1 - CONFIDENCE)
            low, high = (float(edge) for edge in np.percentile(drawn, [tail, 100 - tail]))
        return {"value": value, "low": low, "high": high, "n": n, "patients": patients}


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
