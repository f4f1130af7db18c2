"""Reading as the first transform of every pipeline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.cases import case_name
from ctseg.dicom.tilt import straightened
from ctseg.items import volume_of
from ctseg.volume import Volume


class LoadVolumed(MapTransform):
    """Read an image of any supported format as a channel-first `MetaTensor` with a clean place in RAS.

    The item may hold a path (NIfTI, NRRD, MetaImage, DICOM folder or zip, PNG or .npy slice) or a `Volume` read
    already. A slice needs `slice_spacing` in the item, an .npy its `slice_orientation` too (`ctseg.items.volume_of`).

    The result is float32 or int16 of shape (1, I, J, K). A series of a tilted gantry is put on a straight grid first
    (`ctseg.dicom.tilt`). Its meta keeps what the way back needs, in types that survive
    collation: `original_affine` (cleaned) and `spatial_shape` of the source grid, `source_affine` (exact), `header`
    (the bytes of a NIfTI header, else empty), `format` and `filename_or_obj`.

    Args:
        keys: items to read.
        modality: what the voxels are expected to be; "CT" switches the plausibility checks of HU on.

    Raises:
        InputError, GeometryError, ResourceError: as `ctseg.reading.read_volume`.
    """

    def __init__(self, keys: KeysCollection, modality: str = "CT", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key; the other items pass unchanged."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = volume_of(item[key], item, self.modality)
            tensor = to_tensor(straightened(volume), patient=item.get("patient"))
            # The way back leads to the series as it is, a tilted one too.
            tensor.meta["original_affine"] = torch.as_tensor(volume.affine.copy())
            tensor.meta["spatial_shape"] = np.asarray(volume.shape)
            item[key] = tensor
        return item


def to_tensor(volume: Volume, patient: str | None = None) -> MetaTensor:
    """Return a volume as `MetaTensor` (1, I, J, K) that shares its memory and knows its place and patient."""
    block = volume.header.binaryblock if volume.header is not None else b""
    meta = {
        "original_affine": torch.as_tensor(volume.affine.copy()),
        "spatial_shape": np.asarray(volume.shape),
        "source_affine": torch.as_tensor(volume.source_affine.copy()),
        "header": torch.as_tensor(np.frombuffer(block, dtype=np.uint8).copy()),
        "format": volume.format,
        "filename_or_obj": str(volume.source),
        "patient": patient or case_name(volume.source),
        "space": "RAS",
    }
    array = volume.array if volume.array.flags.writeable and _positive_strides(volume.array) else volume.array.copy()
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.as_tensor(volume.affine.copy()), meta=meta)


def _positive_strides(array: np.ndarray) -> bool:
    return all(stride >= 0 for stride in array.strides)


def to_volume(meta: Mapping[str, Any]) -> Volume:
    """Return the source's grid from a tensor's meta, as a `Volume` whose voxels take no memory."""
    shape = tuple(int(n) for n in np.asarray(meta["spatial_shape"]).ravel())
    header = None
    if len(meta["header"]):
        import nibabel

        block = bytes(np.asarray(meta["header"], dtype=np.uint8))
        kind = nibabel.Nifti1Header if len(block) == nibabel.Nifti1Header.sizeof_hdr else nibabel.Nifti2Header
        header = kind(block, check=False)
    return Volume(
        array=np.broadcast_to(np.zeros(1, dtype=np.int16), shape),
        affine=np.asarray(meta["original_affine"], dtype=np.float64),
        source_affine=np.asarray(meta["source_affine"], dtype=np.float64),
        source=Path(str(meta["filename_or_obj"])),
        format=str(meta["format"]),
        header=header,
    )
