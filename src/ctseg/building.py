"""Bundles are generated: the wiring of `configs/base` and the values of `configs/tasks` become complete bundles.

In the wiring, `{{name}}` is a value of the task or its kind, `{{name 0}}` an element of it, and `{{*name words}}`, as
an element of a list, splices a block: `{{*preprocessing image label}}` is the block `preprocessing` for these two keys,
in which `{{keys}}` and `{{modes}}` stand for the keys and their interpolation, and an entry with `_for_` is kept for
its keys only. So training and inference cannot differ in their deterministic transforms. A block may splice another one
for the same keys. A task names one kind as its `base`, or several, of which the later ones replace entries.

A kind may name the `configs` that its bundles have (all, unless it says so), and replace entries of the shared wiring
in a block of the configuration's name, where null takes an entry away and `a#b` is the entry `b` of the entry `a`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ctseg.errors import ConfigError

CONFIGS = ("inference", "train", "evaluate", "multi_gpu_train")
_VALUE = re.compile(r"\{\{(\w+)(?: (\d+))?\}\}")
_SPLICE = re.compile(r"\{\{\*(\w+)((?: \w+)*)\}\}")
_MODES = {"image": "bilinear", "label": "nearest"}


def build_bundle(task_file: Path, base_dir: Path) -> dict[str, str]:
    """Return the generated files of one task's bundle: path inside the bundle -> text.

    Args:
        task_file: `configs/tasks/<task>.yaml`.
        base_dir: `configs/base`.

    Raises:
        ConfigError: when a file is missing or no YAML, or a value that the wiring needs is missing.
    """
    from ctseg.metadata import metadata_of

    task = load_yaml(task_file)
    _require(task, ("bundle", "base", "labels"), task_file)
    shared, kind = load_yaml(base_dir / "shared.yaml"), _kind(task["base"], base_dir)
    values = {**kind, **task, **_derived(task, kind)}
    _require(values, ("network",), task_file)
    configs = {name: render(_wiring(name, shared, kind), values) for name in kind.get("configs", CONFIGS)}
    configs["metadata"] = metadata_of(values, task_file.stem)
    files = {f"configs/{name}.json": json.dumps(config, indent=4) + "\n" for name, config in configs.items()}
    files["configs/logging.conf"] = (base_dir / "logging.conf").read_text(encoding="utf-8")
    files["LICENSE"] = (base_dir / "LICENSE").read_text(encoding="utf-8")
    return files


def _kind(base: str | list[str], base_dir: Path) -> dict[str, Any]:
    """One kind's wiring, or several laid over each other: the later ones replace entries of the earlier ones."""
    merged: dict[str, Any] = {}
    for name in [base] if isinstance(base, str) else base:
        merged.update(load_yaml(base_dir / f"{name}.yaml"))
    return merged


def _require(values: Mapping[str, Any], keys: Iterable[str], task_file: Path) -> None:
    for key in keys:
        if key not in values:
            raise ConfigError(f"The task {task_file} lacks {key!r}: add it; configs/tasks/liver_ct.yaml is an example.")


def _wiring(name: str, shared: Mapping[str, Any], kind: Mapping[str, Any]) -> dict[str, Any]:
    wiring: dict[str, Any] = copy.deepcopy(shared[name])
    for key, value in kind.get(name, {}).items():
        node, last = wiring, key
        # An overlay has keys with # of its own: they are replaced as they stand.
        if key not in wiring and key.partition("#")[0] in wiring:
            *path, last = key.split("#")
            for part in path:
                if not isinstance(node.get(part), dict):
                    raise ConfigError(
                        f"The kind {kind.get('kind', '?')} replaces {key!r} of {name}, but the shared wiring has no "
                        f"{part!r} there: correct the name, or replace the whole entry."
                    )
                node = node[part]
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return wiring


def build_all(root: Path, tasks_dir: Path | None = None) -> dict[Path, str]:
    """Return every generated file of a clone: absolute path -> text.

    Args:
        root: the clone; its `configs/base` is the wiring, its `bundles` the target.
        tasks_dir: the tasks; None takes `root/configs/tasks`.
    """
    files = {}
    for task_file in sorted((tasks_dir or root / "configs" / "tasks").glob("*.yaml")):
        folder = root / "bundles" / load_yaml(task_file)["bundle"]
        for name, text in build_bundle(task_file, root / "configs" / "base").items():
            files[folder / name] = text
    return files


def stale(files: Mapping[Path, str]) -> list[Path]:
    """Return the generated files that are missing or differ from what they should be."""
    return [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: when it is missing, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error}): expected a YAML file.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"The configuration {path} holds a {type(content).__name__}, expected names and values.")
    return content


def render(node: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of `node` with every `{{...}}` replaced.

    Raises:
        ConfigError: when a name has no value.
    """
    if isinstance(node, dict):
        return {key: render(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [item for entry in node for item in _render_entry(entry, values)]
    if isinstance(node, str):
        return _render_text(node, values)
    if isinstance(node, float) and node != node:
        return "$float('nan')"  # JSON has no NaN
    return node


def _render_entry(entry: Any, values: Mapping[str, Any]) -> list[Any]:
    splice = _SPLICE.fullmatch(entry) if isinstance(entry, str) else None
    if splice is None:
        return [render(entry, values)]
    return _block(splice[1], splice[2].split(), values)


def _block(name: str, keys: list[str], values: Mapping[str, Any]) -> list[Any]:
    block: list[Any] = []
    for item in _value(name, values):
        if isinstance(item, str) and (inner := _SPLICE.fullmatch(item)):
            block += _block(inner[1], inner[2].split() or keys, values)
            continue
        wanted = [item["_for_"]] if isinstance(item.get("_for_"), str) else item.get("_for_", keys)
        kept = [key for key in keys if key in wanted]
        if keys and not kept:
            continue
        item = {key: value for key, value in item.items() if key != "_for_"}
        own = {**values, "keys": kept, "modes": [_MODES.get(key, "nearest") for key in kept]}
        block.append(render(item, own))
    return block


def _render_text(text: str, values: Mapping[str, Any]) -> Any:
    whole = _VALUE.fullmatch(text)
    if whole:
        return render(copy.deepcopy(_element(whole, values)), values)
    return _VALUE.sub(lambda match: str(_element(match, values)), text)


def _element(match: re.Match[str], values: Mapping[str, Any]) -> Any:
    value = _value(match[1], values)
    return value[int(match[2])] if match[2] is not None else value


def _value(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        raise ConfigError(
            f"The task {values.get('bundle', '?')} has no value for {name!r}, which its kind's wiring needs: "
            f"add it to the task's file; known are {', '.join(sorted(values))}."
        )
    return values[name]


def _derived(task: Mapping[str, Any], kind: Mapping[str, Any]) -> dict[str, Any]:
    labels = task["labels"]
    return {
        "label_names": [label["name"] for label in labels],
        "label_codes": [label["code"] for label in labels],
        "codes_by_name": {label["name"]: label["code"] for label in labels},
        "class_indices": list(range(1, len(labels) + 1)),
        "channels": 1 if len(labels) == 1 else len(labels) + 1,
        # A label's own clean-up and threshold are laid over those of its kind.
        "thresholds": {label["name"]: label.get("threshold") for label in labels},
        "clean_up": {label["name"]: {**kind.get("clean_up", {}), **label.get("clean_up", {})} for label in labels},
    }
