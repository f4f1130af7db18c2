"""A case's own ITK transform as a step of a pipeline, with a way back that needs no step of its own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.checks import AIR_HU
from ctseg.errors import GeometryError
from ctseg.sentences import said_plainly
from ctseg.turning.itktransforms import PointTransform, read_transform
from ctseg.turning.resampling import check_modes, resample_image, turn_labels

TRANSFORM_KEY = "itk_transform"


class ApplyItkTransformd(MapTransform):
    """Turn the image to its mask, or the mask to its image, by the ITK transform that the item names.

    Turned voxels keep their true place: a voxel that lies at y in the turned space was taken from T(y) on the scanner's
    image, and T(y) is what the tensor's affine says. So `RestoreGridd` and the writer put a mask that is made on the
    turned voxels onto the scanner's grid, and `Orientationd`, `Spacingd`, crops and pads in between work as ever (of
    an affine transform `Spacingd` takes the shear out, as of any sheared grid).

    An item without a transform (a new study) passes unchanged, and so do keys that it lacks. `LoadLabeld` stands before
    this step, with `image_key: null` where masks have grids of their own. The transform's entry is removed.

    Args:
        keys: channel-first tensors with a place; the image, and the label map if any.
        transform_key: the item's entry with a path or a `PointTransform`.
        direction: "ct" turns the image onto the grid of its mask (without a mask, onto its own numbers, read as places
            in the turned space); "mask" turns the mask onto the image's grid.
        image_key: the one of `keys` that is the image; all others are label maps.
        image_mode: "bspline" or "linear".
        label_mode: "nearest", "gaussian" or "linear" (`ctseg.turning.resampling`).
        outside: value of the image where there was no voxel; air by default, so that it ends as background.
        inverse: the files hold the opposite, from the scanner's to the turned space.
        allow_missing_keys: pass an item that lacks a key.

    Raises:
        ConfigError: an unknown direction or mode.
        InputError: the transform cannot be used (`ctseg.turning.itktransforms.read_transform`).
        GeometryError: a tensor has lost its place.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        transform_key: str = TRANSFORM_KEY,
        direction: str = "ct",
        image_key: str = "image",
        image_mode: str = "bspline",
        label_mode: str = "nearest",
        outside: float = AIR_HU,
        inverse: bool = False,
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_modes(direction, image_mode, label_mode)
        self.transform_key = transform_key
        self.direction = direction
        self.image_key = image_key
        self.image_mode = image_mode
        self.label_mode = label_mode
        self.outside = float(outside)
        self.inverse = inverse

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the image or its label maps turned, without the transform."""
        item = dict(data)
        transform = self._transform(item.pop(self.transform_key, None))
        if transform is None:
            return item
        for key in self.key_iterator(item):
            if not isinstance(item[key], MetaTensor):
                raise GeometryError(
                    f"{key!r} has lost its place in space (a {type(item[key]).__name__}, no MetaTensor), so it cannot "
                    "be turned: a step before ApplyItkTransformd must keep the MetaTensor; mend or remove that step."
                )
        labels = [key for key in self.key_iterator(item) if key != self.image_key]
        if self.direction == "mask":
            for key in labels:
                item[key] = self._label_on(item[key], transform, item[self.image_key])
            return item
        target = item[labels[0]] if labels else item[self.image_key]
        affine, shape = place_of(target), tuple(target.shape[1:])
        for key in labels:
            item[key] = at_place(item[key].as_tensor(), item[key], transform.ras @ place_of(item[key]))
        if self.image_key in item and self.image_key in self.keys:
            image = item[self.image_key]
            item[self.image_key] = turned_image(
                image, transform.ras, affine, shape, mode=self.image_mode, outside=self.outside
            )
        return item

    def _transform(self, given: Any) -> PointTransform | None:
        if given is None or given == "":
            return None
        transform = given if isinstance(given, PointTransform) else read_transform(Path(str(given)))
        return transform.inverse() if self.inverse else transform

    def _label_on(self, labels: MetaTensor, transform: PointTransform, image: MetaTensor) -> MetaTensor:
        own, place = place_of(labels), place_of(image)
        turned = [
            turn_labels(np.asarray(channel), own, transform.inverse(), place, image.shape[1:], self.label_mode)
            for channel in labels.as_tensor().cpu()
        ]
        return at_place(torch.from_numpy(np.stack(turned)).to(labels.dtype), labels, place)


def place_of(tensor: MetaTensor) -> np.ndarray:
    """Return a tensor's affine as (4, 4) float64, index to RAS mm."""
    return np.asarray(tensor.affine, dtype=np.float64)


def at_place(plain: torch.Tensor, like: MetaTensor, affine: np.ndarray) -> MetaTensor:
    """Return a tensor with the meta of another and a place of its own."""
    return MetaTensor(plain, meta={**like.meta, "affine": torch.as_tensor(affine)})


def turned_image(
    image: MetaTensor,
    points: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    mode: str = "bspline",
    outside: float = AIR_HU,
) -> MetaTensor:
    """Resample each channel onto a grid of the turned space, and say where its voxels truly lie.

    Args:
        image: (C, I, J, K) with its place.
        points: (4, 4), RAS mm of the turned space to RAS mm of the image's.
        affine: (4, 4), index of the new grid to RAS mm of the turned space.
        shape: its size.
        mode: "bspline" or "linear".
        outside: value where there was no voxel.
    """
    own = place_of(image)
    turned = [
        resample_image(np.asarray(channel), own, points, affine, shape, mode, outside)
        for channel in image.as_tensor().cpu()
    ]
    return at_place(torch.from_numpy(np.stack(turned)).to(image.dtype), image, points @ affine)
