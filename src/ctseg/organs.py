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


def _box(found: NDArray[np.bool_]) -> tuple[tuple[int, int], ...] | None:
    """First and last index along each axis, inclusive, of what is True in a 3D array; None when nothing is."""
    box = []
    for axis in range(3):
        hits = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        if not hits.size:
            return None
        box.append((int(hits[0]), int(hits[-1])))
    return tuple(box)


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
        found = label_map == code
        voxels = int(np.count_nonzero(found))
        box = _box(found)
        edges = []
        for axis, size in enumerate(label_map.shape if box else ()):
            # An axis of one slice cuts everything: that is the image's nature and no finding about the organ.
            if box and size > 1:
                edges += [(axis, -1)] * (box[axis][0] == 0) + [(axis, 1)] * (box[axis][1] == size - 1)
        organs.append(Organ(name, code, voxels, voxels * ml, box, tuple(edges)))
    return organs
