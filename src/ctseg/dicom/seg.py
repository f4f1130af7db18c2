"""Label maps as DICOM SEG on the slices of their CT, written with highdicom, and read back onto exactly that grid.

Written is a bitmap (BINARY) in explicit VR little endian, one frame for each slice that a segment touches, each with
the plane position of its slice and a reference to it (PS3.3, A.51 and C.8.20).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.archives import unpacked
from ctseg.dicom.files import may_be_dicom
from ctseg.dicom.segcodes import Algorithm, checked_labels, describe
from ctseg.dicom.segreading import read_seg
from ctseg.dicom.tilt import slice_distance
from ctseg.errors import GeometryError, InputError, OutputError
from ctseg.files import written_beside
from ctseg.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from ctseg.prediction import Prediction

__all__ = ["Algorithm", "check_can_write", "read_seg", "write_prediction", "write_seg"]

# What a SEG repeats of its CT and may be empty, but must be there for highdicom (type 2 in PS3.3, C.7.1.1 and C.7.2.1).
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_NOT_DICOM = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_NO_HIGHDICOM = "DICOM SEG is written with highdicom, which is not installed; pip install 'highdicom>=0.22,<0.23'"
_SERIES_NUMBER = 300
_MAKER = "ctseg"


def write_seg(
    label_map: NDArray[Any],
    volume: Volume,
    source_files: Iterable[Path] | None,
    labels: Sequence[Mapping[str, Any]],
    path: str | Path,
    algorithm: Algorithm | None = None,
    description: str = "",
) -> Path:
    """Write a label map as a DICOM SEG that belongs to the series it was made on.

    Every label becomes a segment, also one that is not found: then it has no frame, which says that it was looked for.
    A map without any label gets one empty frame for each, on the middle slice, since a SEG needs one. Each call makes a
    new series with new UIDs.

    Args:
        label_map: (I, J, K) integers on the volume's grid; 0 is background, every other value one of `labels`.
        volume: a volume that `read_volume` read from DICOM.
        source_files: the series' files in any order, others among them are passed over; None takes those that the
            volume was read from.
        labels: the task's entries, as `BundleInfo.label_entries` gives them; see `segmentcodes.describe`.
        path: the file to write; missing folders are made, an earlier file is replaced in one step.
        algorithm: who drew it; None says an automatic "ctseg".
        description: SeriesDescription, what a viewer lists; by default the labels' names.

    Returns:
        The path.

    Raises:
        OutputError: the volume is not from DICOM, values without a label, highdicom is not installed, no space.
        GeometryError: the label map has another shape than the volume.
        InputError: the series' files are not there (any more) or lack what a SEG must repeat.
    """
    values = checked_labels(labels, OutputError)
    _check_map(label_map, volume, values)
    algorithm = algorithm or Algorithm()
    with _files_of(volume, source_files) as files:
        headers = _headers(volume, files)
    planes, headers_used = _numbered(label_map, [values[str(entry["name"])] for entry in labels], headers)
    seg = _segmentation(planes, headers_used, labels, algorithm, description or ", ".join(values))
    _reference_all(seg, headers)
    path = Path(path)
    with written_beside(path) as beside:
        seg.save_as(beside, write_like_original=False)
    return path


def write_prediction(prediction: Prediction, path: str | Path, source_files: Iterable[Path] | None = None) -> Path:
    """Write what a model found as a DICOM SEG, the model named as an automatic algorithm; otherwise as `write_seg`."""
    bundle, values = prediction.bundle, prediction.labels
    # The values in the mask may be others than the bundle's own; codes and colours go by name.
    known = {str(entry["name"]): entry for entry in bundle.label_entries}
    entries = [{**known.get(name, {}), "name": name, "code": value} for name, value in values.items()]
    algorithm = Algorithm("AUTOMATIC", bundle.name, bundle.version, learned=bundle.needs_weights)
    return write_seg(prediction.label_map, prediction.volume, source_files, entries, path, algorithm)


def check_can_write(source: Path) -> None:
    """Refuse a DICOM SEG before the long work, where the input is plainly no DICOM or highdicom is missing.

    Raises:
        OutputError: with what to do.
    """
    if source.is_file() and source.name.lower().endswith(_NOT_DICOM):
        raise OutputError(
            f"{source} is no DICOM series, but a DICOM SEG belongs to one; give the DICOM folder, or leave out seg"
        )
    if find_spec("highdicom") is None:
        raise OutputError(_NO_HIGHDICOM)


def _check_map(label_map: NDArray[Any], volume: Volume, values: Mapping[str, int]) -> None:
    if not volume.slices:
        raise OutputError(
            f"{volume.source} is {volume.format}, but a DICOM SEG belongs to a DICOM series; "
            "give the DICOM folder, or write the mask as NIfTI"
        )
    if label_map.shape != volume.shape:
        raise GeometryError(
            f"the mask has {label_map.shape} voxels, but its series {volume.source} has {volume.shape}; "
            "bring it to the series' grid first"
        )
    if label_map.dtype.kind not in "biu":
        raise OutputError(f"the mask holds {label_map.dtype} values, but labels are whole numbers")
    unknown = sorted({int(value) for value in np.unique(label_map)} - {0, *values.values()})
    if unknown:
        raise OutputError(
            f"the mask holds the values {unknown}, but the labels are {dict(values)}; name a label for each value"
        )


@contextmanager
def _files_of(volume: Volume, files: Iterable[Path] | None) -> Iterator[list[Path]]:
    """The files of the series; those of a zip are unpacked again while the block runs."""
    if files is not None:
        yield [Path(file) for file in files]
    elif volume.source.is_file() and volume.source.name.lower().endswith(".zip"):
        with unpacked(volume.source) as folder:
            yield sorted(folder.iterdir())
    else:
        yield [image.path for image in volume.slices]


def _headers(volume: Volume, files: Iterable[Path]) -> list[Dataset]:
    """Return the header of each slice, in the volume's order, found by SOPInstanceUID."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    wanted = {image.image_uid: index for index, image in enumerate(volume.slices)}
    found: dict[int, Dataset] = {}
    for file in files:
        if not may_be_dicom(file):
            continue
        try:
            header: Dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        except (InvalidDicomError, OSError):
            continue
        index = wanted.get(str(header.get("SOPInstanceUID", "")))
        if index is not None:
            found.setdefault(index, header)
    if len(found) != len(volume.slices):
        raise InputError(
            f"{volume.source} has {len(volume.slices)} slices, but the files of {len(volume.slices) - len(found)} are "
            "not among those given; a DICOM SEG needs all files of its series, where they were read"
        )
    step = slice_distance(volume.affine)
    for header in found.values():
        _check_header(header, volume)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
        header.SpacingBetweenSlices = f"{step:.6f}"  # CT scanners state it seldom, and then not always rightly
        if not header.get("SliceThickness"):
            header.SliceThickness = header.SpacingBetweenSlices
    return [found[index] for index in range(len(volume.slices))]


