"""A head CT made ready: straightened by its mirror plane, cropped to the brain, windowed; the place is kept."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.checks import AIR_HU
from ctseg.errors import ConfigError, InputError
from ctseg.heads.brain import WINDOW, box_of, find_brain, window_to_background
from ctseg.heads.mirror import find_mirror_plane
from ctseg.sentences import said_plainly
from ctseg.transforms.turning import at_place, place_of, turned_image
from ctseg.turning.resampling import check_modes, turn_labels

STRAIGHTENED = ("turn_degrees", "tilt_degrees", "mirror_score")
MIDPLANE = "midplane"  # meta of the image: (4,), unit normal towards the patient's right and n.p of its points, RAS mm
_LOGGER = logging.getLogger(__name__)


class StraightenHeadd(MapTransform):
    """Turn a head so that its mirror plane stands upright between left and right, found from the image itself.

    The result has the image's size; its voxels keep their true place (as `ApplyItkTransformd`), so `RestoreGridd` puts
    a mask onto the scanner's grid. Label maps among the keys are turned along. The angles and the score are in the
    image's meta (`turn_degrees`, `tilt_degrees`, `mirror_score`), and so is the plane (`midplane`), turned or not.

    Args:
        keys: channel-first tensors on one grid: the image in HU, and label maps if any.
        image_key: the image.
        least_score: of the mirror plane; below it nothing is turned (half a head, an empty image).
        image_mode: "bspline" or "linear".
        label_mode: "nearest", "gaussian" or "linear".
        outside: value of the image where there was no voxel.
        allow_missing_keys: pass an item that lacks a key.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        least_score: float = 0.7,
        image_mode: str = "linear",
        label_mode: str = "nearest",
        outside: float = AIR_HU,
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_modes(image=image_mode, label=label_mode)
        self.image_key = image_key
        self.least_score = least_score
        self.image_mode = image_mode
        self.label_mode = label_mode
        self.outside = float(outside)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item straightened."""
        item = dict(data)
        image = item[self.image_key]
        affine, shape = place_of(image), tuple(int(n) for n in image.shape[1:])
        plane = find_mirror_plane(np.asarray(image[0].as_tensor().cpu()), affine)
        found = dict(zip(STRAIGHTENED, (plane.turn_degrees, plane.tilt_degrees, plane.score), strict=True))
        image.meta.update(found)
        image.meta[MIDPLANE] = torch.tensor([*plane.normal, float(np.dot(plane.normal, plane.point))])
        if plane.score < self.least_score:
            return item
        transform = plane.straightening()
        for key in self.key_iterator(item):
            tensor = item[key]
            if key == self.image_key:
                item[key] = turned_image(
                    tensor, transform.ras, affine, shape, mode=self.image_mode, outside=self.outside
                )
            else:
                channels = [  # whole numbers again: resampling to the network's spacing leaves floats
                    turn_labels(
                        np.asarray(channel.round()).astype(np.uint8),
                        place_of(tensor),
                        transform,
                        affine,
                        shape,
                        self.label_mode,
                    )
                    for channel in tensor.as_tensor().cpu()
                ]
                item[key] = at_place(
                    torch.from_numpy(np.stack(channels)).to(tensor.dtype), tensor, transform.ras @ affine
                )
        return item


class CropBraind(MapTransform):
    """Crop to the brain, found without weights (`ctseg.heads.brain.find_brain`), and keep the place.

    Args:
        keys: channel-first tensors on one grid: the image in HU, and whatever is cropped along.
        image_key: the image.
        margin_mm: kept round the brain.
        fill: value of the image outside of the brain's hull; None leaves skull and scalp in the box.
        no_brain: "refuse" an image without a brain, or "keep" it whole, with a warning (a skull that was opened).
        allow_missing_keys: pass an item that lacks a key.

    Raises:
        ConfigError: a negative margin, or another word for `no_brain`.
        InputError: there is no brain in the image, and `no_brain` is "refuse".
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        margin_mm: float = 10.0,
        fill: float | None = None,
        allow_missing_keys: bool = True,
        no_brain: str = "refuse",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if no_brain not in ("refuse", "keep"):
            raise ConfigError(f"no_brain is {no_brain!r}: expected refuse or keep; correct it.")
        if not 0 <= margin_mm < float("inf"):
            raise ConfigError(
                f"The margin_mm {margin_mm} of the brain crop cannot work: expected 0 or more; correct it."
            )
        self.image_key = image_key
        self.margin_mm = margin_mm
        self.fill = fill
        self.no_brain = no_brain

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item cropped."""
        item = dict(data)
        image = item[self.image_key]
        affine = place_of(image)
        try:
            brain = find_brain(np.asarray(image[0].as_tensor().cpu()), affine)
        except InputError as error:
            if self.no_brain == "refuse":
                raise
            _LOGGER.warning("%s; the whole image is taken", str(error).partition(";")[0])
            return item
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        box = box_of(brain.mask, [int(np.ceil(self.margin_mm / mm)) for mm in spacing])
        place = affine.copy()
        place[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        for key in self.key_iterator(item):
            tensor = item[key]
            parts = (slice(None), *box)
            plain = tensor.as_tensor()[parts].clone()
            if key == self.image_key and self.fill is not None:
                plain[:, torch.from_numpy(~brain.mask[box])] = self.fill
            item[key] = at_place(plain, tensor, place)
        return item


class WindowHeadd(MapTransform):
    """Keep the HU of a window; what lies below and what lies above becomes its lower bound, the background.

    Air, bone and what a turn filled end as one value. Whole numbers stay whole: an int16 image stays int16.

    Args:
        keys: images in HU.
        window: lowest and highest HU kept.
        allow_missing_keys: pass an item that lacks a key.

    Raises:
        ConfigError: a window that is empty.
    """

    @said_plainly
    def __init__(
        self, keys: KeysCollection, window: Sequence[float] = WINDOW, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        low, high = (float(bound) for bound in window)
        if not low < high:
            raise ConfigError(
                f"The window {low:g} to {high:g} HU is empty: expected the lower bound first; correct it."
            )
        self.window = (low, high)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item windowed."""
        item = dict(data)
        for key in self.key_iterator(item):
            tensor = item[key]
            values = torch.from_numpy(window_to_background(np.asarray(torch.as_tensor(tensor).cpu()), self.window))
            item[key] = MetaTensor(values, meta=tensor.meta) if isinstance(tensor, MetaTensor) else values
        return item


class WholeHounsfieldd(MapTransform):
    """Round an image in HU to whole numbers, int16: half the memory, and prepared cases of it are kept exactly.

    Resampling makes fractions of HU; rounding them moves a value by at most 0.5 HU, where a head CT's noise is some HU.
    It stands after the last resampling and before the values are scaled.

    Args:
        keys: images in HU.
        allow_missing_keys: pass an item that lacks a key.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with whole HU; what 16 bits cannot hold is cut to their range."""
        item = dict(data)
        limits = torch.iinfo(torch.int16)
        for key in self.key_iterator(item):
            item[key] = torch.as_tensor(item[key]).round().clamp(limits.min, limits.max).to(torch.int16)
        return item
