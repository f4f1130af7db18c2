"""Several organs of one study in one prediction: each bundle asked once, the masks merged by priority."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.merging import merge
from ctseg.organchoice import OrganChoice, combined_bundle
from ctseg.registry import BundleInfo

if TYPE_CHECKING:
    from ctseg.prediction import Prediction


def predict_organs(choices: Sequence[OrganChoice], predict: Callable[[BundleInfo], Prediction]) -> Prediction:
    """Segment the chosen organs and merge them: a voxel that two claim belongs to the one named first.

    Args:
        choices: the organs in order of priority.
        predict: gives a bundle's prediction, on the same study each time; it is asked once for each bundle.

    Returns:
        One prediction: its labels are the organs with their codes in the answer, in the order of the request, its
        `parts` the bundles that ran, its seconds the sums over these. One bundle's waiting for another of them is left
        out, for it is the other's own time.
    """
    from ctseg.prediction import Part

    found: dict[Path, Prediction] = {}
    for bundle in (choice.bundle for choice in choices):
        if bundle.path not in found:
            found[bundle.path] = predict(bundle)
    codes = {choice.name: choice.code for choice in choices}
    masks = [(choice.name, found[choice.bundle.path].label_map == choice.own_code) for choice in choices]
    ran = {prediction.bundle.name for prediction in found.values()}
    seconds: dict[str, float] = {}
    for prediction in found.values():
        for stage, value in prediction.seconds.items():
            if stage not in ran:
                seconds[stage] = seconds.get(stage, 0.0) + value
    return dataclasses.replace(
        found[choices[0].bundle.path],
        label_map=merge(masks, codes),
        labels=codes,
        seconds=seconds,
        bundle=combined_bundle(choices),
        slices=None,
        parts=tuple(Part(one.bundle, one.slices) for one in found.values()),
        runtime="+".join(dict.fromkeys(getattr(one, "runtime", "torch") for one in found.values())),
        quality={
            choice.name: one
            for choice in choices
            if (one := found[choice.bundle.path].quality.get(choice.name)) is not None
        },
    )
