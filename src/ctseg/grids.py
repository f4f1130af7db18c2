"""Label maps from one grid to another, without a shift: from the network's grid back to the source's.

Linear interpolation of each label's indicator (1 inside, 0 outside), decided at one half. Only the box around the
labels is worked on, and the target is filled slice by slice, so that no float copy of the target's size ever exists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError

Affine = NDArray[np.float64]
Order = Literal["linear", "nearest"]
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

# A grid is aligned with another when nowhere on the target a coordinate strays by more voxels than this.
_ALIGNED_VOXELS = 1e-3
# A centre on the very border of the first grid still belongs to it, whatever the last bits say.
_BORDER_VOXELS = 1e-6


def resample_labels(
    labels: NDArray[Any],
    from_affine: Affine,
    to_affine: Affine,
    to_shape: Sequence[int],
    order: Order = "linear",
) -> NDArray[np.uint8]:
    """Bring a label map onto another grid.

    A target voxel is foreground where the indicators of all labels together, interpolated linearly at its centre, reach
    one half; among the labels the one with the largest share wins, ties go to the lower code. For a single label this
    is its indicator thresholded at 0.5, ends included. A voxel of the first grid ends half a voxel beyond its centre:
    up to there its outermost values hold, beyond it all is 0.

    Args:
        labels: (I, J, K) integers 0..255, 0 is background.
        from_affine: (4, 4), index of `labels` to mm.
        to_affine: (4, 4), index of the target to mm of the same world.
        to_shape: the target's size.
        order: "linear", or "nearest" which takes the label of the voxel in which the target's centre lies.

    Returns:
        (I', J', K') uint8, C order.

    Raises:
        GeometryError: `labels` is not 3D, `to_shape` is not three positive sizes, or an affine is singular.
        ValueError: an unknown `order`, or labels outside of 0..255.
    """
    shape = _checked(labels, to_shape, order)
    try:
        matrix = np.linalg.inv(np.asarray(from_affine, dtype=np.float64)) @ np.asarray(to_affine, dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise GeometryError("the label map's affine is singular, so it cannot be brought to another grid") from error
    labels = labels.astype(np.uint8, copy=False)
    result = np.zeros(shape, dtype=np.uint8)
    pieces = list(_pieces(labels, matrix, shape, order))
    for i in range(shape[0]):
        _fill(result[i], i, [piece for piece in pieces if piece.box[0].start <= i < piece.box[0].stop])
    return result


def _checked(labels: NDArray[Any], to_shape: Sequence[int], order: str) -> Shape:
    if labels.ndim != 3 or len(to_shape) != 3 or min(to_shape) < 1:
        raise GeometryError(
            f"labels of {labels.ndim} dimensions cannot go to a grid of {tuple(to_shape)}; both must be 3D"
        )
    if order not in ("linear", "nearest"):
        raise ValueError(f"order must be 'linear' or 'nearest', not {order!r}")
    if labels.dtype.kind not in "biu" or (labels.size and (labels.min() < 0 or labels.max() > 255)):
        raise ValueError("labels must be integers 0 to 255")
    i, j, k = (int(size) for size in to_shape)
    return (i, j, k)


class _Piece(ABC):
    """One label (or, for "nearest", all of them) on its box of the target, one plane at a time.

    Attributes:
        code: the label's code; 0 where the planes hold codes themselves ("nearest").
        box: where on the target anything can be.
    """

    def __init__(self, code: int, box: Box) -> None:
        self.code = code
        self.box = box

    @abstractmethod
    def plane(self, i: int) -> NDArray[Any]:
        """Return the shares (float32) or codes (uint8) of the target's plane i, on the box's J and K."""


class _AlignedPiece(_Piece):
    """Both grids have the same axes but for order and direction: one axis after the other, by index and weight."""

    def __init__(
        self, code: int, box: Box, values: NDArray[Any], low: Shape, matrix: Affine, full: Shape, axes: Shape
    ) -> None:
        super().__init__(code, box)
        self._weights: list[NDArray[np.float32]] = []
        self._lower: list[NDArray[np.intp]] = []
        self._upper: list[NDArray[np.intp]] = []
        self._inside: list[NDArray[np.bool_]] = []
        for axis, source in enumerate(axes):
            steps = np.arange(box[axis].start, box[axis].stop)
            place = matrix[source, axis] * steps + matrix[source, 3]
            self._inside.append((place >= -0.5 - _BORDER_VOXELS) & (place <= full[source] - 0.5 + _BORDER_VOXELS))
            place = np.clip(place - low[source], 0, values.shape[source] - 1)
            place = np.clip(np.floor(place + 0.5), 0, values.shape[source] - 1) if code == 0 else place
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
        if self.code == 0:
            return lower
        shape = [1, 1, 1]
        shape[axis] = -1
        difference = values.take(self._upper[axis], axis=axis)
        difference -= lower
        difference *= self._weights[axis].reshape(shape)
        lower += difference
        lower *= self._inside[axis].reshape(shape)
        return lower

    def plane(self, i: int) -> NDArray[Any]:
        step = i - self.box[0].start
        lower, upper = self._values[self._lower[0][step]], self._values[self._upper[0][step]]
        if not self._inside[0][step]:
            return np.zeros_like(lower)
        if self.code == 0:
            return lower * np.outer(self._inside[1], self._inside[2])
        return lower + self._weights[0][step] * (upper - lower)


class _TiltedPiece(_Piece):
    """Any other affine: SciPy's resampler, one plane of the target at a time."""

    def __init__(self, code: int, box: Box, values: NDArray[Any], low: Shape, matrix: Affine, full: Shape) -> None:
        super().__init__(code, box)
        self._values, self._low, self._matrix, self._full = values, np.asarray(low), matrix, full

    def plane(self, i: int) -> NDArray[Any]:
        from scipy import ndimage

        _, j, k = self.box
        start = self._matrix[:3, :3] @ [i, j.start, k.start] + self._matrix[:3, 3]
        shape = (1, j.stop - j.start, k.stop - k.start)
        plane: NDArray[Any] = ndimage.affine_transform(
            self._values,
            self._matrix[:3, :3],
            offset=start - self._low,
            output_shape=shape,
            order=0 if self.code == 0 else 1,
            mode="nearest",
            prefilter=False,
        )[0]
        for source in range(3):
            place = (
                start[source]
                + self._matrix[source, 1] * np.arange(shape[1])[:, None]
                + self._matrix[source, 2] * np.arange(shape[2])[None, :]
            )
            plane *= (place >= -0.5 - _BORDER_VOXELS) & (place <= self._full[source] - 0.5 + _BORDER_VOXELS)
        return plane


def _pieces(labels: NDArray[np.uint8], matrix: Affine, shape: Shape, order: str) -> Iterator[_Piece]:
    """Cut each label out with a margin of one voxel, and find the target's box that it can reach."""
    from scipy import ndimage

    found = ndimage.find_objects(labels if order == "linear" else (labels > 0).astype(np.uint8))
    axes = _aligned_axes(matrix, shape)
    inverse = np.linalg.inv(matrix)
    full: Shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    for code, slices in enumerate(found, start=1):
        if slices is None:
            continue
        low = tuple(max(0, part.start - 1) for part in slices)
        high = tuple(min(size, part.stop + 1) for size, part in zip(full, slices, strict=True))
        box = _reach(slices, inverse, shape)
        if box is None:
            continue
        crop = labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        values = (crop == code).astype(np.float32) if order == "linear" else crop
        number = code if order == "linear" else 0
        if axes is None:
            yield _TiltedPiece(number, box, values, low, matrix, full)
        else:
            yield _AlignedPiece(number, box, values, low, matrix, full, axes)


def _aligned_axes(matrix: Affine, shape: Shape) -> Shape | None:
    """Return for each target axis the axis of the first grid that runs along it, or None where they are tilted."""
    strengths = np.abs(matrix[:3, :3])
    axes = tuple(int(axis) for axis in strengths.argmax(axis=0))
    rest = strengths.copy()
    rest[list(axes), [0, 1, 2]] = 0
    if sorted(axes) != [0, 1, 2] or (rest * shape).sum(axis=1).max() > _ALIGNED_VOXELS:
        return None
    return (axes[0], axes[1], axes[2])


def _reach(slices: Sequence[slice], inverse: Affine, shape: Shape) -> Box | None:
    """Return the target's box in which linear interpolation of the voxels in `slices` can be above zero."""
    ends = [(part.start - 1.0, float(part.stop)) for part in slices]
    corners = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]]).T
    reached = (inverse @ corners)[:3]
    low = np.maximum(0, np.floor(reached.min(axis=1))).astype(int)
    high = np.minimum(shape, np.ceil(reached.max(axis=1)) + 1).astype(int)
    if (low >= high).any():
        return None
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def _fill(target: NDArray[np.uint8], i: int, pieces: Sequence[_Piece]) -> None:
    """Decide one plane (J, K) of the target."""
    if len(pieces) == 1:
        piece = pieces[0]
        plane = piece.plane(i)
        target[piece.box[1:]] = plane if piece.code == 0 else (plane >= 0.5) * np.uint8(piece.code)
    elif pieces:
        total = np.zeros(target.shape, dtype=np.float32)
        best = np.zeros(target.shape, dtype=np.float32)
        for piece in pieces:  # codes ascend, so the lower one keeps a tie
            share, part = piece.plane(i), piece.box[1:]
            total[part] += share
            wins = share > best[part]
            best[part][wins] = share[wins]
            target[part][wins] = piece.code
        target[total < 0.5] = 0
