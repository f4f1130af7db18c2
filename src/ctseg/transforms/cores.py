"""Clean-up that keeps one organ and lets go of what only touches it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.errors import ConfigError
from ctseg.grids.boxes import box_of, grown_box
from ctseg.transforms.pieces import require_place

_STEP_MM = 3.0  # one step of growing back


class KeepLargestCored(MapTransform):
    """Keep, of each label, the piece with the largest core, without what hangs on it by a thin bridge.

    The label is eroded by `radius_mm`; of the cores that are left the largest is taken and grown back inside the label,
    by the radius and `reach_mm` more, so that thin edges of the organ stay, and a neighbour that was taken for it and
    touches it by less than twice the radius goes. A label without a core keeps its largest connected piece.

    Args:
        keys: label maps of shape (1, I, J, K) with a place (`MetaTensor`), whose affine gives the spacing.
        radius_mm: half of the width of a bridge that is cut, in mm; 0 keeps the largest connected piece.
        reach_mm: how far beyond the cut the label is kept, in mm.

    Raises:
        ConfigError: for a negative radius or reach.
        GeometryError: for a label map that has lost its place.
    """

    def __init__(
        self, keys: KeysCollection, radius_mm: float = 6.0, reach_mm: float = 15.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not (radius_mm >= 0 and reach_mm >= 0):
            raise ConfigError(
                f"KeepLargestCored got radius_mm {radius_mm} and reach_mm {reach_mm}: expected 0 or more; "
                "correct the clean-up of the task."
            )
        self.radius_mm = radius_mm
        self.reach_mm = reach_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with cleaned label maps, on the same grid and of the same type."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            require_place(labels, key, "the width of a bridge", "KeepLargestCored")
            spacing = np.sqrt((np.asarray(labels.affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
            plain = labels.as_tensor()[0]
            kept = torch.zeros_like(plain)
            for code in _codes(plain):
                if code:
                    self._keep(plain == code, spacing, kept, code)
            item[key] = MetaTensor(kept[None], meta=labels.meta)
        return item

    def _keep(self, mask: torch.Tensor, spacing: np.ndarray, kept: torch.Tensor, code: int) -> None:
        """Write the kept part of one label into `kept`, working in the label's box only."""
        margin = _voxels(self.radius_mm, spacing)
        around = box_of(mask)
        if around is None:
            return
        # A margin of background, so that the label ends inside the box; the image's own edge does not erode.
        box = grown_box(around, [extra + 1 for extra in margin], mask.shape)
        inside = mask[box]
        core = ~_grown(~inside, margin)
        if self.radius_mm == 0 or not core.any():
            part = _largest_piece(inside)
        else:
            part = _largest_piece(core)
            step = _voxels(_STEP_MM, spacing)
            for _ in range(round((self.radius_mm + self.reach_mm) / _STEP_MM)):
                part = _grown(part, step) & inside
        kept[box].masked_fill_(part, code)


def _voxels(mm: float, spacing: np.ndarray) -> list[int]:
    return [max(1, round(mm / float(size))) for size in spacing] if mm > 0 else [0, 0, 0]


def _grown(mask: torch.Tensor, voxels: Sequence[int]) -> torch.Tensor:
    """Dilate by a box of so many voxels to each side; beyond the border there is nothing to grow from."""
    for axis, extra in enumerate(voxels):
        size, done = mask.shape[axis], 0
        while done < extra:
            step = min(done + 1, extra - done)  # what has grown by r, moved by r + 1 to both sides, leaves no gap
            grown = mask.clone()
            if step < size:
                grown.narrow(axis, step, size - step).logical_or_(mask.narrow(axis, 0, size - step))
                grown.narrow(axis, 0, size - step).logical_or_(mask.narrow(axis, step, size - step))
            mask, done = grown, done + step
    return mask


def _codes(labels: torch.Tensor) -> list[int]:
    """Return the values of a label map, ascending; of bytes they are counted, which is quicker than sorting."""
    if labels.dtype != torch.uint8:
        return [int(code) for code in torch.unique(labels).tolist()]
    return [int(code) for code in torch.nonzero(torch.bincount(labels.flatten()))[:, 0].tolist()]


def _largest_piece(mask: torch.Tensor) -> torch.Tensor:
    from scipy.ndimage import label

    pieces, count = label(mask.cpu().numpy())
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return torch.from_numpy(pieces == sizes.argmax()).to(mask.device)
