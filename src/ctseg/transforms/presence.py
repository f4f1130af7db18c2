"""Slices for a classifier: drawn out of a volume, masks turned into presence, logits into probabilities, a table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from ctseg.cases import case_name
from ctseg.errors import ConfigError
from ctseg.slicepositions import slice_positions


class RandSlicesd(Randomizable, MapTransform):
    """Draw slices along the last axis of a volume, each an item of its own: with and without the organ, as asked.

    For each slice the side is drawn first (with probability `with_organ` one that holds any class), then the slice
    among those of its side; where a volume has slices of one side only, that side. No slice is drawn twice, and a case
    of one slice gives one item, so that volumes and single slices train together.

    Args:
        keys: arrays (C, I, J, K) of one grid. What else is in the item goes: sources that differ in it (in their
            `mask_values`, say) could not share a batch.
        label_key: class indices, which say where an organ is.
        num_samples: items out of a volume.
        with_organ: share of slices with an organ, 0 to 1.

    Raises:
        ConfigError: for fewer than one sample, or a share outside of 0 to 1.
    """

    takes_a_part = True  # reads nothing but the slices that it draws (`ctseg.slicecache`)

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        num_samples: int = 1,
        with_organ: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if num_samples < 1 or not 0 <= with_organ <= 1:
            raise ConfigError(
                f"RandSlicesd got num_samples {num_samples} and with_organ {with_organ}: expected at least 1, and a "
                "share 0 to 1; correct slices_per_case and with_organ."
            )
        self.label_key = label_key
        self.num_samples = num_samples
        self.with_organ = with_organ

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return one item for each slice; the keys are (C, I, J)."""
        label = torch.as_tensor(data[self.label_key])
        organ = (label > 0).flatten(0, -2).any(dim=0).numpy()
        items: list[dict[Hashable, Any]] = []
        for index in self.draw(organ):
            items.append({key: data[key][..., index] for key in self.key_iterator(dict(data))})
        return items

    def draw(self, organ: np.ndarray) -> list[int]:
        """Return the slices to take, by which of them hold an organ (K,)."""
        sides = {True: np.flatnonzero(organ).tolist(), False: np.flatnonzero(~organ).tolist()}
        drawn: list[int] = []
        for _ in range(min(self.num_samples, len(organ))):
            side = bool(self.R.random() < self.with_organ)
            left = sides[side] or sides[not side]
            drawn.append(left.pop(int(self.R.randint(len(left)))))
        return drawn


class ToPresenced(MapTransform):
    """Turn class indices into presence: 1 for each organ that covers at least an area of the slice, else 0.

    A slice (1, I, J) becomes (L,); a volume (1, I, J, S) becomes (L, S), a `MetaTensor` whose meta also has `case_id`
    and `slice_index`, the index of each slice along the source's cranio-caudal axis.

    Args:
        keys: class indices 0..L of shape (1, I, J[, S]); a volume must have its place (`MetaTensor`).
        labels: names of the organs; class i+1 is labels[i].
        min_area_mm2: the smallest area of an organ that counts as present, in mm2.
        spacing: mm of a pixel along I and J.

    Raises:
        ConfigError: for an area below 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Sequence[str],
        min_area_mm2: float,
        spacing: Sequence[float],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not min_area_mm2 >= 0:
            raise ConfigError(f"ToPresenced got min_area_mm2 {min_area_mm2}: expected 0 or more; correct the task.")
        self.labels = list(labels)
        # A pixel's area out of a spacing is rounded: an organ of exactly the smallest area counts. One pixel always is
        # the least, or an area of 0 would put every organ on every slice.
        self.pixels = max(min_area_mm2 / (float(spacing[0]) * float(spacing[1])) * (1 - 1e-6), 0.5)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with presence, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            label = item[key]
            plain = label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)
            counts = torch.stack([(plain[0].round() == i).sum(dim=(0, 1)) for i in range(1, len(self.labels) + 1)])
            present = (counts >= self.pixels).to(torch.float32)
            item[key] = present if present.ndim == 1 else self._placed(present, label, item)
        return item

    def _placed(self, present: torch.Tensor, label: MetaTensor, item: Mapping[Hashable, Any]) -> MetaTensor:

        meta = dict(label.meta)
        _, positions = slice_positions(label)
        meta["slice_index"] = torch.as_tensor(np.rint(positions).astype(np.int64))
        meta["case_id"] = str(item.get("case_id") or case_name(str(meta["filename_or_obj"])))
        return MetaTensor(present, meta=meta)


class ToProbabilityd(MapTransform):
    """Turn logits into probabilities, each by itself (sigmoid): an organ's presence does not rule out another's."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with probabilities, float32, of the same shape."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.as_tensor(item[key]).float().sigmoid()
        return item


class SavePresenced(MapTransform):
    """Write the table of a study's slices: `output_dir/<case>/presence.csv`, as `ctseg segment` does.

    Args:
        keys: probabilities (L, S) in the order of the slices of `like`.
        output_dir: folder of the results.
        labels: names of the organs.
        threshold: from this probability on an organ counts as present.
        like: the prepared image, whose meta tells the source's grid.

    Raises:
        OutputError: when the table cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        labels: Sequence[str],
        threshold: float,
        like: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.labels = list(labels)
        self.threshold = threshold
        self.like = like

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every key; the item passes unchanged."""
        from ctseg.files import write_beside
        from ctseg.presence.output import TABLE
        from ctseg.presence.slices import SliceTable, checked_threshold
        from ctseg.presence.table import table_csv
        from ctseg.transforms.loading import to_volume

        item = dict(data)
        image = item[self.like]
        volume = to_volume(image.meta)
        axis, positions = slice_positions(image)
        order = np.argsort(positions, kind="stable")
        for key in self.key_iterator(item):
            found = SliceTable(
                volume=volume,
                labels=tuple(self.labels),
                probability=np.asarray(item[key].cpu(), dtype=np.float32).T[order],
                positions=positions[order],
                axis=axis,
                threshold=checked_threshold(self.threshold),
            )
            write_beside(self.output_dir / case_name(volume.source) / TABLE, table_csv(found).encode())
        return item
