"""The plane in which a 2D network looks, and where a voxel lies between left and right."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.errors import GeometryError
from ctseg.transforms.heads import MIDPLANE
from ctseg.transforms.turning import place_of

DISTANCE_MM = 100.0  # a distance of this length is 1 in the channel


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
