"""A study that keeps to a limit of memory: like `ctseg.study.Study`, but its image is held once at most.

The image is resampled onto the network's grid slab by slab while it is read. To the bundle this copy is the study: it
is on its grid already, so nothing is resampled again, and all else is done as ever. The mask goes from there to the
source's grid, slab by slab. So masks are those of the ordinary way, but for voxels that the last bits of resampled
values decide, and for an organ that the image's edge cuts: there the outermost half voxel of the network's grid may
differ, because the padding round it is not looked at.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.budget import WHOLE, Plan, Work, plan, resident_memory
from ctseg.budgetgrid import Grid, network_grid, onto_grid, onto_source
from ctseg.budgetnetwork import activation_bytes
from ctseg.budgetplanes import Planes, planes_of
from ctseg.dependencies import INPUT_ORGAN, dependencies_of, needed
from ctseg.registry import BundleInfo
from ctseg.study import Bundle, Predictors, Study
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.prediction import Prediction, Predictor

Progress = Callable[[str], None]
_BATCHES = ("batch_size", "sw_batch_size")  # of ctseg's slice-wise inferer, and of MONAI's sliding window
# Floats for each voxel of the input that a network takes whose operations cannot be followed.
_UNKNOWN_FLOATS = 200


class FrugalStudy:
    """One image and what bundles find in it, within a limit of memory.

    Args:
        source: as for `ctseg.study.Study`; its header is read at once, its voxels when a bundle is first asked.
        bundles: that are going to be asked.
        predictors: their networks, which are loaded here and count as what is taken already.
        modality: of the image.
        limit: bytes that this process may take, with all that it holds.
        masks: how many masks of the image's size are held at the same time.

    Raises:
        ResourceError: there is no way; the sentence says what would be needed.
        CtsegError: as `Study`, where the image's header cannot be used.
    """

    def __init__(
        self,
        source: str | Path | Volume,
        bundles: Sequence[BundleInfo],
        predictors: Predictors,
        modality: str,
        limit: int,
        masks: int = 1,
    ) -> None:
        self.predictors, self.modality = predictors, modality
        asked = {one.path: one for info in bundles for one in _with_organs(info)}
        self._loaded = [predictors.segmenter(info) for info in asked.values()]
        self._planes = planes_of(source, modality, limit)
        volume = self._planes.volume
        grids = [network_grid(one.parts[0], volume.shape, volume.affine) for one in self._loaded]
        self._grids = {path: grid for path, grid in zip(asked, grids, strict=True) if grid is not None}
        streamable = self._planes.straight and all(self._is_streamable(info) for info in bundles)
        work = _work(self._planes, self._loaded, grids, resident_memory(), masks, streamable)
        self.plan: Plan = plan(work, limit)
        self._whole = self.plan.way == WHOLE
        self._current: tuple[Grid, Study] | None = None
        if self._whole:
            self._inner = Study(volume if self._planes.held else source, predictors, modality=modality)

    @property
    def volume(self) -> Volume:
        """The image; where it is streamed, its array reads the file again each time it is asked."""
        return self._inner.volume if self._whole else self._planes.told

    def prediction(self, bundle_name: Bundle, progress: Progress | None = None) -> Prediction:
        """Return a segmenter's result on this study, as `Study.prediction` does.

        Raises:
            CtsegError: for input or a bundle that cannot be used.
        """
        info = self.predictors.bundle(bundle_name)
        with ExitStack() as stack:
            for predictor in self._loaded:
                stack.enter_context(_smaller_batches(predictor.parts[1], self.plan.batch))
            return self._inner.prediction(info, progress) if self._whole else self._slab_by_slab(info, progress)

    def _slab_by_slab(self, info: BundleInfo, progress: Progress | None) -> Prediction:
        grid, started = self._grids[info.path], time.perf_counter()
        if progress is not None:
            progress("read")
        study = self._on(grid)
        read = time.perf_counter() - started
        found = study.prediction(info, lambda stage: progress(stage) if progress and stage != "read" else None)
        started = time.perf_counter()
        labels = onto_source(found.label_map, grid, self._planes.volume.affine, self._planes.volume.shape)
        back = time.perf_counter() - started
        seconds = {**found.seconds, "read": read, "postprocess": found.seconds["postprocess"] + back}
        return dataclasses.replace(found, volume=self.volume, label_map=labels, seconds=seconds)

    def _on(self, grid: Grid) -> Study:
        """The image on a network's grid; that of another grid is let go first."""
        if self._current is None or not self._current[0].same(grid):
            self._current = None
            volume = self._planes.volume
            array = onto_grid(self._planes, volume.shape, volume.affine, grid)
            on_grid = Volume(array, grid.affine, grid.affine, volume.source, volume.format)
            self._current = (grid, Study(on_grid, self.predictors, modality=self.modality))
        return self._current[1]

    def _is_streamable(self, info: BundleInfo) -> bool:
        """Whether a bundle's grid is reached by resampling alone, and what it needs of others lies on the same one."""
        own = self._grids.get(info.path)
        others = [needed(one, info.path) for one in dependencies_of(info)]
        return own is not None and all(
            one.role == INPUT_ORGAN
            and (grid := self._grids.get(other.path)) is not None
            and grid.same(own)
            and self._is_streamable(other)
            for one, other in zip(dependencies_of(info), others, strict=True)
        )


