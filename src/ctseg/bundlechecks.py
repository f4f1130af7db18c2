"""What can be wrong with a bundle's metadata, said in a few words; the standard library is all that is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_REQUIRED = ("version", "description", "ctseg")
_REQUIRED_OF_BLOCK = ("task", "kind", "modality", "labels", "evidence", "licence", "weights")


def _problem_with_label(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        return f"a label without a name ({entry!r})"
    code = entry.get("code")
    if not isinstance(code, int) or isinstance(code, bool) or not 1 <= code <= 255:
        return f"label {entry['name']!r} with the code {code!r}, expected a whole number 1 to 255"
    color = entry.get("color", [0, 0, 0])
    if not (isinstance(color, list) and len(color) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in color)):
        return f"label {entry['name']!r} with the colour {color!r}, expected three whole numbers 0 to 255"
    return ""


def _problem_with_weights(weights: Any) -> str:
    if weights is None:
        return ""
    if not isinstance(weights, dict) or not all(isinstance(weights.get(key), str) for key in ("file", "sha256")):
        return f"weights {weights!r}, expected null or an object with file and sha256"
    file = Path(weights["file"])
    if file.is_absolute() or ".." in file.parts:
        return f"a weights file {weights['file']!r} that lies outside the bundle"
    return ""


def _problem_with_dependencies(entries: Any) -> str:
    if not isinstance(entries, list):
        return f"depends_on {entries!r}, expected a list"
    for entry in entries:
        known = isinstance(entry, dict) and isinstance(entry.get("bundle"), str)
        if not known or entry.get("as") not in ("input_organ", "gate"):
            return f"depends_on {entry!r}, expected an object with bundle and as (input_organ or gate)"
        if entry["as"] == "input_organ" and not isinstance(entry.get("organ"), str):
            return f"depends_on {entry!r}, expected the organ too"
    return ""


def problem_with(metadata: Any) -> str:
    """Say in a few words what is wrong with parsed metadata, or "" when it can be used."""
    if not isinstance(metadata, dict):
        return "no JSON object"
    if missing := [key for key in _REQUIRED if key not in metadata]:
        return f"no {', '.join(missing)}"
    block = metadata["ctseg"]
    if not isinstance(block, dict):
        return "a ctseg block that is no object"
    if missing := [key for key in _REQUIRED_OF_BLOCK if key not in block]:
        return f"a ctseg block without {', '.join(missing)}"
    if not isinstance(block["labels"], list) or not block["labels"]:
        return "no list of labels"
    if problem := next(filter(None, map(_problem_with_label, block["labels"])), ""):
        return problem
    for key in ("name", "code"):
        values = [entry[key] for entry in block["labels"]]
        if len(set(values)) < len(values):
            return f"two labels of the same {key} ({', '.join(map(str, values))})"
    if not isinstance(block["licence"], dict):
        return "a licence that is no object"
    if not isinstance(block.get("needs_weights", True), bool):
        return f"needs_weights {block['needs_weights']!r}, expected true or false"
    if block["weights"] and not block.get("needs_weights", True):
        return "weights, although it says that it needs none"
    return _problem_with_dependencies(block.get("depends_on", [])) or _problem_with_weights(block["weights"])
