"""A label that a client saves, for studies on a DICOMweb server: checked against its series, then made a DICOM SEG."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from app_http import private_folder, refused
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctseg.annotation.annotated import named_values
from ctseg.dicom.seg import Algorithm, write_seg
from ctseg.errors import InputError
from ctseg.items import check_same_grid
from ctseg.prepare.pairchecks import value_counts
from ctseg.reading import read_volume
from ctseg.volume import Volume


def checked_mask(file: Path, volume: Volume) -> NDArray[np.uint8]:
    """Read a label file, and refuse one that is no mask or lies on another grid than its image.

    Raises:
        InputError, GeometryError: one sentence.
    """
    mask = read_volume(file, "label")
    check_same_grid(volume.shape, volume.affine, mask.shape, mask.affine, "that was sent")
    try:
        values = value_counts(mask.array)
    except InputError as error:
        raise InputError(f"the label cannot be used: {error}") from error
    if any("NaN" in note for note in mask.notes):
        raise InputError("the label holds NaN or infinite values, expected whole numbers; export it again")
    if not all(0 <= value <= 255 for value in values):
        raise InputError(f"the label has values from {min(values)} to {max(values)}, expected 0 to 255")
    return mask.array.astype(np.uint8)


def seg_of(
    label_map: NDArray[np.uint8], volume: Volume, info: Mapping[str, Any], known: Sequence[Mapping[str, Any]]
) -> Dataset:
    """Make the DICOM SEG of a label that a human accepted.

    Args:
        label_map: (I, J, K) on the volume's grid.
        volume: its series.
        info: what was saved with it: `label_info` or `params.label_names` (names and values), `model`. Without
            names the known labels' own values count.
        known: the known labels, with the values that stand for them where no names were saved.

    Raises:
        InputError: the names have another form.
        HTTPException: 422 when a value has no known name, or no known organ is named.
    """
    organs = {str(entry["name"]): int(entry["code"]) for entry in known}
    params = info.get("params") if isinstance(info.get("params"), dict) else {}
    told = info.get("label_info") or params.get("label_names")
    values = named_values(told, organs) or {value: name for name, value in organs.items()}
    found = {int(value) for value in np.unique(label_map)} - {0}
    strange = [
        f"{value} ({values.get(value, 'not named')})" for value in sorted(found) if values.get(value) not in organs
    ]
    named = {name: value for value, name in values.items() if name in organs and (told or value in found)}
    if strange or not named:
        raise refused(
            422,
            f"the label has the values {', '.join(strange) or 'none'}, but the organs known here are "
            f"{', '.join(organs)}; save it with the names of its values (label_info)",
        )
    entries = [{**entry, "code": named[str(entry["name"])]} for entry in known if entry["name"] in named]
    model = str(info.get("model") or params.get("model") or "ctseg")
    path = private_folder() / f"label-{secrets.token_hex(8)}.dcm"
    try:
        algorithm = Algorithm("SEMIAUTOMATIC", model)
        write_seg(label_map, volume, None, entries, path, algorithm, f"Label: {', '.join(named)}")
        return pydicom.dcmread(path)
    finally:
        path.unlink(missing_ok=True)
