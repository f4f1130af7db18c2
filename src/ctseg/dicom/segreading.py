"""A DICOM SEG back onto exactly the grid of its CT, whoever wrote it and whichever slices it keeps.

Each frame goes to the slice that it references, or that lies where the frame lies. Frames on a grid of their own
(cropped elsewhere, finer, turned) are stacked and resampled; nothing is ever placed by its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.segcodes import Segment, checked_labels, value_of
from ctseg.dicom.segframes import Frame, frames_of, slice_step
from ctseg.errors import GeometryError, InputError
from ctseg.geometry import ras_from_lps
from ctseg.grids.labels import resample_labels
from ctseg.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# How far a frame may lie from its slice, as a share of the voxel: more than the rounding of any header.
_SAME_VOXEL = 0.1
_SAME_PLANE_MM = 0.05


def read_seg(
    path: str | Path, volume: Volume, labels: Sequence[Mapping[str, Any]] | None = None
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Read a DICOM SEG onto the grid of the CT that it belongs to.

    Args:
        path: the SEG's file.
        volume: its CT, read from DICOM.
        labels: the known labels (`BundleInfo.label_entries`): each segment gets the value of the one that has its
            SNOMED CT code and name. None keeps the segments' own names and numbers.

    Returns:
        The label map (I, J, K) uint8 on the volume's grid, and name -> value of `labels`, or of the SEG's segments.

    Raises:
        InputError: no SEG, of another series, damaged, a form that is not read, segments that are none of `labels`, or
            two labels on the same voxel.
        GeometryError: another frame of reference, or frames that cannot be placed.
    """
    what = Path(path).name
    return label_map_of(_opened(path, what), volume, labels, what)


def read_seg_on(path: str | Path, volume: Volume) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Read a DICOM SEG onto any grid of the same patient, by where its frames say that they lie.

    Its series is not asked for: only for what is known to belong together, such as a reference and a mask of one CT.

    Args:
        path: the SEG's file.
        volume: whose grid is meant, of any format.

    Returns:
        The label map (I, J, K) uint8 on the volume's grid with the segments' numbers as values, and name -> value.

    Raises:
        InputError: no SEG, damaged, or two segments on the same voxel.
        GeometryError: frames that do not say where they lie or make no even, straight stack, or lie elsewhere.
    """
    what = Path(path).name
    seg = _opened(path, what)
    _check_storage(seg, what)
    values, frames = _labelled(seg, None, what)
    if any(None in (frame.position, frame.orientation, frame.pixel_spacing) for frame, _ in frames):
        raise GeometryError(f"{what} has a frame that does not say where it lies: store it again, or give a NIfTI mask")
    target = _resampled(frames, slice_step(seg), volume, what) if frames else np.zeros(volume.shape, np.uint8)
    if frames and not target.any():
        raise GeometryError(f"{what} lies nowhere on the grid of {volume.source}: give masks of the same image")
    return target, values.names


def _opened(path: str | Path, what: str) -> Dataset:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError) as error:
        raise InputError(f"{what} is no readable DICOM file; give the DICOM SEG of the series") from error


def label_map_of(
    seg: Dataset, volume: Volume, labels: Sequence[Mapping[str, Any]] | None, what: str
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Do what `read_seg` does with a data set that was read already; `what` names it in sentences."""
    _check_belongs(seg, volume, what)
    values, frames = _labelled(seg, labels, what)
    target = np.zeros(volume.shape, dtype=np.uint8)
    # One frame beside the CT's slices, and all are taken for a grid of their own: a finer one hits every second slice.
    if not all(_placed(frame, pixels, volume, target, what) for frame, pixels in frames):
        target = _resampled(frames, slice_step(seg), volume, what)
    if values.used and not target.any():
        raise GeometryError(f"{what} lies nowhere on its series {volume.series_uid}; store it on that series' slices")
    return target, values.names


def _labelled(
    seg: Dataset, labels: Sequence[Mapping[str, Any]] | None, what: str
) -> tuple[_Values, list[tuple[Frame, NDArray[np.uint8]]]]:
    segments = {int(item.SegmentNumber): Segment.of(item) for item in seg.get("SegmentSequence") or ()}
    values = _Values(segments, labels, what)
    return values, [(frame, values.of(frame.pixels)) for frame in frames_of(seg, what) if frame.pixels.any()]


