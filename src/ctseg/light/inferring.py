"""How a network is run over a prepared image: whole, slice by slice, or in overlapping windows. NumPy alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError

Array = NDArray[np.float32]
Network = Callable[[Array], Array]

WAYS = ("whole", "slices", "slice_classes", "windows")


def infer(
    image: Array, network: Network, way: str, opened: NDArray[np.bool_] | None = None, **options: Any
) -> tuple[Array, int | None]:
    """Run a network.

    Args:
        image: (C, I, J, K).
        network: takes and gives batches.
        way: "whole", "slices", "slice_classes" (a classifier, slice by slice) or "windows".
        opened: (K,) the slices to run, where a gate chose them.
        options: of the way, see the functions below.

    Returns:
        Logits (K', I, J, K), for "slice_classes" (L, K); and how many slices were run, None for other ways.

    Raises:
        ConfigError: an unknown way, or options that do not fit.
    """
    try:
        if way == "whole":
            return network(image[None])[0], None
        if way == "slices":
            return slices(image, network, opened, **options)
        if way == "slice_classes":
            return slice_classes(image, network, **options), None
        if way == "windows":
            return windows(image, network, **options), None
    except TypeError as error:
        raise ConfigError(f"the way {way!r} of running a network does not take these options ({error})") from error
    raise ConfigError(f"there is no way {way!r} of running a network: expected one of {', '.join(WAYS)}")


def slices(
    image: Array,
    network: Network,
    opened: NDArray[np.bool_] | None = None,
    batch: int = 8,
    probe: int = 1,
    margin: int = 0,
) -> tuple[Array, int]:
    """Run a 2D network on slices along the last axis, first every `probe`-th, then those where something is.

    The rule is that of `ctseg.inferers.SlicewiseInferer`; slices that were not run hold certain background.
    """
    count = image.shape[-1]
    if opened is not None:
        if len(opened) != count:
            raise ConfigError(f"the gate speaks of {len(opened)} slices, the image has {count}: expected one grid")
        wanted = np.flatnonzero(opened).tolist()
        if not wanted:  # how many channels the network answers with, only it can tell
            logits, _ = _run(image, network, [0], None, batch)
            return _background(len(logits), image.shape[1:]), 0
        return _run(image, network, wanted, None, batch)[0], len(wanted)
    probes = sorted({*range(0, count, probe), count - 1})
    logits, found = _run(image, network, probes, None, batch)
    if len(probes) == count:
        return logits, count
    first, last = _range(found, count, margin)
    rest = [index for index in range(first, last + 1) if index not in found]
    return _run(image, network, rest, logits, batch)[0], len(probes) + len(rest)


def _range(found: dict[int, bool], count: int, margin: int) -> tuple[int, int]:
    hits = [index for index, hit in found.items() if hit]
    if not hits:
        return 0, count - 1
    below = max((index for index in found if index < min(hits)), default=0)
    above = min((index for index in found if index > max(hits)), default=count - 1)
    return max(0, below - margin), min(count - 1, above + margin)


def _run(
    image: Array, network: Network, indices: Sequence[int], logits: Array | None, batch: int
) -> tuple[Array, dict[int, bool]]:
    found: dict[int, bool] = {}
    for some in _batches(indices, batch):
        predicted = network(np.ascontiguousarray(np.moveaxis(image[..., some], -1, 0)))
        if logits is None:
            logits = _background(predicted.shape[1], image.shape[1:])
        logits[..., some] = np.moveaxis(predicted, 0, -1)
        present = predicted > 0 if predicted.shape[1] == 1 else predicted.argmax(axis=1) > 0
        found.update(zip(some, present.reshape(len(some), -1).any(axis=1).tolist(), strict=True))
    if logits is None:
        raise ConfigError("the image has no slice to run the network on")
    return logits, found


def _batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


def _background(classes: int, shape: tuple[int, ...]) -> Array:
    logits = np.full((classes, *shape), np.finfo(np.float32).min, dtype=np.float32)
    if classes > 1:
        logits[0] = 0
    return logits


def slice_classes(image: Array, network: Network, batch: int = 16) -> Array:
    """Run a 2D classifier on every slice along the last axis; return logits (L, K)."""
    indices = range(image.shape[-1])
    answers = [network(np.ascontiguousarray(np.moveaxis(image[..., some], -1, 0))) for some in _batches(indices, batch)]
    if answers[0].ndim != 2:
        raise ConfigError(f"the classifier gave {answers[0].shape}: expected (slices, organs)")
    return np.concatenate(answers).T


def windows(
    image: Array,
    network: Network,
    size: Sequence[int],
    overlap: float = 0.5,
    mode: str = "gaussian",
    batch: int = 1,
    sigma: float = 0.125,
) -> Array:
    """Run a network on overlapping windows, each weighted by a Gaussian round its middle, or all alike ("constant").

    Windows and weights are those of MONAI's `SlidingWindowInferer`: a step of (1 - overlap) of the size, the last
    window moved back to the image's edge, a weight of at least 0.001.
    """
    if mode not in ("gaussian", "constant"):
        raise ConfigError(f"there are no weights {mode!r}: expected gaussian or constant")
    sizes = [int(length) for length in size]
    low = [max(0, length - own) // 2 for length, own in zip(sizes, image.shape[1:], strict=True)]
    high = [max(0, length - own) - front for length, own, front in zip(sizes, image.shape[1:], low, strict=True)]
    padded = np.pad(image, [(0, 0), *zip(low, high, strict=True)])
    starts = [_starts(own, length, overlap) for own, length in zip(padded.shape[1:], sizes, strict=True)]
    weight = _weights(sizes, sigma) if mode == "gaussian" else np.ones(sizes, np.float32)
    total: Array | None = None
    weights = np.zeros(padded.shape[1:], dtype=np.float32)
    boxes = [
        tuple(slice(start, start + length) for start, length in zip(corner, sizes, strict=True))
        for corner in itertools.product(*starts)
    ]
    for first in range(0, len(boxes), batch):
        some = boxes[first : first + batch]
        answers = network(np.stack([padded[_whole(box)] for box in some]))
        if total is None:
            total = np.zeros((answers.shape[1], *padded.shape[1:]), dtype=np.float32)
        for box, answer in zip(some, answers, strict=True):
            total[_whole(box)] += answer * weight
            weights[box] += weight
    if total is None:
        raise ConfigError("the image has no voxel to run the network on")
    total /= weights
    inner = tuple(slice(front, front + own) for front, own in zip(low, image.shape[1:], strict=True))
    return total[_whole(inner)]


def _whole(box: tuple[slice, ...]) -> tuple[slice, ...]:
    """A box of all channels."""
    return (slice(None), *box)


def _starts(own: int, length: int, overlap: float) -> list[int]:
    step = length if own == length else max(1, int(length * (1 - overlap)))
    starts = list(range(0, max(1, own - length + step), step))
    return [min(start, own - length) for start in starts]


def _weights(sizes: Sequence[int], sigma: float) -> Array:
    weight = np.ones((), dtype=np.float32)
    for length in sizes:
        places = np.arange(length, dtype=np.float32) - np.float32((length - 1) / 2)
        weight = weight[..., None] * np.exp(places**2 / np.float32(-2 * (sigma * length) ** 2))
    return np.maximum(weight, max(float(weight.min()), 1e-3)).astype(np.float32)
