"""Flat images in a pipeline: read as (C, H, W, 1) with a place, brought to a size, and their masks written as PNG.

The last axis of 1 makes a picture a volume of one slice, so that everything that follows affines (the way back to the
source's grid, metrics, clean-up) is that of volumes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch.nn.functional import interpolate

from ctseg.errors import ConfigError
from ctseg.flat.images import GREY, RGB, FlatImage
from ctseg.flat.items import FLAT, FlatVolume
from ctseg.flat.reading import flat_name
from ctseg.items import volume_of
from ctseg.sentences import said_plainly
from ctseg.transforms.loading import to_tensor, to_volume

COLOURS = (GREY, RGB)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area")


class LoadFlatd(MapTransform):
    """Read a flat image as a `MetaTensor` (C, H, W, 1), float32, brightness from 0 (black) to 1 (white).

    Its first index runs down the rows. The item gets `flat`, and `spacing` where the image knows it, so that a mask is
    read as one of a flat image.

    Args:
        keys: paths, or `FlatVolume`s read already.
        colours: "grey" (C = 1, the luminance of colours) or "rgb" (C = 3, grey repeated).
        window: HU that become 0 and 1, of a CT slice in HU; None takes 0 to 80.

    Raises:
        ConfigError: for other colours, or a window that is none.
        InputError: as `ctseg.flat.reading.read_flat`.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        colours: str = RGB,
        window: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if colours not in COLOURS:
            raise ConfigError(f"The colours {colours!r} are not known: expected {' or '.join(COLOURS)}.")
        if window is not None and not (len(window) == 2 and float(window[0]) < float(window[1])):
            raise ConfigError(f"The window is {window!r}: expected two values in HU, the smaller one first.")
        self.colours = colours
        self.window = None if window is None else (float(window[0]), float(window[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key; the other items pass unchanged."""
        item = {**data, FLAT: True}
        for key in self.key_iterator(item):
            volume = volume_of(item[key], item, "image")
            if not isinstance(volume, FlatVolume) or volume.image is None:
                raise ConfigError(f"The item {key!r} holds a volume, but this bundle looks at flat images; give one.")
            if volume.image.spacing is not None:
                item["spacing"] = list(volume.image.spacing)
            item[key] = self._tensor(volume, volume.image, item.get("patient"))
        return item

    def _tensor(self, volume: FlatVolume, image: FlatImage, patient: str | None) -> MetaTensor:
        shown = FlatImage(image.brightness(self.window), image.spacing, image.kind, 1.0, image.source)
        array = shown.grey()[None] if self.colours == GREY else np.broadcast_to(shown.array, (3, *shown.size))
        meta = to_tensor(volume, patient or flat_name(image.source)).meta
        return MetaTensor(torch.from_numpy(np.array(array, dtype=np.float32))[..., None], meta=meta)


class ResizeSlicesd(MapTransform):
    """Bring slices (C, H, W, 1) to a size, whatever their proportions; the affine follows, for the way back.

    MONAI's `Resized` would interpolate along the axis of one slice too, which has no bilinear form.

    Args:
        keys: arrays with a place (`MetaTensor`).
        size: rows and columns.
        mode: "bilinear" or "bicubic", both smoothed as far as a smaller size needs it, "area" (means), or "nearest" for
            labels; one for all keys, or one a key.

    Raises:
        ConfigError: for another mode or size.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int],
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.size = [int(n) for n in size]
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(
                f"The size of the images is {list(size)}: expected rows and columns, for example [256, 256]."
            )
        if unknown := sorted(set(self.mode) - set(INTERPOLATIONS)):
            raise ConfigError(
                f"The interpolation {', '.join(unknown)} is not known: expected one of {', '.join(INTERPOLATIONS)}."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with resized arrays, float32, whose affine says where they lie."""
        item = dict(data)
        for key, mode in self.key_iterator(item, self.mode):
            item[key] = self._resized(item[key], mode)
        return item

    def _resized(self, tensor: MetaTensor, mode: str) -> MetaTensor:
        old = np.array(tensor.shape[1:3])
        slices = tensor.as_tensor().float().permute(3, 0, 1, 2)
        if tuple(old) != tuple(self.size):
            if mode == "nearest":
                slices = interpolate(slices, self.size, mode="nearest-exact")
            elif mode == "area":
                slices = interpolate(slices, self.size, mode="area")
            else:
                slices = interpolate(slices, self.size, mode=mode, antialias=True).clamp(slices.min(), slices.max())
        # The picture's edge stays where it was: the first new centre lies half a new pixel inside of it.
        scale = np.eye(4)
        for axis, ratio in enumerate(old / np.array(self.size)):
            scale[axis, axis], scale[axis, 3] = ratio, (ratio - 1) / 2
        affine = np.asarray(tensor.affine, dtype=np.float64) @ scale
        return MetaTensor(slices.permute(1, 2, 3, 0), meta={**tensor.meta, "affine": torch.as_tensor(affine)})


class SaveFlatMaskd(MapTransform):
    """Write the label map of a flat image as PNG of the image's own size: `output_dir/<image>/mask.png`.

    Args:
        keys: label maps (1, H, W, 1) as `RestoreGridd` leaves them.
        output_dir: folder of the results.
        codes: structure -> value in the map; a single structure is written as 255, so that it can be seen.

    Raises:
        OutputError: when the file cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        codes: Mapping[str, int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.codes = {str(name): int(code) for name, code in codes.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every key; the item passes unchanged, with the file's path in its meta as `saved_to`."""
        from ctseg.flat.writing import write_flat_mask

        item = dict(data)
        for key in self.key_iterator(item):
            source = to_volume(item[key].meta)
            path = self.output_dir / flat_name(source.source) / "mask.png"
            write_flat_mask(np.asarray(item[key][0, :, :, 0].cpu()), self.codes, path)
            item[key].meta["saved_to"] = str(path)
        return item
