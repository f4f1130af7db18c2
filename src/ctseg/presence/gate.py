"""The presence gate: on which slices a segmenter runs, by what a classifier said of each slice.

A classifier errs on single slices. So gaps are closed, short runs far from a longer one are taken for false alarms, and
a margin is added at both ends: one wrong slice neither cuts the organ nor costs much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError


@dataclass(frozen=True)
class Gate:
    """How presence becomes slices to run; all lengths in mm along the slices' axis.

    Attributes:
        margin_mm: slices up to so far beyond the outermost positive ones are run, and at least one at each end.
        gap_mm: negative slices between two positive ones that lie up to so far apart are run; one negative slice
            between two positive ones always is.
        min_slices: runs of fewer slices are false alarms, unless there is no longer run: an organ on a single slice of
            a coarse scan is not lost.

    Raises:
        ConfigError: for a negative length, or `min_slices` below 1.
    """

    margin_mm: float = 10.0
    gap_mm: float = 20.0
    min_slices: int = 2

    def __post_init__(self) -> None:
        if not (self.margin_mm >= 0 and self.gap_mm >= 0 and self.min_slices >= 1):
            raise ConfigError(
                f"the gate got margin_mm {self.margin_mm}, gap_mm {self.gap_mm}, min_slices {self.min_slices}: "
                "expected at least 0, at least 0 and at least 1; correct the task's gate values"
            )

    def runs(self, present: NDArray[np.bool_], positions_mm: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Return first and last of each run of slices that count as holding the organ, after the clean-up.

        Args:
            present: (S,) what the classifier said.
            positions_mm: (S,) place of each slice, ascending.
        """
        runs: list[tuple[int, int]] = []
        for index in np.flatnonzero(present).tolist():
            if runs and (
                index - runs[-1][1] <= 2 or positions_mm[index] - positions_mm[runs[-1][1]] <= self.gap_mm + 1e-6
            ):
                runs[-1] = (runs[-1][0], index)
            else:
                runs.append((index, index))
        long = [(first, last) for first, last in runs if last - first + 1 >= self.min_slices]
        return long or runs

    def open_slices(
        self, present: NDArray[np.bool_], positions: NDArray[np.float64], wanted: NDArray[Any], spacing_mm: float
    ) -> NDArray[np.bool_]:
        """Return (S',): which slices of the segmenter's grid are run.

        Args:
            present: (S,) whether the classifier found the organ.
            positions: (S,) index along the source's axis of each of the classifier's slices, in any order.
            wanted: (S',) the same of the segmenter's slices.
            spacing_mm: mm between indices along that axis.
        """
        order = np.argsort(positions, kind="stable")
        places = np.asarray(positions, dtype=np.float64)[order] * spacing_mm
        asked = np.asarray(wanted, dtype=np.float64) * spacing_mm
        margin = max(self.margin_mm, _step(places), _step(asked)) + 1e-6
        opened = np.zeros(len(asked), dtype=np.bool_)
        for first, last in self.runs(np.asarray(present, dtype=np.bool_)[order], places):
            opened |= (asked >= places[first] - margin) & (asked <= places[last] + margin)
        return opened


def _step(places: NDArray[np.float64]) -> float:
    """The largest distance of two neighbours in mm; 0 for fewer than two."""
    return float(np.diff(np.sort(places)).max()) if len(places) > 1 else 0.0
