"""A bundle's pipeline as plain steps: what `inference.json` declares, in words that need no torch (`ctseg.light`).

A step that has no counterpart there does not stop an export: the network runs in other runtimes all the same
(`ctseg segment --runtime`), and the description says what keeps it from running without PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Step = dict[str, Any]
Arguments = Mapping[str, Any]


class NeedsTorchError(Exception):
    """A declared step, or a value of it, that has no counterpart without PyTorch; the words are for a sentence."""


def described_steps(parser: Any) -> dict[str, Any]:
    """Describe preprocessing, inferer and postprocessing of a bundle.

    Args:
        parser: MONAI's `ConfigParser` of the bundle's `inference.json`, `bundle_root` set.

    Returns:
        `preprocessing`, `inferer`, `postprocessing`, and `needs_torch`: None, or why it cannot run without PyTorch.
    """
    told: dict[str, Any] = {"preprocessing": [], "inferer": {"way": "whole"}, "postprocessing": [], "needs_torch": None}
    try:
        told["preprocessing"] = _steps(parser, "preprocessing", _PREPARING)
        told["inferer"] = _translated(parser, "inferer", _INFERERS) or {}
        told["postprocessing"] = _steps(parser, "postprocessing", _FINISHING)
    except NeedsTorchError as error:
        told["needs_torch"] = str(error)
    return told


def _steps(parser: Any, name: str, known: Mapping[str, Callable[[Arguments], Step | None]]) -> list[Step]:
    count = len(parser.get(f"{name}::transforms"))
    found = [_translated(parser, f"{name}::transforms::{number}", known) for number in range(count)]
    return [step for step in found if step is not None]


def _translated(parser: Any, place: str, known: Mapping[str, Callable[[Arguments], Step | None]]) -> Step | None:
    declared = parser.get(place)
    target = str(declared["_target_"]).rpartition(".")[2]
    if target not in known:
        raise NeedsTorchError(f"{declared['_target_']} has no counterpart without PyTorch")
    arguments = {key: parser.get_parsed_content(f"{place}::{key}") for key in declared if not key.startswith("_")}
    return known[target](arguments)


def _nothing(_: Arguments) -> None:
    return None


def _numbers(values: Any) -> list[float | None]:
    return [None if math.isnan(float(value)) else float(value) for value in values]


def _spacing(arguments: Arguments) -> Step:
    if arguments.get("diagonal") or any("nearest" in str(mode) for mode in _modes(arguments)):
        raise NeedsTorchError("Spacingd with these options has no counterpart without PyTorch")
    step: Step = {"step": "spacing", "mm": [float(mm) for mm in arguments["pixdim"]]}
    if arguments.get("min_pixdim") is not None:
        step["keep_from_mm"] = _numbers(arguments["min_pixdim"])
    if arguments.get("max_pixdim") is not None:
        step["keep_to_mm"] = _numbers(arguments["max_pixdim"])
    return step


def _to_grid(arguments: Arguments) -> Step:
    if any("nearest" in str(mode) for mode in _modes(arguments)):
        raise NeedsTorchError("ToGridd with these options has no counterpart without PyTorch")
    air = arguments.get("crop_air")
    thick, thickest = arguments.get("thick_slices"), arguments.get("thickest")
    return {
        "step": "to_grid",
        "mm": [float(mm) for mm in arguments["spacing"]],
        "thick_slices": None if thick is None else float(thick),
        "thickest": None if thickest is None else float(thickest),
        "plane": str(arguments.get("plane", "axial")),
        "crop_air": dict(air) if air and str(arguments.get("modality", "CT")).upper() == "CT" else None,
    }


def _modes(arguments: Arguments) -> list[Any]:
    mode = arguments.get("mode", "bilinear")
    return list(mode) if isinstance(mode, list | tuple) else [mode]


def _intensity(arguments: Arguments) -> Step:
    return {
        "step": "intensity",
        "lowest": float(arguments["a_min"]),
        "highest": float(arguments["a_max"]),
        "to": [float(arguments["b_min"]), float(arguments["b_max"])],
        "clip": bool(arguments.get("clip", False)),
    }


def _whole(values: Any) -> list[int]:
    return [int(value) for value in values]


def _organs(arguments: Arguments) -> Step | None:
    organs = list(arguments.get("organs") or ())
    bundles = dict(arguments.get("bundles") or {})
    return {"step": "add_organs", "models": {organ: bundles[organ] for organ in organs}} if organs else None


def _gate(arguments: Arguments) -> Step | None:
    if arguments.get("gate") is None:
        return None
    named = {key: arguments[key] for key in ("gate", "margin_mm", "gap_mm", "min_slices")}
    named["every_mm"] = arguments.get("every_mm")
    return {"step": "gate", "labels": list(arguments["labels"]), **named}


def _windows(arguments: Arguments) -> Step:
    return {
        "way": "windows",
        "size": _whole(arguments["roi_size"]),
        "overlap": float(arguments.get("overlap", 0.25)),
        "mode": str(arguments.get("mode", "constant")),
        "batch": int(arguments.get("sw_batch_size", 1)),
    }


def _slices(arguments: Arguments) -> Step:
    named = {
        "batch": arguments.get("batch_size", 8),
        "probe": arguments.get("probe", 1),
        "margin": arguments.get("margin", 0),
    }
    region = dict(arguments.get("region") or {})
    return {"way": "slices", **{key: int(value) for key, value in named.items()}, "region": region or None}


def _label_map(arguments: Arguments) -> Step:
    limits = arguments.get("thresholds")
    return {
        "step": "label_map",
        "codes": _whole(arguments["codes"]),
        "activation": arguments.get("activation"),
        "thresholds": None if limits is None else list(limits),
        "certainty": arguments.get("certainty") is not None,
    }


def _clean_up(arguments: Arguments) -> Step:
    rules = {organ: dict(options or {}) for organ, options in arguments["rules"].items()}
    return {"step": "clean_up", "codes": dict(arguments["codes"]), "rules": rules}


def _load_flat(arguments: Arguments) -> Step:
    window = arguments.get("window")
    limits = None if window is None else [float(value) for value in window]
    return {"step": "load_flat", "colours": str(arguments.get("colours", "rgb")), "window": limits}


def _crop_sector(arguments: Arguments) -> Step:
    named = {key: arguments[key] for key in ("level", "smallest", "margin") if key in arguments}
    return {"step": "crop_sector", **named, "blank": "image" in str(arguments.get("blank") or "")}


def _diffuse(arguments: Arguments) -> Step:
    if arguments.get("kind", "gradient") != "isotropic":
        raise NeedsTorchError("Diffused of an anisotropic kind, which is ITK's, has no counterpart")
    return {"step": "diffuse", "time": float(arguments.get("iterations", 5)) * float(arguments.get("time_step", 0.125))}


def _standardise(arguments: Arguments) -> Step:
    if arguments.get("nonzero"):
        raise NeedsTorchError("NormalizeIntensityd of non-zero values has no counterpart without PyTorch")
    return {
        "step": "standardise",
        "subtrahend": arguments.get("subtrahend"),
        "divisor": arguments.get("divisor"),
        "channel_wise": bool(arguments.get("channel_wise", False)),
    }


_PREPARING: dict[str, Callable[[Arguments], Step | None]] = {
    "OpenStudyd": _nothing,
    "LoadVolumed": _nothing,
    "DeleteItemsd": _nothing,
    "EnsureTyped": _nothing,
    "Orientationd": lambda arguments: {"step": "orientation", "axcodes": str(arguments["axcodes"])},
    "Spacingd": _spacing,
    "ToGridd": _to_grid,
    "PixelSpacingd": lambda arguments: {"step": "pixel_spacing", "mm": [float(mm) for mm in arguments["spacing"]]},
    "ScaleIntensityRanged": _intensity,
    "DivisiblePadd": lambda arguments: {"step": "pad_to_multiple", "of": _whole(arguments["k"])},
    "SpatialPadd": lambda arguments: {"step": "pad_to", "size": _whole(arguments["spatial_size"])},
    "ResizeWithPadOrCropd": lambda arguments: {"step": "fit", "size": _whole(arguments["spatial_size"])},
    "LoadFlatd": _load_flat,
    "CropSectord": _crop_sector,
    "ResizeSlicesd": lambda arguments: {
        "step": "resize",
        "size": _whole(arguments["size"]),
        "mode": str(_modes(arguments)[0]),
    },
    "Diffused": _diffuse,
    "NormalizeIntensityd": _standardise,
    "AddOrgansd": _organs,
    "GateSlicesd": _gate,
}
_INFERERS: dict[str, Callable[[Arguments], Step | None]] = {
    "SimpleInferer": lambda _: {"way": "whole"},
    "SlicewiseInferer": _slices,
    "SliceClassifierInferer": lambda arguments: {"way": "slice_classes", "batch": int(arguments.get("batch_size", 16))},
    "SlidingWindowInferer": _windows,
}
_FINISHING: dict[str, Callable[[Arguments], Step | None]] = {
    "ToLabelMapd": _label_map,
    "CleanUpd": _clean_up,
    "RemoveSmallPiecesd": lambda arguments: {"step": "small_pieces", "min_ml": float(arguments["min_ml"])},
    "RestoreGridd": _nothing,
    "SaveMaskd": _nothing,
    "SaveFlatMaskd": _nothing,
    "ToProbabilityd": _nothing,
    "SavePresenced": _nothing,
}
