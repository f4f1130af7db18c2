"""Finished label maps fused by what each of them is worth: learnt by counting on cases whose truth is known.

Each source (a network of a plane, a reader) gets its confusion matrix: how often it says which class where the truth is
another. A voxel then gets the class that is most probable given all that the sources say, if they err apart from each
other: Xu, Krzyzak and Suen, IEEE Trans. Systems, Man, Cybernetics 22:418 (1992), Bayesian formalism. A source that
cannot tell two classes, as sagittal slices cannot tell left from right, is still heard on the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError

SCHEMA = "ctseg-fusion/1"


@dataclass(frozen=True)
class LearnedFusion:
    """What the sources are worth.

    Attributes:
        values: of the label maps, 0 (background) first; K of them.
        counts: (sources, K, K) voxels: truth by row, what the source says by column.
        sources: a name for each source, in the order in which masks must be given.
        cases: how many were counted.
    """

    values: tuple[int, ...]
    counts: NDArray[np.int64]
    sources: tuple[str, ...]
    cases: int

    def fuse(self, masks: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """Return the most probable label of each voxel; where no mask has a label, 0.

        Args:
            masks: (I, J, K) integers of one shape, in the order of `sources`.

        Raises:
            ConfigError: another number of masks, shapes that differ, or a value that was not there to learn from.
        """
        if len(masks) != len(self.sources) or len({mask.shape for mask in masks}) > 1:
            raise ConfigError(
                f"the fusion was learnt of {len(self.sources)} masks ({', '.join(self.sources)}) and got {len(masks)} "
                f"of shapes {', '.join(str(mask.shape) for mask in masks)}: give as many of one shape, in this order"
            )
        size = len(self.values)
        said = np.zeros(masks[0].shape, np.int64)
        for mask in masks:
            said = said * size + _indices(mask, self.values)
        labels = np.zeros(said.shape, np.uint8)
        for k in range(said.shape[-1]):  # slice by slice: few combinations, and no array of classes by voxels
            found, where = np.unique(said[..., k], return_inverse=True)
            labels[..., k] = self._most_probable(found)[where.reshape(said.shape[:-1])]
        return labels

    def _most_probable(self, said: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n,) labels of combinations of what is said, each one number in base K, the first source highest."""
        size = len(self.values)
        prior = self.counts[0].sum(axis=1)
        with np.errstate(divide="ignore"):  # a class that the truth never has is never chosen
            score = np.repeat(np.log(prior)[None], len(said), axis=0)
        # one voxel is added to each cell: what was never seen is rare, not impossible
        sure = np.log((self.counts + 1) / (self.counts + 1).sum(axis=2, keepdims=True))
        rest = said.copy()
        for matrix in sure[::-1]:
            score += matrix[:, rest % size].T
            rest //= size
        best = np.asarray(self.values, np.uint8)[score.argmax(axis=1)]
        return np.where(said == 0, 0, best).astype(np.uint8)

    def as_bytes(self) -> bytes:
        """Return the file's content."""
        content = {
            "schema": SCHEMA, "values": list(self.values), "sources": list(self.sources), "cases": self.cases,
            "counts": self.counts.tolist(),
        }  # fmt: skip
        return (json.dumps(content) + "\n").encode()


class Counter:
    """Adds up what sources say where the truth is known.

    Args:
        sources: a name for each source.

    Raises:
        ConfigError: fewer than two sources.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        if len(sources) < 2:
            raise ConfigError(f"a fusion got {len(sources)} sources of masks: expected two or more")
        self.sources = tuple(sources)
        self.cases = 0
        self._counts = np.zeros((len(sources), 256 * 256), np.int64)

    def add(self, masks: Sequence[NDArray[Any]], truth: NDArray[Any]) -> None:
        """Count one case: masks in the order of the sources, all of the truth's shape. Raises ConfigError."""
        row = _labels(truth) * 256
        for number, mask in enumerate(masks):
            self._counts[number] += np.bincount((row + _labels(mask)).ravel(), minlength=256 * 256)
        self.cases += 1

    def learned(self) -> LearnedFusion:
        """Return the fusion, of the background and the labels that were there. Raises ConfigError without any."""
        counts = self._counts.reshape(-1, 256, 256)
        there = counts.sum(axis=(0, 1)) + counts.sum(axis=(0, 2)) > 0
        there[0] = True
        if there.sum() < 2:
            raise ConfigError(
                f"a fusion was to be learnt of {self.cases} cases without a label: give masks that have some"
            )
        values = tuple(int(value) for value in np.flatnonzero(there))
        return LearnedFusion(values, counts[:, there][:, :, there], self.sources, self.cases)


def read_fusion(path: Path) -> LearnedFusion:
    """Read what `ctseg learn-fusion` wrote.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        values = tuple(int(value) for value in content["values"])
        counts = np.asarray(content["counts"], np.int64)
        sources = tuple(str(name) for name in content["sources"])
        if counts.shape != (len(sources), len(values), len(values)) or (counts < 0).any() or values[0] != 0:
            raise ValueError(f"counts of shape {counts.shape}")
        return LearnedFusion(values, counts, sources, int(content["cases"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} holds no learnt fusion ({type(error).__name__}: {error}); make one with ctseg learn-fusion"
        ) from error


def _labels(mask: NDArray[Any]) -> NDArray[np.intp]:
    if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= 255:
        raise ConfigError(f"a mask holds values from {mask.min()} to {mask.max()}: expected labels from 0 to 255")
    return mask.astype(np.intp)


def _indices(mask: NDArray[Any], values: Sequence[int]) -> NDArray[np.int64]:
    """The place of each voxel's value among `values`."""
    table = np.full(256, -1, np.int64)
    table[list(values)] = np.arange(len(values))
    found: NDArray[np.int64] = table[_labels(mask)]
    if (found < 0).any():
        unknown = ", ".join(str(int(value)) for value in np.unique(mask[found < 0])[:5])
        raise ConfigError(f"a mask holds the label {unknown}, which the fusion has not learnt: it knows {list(values)}")
    return found
