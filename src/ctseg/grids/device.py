"""Images and label maps from grid to grid on the device where they lie, with torch.

What `ctseg.grids.spacing` and `ctseg.grids.labels` do: the same operations in the same order as there, so that values
differ at most by how a device rounds. Axes are only exchanged and flipped here; grids that are
tilted against each other are the CPU's (SciPy's resampler).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctseg.grids.boxes import box_of, grown_box
from ctseg.grids.labels import aligned_axes, reach
from ctseg.grids.pieces import Affine, Box, Shape, quickest, steps_along
from ctseg.grids.slabs import resample_labels_lean
from ctseg.grids.spacing import Box as GridBox
from ctseg.grids.spacing import Mode, Place, place_along, whole

_AT_ONCE = 1 << 26  # voxels of the target that are decided together: 1.3 GB at most, with what they are made of


def regridded_there(
    image: torch.Tensor,
    flipped: Sequence[bool],
    shape: Sequence[int],
    mode: Mode = "bilinear",
    box: GridBox | None = None,
) -> torch.Tensor:
    """Return a volume on a grid of another size over the same field of view, as `ctseg.grids.spacing.regridded` does.

    Args:
        image: (I, J, K), a view whose axes are in the order of the new grid's; read as it is stored, so that nothing
            is copied before it has become small.
        flipped: which axes run backwards.
        shape: the new size.
        mode: "bilinear" or "nearest".
        box: the part of the new grid that is wanted; None for all of it.

    Returns:
        (I', J', K') float32, C order, on the image's device.
    """
    wanted = box or whole(shape)
    places = [place_along(old, new, ends, mode) for old, new, ends in zip(image.shape, shape, wanted, strict=True)]
    rows = (1, 0) if image.stride(0) < image.stride(1) else (0, 1)  # first along the one that is slower in memory
    stored = sorted(range(3), key=lambda axis: image.stride(axis), reverse=True)
    values = image.permute(stored)
    for axis in (*rows, 2):
        values = _interpolated(values, stored.index(axis), places[axis], flipped[axis])
    return values.permute([stored.index(axis) for axis in range(3)]).contiguous()


def _interpolated(values: torch.Tensor, axis: int, place: Place, backwards: bool) -> torch.Tensor:
    last = values.shape[axis] - 1

    def taken(index: NDArray[np.intp]) -> torch.Tensor:
        there = torch.from_numpy(last - index if backwards else index).to(values.device)
        return values.index_select(axis, there).to(torch.float32)

    low = taken(place.first)
    if not place.weight.any():
        return low
    # What has no share is not looked at: it may be no number.
    high = taken(np.where(place.weight > 0, place.second, place.first)).sub_(low)
    return low.add_(high.mul_(_lying(place.weight, axis, values.device)))


def resample_labels_there(
    labels: torch.Tensor,
    from_affine: Affine,
    to_affine: Affine,
    to_shape: Sequence[int],
    certainty: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bring a label map onto another grid, as `ctseg.grids.labels.resample_labels` does with the order "linear".

    Args:
        labels: (I, J, K) uint8.
        from_affine: (4, 4), index of `labels` to mm.
        to_affine: (4, 4), index of the target to mm of the same world; no affine may be singular.
        to_shape: the target's size.
        certainty: (I, J, K) above 0, on the same device; None gives all voxels the same.

    Returns:
        (I', J', K') uint8 on the labels' device, planes along K one after the other, as NIfTI files hold them.
    """
    i, j, k = (int(size) for size in to_shape)
    matrix = np.linalg.inv(np.asarray(from_affine, dtype=np.float64)) @ np.asarray(to_affine, dtype=np.float64)
    axes = aligned_axes(matrix, (i, j, k))
    if axes is None:
        sure = None if certainty is None else certainty.cpu().numpy()
        done = resample_labels_lean(labels.cpu().numpy(), from_affine, to_affine, (i, j, k), sure)
        return torch.from_numpy(done).to(labels.device)
    result = torch.zeros((k, j, i), dtype=torch.uint8, device=labels.device).permute(2, 1, 0)
    boxes = label_boxes(labels)
    thickness = max(1, _AT_ONCE // (i * j))
    for start in range(0, k, thickness):
        stop, here = min(k, start + thickness), matrix.copy()
        here[:3, 3] += here[:3, 2] * start
        _Slab(labels, certainty, here, axes, (i, j, stop - start)).decide(result[:, :, start:stop], boxes)
    return result


def label_boxes(labels: torch.Tensor) -> dict[int, Box]:
    """Return the box of each label above 0 of a map (I, J, K) uint8, by ascending code."""
    counts = torch.bincount(labels.flatten(), minlength=256)
    boxes = {code: box_of(labels == code) for code in torch.nonzero(counts)[:, 0].tolist() if code}
    return {code: box for code, box in boxes.items() if box is not None}


@dataclass(frozen=True)
class _Slab:
    """Some planes of the target, with all that is needed to decide them.

    Attributes:
        labels: (I, J, K) uint8.
        certainty: (I, J, K), or None.
        matrix: index of the slab to index of the labels.
        axes: for each axis of the slab the one of the labels.
        shape: of the slab.
    """

    labels: torch.Tensor
    certainty: torch.Tensor | None
    matrix: Affine
    axes: Shape
    shape: Shape

    def decide(self, target: torch.Tensor, boxes: Mapping[int, Box]) -> None:
        """Write the labels into the slab (I', J', K') uint8, which is 0."""
        if len(boxes) == 1:
            for code, box, votes in self._shares(boxes, signed=self.certainty is not None):
                target[box] = (votes >= (0.5 if self.certainty is None else 0)).to(torch.uint8).mul_(code)
            return
        best = torch.zeros(self.shape, dtype=torch.float32, device=target.device)
        total = torch.zeros_like(best)
        for code, box, share in self._shares(boxes, signed=False):  # codes ascend, so the lower one keeps a tie
            if self.certainty is None:
                total[box] += share
            wins = share > best[box]
            best[box] = torch.where(wins, share, best[box])
            target[box] = torch.where(wins, code, target[box])
        if self.certainty is not None and boxes:
            everything = {0: _union(boxes.values())}
            for _, box, votes in self._shares(everything, signed=True):
                total[box] = votes + 0.5
        target.mul_(total >= 0.5)

    def _shares(self, boxes: Mapping[int, Box], signed: bool) -> Iterator[tuple[int, Box, torch.Tensor]]:
        """Yield each label's code, its box of the slab, and its indicator or votes there; 0 is all labels together."""
        full = tuple(self.labels.shape)
        inverse = np.linalg.inv(self.matrix)
        for code, slices in boxes.items():
            box = reach(slices, inverse, self.shape)
            if box is None:
                continue
            part = grown_box(slices, (1, 1, 1), full)
            low = [one.start for one in part]
            inside = self.labels[part] == code if code else self.labels[part] > 0
            values = inside.to(torch.float32)
            if self.certainty is not None:
                votes = self.certainty[part].to(torch.float32)
                values = torch.where(inside, votes, -votes) if signed else votes * values
            yield code, box, self._on_slab(values, box, low, -1.0 if signed else 0.0)

    def _on_slab(self, values: torch.Tensor, box: Box, low: Sequence[int], outside: float) -> torch.Tensor:
        full = self.labels.shape
        steps = [
            steps_along(self.matrix, source, axis, box[axis], low[source], values.shape[source], full[source])
            for axis, source in enumerate(self.axes)
        ]
        order = quickest(steps, values.shape)
        values = values.permute(self.axes)
        for axis in (*order, 0):
            lower, upper = (torch.from_numpy(i).to(values.device) for i in (steps[axis].lower, steps[axis].upper))
            below = values.index_select(axis, lower)
            above = values.index_select(axis, upper).sub_(below)
            values = below.add_(above.mul_(_lying(steps[axis].weight, axis, values.device)))
            if not steps[axis].inside.all():
                values = values.masked_fill_(_lying(~steps[axis].inside, axis, values.device), outside)
        return values


def _lying(numbers: NDArray[np.float32] | NDArray[np.bool_], axis: int, device: torch.device) -> torch.Tensor:
    """Return numbers along one axis of three, to be broadcast along the others."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return torch.from_numpy(numbers.reshape(shape)).to(device)


def _union(boxes: Iterable[Box]) -> Box:
    """Return the box around several."""
    i, j, k = (slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*boxes, strict=True))
    return (i, j, k)
