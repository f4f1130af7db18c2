"""What other bundles say of a study, brought to the network: masks as input channels, presence as slices to run."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.dependencies import GATE, INPUT_ORGAN, Dependency, needed
from ctseg.errors import BundleError, ConfigError, GeometryError
from ctseg.files import file_sha256
from ctseg.grids.labels import resample_labels
from ctseg.presence.gate import Gate
from ctseg.slicepositions import slice_positions

WAITED = "waited_for"  # meta of the image: bundle -> seconds that the pipeline waited for its result
RUN_SLICES = "run_slices"  # meta of the image: (S,) bool, the slices that the gate opens


class AddOrgansd(MapTransform):
    """Add the masks of other organs as channels, 0 or 1, in the order of `organs`; last step of a preprocessing.

    The masks come from the item's `organs` when a label file gave them (`LoadLabeld`), else from the bundles that
    segment these organs, through the item's `study`. They go by the nearest voxel and by the affines from the source's
    grid to that of the prepared image, whatever was turned, resampled or padded in between.

    Args:
        keys: the prepared image (1, I, J, K), a `MetaTensor`.
        organs: label names; none leaves the image as it is.
        bundles: organ -> name of the bundle that segments it.
        bundle_root: folder of the bundle that this belongs to; the others are looked for beside it, then among the
            shipped ones.

    Raises:
        ConfigError: an organ for which no bundle is named, when a bundle is needed.
        BundleError: the bundle is missing, untrained, no segmenter or does not know the organ.
    """

    def __init__(
        self,
        keys: KeysCollection,
        organs: Sequence[str] = (),
        bundles: Mapping[str, str] | None = None,
        bundle_root: str | Path = ".",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.organs = list(organs)
        self.bundles = dict(bundles or {})
        self.bundle_root = Path(bundle_root)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with images of shape (1 + organs, I, J, K), float32."""
        item = dict(data)
        masks = item.pop("organs", None)
        if not self.organs:
            return item
        waited: dict[str, float] = {}
        maps: list[tuple[np.ndarray, int | None]]
        if masks is None:
            maps = [self._computed(organ, item, waited) for organ in self.organs]
        else:
            maps = [(np.asarray(mask), None) for mask in masks]
        for key in self.key_iterator(item):
            image = item[key]
            source = np.asarray(image.meta["original_affine"], dtype=np.float64)
            here = np.asarray(image.affine, dtype=np.float64)
            channels = []
            for labels, code in maps:
                there = resample_labels(labels, source, here, image.shape[1:], order="nearest")
                channels.append(there if code is None else (there == code).astype(np.uint8))
            added = torch.from_numpy(np.stack(channels)).to(image.device).to(torch.float32)  # bytes go to the device
            joined = torch.cat([image.as_tensor().to(torch.float32), added])
            item[key] = MetaTensor(joined, meta={**image.meta, **({WAITED: waited} if waited else {})})
        return item

    def fingerprint(self) -> list[Any]:
        """What the answer depends on beside the image: the organs, and the files of the bundles that give them.

        A training keeps prepared cases by it (`ctseg.slicecache`).
        """
        found: list[Any] = []
        for organ in self.organs:
            name = self.bundles.get(organ, "")
            try:
                info = needed(Dependency(name, INPUT_ORGAN, (organ,)), self.bundle_root)
            except BundleError as error:  # said when the mask is asked for
                found.append([organ, name, str(error)])
                continue
            found.append(
                [organ, name, info.version, file_sha256(info.weights) if info.trained and info.weights else ""]
            )
        return found

    def _computed(
        self, organ: str, item: Mapping[Hashable, Any], waited: dict[str, float]
    ) -> tuple[np.ndarray, int | None]:
        """A label map (I, J, K) on the source's grid, by the organ's own bundle, and the organ's code in it."""
        if organ not in self.bundles:
            raise ConfigError(
                f"The input organ {organ!r} has no bundle that segments it: expected one in organ_bundles, which names "
                f"{', '.join(self.bundles) or 'none'}; add it there."
            )
        info = needed(Dependency(self.bundles[organ], INPUT_ORGAN, (organ,)), self.bundle_root, item["study"].find)
        start = time.perf_counter()
        found = item["study"].prediction(info)
        waited[info.name] = waited.get(info.name, 0.0) + time.perf_counter() - start
        return found.label_map, info.labels[organ]


