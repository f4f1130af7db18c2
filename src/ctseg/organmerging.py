"""Several organs of one study in one mask, by priority: a voxel that two claim belongs to the one named first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError
from ctseg.organchoice import OrganChoice, combined_bundle

if TYPE_CHECKING:
    from ctseg.prediction import Prediction


def merge_by_priority(masks: Iterable[tuple[NDArray[np.bool_], int]]) -> NDArray[np.uint8]:
    """Return one label map of several masks.

    Args:
        masks: (I, J, K) and the code of each, in order of priority; at least one.

    Raises:
        GeometryError: the masks have different shapes.
    """
    merged: NDArray[np.uint8] | None = None
    for mask, code in masks:
        if merged is None:
            merged = np.zeros(mask.shape, dtype=np.uint8)
        if mask.shape != merged.shape:
            raise GeometryError(
                f"the masks to merge have {merged.shape} and {mask.shape} voxels: expected one grid; "
                "this is an error in ctseg, please report it"
            )
        merged[mask & (merged == 0)] = code
    if merged is None:
        raise ValueError("there is no mask to merge")
    return merged


def merge_predictions(choices: Sequence[OrganChoice], predict: Callable[[OrganChoice], Prediction]) -> Prediction:
    """Segment the chosen organs and merge them.

    Args:
        choices: the organs in order of priority.
        predict: gives the prediction of an organ's bundle, on the same study each time; it is asked once for each
            bundle.

    Returns:
        One prediction: its labels are the organs with their codes in the answer, its `parts` the bundles that ran,
        its seconds the sums over these.
    """
    from dataclasses import replace

    found: dict[Any, Prediction] = {}
    for choice in choices:
        if choice.bundle.path not in found:
            found[choice.bundle.path] = predict(choice)
    label_map = merge_by_priority(
        (found[choice.bundle.path].label_map == choice.own_code, choice.code) for choice in choices
    )
    first = found[choices[0].bundle.path]
    seconds: dict[str, float] = {}
    for prediction in found.values():
        for stage, value in prediction.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    return replace(
        first,
        label_map=label_map,
        labels={choice.name: choice.code for choice in choices},
        seconds=seconds,
        bundle=combined_bundle(choices),
        parts=tuple(prediction.bundle for prediction in found.values()),
    )
