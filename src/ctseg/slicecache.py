"""Prepared cases kept on disk and mapped into memory, so that a training's memory does not grow with its cases.

MONAI's `CacheDataset` keeps every prepared case in memory and copies the whole of it for each item; its
`PersistentDataset` and `GDSDataset` pickle, and load a whole volume to draw one slice from it. Here a case is prepared
once and written as .npy; an item maps it and reads only the slice or the patch that the random crop takes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import CacheDataset, Dataset
from monai.transforms import (
    Compose,
    Cropd,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    RandomizableTrait,
    RandSpatialCropSamplesd,
    ScaleIntensityRanged,
    SqueezeDimd,
    Transform,
)
from tqdm import tqdm  # type: ignore[import-untyped]

from ctseg.errors import ConfigError, CtsegError
from ctseg.fingerprints import describe, digest, program, source_files
from ctseg.preparedcases import STORED, Before, Broken, claimed, open_case, restored, write_case
from ctseg.sentences import said_plainly

# These take a part of an array as it lies, whatever its type: they read nothing but that part (and all of the array
# that their `label_key` names). A transform of ours says so with an attribute `takes_a_part = True`.
_CROPS = (Cropd, RandCropByPosNegLabeld, RandCropByLabelClassesd, RandSpatialCropSamplesd, SqueezeDimd)
_LOGGER = logging.getLogger(__name__)


@said_plainly
def cached_dataset(
    data: Sequence[Any],
    transform: Compose,
    cache_dir: str | None = None,
    cache_rate: float = 1.0,
    cache_type: str = "float16",
) -> Dataset:
    """Return a data set for a bundle's training: prepared cases on disk, or in memory.

    Args:
        data: of the datalist.
        transform: the preprocessing, and after it the augmentation.
        cache_dir: folder of the prepared cases; None, "null" or "none" keeps them in memory, as MONAI does.
        cache_rate: share of the cases kept in memory, when there is no `cache_dir`.
        cache_type: of `SliceCacheDataset`.

    Raises:
        SystemExit: in a run, with the sentence of a CtsegError; else the error itself.
    """
    if cache_dir is None or str(cache_dir).lower() in ("", "null", "none"):
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=1, progress=False)
    return SliceCacheDataset(data, transform, cache_dir, cache_type)


class SliceCacheDataset(Dataset):
    """Cases prepared once by the deterministic transforms, kept on disk, and mapped for the random ones.

    The items are those of MONAI's `Dataset` with the same transforms and random state: with `cache_type` "float32" bit
    by bit; with "float16" images scaled to 0..1 differ by at most 2^-12 (0.06 HU in a window of 255 HU), and what is
    whole numbers, like labels, not at all. Images of whole HU (not resampled, or rounded by `WholeHounsfieldd`) are
    kept as such, in 16 bits, or in 8 where the window is at most 255 HU wide, and come back bit by bit.
    Only a `MetaTensor`'s `applied_operations` before the random part are not kept (ctseg goes back to the source's grid
    by the affines, not by them).

    A prepared case is used again only when the deterministic transforms and their settings, the program (MONAI, torch,
    this package) and path, size and time of the last change of the source files are what they were; otherwise, or when
    a file is missing or cut short, it is made anew. Any number of processes may share a folder. What nobody uses any
    more stays there until the folder is deleted.

    Args:
        data: items of a datalist.
        transform: deterministic transforms, then random ones.
        cache_dir: the folder; made where missing.
        cache_type: "float16" or "float32", of images.

    Raises:
        ConfigError: for an unknown `cache_type`, or a transform whose settings cannot be seen.
        OutputError: when the folder cannot be written.
        CtsegError: what the preprocessing says of a case.
    """

    def __init__(
        self, data: Sequence[Any], transform: Compose, cache_dir: str | Path, cache_type: str = "float16"
    ) -> None:
        if cache_type not in STORED:
            raise ConfigError(f"The cache_type {cache_type!r} is not known: expected one of {', '.join(STORED)}.")
        super().__init__(data, transform if isinstance(transform, Compose) else Compose(transform))
        self.folder = Path(cache_dir)
        self.cache_type = cache_type
        self._random = self.transform.get_index_of_first(_is_random)
        steps = self.transform.transforms
        first = len(steps) if self._random is None else self._random
        self._cropped = next((n for n in range(first, len(steps)) if not _is_crop(steps[n])), len(steps))
        self._steps = digest(describe(list(steps[:first])))
        self._widths = _widths(steps[:first])
        self._checked = bytearray(len(data))
        self._prepare_all()

    def _prepare_all(self) -> None:
        """Prepare the cases that are not there; several processes share the work, each taking what nobody has."""
        if self._random == 0:
            step = type(self.transform.transforms[0]).__name__
            _LOGGER.warning(f"No case can be prepared: the first step, {step}, is random or no Transform of MONAI.")
            return
        numbers = range(len(self.data))
        left = [number for number in numbers if not self._is_ready(number)]
        if not left:
            return
        _LOGGER.info(f"Preparing {len(left)} of {len(numbers)} cases, once, in {self.folder}.")
        busy = [number for number in tqdm(left, desc="preparing cases", disable=None) if not self._prepare(number)]
        for number in busy:
            self._prepare(number, wait=True)
        _LOGGER.info(f"{len(numbers)} prepared cases are in {self.folder}.")

    def _place(self, number: int) -> Path:
        """Where a case lies: its name says what was done to what, and tells no patient."""
        given = {str(key): describe(value) for key, value in self.data[number].items()}
        return self.folder / digest([self._steps, self.cache_type, given])

    def _origin(self, number: int) -> list[Any]:
        """What a case must have been made by and from."""
        return [program(), source_files(self.data[number])]

    def _is_ready(self, number: int) -> bool:
        try:
            open_case(self._place(number), self.data[number], self._origin(number))
        except Broken:
            return False
        self._checked[number] = 1
        return True

    def _prepare(self, number: int, wait: bool = False) -> bool:
        """Make a case unless it is there; False when another process is at it and `wait` is false."""
        folder, given = self._place(number), self.data[number]
        with claimed(folder, wait) as free:
            if free and not self._is_ready(number):
                # Taken before the files are read: one that changes meanwhile makes the case out of date.
                origin = self._origin(number)
                try:
                    item = self.transform(dict(given), end=self._random)
                except RuntimeError as error:  # MONAI wraps what a transform raises
                    if isinstance(error.__cause__, CtsegError):
                        raise error.__cause__ from error
                    raise
                write_case(folder, item, given, origin, self.cache_type, self._widths)
                self._checked[number] = 1
            return free

    def _open(self, number: int) -> tuple[dict[Any, Any], dict[str, Before]]:
        if self._random == 0:
            return dict(self.data[number]), {}
        folder = self._place(number)
        try:
            return open_case(folder, self.data[number], None if self._checked[number] else self._origin(number))
        except Broken:
            self._prepare(number, wait=True)
            return open_case(folder, self.data[number])

    def _transform(self, index: int) -> Any:
        item, before = self._open(range(len(self.data))[index])
        if self._random is None:
            return restored(item, before)
        # What a crop looks at as a whole must be as it was: MONAI finds no background in a label of 8 bits.
        crops = self.transform.transforms[self._random : self._cropped]
        looked_at = {getattr(step, key, None) for step in crops for key in ("label_key", "image_key")}
        item = restored(item, {key: was for key, was in before.items() if key in looked_at})
        before = {key: Before(was.dtype) if key in looked_at else was for key, was in before.items()}
        part = self.transform(item, start=self._random, end=self._cropped)
        whole = [restored(one, before) for one in part] if isinstance(part, list) else restored(part, before)
        return self.transform(whole, start=self._cropped)


def _widths(steps: Sequence[Any]) -> dict[str, float]:
    """Width in HU of the window by which each key is scaled to 0..1 last."""
    found: dict[str, float] = {}
    for step in steps:
        if isinstance(step, ScaleIntensityRanged):
            scaler = step.scaler
            if (scaler.b_min, scaler.b_max) == (0.0, 1.0) and scaler.a_max > scaler.a_min:
                found.update({str(key): float(scaler.a_max - scaler.a_min) for key in step.keys})
    return found


def _is_crop(step: Any) -> bool:
    return isinstance(step, _CROPS) or bool(getattr(step, "takes_a_part", False))


def _is_random(step: Any) -> bool:
    return isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
