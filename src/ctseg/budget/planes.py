"""An image as a stack of planes that are read when they are asked for, and never held all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ctseg.budget.reckoning import check_held
from ctseg.checks import AIR_HU, SeenValues, judge_values, memory_checked_by
from ctseg.dicom.tilt import is_tilted
from ctseg.errors import InputError
from ctseg.geometry import clean_affine, spacing_of
from ctseg.volume import Volume

Plane = NDArray[Any]


class StreamedArray:
    """Stands for the voxels (I, J, K) of a file: knows their shape, reads them again each time it is asked.

    Args:
        shape: (I, J, K).
        planes: reads the file once, planes (I, J) along K.
    """

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, int, int], planes: Callable[[], Iterable[Plane]]) -> None:
        self.shape = shape
        self._planes = planes

    @property
    def size(self) -> int:
        """How many voxels there are."""
        return int(np.prod(self.shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Plane:
        """Read all of it, whatever memory that takes."""
        whole = np.stack([np.asarray(plane, dtype=np.float32) for plane in self._planes()], axis=-1)
        return whole if dtype is None else whole.astype(dtype)

    def cuts(self, places: Sequence[tuple[int, int]]) -> list[Plane]:
        """Return several planes of the image, in one reading.

        Args:
            places: axis and index of each; the result has the other two axes in their order.
        """
        found: list[Plane] = [np.empty(np.delete(self.shape, axis), dtype=np.float32) for axis, _ in places]
        for number, plane in enumerate(self._planes()):
            for (axis, index), cut in zip(places, found, strict=True):
                if axis == 2 and index == number:
                    cut[:] = plane
                elif axis == 0:
                    cut[:, number] = plane[index]
                elif axis == 1:
                    cut[:, number] = plane[:, index]
        return found


class Planes:
    """An image whose header was read: where it lies, and its planes, checked while they are read for the first time.

    Attributes:
        volume: the image; its array is a `StreamedArray`, or the voxels themselves where they are in memory.
    """

    def __init__(self, volume: Volume, read: Callable[[], Iterable[Plane]] | None, eight_bit: bool = False) -> None:
        self.volume = volume
        self._read = read
        self._eight_bit = eight_bit
        self._words: tuple[str, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the voxels are in memory."""
        return self._read is None

    @property
    def told(self) -> Volume:
        """The volume, with a note for what was corrected while its planes were read."""
        return dataclasses.replace(self.volume, notes=(*self.volume.notes, *self._words))

    @property
    def straight(self) -> bool:
        """Whether the slices were taken without tilting the gantry."""
        return not is_tilted(self.volume.affine)

    def __iter__(self) -> Iterator[Plane]:
        """Yield planes (I, J) along K.

        Raises:
            InputError: damaged; or, after the last plane, plainly no CT.
        """
        if self._read is None:
            yield from np.moveaxis(self.volume.array, 2, 0)
            return
        seen, bad, what = SeenValues(), 0, str(self.volume.source)
        for plane in self._read():
            if plane.dtype.kind == "f" and not np.isfinite(plane).all():
                bad += int(plane.size - np.isfinite(plane).sum())
                plane = np.where(np.isfinite(plane), plane, np.float32(AIR_HU))
            seen.add(plane)
            yield plane
        if bad == seen.voxels:
            raise InputError(f"{what} has no voxel that is a finite number; export the image again")
        words = [f"{bad} voxels were NaN or infinite and were replaced by {AIR_HU:g}"] if bad else []
        word = judge_values(seen, self.volume.shape, spacing_of(self.volume.affine), what, self._eight_bit)
        self._words = (*words, *([word] if word else []))


def planes_of(source: str | Path | Volume, modality: str, limit: int) -> Planes:
    """Open an image: a NIfTI file or a DICOM folder by its headers alone, anything else by reading it.

    Args:
        source: a path, or a volume read already.
        modality: of the image.
        limit: bytes that this process may take.

    Raises:
        ResourceError: what has to be held whole does not fit within the limit.
        CtsegError: as `ctseg.reading.read_volume`, for streamed images as far as headers tell.
    """
    if isinstance(source, Volume):
        return Planes(source, None)
    path, name = Path(source), Path(source).name.lower()
    if modality.upper() == "CT" and path.is_file() and name.endswith((".nii", ".nii.gz")):
        from ctseg.nifti import nifti_planes

        opened = nifti_planes(path)
        head = opened.head
        affine = head.affine.copy() if is_tilted(head.affine) else clean_affine(head.affine)
        volume = Volume(head.array, affine, head.affine, path, head.format, head.header, notes=head.notes)
        return _streamed(volume, opened.__iter__, head.eight_bit)
    if modality.upper() == "CT" and path.is_dir():
        from ctseg.dicom.reading import dicom_planes, read_dicom_grid

        grid = read_dicom_grid(path, modality)
        eight_bit = all(image.bits <= 8 and not image.rescaled for image in grid.slices)
        return _streamed(grid, lambda: dicom_planes(grid.slices, str(path)), eight_bit)
    from ctseg.reading import read_volume

    with memory_checked_by(lambda shape, what: check_held(shape, what, limit)):
        return Planes(read_volume(path, modality=modality), None)


def _streamed(volume: Volume, read: Callable[[], Iterable[Plane]], eight_bit: bool) -> Planes:
    array = cast("NDArray[Any]", StreamedArray(volume.shape, read))
    return Planes(dataclasses.replace(volume, array=array), read, eight_bit)