class _Values:
    """Which value each segment number gets; asked only for those that have a pixel."""

    def __init__(self, segments: Mapping[int, Segment], labels: Sequence[Mapping[str, Any]] | None, what: str) -> None:
        self._segments, self._labels, self._what = segments, labels, what
        self._table: dict[int, int] = {0: 0}
        self.names = self._own_names() if labels is None else checked_labels(labels, InputError)

    @property
    def used(self) -> bool:
        return len(self._table) > 1

    def of(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        numbers, inverse = np.unique(pixels, return_inverse=True)
        found = np.array([self._value(int(number)) for number in numbers], dtype=np.uint8)
        return found[inverse].reshape(pixels.shape)

    def _value(self, number: int) -> int:
        if number not in self._table:
            if number not in self._segments:
                raise InputError(f"{self._what} has pixels of a segment {number} that it does not describe")
            segment = self._segments[number]
            known = self._labels
            self._table[number] = self.names[_name(segment)] if known is None else value_of(segment, known, self._what)
        return self._table[number]

    def _own_names(self) -> dict[str, int]:
        names: dict[str, int] = {}
        for number, segment in sorted(self._segments.items()):
            if not 1 <= number <= 255:
                raise InputError(f"{self._what} has a segment number {number}, but 1 to 255 fit into a label map")
            names.setdefault(_name(segment), number)
        return names


def _name(segment: Segment) -> str:
    return segment.name or f"segment {segment.number}"


def _check_storage(seg: Dataset, what: str) -> None:
    if str(seg.get("SOPClassUID", "")) not in _STORAGE:
        found = seg.get("Modality") or "something else"
        raise InputError(f"{what} is no DICOM SEG but {found}; give the segmentation that belongs to the CT")


def _check_belongs(seg: Dataset, volume: Volume, what: str) -> None:
    _check_storage(seg, what)
    if not volume.slices:
        raise InputError(f"{volume.source} is {volume.format}, but a DICOM SEG belongs to a DICOM series; give that")
    expected, found = volume.slices[0].frame_of_reference, str(seg.get("FrameOfReferenceUID", ""))
    if found != expected:
        raise GeometryError(
            f"{what} lies in another frame of reference ({found or 'none'}) than its series ({expected or 'none'}); "
            "give the SEG that was drawn on this series"
        )
    series = {str(item.get("SeriesInstanceUID", "")) for item in seg.get("ReferencedSeriesSequence") or ()}
    if volume.series_uid in series:
        return
    images = {image.image_uid for image in volume.slices}
    if not any(
        str(image.get("ReferencedSOPInstanceUID", "")) in images
        for group in seg.get("PerFrameFunctionalGroupsSequence") or ()
        for derivation in group.get("DerivationImageSequence") or ()
        for image in derivation.get("SourceImageSequence") or ()
    ):
        named = ", ".join(sorted(series)) or "none"
        raise InputError(
            f"{what} does not reference the series {volume.series_uid} (it references {named}); "
            "give the SEG that was drawn on this series"
        )


def _placed(frame: Frame, pixels: NDArray[np.uint8], volume: Volume, target: NDArray[np.uint8], what: str) -> bool:
    """Copy a frame whose pixels are pixels of one slice into the target; return False for any other frame."""
    axes, sizes = _axes(volume)
    mine = _own_axes(frame, volume)
    index = _slice_of(frame, volume, axes[2], what)
    if index is None:
        return False
    slot = volume.slices[index]
    # Where the frame's steps along a row and a column lead, in voxels of the CT: a signed exchange, or another grid.
    turn = np.array([[axes[a] @ mine[b] / sizes[a] for b in (0, 1)] for a in (0, 1)])
    whole = np.rint(turn)
    reach = max(pixels.shape)
    if np.abs(turn - whole).max() * reach > _SAME_VOXEL or not np.array_equal(np.abs(whole).sum(axis=0), [1, 1]):
        return False
    if not np.array_equal(np.abs(whole).sum(axis=1), [1, 1]):
        return False
    if max(abs(float(axes[2] @ step)) for step in mine) * reach > max(_SAME_PLANE_MM, _SAME_VOXEL * sizes[2]):
        return False
    moved = np.subtract(frame.position or slot.position, slot.position)
    start = np.array([axes[0] @ moved / sizes[0], axes[1] @ moved / sizes[1]])
    if np.abs(start - np.rint(start)).max() > _SAME_VOXEL:
        return False
    rows, columns = np.nonzero(pixels)
    places = whole.astype(int) @ np.vstack([columns, rows]) + np.rint(start).astype(int)[:, None]
    inside = ((places >= 0) & (places < np.array(target.shape[:2])[:, None])).all(axis=0)
    i, j = places[:, inside]
    plane, found = target[:, :, index], pixels[rows[inside], columns[inside]]
    _check_overlap(plane[i, j], found, what)
    plane[i, j] = found
    return True


def _axes(volume: Volume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit directions (rows of a 3x3) of the CT's index axes in LPS, and the voxel's size along each.

    The third is the slices' normal: in a series of a tilted gantry the stack runs askew to it.
    """
    lps = ras_from_lps(volume.source_affine)[:3, :3].copy()
    normal = np.cross(lps[:, 0], lps[:, 1])
    normal /= np.linalg.norm(normal)
    lps[:, 2] = normal * float(normal @ lps[:, 2])
    sizes = np.linalg.norm(lps, axis=0)
    return (lps / sizes).T, sizes


def _own_axes(frame: Frame, volume: Volume) -> list[NDArray[np.float64]]:
    """The frame's step to the next column and to the next row, in LPS mm; what it does not state is its CT's."""
    orientation = np.asarray(frame.orientation or volume.slices[0].orientation, dtype=np.float64)
    between_rows, between_columns = frame.pixel_spacing or volume.slices[0].pixel_spacing
    return [orientation[:3] * between_columns, orientation[3:] * between_rows]


def _slice_of(frame: Frame, volume: Volume, normal: NDArray[np.float64], what: str) -> int | None:
    """Return the index of the slice that a frame belongs to; None when it lies between or beside the slices."""
    places = np.array([image.position for image in volume.slices]) @ normal
    allowed = max(_SAME_PLANE_MM, _SAME_VOXEL * volume.spacing[2])
    by_uid = {image.image_uid: index for index, image in enumerate(volume.slices)}
    named = [by_uid[uid] for uid in frame.images if uid in by_uid] if len(frame.images) == 1 else []
    if frame.position is None:
        if not named:
            raise GeometryError(
                f"{what} has a frame that says neither where it lies nor on which image of the series it was drawn; "
                "store it again"
            )
        return named[0]
    away = np.abs(places - float(np.asarray(frame.position) @ normal))
    nearest = int(away.argmin())
    if named and away[named[0]] > max(allowed, 0.5 * volume.spacing[2]):
        raise GeometryError(
            f"{what} has a frame that references slice {named[0] + 1} of its series but lies {away[named[0]]:.2f} mm "
            "from it; store it again"
        )
    if named and away[named[0]] <= allowed:
        return named[0]
    return nearest if away[nearest] <= allowed else None


def _check_overlap(before: NDArray[np.uint8], new: NDArray[np.uint8], what: str) -> None:
    both = int(np.count_nonzero((before > 0) & (new > 0) & (before != new)))
    if both:
        raise InputError(
            f"{what} has {both} voxels in one slice that belong to two labels, but a voxel of a label map has one; "
            "take one of the two away there"
        )


def _resampled(
    frames: Sequence[tuple[Frame, NDArray[np.uint8]]], step: float | None, volume: Volume, what: str
) -> NDArray[np.uint8]:
    """Stack frames on the grid that they state, and bring the stack to the CT's grid."""
    first = frames[0][0]
    across, down = _own_axes(first, volume)
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    if any(frame.position is None for frame, _ in frames):
        raise GeometryError(f"{what} has a frame on a grid of its own that does not say where it lies; store it again")
    places = np.array([np.asarray(frame.position) @ normal for frame, _ in frames])
    levels = np.unique(np.round(places, 3))
    if step is None or (len(levels) > 1 and np.diff(levels).min() < 0.9 * step):
        step = float(np.diff(levels).min()) if len(levels) > 1 else volume.spacing[2]
    index = (places - places.min()) / step
    same = all(
        frame.pixels.shape == first.pixels.shape
        and all(np.allclose(a, b, atol=1e-4) for a, b in zip(_own_axes(frame, volume), (across, down), strict=True))
        and np.linalg.norm(np.cross(np.subtract(frame.position or (), first.position or ()), normal)) < _SAME_PLANE_MM
        for frame, _ in frames
    )
    if not same or np.abs(index - np.rint(index)).max() > _SAME_VOXEL:
        raise GeometryError(
            f"{what} has frames that neither lie on the slices of its series nor make an even, straight stack of their "
            "own; store it on the series' slices"
        )
    rows, columns = first.pixels.shape
    stack = np.zeros((columns, rows, int(np.rint(index.max())) + 1), dtype=np.uint8)
    for (_, pixels), level in zip(frames, np.rint(index).astype(int), strict=True):
        plane = stack[:, :, level]
        _check_overlap(plane, pixels.T, what)
        np.copyto(plane, pixels.T, where=pixels.T > 0)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = across, down, normal * step
    lps[:3, 3] = frames[int(places.argmin())][0].position
    return resample_labels(stack, ras_from_lps(lps), volume.source_affine, volume.shape)
