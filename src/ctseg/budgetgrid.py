"""To the network's grid and back, slab by slab: what holds no float copy of the image and none of the mask.

The grid is the one that the bundle's own `ToGridd` leads to, or its `Orientationd` and `Spacingd`; MONAI tells theirs
without resampling anything when they are asked lazily. Each slab is resampled by the function that `Spacingd` calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from monai.transforms.spatial.functional import spatial_resample
from numpy.typing import NDArray

from ctseg.budget import slab_planes
from ctseg.grids import resample_labels
from ctseg.spacing import new_shape, oriented
from ctseg.transforms import LoadVolumed, OpenStudyd, ToGridd

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where a network's voxels lie.

    Attributes:
        shape: (I, J, K).
        affine: (4, 4), voxel index to RAS mm.
        mode: how Spacingd interpolates.
        padding: what it takes beyond the image.
    """

    shape: tuple[int, int, int]
    affine: Affine
    mode: str
    padding: str

    def same(self, other: Grid) -> bool:
        """Whether both are one grid."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=1e-6)


def network_grid(preprocessing: Compose, shape: Sequence[int], affine: Affine) -> Grid | None:
    """Return the grid that a bundle's preprocessing resamples an image onto, before it looks at values or pads.

    Args:
        preprocessing: of the bundle.
        shape: the image's (I, J, K).
        affine: the image's, cleaned, voxel index to RAS mm.

    Returns:
        None where the preprocessing does anything else first than opening, turning and resampling.
    """
    nothing = torch.zeros(1, dtype=torch.int16).expand(1, *(int(size) for size in shape))
    item: dict[Any, Any] = {"image": MetaTensor(nothing, affine=torch.as_tensor(affine.copy()))}
    for step in preprocessing.transforms:
        if isinstance(step, OpenStudyd | LoadVolumed):
            continue
        if isinstance(step, ToGridd):
            return _grid_of(step, shape, affine)
        if not isinstance(step, Orientationd | Spacingd):
            return None
        item = dict(step(item, lazy=True))
        if isinstance(step, Spacingd):
            image = item["image"]
            i, j, k = (int(size) for size in image.peek_pending_shape())
            place = np.asarray(image.peek_pending_affine(), dtype=np.float64)
            return Grid((i, j, k), place, str(step.mode[0]), str(step.padding_mode[0]))
    return None


def _grid_of(step: ToGridd, shape: Sequence[int], affine: Affine) -> Grid | None:
    """The grid of our own step; None where it looks at the values, to cut the air away."""
    if step.crop_air is not None:
        return None
    nothing, place = oriented(np.broadcast_to(np.int16(0), tuple(shape)), affine, plane=step.plane)
    size = new_shape(nothing.shape, place, step.spacing, step.thick_slices, step.thickest)
    # No voxel is needed for where the grid lies: it has the image's outer edges.
    scale = np.diag([*(old / new for old, new in zip(nothing.shape, size, strict=True)), 1.0])
    scale[:3, 3] = (scale.diagonal()[:3] - 1) / 2
    return Grid(size, place @ scale, str(step.mode[0]), "border")


def onto_grid(planes: Iterable[NDArray[Any]], shape: Sequence[int], affine: Affine, grid: Grid) -> NDArray[np.float32]:
    """Resample an image whose planes come one after the other.

    Args:
        planes: (I, J) each, along K.
        shape: the image's (I, J, K).
        affine: the image's, voxel index to mm.
        grid: the target; its axes run along the image's, in any order and direction.

    Returns:
        (I', J', K') float32.
    """
    # Voxel index of the target to that of the image: only one axis of the target runs along the planes' axis.
    matrix = np.linalg.inv(affine) @ grid.affine
    along = int(np.abs(matrix[2, :3]).argmax())
    places = np.clip(matrix[2, along] * np.arange(grid.shape[along]) + matrix[2, 3], 0, shape[2] - 1)
    result = np.empty(grid.shape, dtype=np.float32)
    waiting: list[NDArray[Any]] = []
    first, thickness = 0, slab_planes(shape)
    for number, plane in enumerate(planes):
        waiting.append(plane)
        last = number == shape[2] - 1
        if len(waiting) <= thickness and not last:
            continue
        inside = np.flatnonzero((places >= first) & ((places < number) | last))
        if inside.size:
            start, stop = int(inside[0]), int(inside[-1]) + 1
            slab = np.stack(waiting, axis=-1).astype(np.float32, copy=False)
            part = [slice(None)] * 3
            part[along] = slice(start, stop)
            result[tuple(part)] = _resampled(slab, _moved(affine, 2, first), grid, along, start, stop)
        waiting, first = [plane], number  # the next slab begins with this one's last plane
    return result


def _resampled(slab: NDArray[np.float32], affine: Affine, grid: Grid, along: int, start: int, stop: int) -> Any:
    size = list(grid.shape)
    size[along] = stop - start
    image = MetaTensor(torch.from_numpy(slab)[None], affine=torch.as_tensor(affine))
    moved: Any = spatial_resample(
        image,
        dst_affine=torch.as_tensor(_moved(grid.affine, along, start)),
        spatial_size=size,
        mode=grid.mode,
        padding_mode=grid.padding,
        align_corners=False,
        dtype_pt=torch.float32,
        lazy=False,
        transform_info={},
    )
    return moved[0].as_tensor().numpy()


def _moved(affine: Affine, axis: int, steps: int) -> Affine:
    """The affine of the same grid when it begins so many voxels further along an axis."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, axis] * steps
    return moved


def onto_source(labels: NDArray[np.uint8], grid: Grid, affine: Affine, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Bring a label map to the source's grid, as `ctseg.grids.resample_labels` does, a slab at a time.

    Returns:
        (I, J, K) uint8, planes along K one after the other; what holds no label takes no memory until it is written to.
    """
    i, j, k = (int(size) for size in shape)
    result = np.zeros((i, j, k), dtype=np.uint8, order="F")
    thickness = slab_planes(shape)
    for start in range(0, k, thickness):
        stop = min(k, start + thickness)
        slab = resample_labels(labels, grid.affine, _moved(affine, 2, start), (i, j, stop - start))
        if slab.any():
            result[:, :, start:stop] = slab
    return result
