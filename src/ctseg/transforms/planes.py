"""The plane in which a 2D network looks, and where a voxel lies between left and right."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.errors import ConfigError, GeometryError
from ctseg.sentences import said_plainly
from ctseg.transforms.heads import MIDPLANE
from ctseg.transforms.turning import at_place, place_of

# Plane -> the axes of an image in LPS order, the last one across the slices
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
DISTANCE_MM = 100.0  # a distance of this length is 1 in the channel


class ToPlaned(MapTransform):
    """Bring the axis across a plane's slices to the end; the voxels keep their place, so nothing must be undone.

    Args:
        keys: channel-first `MetaTensor`s in LPS order (MONAI's `Orientationd`).
        plane: "axial", "coronal" or "sagittal".

    Raises:
        ConfigError: for another plane.
    """

    @said_plainly
    def __init__(self, keys: KeysCollection, plane: str = "axial", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if plane not in PLANES:
            raise ConfigError(f"The plane {plane!r} is not known: expected one of {', '.join(PLANES)}; correct it.")
        self.axes = PLANES[plane]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its axes in the plane's order."""
        item = dict(data)
        if self.axes == (0, 1, 2):
            return item
        for key in self.key_iterator(item):
            tensor = item[key]
            affine = place_of(tensor)[:, [*self.axes, 3]]
            plain = tensor.as_tensor().permute(0, *[1 + axis for axis in self.axes])
            item[key] = at_place(plain.contiguous(), tensor, affine)
        return item


class AddDistanced(MapTransform):
    """Add a channel: the distance from the head's mid-plane, 1 for 100 mm, above 0 towards the patient's left.

    `StraightenHeadd` finds the plane; what was cropped, padded or permuted since does not matter.

    Args:
        keys: images (C, ...), `MetaTensor`s.

    Raises:
        GeometryError: nothing has found the mid-plane.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with images of one more channel, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key]
            if MIDPLANE not in image.meta:
                raise GeometryError(
                    f"nothing says where the mid-plane of {key!r} is: StraightenHeadd must stand before AddDistanced"
                )
            x, y, z, offset = (float(value) for value in np.asarray(image.meta[MIDPLANE]).ravel())
            along = np.array([x, y, z]) @ place_of(image)[:3, :3]
            start = np.array([x, y, z]) @ place_of(image)[:3, 3] - offset
            i, j, k = (
                torch.arange(n, dtype=torch.float32) * float(step)
                for n, step in zip(image.shape[1:], along, strict=True)
            )
            right = i[:, None, None] + j[None, :, None] + k[None, None, :] + float(start)
            channel = (-right / DISTANCE_MM)[None].to(image.device)
            item[key] = MetaTensor(torch.cat([image.as_tensor().float(), channel]), meta=image.meta)
        return item