def _with_organs(info: BundleInfo) -> Iterator[BundleInfo]:
    """A bundle, and those whose masks it takes."""
    yield info
    for dependency in dependencies_of(info):
        if dependency.role == INPUT_ORGAN:
            yield from _with_organs(needed(dependency, info.path))


def _work(
    planes: Planes, loaded: Sequence[Predictor], grids: Sequence[Grid | None], base: int, masks: int, streamable: bool
) -> Work:
    shape = planes.volume.shape
    sizes, classes, activations, batches = [0], [1], [0], [1]
    for predictor, grid in zip(loaded, grids, strict=True):
        own = shape if grid is None else grid.shape
        tile, batch = _tile(predictor, own)
        taken, channels = _forward(predictor, tile)
        sizes.append(math.prod(own))
        classes.append(channels)
        activations.append(taken)
        batches.append(batch)
    return Work(
        what=str(planes.volume.source),
        shape=shape,
        base=base,
        grid=max(sizes),
        classes=max(classes),
        activations=tuple(max(activations) * batch for batch in range(1, max(batches) + 1)),
        masks=masks,
        streams=not planes.held,
        resamples=streamable,
    )


def _tile(predictor: Predictor, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """What the network is given at once, without its channels, and how many of these in one batch at most."""
    inferer = predictor.parts[1]
    if (roi := getattr(inferer, "roi_size", None)) is not None:
        return tuple(int(size) for size in roi), int(inferer.sw_batch_size)
    if hasattr(inferer, "batch_size"):
        divisor = int(predictor.value("divisor") or 1)
        return tuple(-(-int(size) // divisor) * divisor for size in shape[:2]), int(inferer.batch_size)
    return tuple(int(size) for size in shape), 1


def _forward(predictor: Predictor, tile: tuple[int, ...]) -> tuple[int, int]:
    channels = 1 + sum(one.role == INPUT_ORGAN for one in dependencies_of(predictor.bundle))
    try:
        return activation_bytes(predictor.network, (1, channels, *tile))
    except Exception:  # a network that reads its input's values, or another engine than torch
        return 4 * _UNKNOWN_FLOATS * math.prod(tile), len(predictor.bundle.labels) + 1


@contextmanager
def _smaller_batches(inferer: Any, batch: int) -> Iterator[None]:
    name = next((name for name in _BATCHES if hasattr(inferer, name)), None)
    if name is None:
        yield
        return
    before = getattr(inferer, name)
    setattr(inferer, name, min(before, batch))
    try:
        yield
    finally:
        setattr(inferer, name, before)
