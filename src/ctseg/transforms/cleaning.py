"""Clean-up of label maps, organ by organ, by rules that a configuration names."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ctseg.cleanrules import Rules, fill_holes, rules_of
from ctseg.errors import ConfigError
from ctseg.grids.boxes import box_of, grown_box
from ctseg.sentences import said_plainly
from ctseg.transforms.cores import KeepLargestCored
from ctseg.transforms.pieces import RemoveSmallPiecesd, require_place


class CleanUpd(MapTransform):
    """Clean each organ of a label map by its own rules; the map keeps its place (`MetaTensor`).

    Organs are cleaned apart; one never loses a voxel to another: holes are filled only where no organ is left, and
    where two organs could fill the same one, the first of `codes` does.

    Args:
        keys: label maps of shape (1, I, J, K) with a place, whose affine gives mm and the axial direction.
        codes: organ -> its value in the label map.
        rules: organ -> options of `Rules`; an organ that is not named is left as it is.

    Raises:
        ConfigError: for an unknown organ or option, or a value that cannot work.
        GeometryError: for a label map that has lost its place.
    """

    @said_plainly
    def __init__(
        self,
        keys: KeysCollection,
        codes: Mapping[str, int],
        rules: Mapping[str, Mapping[str, Any] | None],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if unknown := [organ for organ in rules if organ not in codes]:
            raise ConfigError(
                f"The clean-up names {', '.join(unknown)}, which the bundle does not have: expected one of "
                f"{', '.join(codes)}."
            )
        self.codes = {organ: int(code) for organ, code in codes.items()}
        self.rules = {organ: rules_of(organ, rules.get(organ)) for organ in codes}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with cleaned label maps, on the same grid and of the same type."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            require_place(labels, key, "the size of a piece", "CleanUpd")
            kept = torch.zeros_like(labels.as_tensor())
            filled = (
                torch.zeros_like(kept) if any(rules.fill_holes != "none" for rules in self.rules.values()) else None
            )
            for organ, code in self.codes.items():
                self._clean(labels, code, self.rules[organ], kept, filled)
            item[key] = MetaTensor(kept if filled is None else torch.where(kept == 0, filled, kept), meta=labels.meta)
        return item

    def _clean(
        self, labels: MetaTensor, code: int, rules: Rules, kept: torch.Tensor, filled: torch.Tensor | None
    ) -> None:
        """Write the organ into `kept`, and what it fills into `filled` where nothing is."""
        organ = labels.as_tensor() == code
        box = box_of(organ[0])
        if box is None:
            return
        # Only the organ's box is worked on, with the margin that a core is looked for in.
        spacing = np.linalg.norm(np.asarray(labels.affine, dtype=np.float64)[:3, :3], axis=0)
        margin = [2 + math.ceil(rules.radius_mm / size) for size in spacing]
        part = (slice(None), *grown_box(box, margin, organ.shape[1:]))
        organ, whole = _ruled(organ[part], labels, rules)
        kept[part].masked_fill_(organ & whole, code)
        if filled is not None:
            filled[part].masked_fill_(whole & ~organ & (filled[part] == 0), code)


def _ruled(organ: torch.Tensor, labels: MetaTensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is kept of an organ (1, I, J, K), and that with its holes filled and its small pieces gone."""
    from ctseg.evaluation.pairing import axial_axis

    if rules.keep != "all":
        radius = rules.radius_mm if rules.keep == "core" else 0.0
        organ = _apply(KeepLargestCored("pred", radius, rules.reach_mm), organ, labels)
    whole = organ
    if rules.fill_holes != "none":
        axis = axial_axis(np.asarray(labels.affine, dtype=np.float64)) if rules.fill_holes == "axial" else None
        whole = torch.from_numpy(fill_holes(organ[0].cpu().numpy(), axis))[None].to(organ.device)
    if rules.min_ml:  # a shell is as large as what it encloses
        whole = _apply(RemoveSmallPiecesd("pred", rules.min_ml), whole, labels)
    return organ, whole


def _apply(step: MapTransform, mask: torch.Tensor, like: MetaTensor) -> torch.Tensor:
    done = step({"pred": MetaTensor(mask.to(torch.uint8), meta=like.meta)})["pred"]
    return done.as_tensor() > 0
