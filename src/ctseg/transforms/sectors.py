"""Cropping ultrasound pictures to the sector that the probe saw."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import CropForegroundd
from monai.utils import ensure_tuple

from ctseg.errors import ConfigError, InputError
from ctseg.flat.sectors import find_sector
from ctseg.sentences import said_plainly

_LOG = logging.getLogger(__name__)


class CropSectord(CropForegroundd):
    """Crop pictures and their masks to the ultrasound sector found in one of them; the crop can be inverted.

    It is MONAI's `CropForegroundd` with `ctseg.flat.sectors.find_sector` as the foreground. A volume's sector is found
    once, in the brightest value along its shortest axis: the frames of a video share it. Where no sector is found,
    nothing is cropped, and the log says so.

    For a crop by fixed numbers take MONAI's `SpatialCropd`.

    Args:
        keys: what is cropped, (C, H, W) or (C, I, J, K), all of one size.
        source_key: the picture in which the sector is found.
        level: brightness that belongs to the sector (`find_sector`).
        smallest: share of the picture that a sector has at least.
        margin: pixels kept around it, as far as there are.
        blank: of `keys`, those that become 0 outside the sector, for example the picture with its burnt-in text.

    Raises:
        ConfigError: for a value that cannot work.
        InputError: for an array of another shape.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        source_key: str,
        level: float = 0.01,
        smallest: float = 0.1,
        margin: int = 0,
        blank: Sequence[str] | str = (),
        allow_missing_keys: bool = False,
    ) -> None:
        self.level, self.smallest = level, smallest
        self.blank = ensure_tuple(blank)
        if isinstance(margin, bool) or not isinstance(margin, int) or margin < 0:
            raise ConfigError(f"The crop to the sector got margin {margin!r}: expected whole pixels, 0 or more.")
        if unknown := [key for key in self.blank if key not in ensure_tuple(keys)]:
            raise ConfigError(f"The crop to the sector is to blank {', '.join(unknown)}, which is not among its keys.")
        find_sector(np.zeros((2, 2)), level, smallest)  # says now what is wrong with the two
        super().__init__(
            keys,
            source_key,
            select_fn=self.sector,
            margin=margin,
            allow_smaller=True,
            start_coord_key=None,
            end_coord_key=None,
            allow_missing_keys=allow_missing_keys,
        )

    def sector(self, image: torch.Tensor) -> torch.Tensor:
        """Return the sector of an image (C, H, W) or (C, I, J, K) as a mask of one channel and the same size."""
        values = image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
        if values.ndim not in (3, 4):
            raise InputError(
                f"The crop to the sector got an array of shape {tuple(values.shape)}: expected (channels, rows, "
                "columns) or (channels, I, J, K)."
            )
        brightest = values.float().amax(dim=0)
        frames = None
        if brightest.ndim == 3:
            frames = int(np.argmin(brightest.shape))
            brightest = brightest.amax(dim=frames)
        found = find_sector(brightest.cpu().numpy(), self.level, self.smallest)
        if found is None:
            _LOG.warning("no ultrasound sector was found in a picture of %d x %d: it is kept whole", *brightest.shape)
            found = np.ones(brightest.shape, dtype=bool)
        mask = torch.from_numpy(found).to(values.device)
        if frames is not None:
            mask = mask.unsqueeze(frames)
        return mask.expand(values.shape[1:])[None]

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the item cropped to the sector."""
        item = dict(data)
        if self.blank:
            outside = ~self.sector(item[self.source_key])
            for key in self.blank:
                if key in item or not self.allow_missing_keys:
                    item[key] = _blanked(item[key], outside)
        return super().__call__(item, lazy)


def _blanked(image: Any, outside: torch.Tensor) -> torch.Tensor:
    values = image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
    kept = values.masked_fill(outside.to(values.device), 0)
    if isinstance(image, MetaTensor):
        return MetaTensor(kept, meta=image.meta, applied_operations=image.applied_operations)
    return kept
