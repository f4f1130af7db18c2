"""What a label map says about each organ: voxels, millilitres, where it lies, whether the scan cuts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Organ:
    """One label of a label map, measured.

    Attributes:
        name: the label's name.
        code: its value in the label map.
        voxels: how many voxels have it.
        volume_ml: their volume in millilitres.
        box: first and last index (both inclusive) along each axis (I, J, K); None when the organ is not found.
        edges: the faces of the grid that it touches, as (axis, -1 for the first or +1 for the last slice): there the
            field of view may have cut it, and its volume is then a lower bound.
    """

    name: str
    code: int
    voxels: int
    volume_ml: float
    box: tuple[tuple[int, int], ...] | None
    edges: tuple[tuple[int, int], ...]

    @property
    def touches_edge(self) -> bool:
        """Whether the organ reaches a face of the grid that has more than one slice across."""
        return bool(self.edges)


def voxel_volume_ml(affine: NDArray[Any]) -> float:
    """Volume of one voxel in ml, from an affine (4, 4) in mm; right for sheared and mirrored ones too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000.0


def extent_of(label_map: NDArray[Any], code: int) -> tuple[int, tuple[tuple[int, int], ...] | None]:
    """Return how many voxels have a value, and first and last index (inclusive) along each axis; None for no voxel.

    A plane at a time, so that no mask of the label map's size is made.
    """
    if not all(label_map.shape):
        return 0, None
    slowest = int(np.argmax(np.abs(label_map.strides)))  # of the axes: its planes lie together in memory
    voxels, hits = 0, [np.zeros(size, dtype=np.bool_) for size in label_map.shape]
    first, second = (axis for axis in range(3) if axis != slowest)
    for index, plane in enumerate(np.moveaxis(label_map, slowest, 0)):
        found = plane == code
        if here := int(np.count_nonzero(found)):
            voxels += here
            hits[slowest][index] = True
            hits[first] |= found.any(axis=1)
            hits[second] |= found.any(axis=0)
    if not voxels:
        return 0, None
    ends = [np.flatnonzero(hit)[[0, -1]] for hit in hits]
    return voxels, tuple((int(low), int(high)) for low, high in ends)


def measure_organs(label_map: NDArray[Any], labels: Mapping[str, int], affine: NDArray[Any]) -> list[Organ]:
    """Measure every label of a label map (I, J, K), in the order of `labels`; those not found have 0 voxels.

    Args:
        label_map: integers, 0 is background.
        labels: label names and their values.
        affine: (4, 4), voxel index to mm, exactly as the source states it.
    """
    ml = voxel_volume_ml(affine)
    organs = []
    for name, code in labels.items():
        voxels, box = extent_of(label_map, code)
        edges = []
        for axis, size in enumerate(label_map.shape if box else ()):
            # An axis of one slice cuts everything: that is the image's nature and no finding about the organ.
            if box and size > 1:
                edges += [(axis, -1)] * (box[axis][0] == 0) + [(axis, 1)] * (box[axis][1] == size - 1)
        organs.append(Organ(name, code, voxels, voxels * ml, box, tuple(edges)))
    return organs