def _check_header(header: Dataset, volume: Volume) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID"):
        if not header.get(keyword):
            raise InputError(
                f"{volume.source} has an image without {keyword}, which a DICOM SEG must repeat; export the series "
                "again, or write the mask as NIfTI"
            )


def _numbered(
    label_map: NDArray[Any], values: Sequence[int], headers: Sequence[Dataset]
) -> tuple[NDArray[np.uint8], Sequence[Dataset]]:
    """Return planes (slices, rows, columns) whose numbers are 1, 2, ... in the order of `values`, and their headers."""
    table = np.zeros(256, dtype=np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    planes = table[label_map.astype(np.uint8, copy=False)].transpose(2, 1, 0)
    if not planes.any():
        middle = len(headers) // 2
        return planes[middle : middle + 1], headers[middle : middle + 1]
    return planes, headers


def _segmentation(
    planes: NDArray[np.uint8],
    headers: Sequence[Dataset],
    labels: Sequence[Mapping[str, Any]],
    algorithm: Algorithm,
    description: str,
) -> Any:
    try:
        from highdicom import UID
        from highdicom.seg import Segmentation, SegmentationTypeValues
    except ImportError as error:
        raise OutputError(_NO_HIGHDICOM) from error
    from pydicom.uid import ExplicitVRLittleEndian

    from ctseg import __version__

    seg = Segmentation(
        source_images=headers,
        pixel_array=planes,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=describe(labels, algorithm),
        series_instance_uid=UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=algorithm.name if algorithm.type != "MANUAL" else _MAKER,
        software_versions=__version__,
        device_serial_number="none",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(planes.any()),
        content_label="SEGMENTATION",
        content_description="research only: not a medical device, not for diagnosis",
    )
    seg.SeriesDescription = description[:64]
    # Names of patients keep the letters that they were written in.
    if headers[0].get("SpecificCharacterSet"):
        seg.SpecificCharacterSet = headers[0].SpecificCharacterSet
    return seg


def _reference_all(seg: Any, headers: Sequence[Dataset]) -> None:
    """Name every image of the series, also where the frames are those of a few slices."""
    from pydicom.dataset import Dataset as NewDataset

    references = []
    for header in headers:
        reference = NewDataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        references.append(reference)
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references
