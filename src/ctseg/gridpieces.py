"""One label on its way to another grid, a plane of the target at a time: along straight axes, or along tilted ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
        self._weights: list[NDArray[np.float32]] = []
        self._lower: list[NDArray[np.intp]] = []
        self._upper: list[NDArray[np.intp]] = []
        self._inside: list[NDArray[np.bool_]] = []
        for axis, source in enumerate(axes):
            steps = np.arange(box[axis].start, box[axis].stop)
            place = matrix[source, axis] * steps + matrix[source, 3]
            self._inside.append((place >= -0.5 - BORDER_VOXELS) & (place <= full[source] - 0.5 + BORDER_VOXELS))
            place = np.clip(place - low[source], 0, values.shape[source] - 1)
            lower = np.floor(place).astype(np.intp)
            self._lower.append(lower)
            self._upper.append(np.minimum(lower + 1, values.shape[source] - 1))
            self._weights.append((place - lower).astype(np.float32))
        values = values.transpose(axes)
        for axis in sorted((1, 2), key=lambda axis: len(self._lower[axis]) / values.shape[axis]):
            values = self._along(values, axis)
        self._values = values

    def _along(self, values: NDArray[Any], axis: int) -> NDArray[Any]:
        lower = values.take(self._lower[axis], axis=axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        difference = values.take(self._upper[axis], axis=axis)
        difference -= lower
        difference *= self._weights[axis].reshape(shape)
        lower += difference
        if not self._inside[axis].all():
            np.copyto(lower, self.outside, where=~self._inside[axis].reshape(shape))
        return lower

    def plane(self, i: int) -> NDArray[Any]:
        """Return plane i of the target, as `Piece` says."""
        step = i - self.box[0].start
        lower, upper = self._values[self._lower[0][step]], self._values[self._upper[0][step]]
        if not self._inside[0][step]:
            return np.full_like(lower, self.outside)
        return lower + self._weights[0][step] * (upper - lower)


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