class SplitOrgansd(MapTransform):
    """Take the organs' channels out of the image again, into `organs`, so that augmentation can treat them as masks.

    MONAI's `ConcatItemsd` puts them back.

    Args:
        keys: the image, (1 + further + organs, ...).
        organs: label names; none and nothing further leaves the item as it is.
        further: names of other channels that are no grey values, before the organs'.
    """

    def __init__(
        self,
        keys: KeysCollection,
        organs: Sequence[str] = (),
        allow_missing_keys: bool = False,
        further: Sequence[str] = (),
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.organs = [*further, *organs]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with image (1, ...) and organs (C, ...)."""
        item = dict(data)
        if self.organs:
            for key in self.key_iterator(item):
                item["organs"], item[key] = item[key][-len(self.organs) :], item[key][: -len(self.organs)]
        return item


class GateSlicesd(MapTransform):
    """Note in the image which of its slices a classifier opens, for `ctseg.inferers.SlicewiseInferer`.

    Args:
        keys: the prepared image (C, I, J, S), a `MetaTensor`.
        gate: name of the classifier; None leaves every slice open.
        labels: the organs; a slice is opened when any of them is on it.
        bundle_root: as for `AddOrgansd`.
        margin_mm: see `ctseg.presence.gate.Gate`, as the next two.
        gap_mm: see there.
        min_slices: see there.
        every_mm: distance of the slices that are classified, in mm; None classifies each of the CT's own.

    Raises:
        ConfigError: as `Gate`, or an `every_mm` that is not above 0.
        BundleError: the bundle is missing, untrained, no classifier or does not know an organ.
        GeometryError: the classifier's slices run along another axis of the source.
    """

    def __init__(
        self,
        keys: KeysCollection,
        gate: str | None,
        labels: Sequence[str],
        bundle_root: str | Path = ".",
        margin_mm: float = Gate.margin_mm,
        gap_mm: float = Gate.gap_mm,
        min_slices: int = Gate.min_slices,
        every_mm: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.gate = gate
        self.labels = tuple(labels)
        self.bundle_root = Path(bundle_root)
        self.rule = Gate(margin_mm, gap_mm, min_slices)
        self.every_mm = every_mm
        if every_mm is not None and not every_mm > 0:
            raise ConfigError(
                f"the gate got every_mm {every_mm}: expected mm above 0, or null; correct the task's gate_every_mm"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; the image's meta has `run_slices`, (S,) bool, where there is a gate."""
        item = dict(data)
        if self.gate is None:
            return item
        info = needed(Dependency(self.gate, GATE, self.labels), self.bundle_root, item["study"].find)
        start = time.perf_counter()
        found = item["study"].presence(info, self.every_mm)
        waited = time.perf_counter() - start
        columns = [found.labels.index(label) for label in self.labels]
        present = found.present[:, columns].any(axis=1)
        for key in self.key_iterator(item):
            image = item[key]
            axis, positions = slice_positions(image)
            if axis != found.axis:
                raise GeometryError(
                    f"the slices of {info.name} run along axis {found.axis} of the image and those of "
                    f"{self.bundle_root.name} along axis {axis}: expected the same; switch the gate off (gate: null)"
                )
            spacing = float(np.linalg.norm(np.asarray(image.meta["original_affine"], dtype=np.float64)[:3, axis]))
            opened = self.rule.open_slices(present, found.positions, positions, spacing)
            image.meta[RUN_SLICES] = torch.from_numpy(opened)
            image.meta[WAITED] = {**image.meta.get(WAITED, {}), info.name: waited}
        return item
