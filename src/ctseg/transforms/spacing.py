"""The step that puts an image on the grid of its network, once for all bundles of one spacing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from ctseg.errors import ConfigError
from ctseg.grids.spacing import PLANES, Box, body_box, new_shape, oriented, regridded, to_old, turn_of, whole

_MODES = ("bilinear", "nearest")


class ToGridd(MapTransform):
    """Turn volumes along the body's axes (LPS), cut the air around the body away and resample to a spacing.

    In place of MONAI's `Orientationd` and `Spacingd`: several times faster, as nothing is turned but a view and each
    axis is interpolated by itself, and the field of view stays the same (`ctseg.grids.spacing`). Where the item has a
    study and `shared` is set, the result is kept there, so that several bundles of one spacing prepare an image once.

    Args:
        keys: arrays (1, I, J, K) with a place (`MetaTensor`), on one grid.
        spacing: mm along the axes of the plane, the last across its slices: left, back and head for axial ones.
        thick_slices: from this distance in mm on slices are taken as they are; None resamples them too.
        thickest: up to this distance in mm they are; None sets no end.
        plane: "axial", "coronal" or "sagittal" (`ctseg.grids.spacing.PLANES`): the axis across it comes last.
        mode: "bilinear" for images, "nearest" for labels; one for all keys or one a key.
        modality: of the images; only of a CT air is cut away.
        crop_air: `above_hu` and `margin_mm` of `ctseg.grids.spacing.body_box`, then found in the first key; None
            keeps the whole field of view.
        shared: the first key is the study's own image, unchanged, so its result may be shared.

    Attributes:
        device: where the work is done and the result lies (`ctseg.devices.works_there`); None, as it is made, is the
            processor, on which the loaders of a training run.

    Raises:
        ConfigError: for another mode, a spacing that is not above 0, or an unknown value of `crop_air`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        thick_slices: float | None = None,
        thickest: float | None = None,
        plane: str = "axial",
        mode: str | Sequence[str] = "bilinear",
        crop_air: Mapping[str, float] | None = None,
        modality: str = "CT",
        shared: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = [float(mm) for mm in spacing]
        self.thick_slices, self.thickest = thick_slices, thickest
        self.plane = plane
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.crop_air = dict(crop_air) if crop_air and modality.upper() == "CT" else None
        self.shared = shared
        self.device: torch.device | None = None
        new_shape((1, 1, 1), np.eye(4), self.spacing)
        if plane not in PLANES:
            raise ConfigError(f"The plane {plane!r} is not known: expected one of {', '.join(PLANES)}; correct it.")
        if set(self.mode) - set(_MODES) or set(self.crop_air or ()) - {"above_hu", "margin_mm"}:
            raise ConfigError(
                f"ToGridd got mode {mode!r} and crop_air {crop_air!r}: expected {' or '.join(_MODES)}, and above_hu "
                "and margin_mm or null; correct the configuration."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with float32 arrays (1, I', J', K') whose affine says where they lie."""
        item = dict(data)
        study = item.get("study") if self.shared else None
        box: Box | None = None
        for number, (key, mode) in enumerate(self.key_iterator(item, self.mode)):
            tensor = item[key]
            if number == 0 and self.crop_air is not None:
                box = self._box(tensor)
            if number == 0 and study is not None and hasattr(study, "prepared"):
                array, affine = study.prepared(self.shared_as, lambda t=tensor, m=mode, b=box: self._regridded(t, m, b))
            else:
                array, affine = self._regridded(tensor, mode, box)
            # What a study read plane by plane was made on the processor, and is small by now.
            placed = torch.as_tensor(array, device=self.device)
            item[key] = MetaTensor(placed[None], meta={**tensor.meta, "affine": torch.as_tensor(affine)})
        return item

    @property
    def shared_as(self) -> Hashable:
        """Under which key the first key's result is kept in the study: the same for steps that do the same."""
        crop = tuple(sorted((self.crop_air or {}).items()))
        return (tuple(self.spacing), self.thick_slices, self.thickest, self.plane, self.mode[0], crop)

    def _view(self, tensor: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        array = tensor.as_tensor()[0].cpu().numpy()
        return oriented(array, np.asarray(tensor.affine, dtype=np.float64), plane=self.plane)

    def _box(self, tensor: MetaTensor) -> Box:
        array, affine = self._view(tensor)
        shape = new_shape(array.shape, affine, self.spacing, self.thick_slices, self.thickest)
        return body_box(array, affine, shape, **(self.crop_air or {}))

    def _regridded(self, tensor: MetaTensor, mode: Any, box: Box | None) -> tuple[Any, np.ndarray]:
        if self.device is not None:
            return self._regridded_there(tensor.as_tensor()[0].to(self.device), tensor.affine.numpy(), mode, box)
        array, affine = self._view(tensor)
        shape = new_shape(array.shape, affine, self.spacing, self.thick_slices, self.thickest)
        return regridded(array, affine, shape, mode, box, torch.get_num_threads())

    def _regridded_there(
        self, image: torch.Tensor, affine: np.ndarray, mode: Any, box: Box | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        from ctseg.grids.device import regridded_there

        axes, flipped, place = turn_of(image.shape, np.asarray(affine, dtype=np.float64), plane=self.plane)
        view = image.permute(axes)
        shape = new_shape(view.shape, place, self.spacing, self.thick_slices, self.thickest)
        moved = regridded_there(view, flipped, shape, mode, box)
        return moved, place @ to_old(view.shape, shape, box or whole(shape))
