"""Clean-up by the size of connected pieces, in millilitres, so that it means the same on every grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.cleanrules import large_pieces
from ctseg.errors import ConfigError, GeometryError


def require_place(labels: Any, key: Hashable, measure: str, step: str) -> None:
    """Check that a label map still knows where it lies, before a clean-up in mm or ml.

    Raises:
        GeometryError: when it does not; `measure` is what is not known then, `step` the transform that needs it.
    """
    if not isinstance(labels, MetaTensor):
        raise GeometryError(
            f"The label map {key!r} has lost its place in space (a {type(labels).__name__}, no MetaTensor), so "
            f"{measure} is not known; mend or remove the step before {step}."
        )


class RemoveSmallPiecesd(MapTransform):
    """Turn pieces of a label that are smaller than a volume into background.

    A piece is what hangs together through the faces of its voxels, label by label. (MONAI's `RemoveSmallObjectsd` asks
    scikit-image for a parameter that is going away, and takes a label above 1 for one piece.)

    Args:
        keys: label maps of shape (1, I, J, K) with a place (`MetaTensor`), whose affine says a voxel's volume.
        min_ml: the smallest volume that stays, in ml.

    Raises:
        ConfigError: for a negative volume.
        GeometryError: for a label map that has lost its place.
    """

    def __init__(self, keys: KeysCollection, min_ml: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not min_ml >= 0:
            raise ConfigError(f"RemoveSmallPiecesd got min_ml {min_ml}: expected 0 or more; correct the task's min_ml.")
        self.min_ml = min_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the large pieces of its label maps only, on the same grid and of the same type."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            require_place(labels, key, "the volume of its pieces", "RemoveSmallPiecesd")
            voxel_ml = abs(float(np.linalg.det(np.asarray(labels.affine, dtype=np.float64)[:3, :3]))) / 1000.0
            # An affine out of a header is rounded: a piece of exactly the smallest volume stays.
            kept = large_pieces(np.asarray(labels[0].cpu()), self.min_ml / voxel_ml * (1 - 1e-5))
            item[key] = MetaTensor(torch.from_numpy(kept)[None].to(labels.device), meta=labels.meta)
        return item
