"""How a network is run over a prepared image: whole, slice by slice, or in overlapping windows. NumPy alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError
from ctseg.light.slicing import batches, slices

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


def slice_classes(image: Array, network: Network, batch: int = 16) -> Array:
    """Run a 2D classifier on every slice along the last axis; return logits (L, K)."""
    indices = range(image.shape[-1])
    answers = [network(np.ascontiguousarray(np.moveaxis(image[..., some], -1, 0))) for some in batches(indices, batch)]
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
