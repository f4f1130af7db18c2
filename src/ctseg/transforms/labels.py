"""Label maps: from a data source's values to classes by name, and from the network's output to codes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.datalist import NOT_ANNOTATED
from ctseg.errors import ConfigError
from ctseg.grids.boxes import box_of, grown_box
from ctseg.items import check_same_grid, volume_of
from ctseg.partial import ANNOTATED, annotated_flags
from ctseg.sentences import said_plainly
from ctseg.transforms.loading import to_tensor

ACTIVATIONS = ("softmax", "sigmoid", "none")
ORGANS_FROM = ("label", "bundle", "either")


class LoadLabeld(MapTransform):
    """Read a label map and turn its values into class indices 1..n in the order of `labels`; all else becomes 0.

    The item's `mask_values` maps the values of this data source to names, for example {"255": "liver"}; without it,
    the values are the class indices themselves. The result has shape (1, I, J, K), uint8, on the image's own grid.
    The item's `not_annotated` names the labels that its label map does not show although they may be there; it becomes
    `annotated`, a flag for each label (`ctseg.partial`).

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
            is insisted on that it does not name; for an unknown `organs_from`; or when `not_annotated` names a label
            that the task does not have.
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
        missing = [str(name) for name in item.pop(NOT_ANNOTATED, ())]
        item[ANNOTATED] = annotated_flags(self.labels, missing)
        for key in self.key_iterator(item):
            volume = volume_of(item[key], item, modality="label")
            table = self._table(item.get("mask_values"), volume.array)
            label = to_tensor(volume, patient=item.get("patient"))
            label.meta[NOT_ANNOTATED] = ",".join(missing)
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
    """Turn a network's output into a label map of codes, on the network's own grid, before anything is resampled.

    A voxel gets the organ with the largest probability among those whose probability is above their threshold, else 0
    (background). Without thresholds: with "sigmoid" above one half; with "softmax" the most probable of background and
    organs.

    Args:
        keys: outputs of shape (C, ...).
        codes: the code of each class, at most 255.
        activation: "softmax": logits of background and the classes, C = classes + 1; "sigmoid": logits of the classes,
            each by itself, C = classes; "none": probabilities of the classes, C = classes. None takes "sigmoid" for one
            class, else "softmax".
        thresholds: of probability, one for each class, above 0 and below 1; None in place of one, or of all, as above.
        certainty: under this name the item gets how sure the network is of each voxel's label, (1, ...) uint8, for
            `RestoreGridd`: how far its logit is from what would have changed the label, in steps of 1/32 from 1/32 up
            to 8, which stands where no label is near; for "softmax" with thresholds all voxels count alike. None
            leaves it out.

    Raises:
        ConfigError: for an unknown activation or a threshold that cannot work, or channels that do not fit the codes.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        codes: Sequence[int],
        activation: str | None = None,
        thresholds: Sequence[float | None] | None = None,
        certainty: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.codes = [int(code) for code in codes]
        self.activation = activation or ("sigmoid" if len(self.codes) == 1 else "softmax")
        self.thresholds = list(thresholds) if thresholds is not None else [None] * len(self.codes)
        self.certainty = certainty
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"The activation {activation!r} is not known: expected one of {', '.join(ACTIVATIONS)}.")
        if len(self.thresholds) != len(self.codes):
            raise ConfigError(
                f"There are {len(self.thresholds)} thresholds for {len(self.codes)} labels: expected one for each."
            )
        for threshold in self.thresholds:
            if threshold is not None and not 0 < threshold < 1:
                raise ConfigError(f"The threshold {threshold} cannot work: expected a probability between 0 and 1.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with label maps of shape (1, ...), uint8, that keep their place (`MetaTensor`)."""
        item = dict(data)
        for key in self.key_iterator(item):
            output = item[key]
            plain = output.as_tensor() if isinstance(output, MetaTensor) else output
            item[key] = self._label_map(output)
            if self.certainty is not None:
                item[self.certainty] = self._certainty_around(plain, item[key])
        return item

    def _certainty_around(self, plain: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """How sure each voxel is where a label or its neighbour is: nothing else has a say in where a border lies."""
        if plain.ndim != 4:
            return self._certainty(plain)
        around = box_of(labels.as_tensor()[0] if isinstance(labels, MetaTensor) else labels[0])
        sure = torch.full((1, *plain.shape[1:]), 255, dtype=torch.uint8, device=plain.device)
        if around is not None:
            part = (slice(None), *grown_box(around, (1, 1, 1), plain.shape[1:]))
            sure[part] = self._certainty(plain[part])
        return sure

    def _certainty(self, plain: torch.Tensor) -> torch.Tensor:
        """Distance of each voxel's logits from the next label's, (1, ...) uint8."""
        if self.activation == "softmax":
            if any(threshold is not None for threshold in self.thresholds):
                return torch.full((1, *plain.shape[1:]), 32, dtype=torch.uint8, device=plain.device)
            if plain.shape[0] == 2:
                distance = (plain[1:].float() - plain[:1].float()).abs()
            else:
                first, second = plain.float().topk(2, dim=0).values
                distance = (first - second)[None]
        else:
            if self.activation == "none":
                plain = plain.float().logit(eps=1e-6)
            levels = [math.log(t / (1 - t)) for t in (0.5 if t is None else t for t in self.thresholds)]
            distance = plain[:1].float() - levels[0]
            for channel, level in zip(plain[1:], levels[1:], strict=True):
                distance = torch.maximum(distance, channel[None].float() - level)
            distance = distance.abs_()
        return distance.clamp_(1 / 32, 255 / 32).mul_(32).round_().to(torch.uint8)

    def _label_map(self, output: torch.Tensor) -> torch.Tensor:
        channels, background = output.shape[0], self.activation == "softmax"
        if channels != len(self.codes) + background:
            what = "background and each label" if background else "each label"
            raise ConfigError(
                f"The network gives {channels} channels for {len(self.codes)} label codes: expected one for {what} "
                f"with the activation {self.activation}; correct out_channels, labels or activation of the task."
            )
        plain = output.as_tensor() if isinstance(output, MetaTensor) else output
        table = torch.tensor([0, *self.codes], dtype=torch.uint8, device=plain.device)
        if background and all(threshold is None for threshold in self.thresholds):
            result = table[plain.argmax(dim=0, keepdim=True)]
        elif not background and len(self.codes) == 1:
            result = (plain > self._level(self.thresholds[0])).to(torch.uint8).mul_(self.codes[0])
        else:
            result = table[self._above(plain)]
        return MetaTensor(result, meta=output.meta) if isinstance(output, MetaTensor) else result

    def _above(self, plain: torch.Tensor) -> torch.Tensor:
        """Class index (1, ...) of the largest output above its threshold, 0 where none is."""
        if self.activation == "softmax":
            usual: float | None = None  # a class without a threshold has to be the most probable of all
            largest = plain.argmax(dim=0)
            plain = plain.float().softmax(dim=0)
        else:
            usual, largest = 0.5, None
        found = torch.zeros(plain.shape[1:], dtype=torch.long, device=plain.device)
        best = torch.full(plain.shape[1:], -float("inf"), dtype=plain.dtype, device=plain.device)
        for number, threshold in enumerate(self.thresholds, start=1):
            channel = plain[number if largest is not None else number - 1]
            if threshold is None and largest is not None:
                above = largest == number
            else:
                above = channel > self._level(usual if threshold is None else threshold)
            above &= channel > best
            found[above], best[above] = number, channel[above]
        return found[None]

    def _level(self, threshold: float | None) -> float:
        """The threshold in terms of the network's output: a logit, so that one half is exactly 0, or as it is."""
        probability = 0.5 if threshold is None else threshold
        return math.log(probability / (1 - probability)) if self.activation == "sigmoid" else probability
