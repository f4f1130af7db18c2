"""The viewer's "Run model": segment a series, and store the mask beside it as DICOM SEG, where the viewer finds it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from app_http import private_folder, refused, sentence_for
from app_studies import remove_upload
from app_viewer_proxy import StudiesProxy
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ctseg.dicom.seg import Algorithm, write_seg
from ctseg.errors import CtsegError
from ctseg.registry import BundleInfo
from ctseg.volume import Volume

_UID = r"^[0-9.]{1,64}$"
# Said of a mask to the page; paths and whatever else a task answers stay here.
_SAID = ("volumes_ml", "cut_by_the_scan", "notes", "device", "latencies", "quality")


class Asked(BaseModel):
    """What the page sends: which model, on which series."""

    model: str
    series: str = Field(pattern=_UID)
    study: str = Field(default="", pattern=r"^[0-9.]{0,64}$")
    device: str = ""


def run_model(app: Any, pacs: StudiesProxy, asked: Asked) -> dict[str, Any]:
    """Segment a series and store its mask.

    Returns:
        `study`, `series` (of the new DICOM SEG), `model`, `version`, and what `_SAID` lists.

    Raises:
        HTTPException: 4xx with one sentence for what the caller can mend, 502 and 504 when the studies' server fails.
    """
    study = pacs.study_of(asked.series)
    volume = place_of(app, asked.series)
    result = app.infer(
        {"model": asked.model, "image": asked.series, "device": asked.device, "result_extension": ".nii"}
    )
    params = result["params"]
    try:
        label_map = _on_the_series(Path(result["file"]), volume)
    finally:
        remove_upload(result["file"], private_folder())
    version = str(params.get("version", ""))
    entries = entries_of(app.model_labels(asked.model), app.bundles().values())
    algorithm = Algorithm("AUTOMATIC", asked.model, version)
    description = f"{asked.model} {version}".strip()
    series = store(pacs, label_map, volume, entries, algorithm, description)
    said = {key: params[key] for key in _SAID if key in params}
    return {"study": study, "series": series, "model": asked.model, "version": version, **said}


def place_of(app: Any, series: str) -> Volume:
    """Return where a series lies, without its pixels.

    Raises:
        HTTPException: 404 when there is no such series, 422 when it is no even stack of slices, 409 when the studies
            are on a server of another kind.
    """
    datastore = app.datastore()
    if not hasattr(datastore, "volume"):
        raise refused(409, "the viewer's labels need studies on a DICOMweb server, and these are on another kind")
    volume: Volume = datastore.volume(series)
    return volume


@contextmanager
def said(path: Path, name: str) -> Iterator[None]:
    """Turn the library's sentences into refusals."""
    try:
        yield
    except CtsegError as error:
        raise refused(*sentence_for(error, path, name)) from error


def entries_of(labels: Mapping[str, int], bundles: Sequence[BundleInfo] | Any) -> list[dict[str, Any]]:
    """Return label entries with codes and colours by name, and with the values of `labels`."""
    known = {str(entry["name"]): entry for bundle in bundles for entry in bundle.label_entries}
    return [{**known.get(name, {}), "name": name, "code": value} for name, value in labels.items()]


def store(
    pacs: StudiesProxy,
    label_map: NDArray[np.uint8],
    volume: Volume,
    entries: Sequence[Mapping[str, Any]],
    algorithm: Algorithm,
    description: str,
) -> str:
    """Write a label map as DICOM SEG, store it, and return the UID of its series."""
    import pydicom

    file = private_folder() / f"label-{secrets.token_hex(8)}.dcm"
    try:
        with said(file, "the label"):
            write_seg(label_map, volume, None, entries, file, algorithm, description)
        pacs.store(file.read_bytes())
        return str(pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID)
    finally:
        file.unlink(missing_ok=True)


def _on_the_series(file: Path, volume: Volume) -> NDArray[np.uint8]:
    import nibabel as nib

    from ctseg.grids.labels import resample_labels

    mask = nib.load(file)
    array = np.asarray(mask.dataobj).astype(np.uint8)
    if array.shape == volume.shape and np.allclose(mask.affine, volume.source_affine, atol=1e-4):
        return array
    return resample_labels(array, mask.affine, volume.source_affine, volume.shape, "nearest")
