"""From a network's output to a label map on the source's grid, as a description names it: NumPy in place of MONAI."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.cleanrules import Rules, fill_holes, large_pieces, rules_of
from ctseg.errors import ConfigError
from ctseg.grids.labels import resample_labels

Affine = NDArray[np.float64]
LabelMap = NDArray[np.uint8]
ACTIVATIONS = ("softmax", "sigmoid", "none")
_STEP_MM = 3.0  # one step of growing back, as `ctseg.transforms.cores`


@dataclass(frozen=True)
class Labelled:
    """What a network gave, and later the label map of it, on a grid.

    Attributes:
        array: (K, I, J, K') float32 logits, or (I, J, K) uint8 codes.
        affine: (4, 4), index to RAS mm.
        certainty: (I, J, K) how sure the network is of each voxel, where that is asked for.
    """

    array: NDArray[Any]
    affine: Affine
    certainty: NDArray[np.uint8] | None = None


def finished(
    found: Labelled, steps: Sequence[Mapping[str, Any]], to_affine: Affine, to_shape: Sequence[int]
) -> LabelMap:
    """Take the steps, the first of which makes a label map, and bring the map to the source's grid.

    Raises:
        ConfigError: for a step that is not known, or whose options do not fit.
    """
    for step in steps:
        name = str(step["step"])
        if name not in STEPS:
            raise ConfigError(f"there is no step {name!r} of postprocessing: expected one of {', '.join(STEPS)}")
        try:
            found = STEPS[name](found, **{key: value for key, value in step.items() if key != "step"})
        except TypeError as error:
            raise ConfigError(f"the step {name!r} of postprocessing does not take these options ({error})") from error
    if found.array.ndim != 3:
        raise ConfigError("no step of postprocessing makes a label map: expected label_map first")
    finer = abs(np.linalg.det(to_affine[:3, :3])) < 0.999 * abs(np.linalg.det(found.affine[:3, :3]))
    votes = found.certainty if finer else None
    return resample_labels(found.array, found.affine, to_affine, to_shape, certainty=votes)


def _label_map(
    found: Labelled,
    codes: Sequence[int],
    activation: str | None = None,
    thresholds: Sequence[float | None] | None = None,
    certainty: bool = False,
) -> Labelled:
    """Decide each voxel, by the rule of `ctseg.transforms.ToLabelMapd`."""
    activation = activation or ("sigmoid" if len(codes) == 1 else "softmax")
    limits = list(thresholds) if thresholds is not None else [None] * len(codes)
    if activation not in ACTIVATIONS or len(limits) != len(codes):
        raise ConfigError(
            f"the activation {activation!r} with {len(limits)} thresholds for {len(codes)} labels cannot work: "
            f"expected one of {', '.join(ACTIVATIONS)} and a threshold for each label"
        )
    logits, background = found.array, activation == "softmax"
    if len(logits) != len(codes) + background:
        raise ConfigError(
            f"the network gives {len(logits)} channels for {len(codes)} label codes with the activation {activation}: "
            "expected one for each, and with softmax one for the background before them"
        )
    table = np.array([0, *codes], dtype=np.uint8)
    votes = _certainty(logits, activation, limits) if certainty else None
    if background and all(limit is None for limit in limits):
        return Labelled(table[logits.argmax(axis=0)], found.affine, votes)
    return Labelled(table[_above(logits, activation, limits)], found.affine, votes)


def _certainty(logits: NDArray[np.float32], activation: str, limits: Sequence[float | None]) -> NDArray[np.uint8]:
    """How far each voxel's logit is from what would change its label, as `ctseg.transforms.ToLabelMapd` has it."""
    if activation == "softmax":
        if any(limit is not None for limit in limits):
            return np.full(logits.shape[1:], 32, dtype=np.uint8)
        first_two = np.partition(logits, len(logits) - 2, axis=0)[-2:]
        distance = first_two[1] - first_two[0]
    else:
        if activation == "none":
            shares = np.clip(logits, np.float32(1e-6), np.float32(1 - 1e-6))
            logits = np.log(shares / (1 - shares))
        levels = [math.log(limit / (1 - limit)) for limit in (0.5 if one is None else one for one in limits)]
        over = [channel - np.float32(level) for channel, level in zip(logits, levels, strict=True)]
        distance = np.abs(np.max(over, axis=0))
    return np.rint(np.clip(distance, 1 / 32, 255 / 32) * 32).astype(np.uint8)


def _above(values: NDArray[np.float32], activation: str, limits: Sequence[float | None]) -> NDArray[np.intp]:
    """Class index of the largest output above its threshold, 0 where none is."""
    largest: NDArray[np.intp] | None = None
    if activation == "softmax":
        largest = values.argmax(axis=0)
        powers = np.exp(values - values.max(axis=0))
        values = powers / powers.sum(axis=0)
    found = np.zeros(values.shape[1:], dtype=np.intp)
    best = np.full(values.shape[1:], -np.inf, dtype=values.dtype)
    for number, limit in enumerate(limits, start=1):
        channel = values[number if largest is not None else number - 1]
        if limit is None and largest is not None:
            above = largest == number
        else:
            probability = 0.5 if limit is None else limit
            level = math.log(probability / (1 - probability)) if activation == "sigmoid" else probability
            above = channel > level
        above &= channel > best
        found[above], best[above] = number, channel[above]
    return found


def _clean_up(found: Labelled, codes: Mapping[str, int], rules: Mapping[str, Any]) -> Labelled:
    """Clean each organ by its own rules, as `ctseg.transforms.CleanUpd`."""
    kept, filled = np.zeros_like(found.array), np.zeros_like(found.array)
    for organ, code in codes.items():
        mask = found.array == code
        if not mask.any():
            continue
        wanted = rules_of(organ, rules.get(organ))
        if wanted.keep != "all":
            mask = _largest_core(mask, found.affine, wanted)
        whole = _filled(mask, found.affine, wanted)
        if wanted.min_ml:
            whole = large_pieces(whole.astype(np.uint8), _voxels_of(wanted.min_ml, found.affine)) > 0
        kept[mask & whole] = code
        filled[whole & ~mask & (filled == 0)] = code
    return Labelled(np.where(kept == 0, filled, kept), found.affine, found.certainty)


def _filled(mask: NDArray[np.bool_], affine: Affine, rules: Rules) -> NDArray[np.bool_]:
    from ctseg.evaluation.pairing import axial_axis

    if rules.fill_holes == "none":
        return mask
    return fill_holes(mask, axial_axis(affine) if rules.fill_holes == "axial" else None)


def _voxels_of(ml: float, affine: Affine) -> float:
    # An affine out of a header is rounded: a piece of exactly the smallest volume stays.
    return ml / (abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0) * (1 - 1e-5)


def _small_pieces(found: Labelled, min_ml: float) -> Labelled:
    return Labelled(large_pieces(found.array, _voxels_of(min_ml, found.affine)), found.affine, found.certainty)


def _largest_core(mask: NDArray[np.bool_], affine: Affine, rules: Rules) -> NDArray[np.bool_]:
    """Keep the piece with the largest core, as `ctseg.transforms.KeepLargestCored`, in the mask's own box."""
    radius = rules.radius_mm if rules.keep == "core" else 0.0
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    margin = _steps(radius, spacing)
    box = []
    for axis, (extra, size) in enumerate(zip(margin, mask.shape, strict=True)):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(where[0]) - extra - 1), min(size, int(where[-1]) + extra + 2)))
    inside = mask[tuple(box)]
    core = ~_grown(~inside, margin)
    if radius == 0 or not core.any():
        part = _largest_piece(inside)
    else:
        part = _largest_piece(core)
        step = _steps(_STEP_MM, spacing)
        for _ in range(round((radius + rules.reach_mm) / _STEP_MM)):
            part = _grown(part, step) & inside
    kept = np.zeros_like(mask)
    kept[tuple(box)] = part
    return kept


def _steps(mm: float, spacing: NDArray[np.float64]) -> list[int]:
    return [max(1, round(mm / float(size))) for size in spacing] if mm > 0 else [0, 0, 0]


def _grown(mask: NDArray[np.bool_], voxels: Sequence[int]) -> NDArray[np.bool_]:
    """Dilate by a box of so many voxels to each side; beyond the border there is nothing to grow from."""
    from scipy.ndimage import maximum_filter1d

    grown = mask.astype(np.uint8)
    for axis, extra in enumerate(voxels):
        if extra:
            grown = maximum_filter1d(grown, 2 * extra + 1, axis=axis, mode="constant", cval=0)
    return grown > 0


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import label

    pieces, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = pieces == sizes.argmax()
    return largest


STEPS: dict[str, Callable[..., Labelled]] = {
    "label_map": _label_map,
    "clean_up": _clean_up,
    "small_pieces": _small_pieces,
}
