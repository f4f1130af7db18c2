"""Label maps from one grid to another, without a shift: from the network's grid back to the source's.

Linear interpolation of each label's indicator (1 inside, 0 outside), decided at one half; where it is known how sure
each voxel is, its vote counts by that, so that the border comes to lie between the voxels where the network put it and
not half way, and runs smoothly from slice to slice. Only the box around the labels is worked on, and the target is
filled slice by slice, so that no float copy of the target's size ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.grids.pieces import BORDER_VOXELS, Affine, AlignedPiece, Box, Piece, Shape, TiltedPiece

Order = Literal["linear", "nearest"]

# A grid is aligned with another when nowhere on the target a coordinate strays by more voxels than this.
_ALIGNED_VOXELS = 1e-3


def resample_labels(
    labels: NDArray[Any],
    from_affine: Affine,
    to_affine: Affine,
    to_shape: Sequence[int],
    order: Order = "linear",
    certainty: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """Bring a label map onto another grid.

    A target voxel is foreground where the indicators of all labels together, interpolated linearly at its centre, reach
    one half; among the labels the one with the largest share wins, ties go to the lower code. For a single label this
    is its indicator thresholded at 0.5, ends included. A voxel of the first grid ends half a voxel beyond its centre:
    up to there its outermost values hold, beyond it all is 0.

    With `certainty` the same is done with votes: each voxel's indicators times its certainty. A target voxel is
    foreground where the votes for the labels are no fewer than those for the background. For a single label this is
    the signed certainty (positive inside, negative outside), interpolated and cut at 0: of a network's logit, the
    interpolated logit; of a distance to the border, shape-based interpolation (Raya and Udupa, IEEE TMI 9:32, 1990).

    Args:
        labels: (I, J, K) integers 0..255, 0 is background.
        from_affine: (4, 4), index of `labels` to mm.
        to_affine: (4, 4), index of the target to mm of the same world.
        to_shape: the target's size.
        order: "linear", or "nearest" which takes the label of the voxel in which the target's centre lies.
        certainty: (I, J, K) above 0, of any real type: the weight of each voxel's label, background too; None gives
            all the same. "nearest" has no use for it.

    Returns:
        (I', J', K') uint8, C order.

    Raises:
        GeometryError: `labels` is not 3D, `to_shape` is not three positive sizes, an affine is singular, or
            `certainty` is of another shape.
        ValueError: an unknown `order`, or labels outside of 0..255.
    """
    shape = _checked(labels, to_shape, order)
    try:
        matrix = np.linalg.inv(np.asarray(from_affine, dtype=np.float64)) @ np.asarray(to_affine, dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise GeometryError("the label map's affine is singular, so it cannot be brought to another grid") from error
    if certainty is not None and certainty.shape != labels.shape:
        raise GeometryError(f"the labels have the shape {labels.shape}, and their certainty {certainty.shape}")
    labels = labels.astype(np.uint8, copy=False)
    axes = aligned_axes(matrix, shape)
    if order == "nearest" and axes is not None:
        return _by_index(labels, matrix, shape, axes)
    result = np.zeros(shape, dtype=np.uint8)
    pieces = list(_pieces(labels, matrix, shape, order, axes, certainty))
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


def _by_index(labels: NDArray[np.uint8], matrix: Affine, shape: Shape, axes: Shape) -> NDArray[np.uint8]:
    """Take the voxel in which each target's centre lies, where both grids have the same axes: index by index."""
    places = [matrix[source, axis] * np.arange(shape[axis]) + matrix[source, 3] for axis, source in enumerate(axes)]
    sizes = [labels.shape[source] for source in axes]
    values = labels.transpose(axes)
    for axis in sorted(range(3), key=lambda axis: shape[axis] / sizes[axis]):  # what becomes smallest, first
        index = np.clip(np.floor(places[axis] + 0.5), 0, sizes[axis] - 1).astype(np.intp)
        values = values.take(index, axis=axis)
    for axis, (place, size) in enumerate(zip(places, sizes, strict=True)):
        beyond = (place < -0.5 - BORDER_VOXELS) | (place > size - 0.5 + BORDER_VOXELS)
        np.moveaxis(values, axis, 0)[beyond] = 0
    return np.ascontiguousarray(values)


def _pieces(
    labels: NDArray[np.uint8],
    matrix: Affine,
    shape: Shape,
    order: str,
    axes: Shape | None,
    certainty: NDArray[Any] | None,
) -> Iterator[Piece]:
    """Cut each label out with a margin of one voxel, and find the target's box that it can reach.

    With a certainty all labels together come first, as votes less those for background.
    """
    from scipy import ndimage

    found = list(enumerate(ndimage.find_objects(labels), start=1)) if order == "linear" else []
    found = [(code, slices) for code, slices in found if slices is not None]
    if order == "nearest" or (certainty is not None and len(found) > 1):
        found = [(0, slices) for slices in ndimage.find_objects((labels > 0).astype(np.uint8))] + found
    inverse = np.linalg.inv(matrix)
    full: Shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    for code, slices in found:
        low = tuple(max(0, part.start - 1) for part in slices)
        high = tuple(min(size, part.stop + 1) for size, part in zip(full, slices, strict=True))
        box = reach(slices, inverse, shape)
        if box is None:
            continue
        part = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        signed = certainty is not None and (code == 0 or len(found) == 1)
        values = _values(labels[part], code, None if certainty is None else certainty[part], signed, order)
        if axes is None:
            yield TiltedPiece(code, box, values, low, matrix, full, signed)
        else:
            yield AlignedPiece(code, box, values, low, matrix, full, axes, signed)


def _values(
    labels: NDArray[np.uint8], code: int, certainty: NDArray[Any] | None, signed: bool, order: str
) -> NDArray[Any]:
    """Return what is interpolated of a label: its indicator, its votes, or the votes for any less those for none."""
    if order == "nearest":
        return labels
    inside = labels == code if code else labels > 0
    if certainty is None:
        return inside.astype(np.float32)
    votes = certainty.astype(np.float32)
    return np.where(inside, votes, -votes) if signed else votes * inside


def aligned_axes(matrix: Affine, shape: Shape) -> Shape | None:
    """Return for each target axis the axis of the first grid that runs along it, or None where they are tilted."""
    strengths = np.abs(matrix[:3, :3])
    axes = tuple(int(axis) for axis in strengths.argmax(axis=0))
    rest = strengths.copy()
    rest[list(axes), [0, 1, 2]] = 0
    if sorted(axes) != [0, 1, 2] or (rest * shape).sum(axis=1).max() > _ALIGNED_VOXELS:
        return None
    return (axes[0], axes[1], axes[2])


def reach(slices: Sequence[slice], inverse: Affine, shape: Shape) -> Box | None:
    """Return the target's box in which linear interpolation of the voxels in `slices` can be above zero."""
    ends = [(part.start - 1.0, float(part.stop)) for part in slices]
    corners = np.array([[i, j, k, 1.0] for i in ends[0] for j in ends[1] for k in ends[2]]).T
    reached = (inverse @ corners)[:3]
    low = np.maximum(0, np.floor(reached.min(axis=1))).astype(int)
    high = np.minimum(shape, np.ceil(reached.max(axis=1)) + 1).astype(int)
    if (low >= high).any():
        return None
    return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def _fill(target: NDArray[np.uint8], i: int, pieces: Sequence[Piece]) -> None:
    """Decide one plane (J, K) of the target."""
    labels = [piece for piece in pieces if piece.code]
    together = [piece for piece in pieces if piece.signed]
    if len(pieces) == 1:
        piece = pieces[0]
        plane = piece.plane(i)
        codes = piece.code == 0 and not piece.signed
        target[piece.box[1:]] = plane if codes else (plane >= (0 if piece.signed else 0.5)) * np.uint8(piece.code)
    elif pieces:
        best = np.zeros(target.shape, dtype=np.float32)
        total = np.full(target.shape, -0.5 if together else 0.0, dtype=np.float32)
        for piece in labels:  # codes ascend, so the lower one keeps a tie
            share, part = piece.plane(i), piece.box[1:]
            if not together:
                total[part] += share
            wins = share > best[part]
            best[part][wins] = share[wins]
            target[part][wins] = piece.code
        for piece in together:
            total[piece.box[1:]] = piece.plane(i) + 0.5
        target[total < 0.5] = 0
