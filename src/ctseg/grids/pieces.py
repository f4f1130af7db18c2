"""One label on its way to another grid, a plane of the target at a time: along straight axes, or along tilted ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

# A centre on the very border of the first grid still belongs to it, whatever the last bits say.
BORDER_VOXELS = 1e-6


class Piece(ABC):
    """One label (or, for "nearest", all of them) on its box of the target, one plane at a time.

    Attributes:
        code: the label's code; 0 where the planes hold codes themselves ("nearest"), or stand for all labels together.
        box: where on the target anything can be.
        signed: the planes hold votes for any label less those for background, and are cut at 0.
    """

    def __init__(self, code: int, box: Box, signed: bool = False) -> None:
        self.code = code
        self.box = box
        self.signed = signed
        self.outside = -1.0 if signed else 0.0

    @abstractmethod
    def plane(self, i: int) -> NDArray[Any]:
        """Return the shares or votes (float32) or codes (uint8) of the target's plane i, on the box's J and K."""


@dataclass(frozen=True)
class Steps:
    """Where the voxels of a target's box lie along one axis of the values that they are interpolated from.

    Attributes:
        lower: (n,) the value below each.
        upper: (n,) the one above.
        weight: (n,) float32, the share of `upper`.
        inside: (n,) whether the voxel lies on the first grid at all.
    """

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: NDArray[np.float32]
    inside: NDArray[np.bool_]


def steps_along(matrix: Affine, source: int, axis: int, part: slice, low: int, count: int, full: int) -> Steps:
    """Return where a target's voxels lie along an axis of the first grid that runs along the target's.

    Args:
        matrix: (4, 4), index of the target to index of the first grid.
        source: the axis of the first grid.
        axis: the axis of the target.
        part: of the target, along its axis.
        low: where on the first grid the values begin.
        count: how many values there are along the axis.
        full: voxels of the first grid along it.
    """
    place = matrix[source, axis] * np.arange(part.start, part.stop) + matrix[source, 3]
    inside = (place >= -0.5 - BORDER_VOXELS) & (place <= full - 0.5 + BORDER_VOXELS)
    place = np.clip(place - low, 0, count - 1)
    lower = np.floor(place).astype(np.intp)
    return Steps(lower, np.minimum(lower + 1, count - 1), (place - lower).astype(np.float32), inside)


class AlignedPiece(Piece):
    """Both grids have the same axes but for order and direction: one axis after the other, by index and weight."""

    def __init__(
        self,
        code: int,
        box: Box,
        values: NDArray[Any],
        low: Shape,
        matrix: Affine,
        full: Shape,
        axes: Shape,
        signed: bool = False,
    ) -> None:
        super().__init__(code, box, signed)
        self._steps = [
            steps_along(matrix, source, axis, box[axis], low[source], values.shape[source], full[source])
            for axis, source in enumerate(axes)
        ]
        values = values.transpose(axes)
        for axis in quickest(self._steps, values.shape):
            values = self._along(values, axis)
        self._values = values

    def _along(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        steps, shape = self._steps[axis], [1, 1, 1]
        shape[axis] = -1
        lower = values.take(steps.lower, axis=axis)
        difference = values.take(steps.upper, axis=axis)
        difference -= lower
        difference *= steps.weight.reshape(shape)
        lower += difference
        if not steps.inside.all():
            np.copyto(lower, self.outside, where=~steps.inside.reshape(shape))
        return lower

    def plane(self, i: int) -> NDArray[Any]:
        """Return plane i of the target, as `Piece` says."""
        step, steps = i - self.box[0].start, self._steps[0]
        lower, upper = self._values[steps.lower[step]], self._values[steps.upper[step]]
        if not steps.inside[step]:
            return np.full_like(lower, self.outside)
        return lower + steps.weight[step] * (upper - lower)


def quickest(steps: Sequence[Steps], shape: Sequence[int]) -> list[int]:
    """Return the axes 1 and 2 in the order in which they are interpolated: what grows least, first."""
    return sorted((1, 2), key=lambda axis: len(steps[axis].lower) / shape[axis])


class TiltedPiece(Piece):
    """Any other affine: SciPy's resampler, one plane of the target at a time."""

    def __init__(
        self,
        code: int,
        box: Box,
        values: NDArray[Any],
        low: Shape,
        matrix: Affine,
        full: Shape,
        signed: bool = False,
    ) -> None:
        super().__init__(code, box, signed)
        self._values, self._low, self._matrix, self._full = values, np.asarray(low), matrix, full

    def plane(self, i: int) -> NDArray[Any]:
        """Return plane i of the target, as `Piece` says."""
        from scipy import ndimage

        _, j, k = self.box
        start = self._matrix[:3, :3] @ [i, j.start, k.start] + self._matrix[:3, 3]
        shape = (1, j.stop - j.start, k.stop - k.start)
        plane: NDArray[Any] = ndimage.affine_transform(
            self._values,
            self._matrix[:3, :3],
            offset=start - self._low,
            output_shape=shape,
            order=0 if self._values.dtype == np.uint8 else 1,
            mode="nearest",
            prefilter=False,
        )[0]
        for source in range(3):
            place = (
                start[source]
                + self._matrix[source, 1] * np.arange(shape[1])[:, None]
                + self._matrix[source, 2] * np.arange(shape[2])[None, :]
            )
            inside = (place >= -0.5 - BORDER_VOXELS) & (place <= self._full[source] - 0.5 + BORDER_VOXELS)
            np.copyto(plane, plane.dtype.type(self.outside), where=~inside)
        return plane
