"""A study that keeps to a limit of memory: where it has to, its image is not held, but read plane by plane.

Bundles ask a study for the image on their grid (`Study.prepared`, by `ctseg.transforms.ToGridd`). Here it is made from
the file's planes while they are read; what the other steps get as image has a place and no voxels. All else is as ever,
so the mask is, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ctseg.budget.grid import Grid, network_grid, nothing, onto_grid
from ctseg.budget.network import activation_bytes
from ctseg.budget.planes import Planes, planes_of
from ctseg.budget.reckoning import WHOLE, Plan, Work, plan, resident_memory
from ctseg.dependencies import GATE, INPUT_ORGAN, dependencies_of, needed
from ctseg.registry import BundleInfo
from ctseg.study import Bundle, Made, Predictors, Study
from ctseg.volume import Volume

if TYPE_CHECKING:
    from ctseg.prediction import Prediction, Predictor

Progress = Callable[[str], None]
_BATCHES = ("batch_size", "sw_batch_size")  # of ctseg's slice-wise inferer, and of MONAI's sliding window
# Floats for each voxel of the input that a network takes whose operations cannot be followed.
_UNKNOWN_FLOATS = 200


class FrugalStudy(Study):
    """One image and what bundles find in it, within a limit of memory.

    Args:
        source: as for `ctseg.study.Study`; of a file the header is read at once.
        bundles: that are going to be asked.
        predictors: their networks, which are loaded here and count as what is taken already.
        modality: of the image.
        limit: bytes that this process may take, with all that it holds.
        masks: how many masks of the image's size are held at the same time.

    Attributes:
        plan: how it is done.

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
        asked = {one.path: one for info in bundles for one in _with_organs(info)}
        self._loaded = [predictors.segmenter(info) for info in asked.values()]
        self._planes = planes_of(source, modality, limit)
        volume = self._planes.volume
        super().__init__(volume if self._planes.held else source, predictors, modality=modality)
        grids = [network_grid(one.parts[0], volume.shape, volume.affine) for one in self._loaded]
        self._grids = {grid.step.shared_as: grid for grid in grids if grid is not None}
        gated = any(one.role == GATE for info in asked.values() for one in dependencies_of(info))
        work = _work(self._planes, self._loaded, grids, resident_memory(), masks + len(asked) - len(bundles))
        work = dataclasses.replace(work, streams=work.streams and not gated)
        self.plan: Plan = plan(work, limit)
        self._stand_in = dataclasses.replace(volume, array=nothing(volume.shape))

    @property
    def volume(self) -> Volume:
        """The image; where it is read plane by plane its voxels are all 0 (`Prediction.volume` can read them)."""
        return super().volume if self.plan.way == WHOLE else self._stand_in

    def prepared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the image on a network's grid, made while it is read."""
        if self.plan.way == WHOLE:
            return super().prepared(key, make)
        grid, volume = self._grids[key], self._planes.volume
        made: Any = super().prepared(
            key, lambda: (onto_grid(self._planes, volume.shape, volume.affine, grid), grid.affine)
        )
        return cast("Made", made)

    def prediction(self, bundle_name: Bundle, progress: Progress | None = None) -> Prediction:
        """Return a segmenter's result on this study, as `Study.prediction` does.

        Raises:
            CtsegError: for input or a bundle that cannot be used.
        """
        with ExitStack() as stack:
            for predictor in self._loaded:
                stack.enter_context(_smaller_batches(predictor.parts[1], self.plan.batch))
            found = super().prediction(bundle_name, progress)
        return found if self.plan.way == WHOLE else dataclasses.replace(found, volume=self._planes.told)


def _with_organs(info: BundleInfo) -> Iterator[BundleInfo]:
    """A bundle, and those whose masks it takes."""
    yield info
    for dependency in dependencies_of(info):
        if dependency.role == INPUT_ORGAN:
            yield from _with_organs(needed(dependency, info.path))


def _work(planes: Planes, loaded: Sequence[Predictor], grids: Sequence[Grid | None], base: int, masks: int) -> Work:
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
        grid=sum(sizes),
        classes=max(classes),
        activations=tuple(max(activations) * batch for batch in range(1, max(batches) + 1)),
        masks=masks,
        held=planes.held,
        streams=not planes.held and planes.straight and None not in grids,
        resamples=planes.straight and None not in grids,
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
