"""Which number an organ has in a mask: the bundle's own, a preset's, or those of a file of the user's.

A preset is a JSON file in `configs/codes`: `{"description": ..., "source": ..., "codes": {"liver": 5, ...}}`. A new one
needs no code. Only the standard library and NumPy are imported, NumPy late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctseg.errors import ConfigError
from ctseg.registry import codes_root

if TYPE_CHECKING:
    from ctseg.prediction import Prediction

OWN = "bundle"
_LARGEST = 255  # masks are uint8
_P = TypeVar("_P", bound="Prediction")


def presets() -> tuple[str, ...]:
    """Names of the sets of codes that there are, `bundle` (the bundle's own) first."""
    return (OWN, *sorted(path.stem for path in codes_root().glob("*.json")))


def read_codes(name: str | Path) -> dict[str, int]:
    """Return a preset's organ names and their codes, or those of a JSON file.

    Args:
        name: one of `presets()` but `bundle`, or the path of a JSON file: a preset's form, or names and codes alone.

    Raises:
        ConfigError: there is no such preset or file, or a code is no whole number from 1 to 255, or comes twice.
    """
    path = codes_root() / f"{name}.json"
    if str(name) not in presets() and str(name).lower().endswith(".json"):
        path = Path(name)
    elif str(name) not in presets() or str(name) == OWN:
        raise ConfigError(
            f"There are no organ codes called {str(name)!r}: expected one of {', '.join(presets())}, or the path of a "
            'JSON file with names and codes, for example {"spleen": 1}.'
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The organ codes {path} cannot be read ({error}): expected a JSON file of names and codes; check it."
        ) from error
    codes = content.get("codes", content) if isinstance(content, dict) else content
    if not isinstance(codes, dict) or not codes:
        raise ConfigError(f"The organ codes {path} name no organ: expected names and codes; add them.")
    check_codes(codes, str(path))
    return dict(codes)


def check_codes(codes: Mapping[str, Any], where: str) -> None:
    """Check that every code can stand in a mask, and stands there for one organ.

    Raises:
        ConfigError: a code is no whole number from 1 to 255, or two organs have the same.
    """
    by_code: dict[int, str] = {}
    for name, code in codes.items():
        if not isinstance(code, int) or isinstance(code, bool) or not 1 <= code <= _LARGEST:
            raise ConfigError(
                f"{name} has the code {code!r} in {where}: expected a whole number from 1 to {_LARGEST}, "
                "since masks are 8-bit and 0 is background; change it."
            )
        if code in by_code:
            raise ConfigError(
                f"{by_code[code]} and {name} both have the code {code} in {where}: expected one organ for each code; "
                "change one of them."
            )
        by_code[code] = name


def codes_for(labels: Mapping[str, int], wanted: str | Path = OWN) -> dict[str, int]:
    """Return the codes that a mask with these labels is to be written with.

    Names are compared without regard to capitals, and spaces, hyphens and underscores count the same.

    Args:
        labels: label names and the codes of their own, e.g. `BundleInfo.labels`.
        wanted: "bundle" keeps those; else as `read_codes`.

    Returns:
        The same names in the same order.

    Raises:
        ConfigError: the set has no code for a label, or as `read_codes` and `check_codes`.
    """
    if str(wanted) == OWN:
        check_codes(labels, "the bundle's labels")
        return dict(labels)
    known = {_plain(name): code for name, code in read_codes(wanted).items()}
    missing = [name for name in labels if _plain(name) not in known]
    if missing:
        raise ConfigError(
            f"The organ codes {wanted} have none for {', '.join(missing)}: expected one for each label; "
            "take another set, or a JSON file of your own with these names."
        )
    return {name: known[_plain(name)] for name in labels}


def recoded(prediction: _P, codes: Mapping[str, int]) -> _P:
    """Return a prediction whose label map has other codes; the same one when they are the same.

    Args:
        prediction: with `labels` and a uint8 `label_map`.
        codes: a code for each of its labels, as `codes_for` returns them.
    """
    import dataclasses

    import numpy as np

    if dict(codes) == dict(prediction.labels):
        return prediction
    table = np.zeros(_LARGEST + 1, dtype=np.uint8)
    for name, old in prediction.labels.items():
        table[old] = codes[name]
    return dataclasses.replace(prediction, label_map=table[prediction.label_map], labels=dict(codes))


def _plain(name: str) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")
