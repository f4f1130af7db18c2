"""What an item of a datalist names, read: an image or label of any format, and whether the two lie on one grid.

Free of torch, so that a data folder can be prepared and checked in seconds; the transforms of a training call the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.cases import SLICE_ENDINGS
from ctseg.checks import check_hounsfield
from ctseg.errors import GeometryError, InputError
from ctseg.slices import RADIOLOGICAL, read_slice
from ctseg.volume import Volume

# Voxels of image and label may differ by header noise; more than this fraction of a voxel is another grid.
GRID_TOLERANCE = 0.05


def volume_of(source: Any, item: Mapping[Hashable, Any], modality: str) -> Volume:
    """Return the volume that an item holds or names.

    Args:
        source: a `Volume`, or a path: NIfTI, NRRD, MetaImage, DICOM folder or zip, PNG or .npy slice.
        item: a slice needs its `slice_spacing` in mm, and an .npy its `slice_orientation` too; a PNG is taken for a
            radiological view unless the item says otherwise (`ctseg.slices.read_slice`).
            An item with `flat` names a flat image (`ctseg.flat.items.flat_item`).
        modality: "CT" switches the plausibility checks of HU on; a label is "label".

    Raises:
        InputError, GeometryError, ResourceError: as `ctseg.reading.read_volume`, or a slice's key is missing.
    """
    if isinstance(source, Volume):
        return source
    if item.get("flat"):
        from ctseg.flat.items import flat_item

        return flat_item(source, item, modality)
    if str(source).lower().endswith(SLICE_ENDINGS):
        return _slice_of(source, item, modality)
    from ctseg.reading import read_volume

    return read_volume(source, modality=modality)


def _slice_of(source: Any, item: Mapping[Hashable, Any], modality: str) -> Volume:
    is_npy = str(source).lower().endswith(".npy")
    spacing, orientation = item.get("slice_spacing"), item.get("slice_orientation")
    if spacing is None:
        raise InputError(
            f"{source} is {'an .npy' if is_npy else 'a PNG'} slice and its item names no slice_spacing: "
            'add "slice_spacing": [column mm, row mm, thickness mm] to the case in the datalist.'
        )
    if is_npy and orientation is None:
        raise InputError(
            f"{source} is an .npy slice and its item names no slice_orientation: "
            'add "slice_orientation": "radiological" or "array" to the case in the datalist.'
        )
    x, y, thickness = (float(mm) for mm in spacing)
    volume = read_slice(source, (x, y, thickness), orientation or RADIOLOGICAL)
    if is_npy and modality.upper() == "CT":
        check_hounsfield(volume.array, volume.spacing, str(source))
    return volume


def check_same_grid(
    image_shape: Sequence[int],
    image_affine: NDArray[np.float64],
    label_shape: Sequence[int],
    label_affine: NDArray[np.float64],
    name: str,
) -> None:
    """Refuse a label that does not lie on its image's grid.

    Args:
        image_shape: (I, J, K) of the image.
        image_affine: (4, 4), index to RAS mm.
        label_shape: of the label.
        label_affine: of the label.
        name: the label's name in the sentence.

    Raises:
        GeometryError: another shape, or a corner more than `GRID_TOLERANCE` of a voxel away.
    """
    if tuple(image_shape) != tuple(label_shape):
        raise GeometryError(
            f"The label {name} has the grid {tuple(label_shape)}, its image has {tuple(image_shape)}: "
            "expected the same grid; export the label again on its image's grid."
        )
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in image_shape], indexing="ij")).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.asarray(label_affine, np.float64) @ corners - np.asarray(image_affine, np.float64) @ corners
    spacing = np.sqrt((np.asarray(image_affine)[:3, :3] ** 2).sum(axis=0)).min()
    worst = float(np.sqrt((apart[:3] ** 2).sum(axis=0)).max())
    if worst > GRID_TOLERANCE * spacing:
        raise GeometryError(
            f"The label {name} lies {worst:.2f} mm away from its image's grid: "
            "expected the same origin, spacing and direction; export the label again on its image's grid."
        )
