"""Label maps: from a data source's values to classes by name, and from the network's output to codes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.errors import ConfigError
from ctseg.items import check_same_grid, volume_of
from ctseg.transforms.loading import to_tensor

ORGANS_FROM = ("label", "bundle", "either")


class LoadLabeld(MapTransform):
    """Read a label map and turn its values into class indices 1..n in the order of `labels`; all else becomes 0.

    The item's `mask_values` maps the values of this data source to names, for example {"255": "liver"}; without it,
    the values are the class indices themselves. The result has shape (1, I, J, K), uint8, on the image's own grid.

    Args:
        keys: items to read.
        labels: names of the task's classes; class i+1 is labels[i].
        image_key: the image that the label must fit.
        organs: names of organs beside the task's, whose masks the item gets as `organs`, (C, I, J, K), uint8 0 or 1.
        organs_from: "label" takes them from here and insists; "bundle" leaves them to `AddOrgansd`; "either" takes them
            from here where the item's `mask_values` name them all.

    Raises:
        GeometryError: when the label does not lie on its image's grid.
        ConfigError: when `mask_values` names a label that the task does not have, and none that it has; when an organ
            is insisted on that it does not name; for an unknown `organs_from`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Sequence[str],
        image_key: str = "image",
        allow_missing_keys: bool = False,
        organs: Sequence[str] = (),
        organs_from: str = "label",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if organs_from not in ORGANS_FROM:
            raise ConfigError(f"organs_from is {organs_from!r}: expected one of {', '.join(ORGANS_FROM)}; correct it.")
        self.labels = list(labels)
        self.organs = list(organs)
        self.organs_from = organs_from
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key and check it against the image."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume = volume_of(item[key], item, modality="label")
            table = self._table(item.get("mask_values"), volume.array)
            label = to_tensor(volume, patient=item.get("patient"))
            values = item.get("mask_values")
            if self._takes_organs(values):
                masks = np.stack([self._organ(name, values, volume.array) for name in self.organs])
                item["organs"] = MetaTensor(torch.from_numpy(masks), affine=label.affine)
            classes = np.zeros(volume.shape, dtype=np.uint8)
            for value, index in table.items():
                classes[volume.array == value] = index
            # A tensor of its own: the memory of the one that was read is the volume's, which a caller may keep.
            label = MetaTensor(torch.from_numpy(classes)[None], meta=label.meta)
            if self.image_key in item:
                image = item[self.image_key]
                place, own = (np.asarray(one.affine, dtype=np.float64) for one in (image, label))
                check_same_grid(image.shape[1:], place, label.shape[1:], own, str(label.meta["filename_or_obj"]))
            item[key] = label
        return item

    def _takes_organs(self, values: Mapping[Any, str] | None) -> bool:
        if not self.organs or self.organs_from == "bundle":
            return False
        return self.organs_from == "label" or set(self.organs) <= set((values or {}).values())

    def _organ(self, organ: str, values: Mapping[Any, str] | None, array: np.ndarray) -> np.ndarray:
        """The mask (I, J, K) of an organ that is an input of the network, out of the same label map."""
        own = [int(value) for value, name in (values or {}).items() if name == organ]
        if not own:
            known = ", ".join(sorted(set((values or {}).values()))) or "no names"
            raise ConfigError(
                f"The network takes {organ!r} as an input channel, but the data source's mask_values name {known}: "
                "prepare the data with that organ's value in the label maps (ctseg prepare --label), or take "
                "it from its bundle with organs_from bundle."
            )
        mask: np.ndarray = np.isin(array, own).astype(np.uint8)
        return mask

    def _table(self, values: Mapping[Any, str] | None, array: np.ndarray) -> dict[int, int]:
        if values is None:
            return {i: i for i in range(1, len(self.labels) + 1)}
        table = {int(v): self.labels.index(name) + 1 for v, name in values.items() if name in self.labels}
        if not table and values:
            raise ConfigError(
                f"The data source's mask_values name {', '.join(sorted(set(values.values())))}, but the task knows "
                f"{', '.join(self.labels)}: correct mask_values in the datalist."
            )
        return table


class ToLabelMapd(MapTransform):
    """Turn logits into a label map of codes, on the network's own grid, before anything is resampled.

    One channel means one class against background: its code where the logit is above 0 (probability above one half).
    More channels mean background and classes: the code of the channel with the largest logit.

    Args:
        keys: logits of shape (C, ...).
        codes: the code of each class, at most 255; one for C = 1, else C - 1.

    Raises:
        ConfigError: when the channels do not fit the codes.
    """

    def __init__(self, keys: KeysCollection, codes: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.codes = [int(code) for code in codes]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with label maps of shape (1, ...), uint8, that keep their place (`MetaTensor`)."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._label_map(item[key])
        return item

    def _label_map(self, logits: torch.Tensor) -> torch.Tensor:
        channels = logits.shape[0]
        if channels != (1 if len(self.codes) == 1 else len(self.codes) + 1):
            raise ConfigError(
                f"The network gives {channels} channels for {len(self.codes)} label codes: expected 1 for one label, "
                "else one for background and one a label; correct out_channels or the labels of the task."
            )
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        if channels == 1:
            result = (plain > 0).to(torch.uint8) * self.codes[0]
        else:
            table = torch.tensor([0, *self.codes], dtype=torch.uint8, device=plain.device)
            result = table[plain.argmax(dim=0, keepdim=True)]
        return MetaTensor(result, meta=logits.meta) if isinstance(logits, MetaTensor) else result
