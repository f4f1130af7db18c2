"""A 2D network on the slices of a volume: a coarse look first, then those that hold something. NumPy alone.

The rule is that of `ctseg.inferers.SlicewiseInferer` and `ctseg.coarseregion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.coarsecells import CELL, inner_edges, pieces_that_count, places_along, side
from ctseg.errors import ConfigError

Array = NDArray[np.float32]
Masks = NDArray[np.bool_]
Network = Callable[[Array], Array]
Box = tuple[slice, slice]


@dataclass
class _Run:
    """One volume on its way: (C, I, J, S), logits (K, I, J, S) so far, and (L, I, J) masks of whole slices."""

    volume: Array
    network: Network
    batch: int
    logits: Array | None = None
    done: set[int] = field(default_factory=set)
    masks: dict[int, Masks] = field(default_factory=dict)

    def whole(self, indices: Sequence[int]) -> None:
        size = self.volume.shape[1:3]
        for some in batches(indices, self.batch):
            predicted = self.predicted(some, (slice(0, size[0]), slice(0, size[1])))
            self.masks.update(zip(some, _classes(predicted), strict=True))

    def part(self, indices: Sequence[int], box: Box) -> None:
        """Run a part of slices, and those again, whole, whose mask comes to an inner edge of it."""
        again: list[int] = []
        for some in batches(indices, self.batch):
            masks = _classes(self.predicted(some, box)).any(axis=1)
            edges = inner_edges(masks.shape[1:], box, self.volume.shape[1:3])
            again += [index for index, mask in zip(some, masks, strict=True) if (mask & edges).any()]
        self.whole(again)

    def predicted(self, some: list[int], box: Box) -> Array:
        chosen = self.volume[:, box[0], box[1]][..., some]
        answer = self.network(np.ascontiguousarray(np.moveaxis(chosen, -1, 0)))
        if self.logits is None:
            self.logits = background(answer.shape[1], self.volume.shape[1:])
        self.logits[:, box[0], box[1], some] = np.moveaxis(answer, 0, -1)
        self.done.update(some)
        return answer


def slices(
    image: Array,
    network: Network,
    opened: NDArray[np.bool_] | None = None,
    batch: int = 8,
    probe: int = 1,
    margin: int = 0,
    region: Mapping[str, Any] | None = None,
) -> tuple[Array, int]:
    """Run a 2D network on slices along the last axis, first every `probe`-th, then those where something is.

    Args:
        image: (C, I, J, S).
        network: takes and gives batches.
        opened: (S,) the slices to run, where a gate chose them.
        batch: slices in one run.
        probe: distance of the probes in slices.
        margin: slices that are run beyond the empty probes.
        region: `share`, `margin_px` and `divisor` of `ctseg.heads.regions.Region`.

    Returns:
        Logits (K, I, J, S), certain background where nothing was run; and how many slices were run.

    Raises:
        ConfigError: a gate for another number of slices, or an image without slices.
    """
    count, run = image.shape[-1], _Run(image, network, batch)
    bounds = {"share": 0.0, "margin_px": None, "divisor": 16, **(region or {})}
    if opened is not None and len(opened) != count:
        raise ConfigError(f"the gate speaks of {len(opened)} slices, the image has {count}: expected one grid")
    wanted = list(range(count)) if opened is None else np.flatnonzero(opened).tolist()
    if not wanted and count:  # how many channels the network answers with, only it can tell
        answer = run.predicted([0], (slice(0, image.shape[1]), slice(0, image.shape[2])))
        return background(answer.shape[1], image.shape[1:]), 0
    if opened is not None and bounds["margin_px"] is None:
        run.whole(wanted)
    elif wanted:
        _probed(run, wanted, probe, margin if opened is None else None, bounds)
    if run.logits is None:
        raise ConfigError("the image has no slice to run the network on")
    return run.logits, len(run.done)


def _probed(run: _Run, wanted: list[int], probe: int, margin: int | None, bounds: Mapping[str, Any]) -> None:
    """Run the slices around what the probes find; with a margin of None all that are wanted."""
    probes = sorted({*wanted[::probe], wanted[-1]})
    run.whole(probes)
    rest = [index for index in wanted if index not in run.done]
    found, box = _found(run.masks, bounds, run.volume.shape[1:3]) if rest else ([], None)
    if margin is not None and found:
        below = max((index for index in probes if index < found[0]), default=wanted[0])
        above = min((index for index in probes if index > found[-1]), default=wanted[-1])
        rest = [index for index in rest if below - margin <= index <= above + margin]
    if found and box is not None:
        run.part(rest, box)
    else:
        run.whole(rest)


def _found(masks: Mapping[int, Masks], bounds: Mapping[str, Any], size: Sequence[int]) -> tuple[list[int], Box | None]:
    """Which of the slices that were looked at hold a piece that counts, and the box to run; None runs whole slices."""
    indices = sorted(masks)
    cells = np.stack([_cells(masks[index]) for index in indices], axis=-1)
    counted = pieces_that_count(cells, float(bounds["share"]))
    if not counted.any():
        return [], None
    places = places_along(counted)
    found = [indices[number] for number in places[2]]
    if bounds["margin_px"] is None:
        return found, None
    margin_px, divisor = int(bounds["margin_px"]), int(bounds["divisor"])
    sides = [
        side(int(where[0]) * CELL, min(int(where[-1] + 1) * CELL, whole), whole, margin_px, divisor)
        for where, whole in zip(places, size, strict=False)
    ]
    return found, (sides[0], sides[1])


def _cells(masks: Masks) -> Masks:
    """Return (L, I / 4, J / 4): in which cells of (L, I, J) anything is."""
    count, rows, columns = masks.shape
    padded = np.pad(masks, [(0, 0), (0, -rows % CELL), (0, -columns % CELL)])
    cells: Masks = padded.reshape(count, padded.shape[1] // CELL, CELL, -1, CELL).any(axis=(2, 4))
    return cells


def _classes(logits: Array) -> Masks:
    """Return (B, L, I, J): where each class is, of logits of one class, or of background and classes."""
    if logits.shape[1] == 1:
        return logits > 0
    classes: Masks = logits.argmax(axis=1)[:, None] == np.arange(1, logits.shape[1])[:, None, None]
    return classes


def batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Give so many at a time."""
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


def background(classes: int, shape: tuple[int, ...]) -> Array:
    """Return the logits of certain background."""
    logits = np.full((classes, *shape), np.finfo(np.float32).min, dtype=np.float32)
    if classes > 1:
        logits[0] = 0
    return logits
