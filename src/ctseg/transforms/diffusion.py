"""Diffusion filters: noise and speckle smoothed away; the anisotropic ones, which are ITK's, stop at edges.

Isotropic: the heat equation u_t = div grad u. Anisotropic: u_t = div(c(|grad u|) grad u), Perona and Malik (PAMI 1990);
"curvature" is the modified curvature diffusion of Whitaker and Xue (ICIP 2001), which keeps thin structures better.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from ctseg.errors import ConfigError, InputError
from ctseg.heat import heat
from ctseg.sentences import said_plainly

KINDS = ("isotropic", "gradient", "curvature")
_STABLE = 0.125  # ITK's bound for two dimensions, 1 / 2^(2 + 1) square pixels


class Diffused(MapTransform):
    """Smooth the slices of images by diffusion, each slice and each channel by itself; the image keeps its place.

    Args:
        keys: images (C, H, W), or (C, I, J, K) with a place, whose axial slices are filtered.
        kind: "isotropic", or "gradient" or "curvature", which are anisotropic.
        iterations: how many steps.
        time_step: of one iteration, in square pixels (time in an equation whose diffusivity is 1); at most 0.125 for
            the anisotropic kinds, beyond which the explicit scheme is not stable. Isotropic diffusion is solved exactly
            at any step: smoothing of variance 2 * iterations * time_step square pixels along each axis.
        conductance: of the anisotropic kinds, a number without unit: a gradient of about conductance times the slice's
            root mean square gradient counts as an edge, so grey values may have any scale. The larger, the less is
            kept; 1 to 3 is usual. Not used by isotropic.

    Raises:
        ConfigError: for an unknown kind or a value that cannot work.
        InputError: for an image of another shape, or with values that are not finite.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        kind: str = "gradient",
        iterations: int = 5,
        time_step: float = 0.125,
        conductance: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if kind not in KINDS:
            raise ConfigError(f"The diffusion {kind!r} is not known: expected one of {', '.join(KINDS)}.")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ConfigError(f"The diffusion got iterations {iterations!r}: expected a whole number of 1 or more.")
        if not 0 < time_step < float("inf") or (kind != "isotropic" and time_step > _STABLE):
            raise ConfigError(
                f"The diffusion {kind} got time_step {time_step}: expected square pixels above 0"
                + ("." if kind == "isotropic" else f" and at most {_STABLE}; take more iterations of a smaller step.")
            )
        if not 0 < conductance < float("inf"):
            raise ConfigError(f"The diffusion got conductance {conductance}: expected a number above 0.")
        self.kind, self.iterations = kind, iterations
        self.time_step, self.conductance = float(time_step), float(conductance)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with smoothed images, float32, on the same grid."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._image(item[key], str(key))
        return item

    def _image(self, image: Any, key: str) -> torch.Tensor:
        values = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image, dtype=np.float32)
        if values.ndim not in (3, 4) or 0 in values.shape:
            raise InputError(
                f"The diffusion got the array {key} of shape {values.shape}: expected (channels, rows, columns) or "
                "(channels, I, J, K)."
            )
        if not np.isfinite(values).all():
            raise InputError(f"The diffusion got values in {key} that are not finite; replace them first.")
        axis = _slice_axis(image) if values.ndim == 4 else 0
        # every slice of every channel in one row: (slices, rows, columns)
        moved = np.moveaxis(values, axis, 1) if values.ndim == 4 else values
        slices = moved.reshape(-1, *moved.shape[-2:])
        done = np.stack([self._slice(one) for one in slices]).reshape(moved.shape)
        smooth = torch.from_numpy(np.ascontiguousarray(np.moveaxis(done, 1, axis) if values.ndim == 4 else done))
        if isinstance(image, torch.Tensor):
            smooth = smooth.to(image.device)
        if isinstance(image, MetaTensor):
            return MetaTensor(smooth, meta=image.meta, applied_operations=image.applied_operations)
        return smooth

    def _slice(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.kind == "isotropic":
            return heat(pixels, self.iterations * self.time_step)
        if pixels.min() == pixels.max():
            return pixels  # a flat slice has no gradient for the conductance to be a multiple of
        import itk  # late: three seconds

        run = {
            "gradient": itk.gradient_anisotropic_diffusion_image_filter,
            "curvature": itk.curvature_anisotropic_diffusion_image_filter,
        }[self.kind]
        smooth = run(
            itk.image_from_array(np.ascontiguousarray(pixels)),
            number_of_iterations=self.iterations,
            time_step=self.time_step,
            conductance_parameter=self.conductance,
            use_image_spacing=False,
        )
        return np.array(itk.array_view_from_image(smooth), dtype=np.float32)


def _slice_axis(image: Any) -> int:
    """The array's axis along which its axial slices lie; the last where the image has no place."""
    from ctseg.evaluation.pairing import axial_axis

    if not isinstance(image, MetaTensor):
        return 3
    return 1 + axial_axis(np.asarray(image.affine, dtype=np.float64))
