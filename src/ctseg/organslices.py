"""Training on what holds an organ only: cases without any are left out, and of the others the empty slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ctseg.errors import ConfigError, CtsegError
from ctseg.transforms.loading import volume_of


def chosen(cases: Sequence[dict[str, Any]], labels: Sequence[str], only_with_organ: bool) -> list[dict[str, Any]]:
    """Return the cases to train on; called from a bundle's configuration.

    Args:
        cases: of the datalist, each with `label` and perhaps `mask_values`.
        labels: names of the task's classes.
        only_with_organ: leave out the cases whose label holds none of them; else all are returned unread.

    Raises:
        SystemExit: with a sentence, when a label cannot be read or no case is left.
    """
    if not only_with_organ:
        return list(cases)
    try:
        kept = [case for case in cases if _has_organ(case, labels)]
        if not kept:
            raise ConfigError(
                f"None of the {len(cases)} training cases holds {' or '.join(labels)}: expected at least one; correct "
                "mask_values in the datalist, or train with only_with_organ false."
            )
    except CtsegError as error:
        raise SystemExit(f"ctseg: {error}") from error
    return kept


def _has_organ(case: dict[Any, Any], labels: Sequence[str]) -> bool:
    array = volume_of(case["label"], case, modality="label").array
    values = case.get("mask_values")
    wanted = range(1, len(labels) + 1) if values is None else [int(v) for v, name in values.items() if name in labels]
    return bool(np.isin(array, list(wanted)).any())


class KeepOrganSlicesd(MapTransform):
    """Keep the slices along the last axis whose label is not 0; an item without any is returned as it is.

    Args:
        keys: arrays (C, I, J, K) of one grid.
        label_key: the one that says where the organ is.
        enabled: false passes everything through.
    """

    def __init__(
        self, keys: KeysCollection, label_key: str = "label", enabled: bool = True, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with fewer slices."""
        item = dict(data)
        if not self.enabled:
            return item
        present = torch.as_tensor(item[self.label_key] > 0).flatten(0, -2).any(dim=0).nonzero()[:, 0]
        if 0 < len(present) < item[self.label_key].shape[-1]:
            for key in self.key_iterator(item):
                item[key] = item[key][..., present]
        return item
