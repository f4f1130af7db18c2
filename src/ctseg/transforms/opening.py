"""The first step of a pipeline whose bundle may need others: the item's image becomes a study."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform

from ctseg.items import volume_of
from ctseg.study import Predictors, Study


class OpenStudyd(Transform):
    """First transform of a pipeline whose bundle may need others: makes the item's image a study.

    The image is read (`ctseg.items.volume_of`) and the item gets a `study`, unless its caller gave one.

    Args:
        keys: the image's key.
        modality: what the voxels are expected to be.
        device: where the networks of other bundles run.
    """

    def __init__(self, keys: str = "image", modality: str = "CT", device: str = "auto") -> None:
        self.key = keys
        self.modality = modality
        self.device = str(device)
        self._predictors: Predictors | None = None  # made late: what is sent to other processes holds no locks

    def fingerprint(self) -> list[str]:
        """What the answer depends on beside the image (`ctseg.slicecache`): not the device, nor what is loaded."""
        return [self.key, self.modality]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its image read and its study."""
        item = dict(data)
        if item.get("study") is None:
            if self._predictors is None:
                self._predictors = Predictors(self.device)
            volume = volume_of(item[self.key], item, self.modality)
            item["study"] = Study(volume, self._predictors, modality=self.modality)
        item[self.key] = item["study"].volume
        return item
