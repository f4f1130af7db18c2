"""The way back: a label map from the network's grid to exactly the source's grid, and to a file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg import devices
from ctseg.cases import case_name
from ctseg.errors import GeometryError
from ctseg.transforms.loading import to_volume
from ctseg.volume import Volume


class RestoreGridd(MapTransform):
    """Resample a label map from the network's grid to the source's grid by the two affines.

    The affines say where each voxel lies, whatever was turned, resampled, cropped or padded on the way in, so nothing
    has to be undone step by step, and only the box around each label is touched.

    Args:
        keys: label maps of shape (1, I', J', K') with a place (`MetaTensor`).
        like: the preprocessed image, on the same grid, whose meta tells the source's grid.
        certainty: the item that says how sure each voxel is (`ToLabelMapd`), on the same grid; it is taken out. Where
            there is none, all voxels count alike, and so they do where the source's voxels are no smaller than the
            network's: then there is nothing to place between two voxels.

    Raises:
        GeometryError: when the label map has lost its place or does not lie on the preprocessed image's grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        like: str = "image",
        certainty: str = "certainty",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.like = like
        self.certainty = certainty

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with uint8 label maps of shape (1, I, J, K) on the source's grid."""
        item = dict(data)
        image = item[self.like]
        certainty = item.pop(self.certainty, None)
        for key in self.key_iterator(item):
            labels = item[key]
            self._check(labels, image, str(key))
            source = to_volume(image.meta)
            sure = certainty[0] if certainty is not None and _finer(source, labels) else None
            meta = {**image.meta, "affine": torch.as_tensor(source.affine)}
            item[key] = MetaTensor(_restored(labels, source, sure)[None], meta=meta)
        return item

    def _check(self, labels: Any, image: MetaTensor, key: str) -> None:
        if not isinstance(labels, MetaTensor):
            raise GeometryError(
                f"The label map {key!r} has lost its place in space (a {type(labels).__name__}, no MetaTensor): "
                "a clean-up step before RestoreGridd must keep the MetaTensor; mend or remove that step."
            )
        same_shape = labels.shape[1:] == image.shape[1:]
        if not same_shape or not torch.allclose(labels.affine, image.affine.to(labels.affine), atol=1e-6):
            raise GeometryError(
                f"The label map {key!r} of grid {tuple(labels.shape[1:])} does not lie on the preprocessed image's "
                f"grid {tuple(image.shape[1:])}: a step between the network and RestoreGridd moved it; mend that step."
            )


def _restored(labels: MetaTensor, source: Volume, certainty: torch.Tensor | None) -> torch.Tensor:
    """Return the labels on the source's grid (I, J, K), uint8, on the device where they were resampled."""
    plain, place = labels.as_tensor()[0], np.asarray(labels.affine, dtype=np.float64)
    if devices.works_there(plain.device):
        from ctseg.grids.device import resample_labels_there

        return resample_labels_there(plain, place, source.affine, source.shape, certainty)
    from ctseg.grids.slabs import resample_labels_lean

    sure = None if certainty is None else np.asarray(certainty)
    return torch.from_numpy(resample_labels_lean(plain.numpy(), place, source.affine, source.shape, sure))


def _finer(source: Volume, labels: MetaTensor) -> bool:
    """Whether the source's voxels are smaller than those of the network's grid, beyond the noise of a header."""
    one, other = (abs(np.linalg.det(np.asarray(a, dtype=np.float64)[:3, :3])) for a in (source.affine, labels.affine))
    return bool(one < 0.999 * other)


class SaveMaskd(MapTransform):
    """Write a label map as uint8 NIfTI on exactly its source's grid: `output_dir/<case>/mask.nii.gz`.

    Args:
        keys: label maps of shape (1, I, J, K) as `RestoreGridd` leaves them.
        output_dir: folder of the results.

    Raises:
        GeometryError, OutputError: as `ctseg.outputs.writing.write_mask`.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every key; the item passes unchanged, with the file's path in its meta as `saved_to`."""
        from ctseg.outputs.writing import write_mask

        item = dict(data)
        for key in self.key_iterator(item):
            source = to_volume(item[key].meta)
            path = self.output_dir / case_name(source.source) / "mask.nii.gz"
            write_mask(np.asarray(item[key][0].cpu()), source, path)
            item[key].meta["saved_to"] = str(path)
        return item
