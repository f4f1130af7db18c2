"""Clean-up that keeps one organ and lets go of what only touches it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.nn.functional import max_pool3d

from ctseg.errors import ConfigError
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
            for code in torch.unique(plain).tolist():
                if code:
                    self._keep(plain == code, spacing, kept, code)
            item[key] = MetaTensor(kept[None], meta=labels.meta)
        return item

    def _keep(self, mask: torch.Tensor, spacing: np.ndarray, kept: torch.Tensor, code: int) -> None:
        """Write the kept part of one label into `kept`, working in the label's box only."""
        margin = _voxels(self.radius_mm, spacing)
        box = []
        for axis, (extra, size) in enumerate(zip(margin, mask.shape, strict=True)):
            others = tuple(other for other in range(3) if other != axis)
            where = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0])).ravel()
            # A margin of background, so that the label ends inside the box; the image's own edge does not erode.
            box.append(slice(max(0, int(where[0]) - extra - 1), min(size, int(where[-1]) + extra + 2)))
        inside = mask[tuple(box)]
        core = ~_grown(~inside, margin)
        if self.radius_mm == 0 or not core.any():
            part = _largest_piece(inside)
        else:
            part = _largest_piece(core)
            step = _voxels(_STEP_MM, spacing)
            for _ in range(round((self.radius_mm + self.reach_mm) / _STEP_MM)):
                part = _grown(part, step) & inside
        kept[tuple(box)][part] = code


def _voxels(mm: float, spacing: np.ndarray) -> list[int]:
    return [max(1, round(mm / float(size))) for size in spacing] if mm > 0 else [0, 0, 0]


def _grown(mask: torch.Tensor, voxels: Sequence[int]) -> torch.Tensor:
    """Dilate by a box of so many voxels to each side; beyond the border there is nothing to grow from."""
    grown = mask[None, None].to(torch.float32)
    for axis, extra in enumerate(voxels):
        if extra:
            size = [1, 1, 1]
            padding = [0, 0, 0]
            size[axis], padding[axis] = 2 * extra + 1, extra
            grown = max_pool3d(grown, size, stride=1, padding=padding)
    return grown[0, 0] > 0


def _largest_piece(mask: torch.Tensor) -> torch.Tensor:
    from scipy.ndimage import label

    pieces, count = label(mask.cpu().numpy())
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return torch.from_numpy(pieces == sizes.argmax()).to(mask.device)
