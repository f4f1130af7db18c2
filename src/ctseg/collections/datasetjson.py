"""The two layouts with a `dataset.json`: the Medical Segmentation Decathlon's, and nnU-Net's raw folder.

The Decathlon lists its pairs: `"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]`, and
`"labels": {"1": "liver"}`. nnU-Net goes by names, `imagesTr/a_0000.nii.gz` (one file a channel) and
`labelsTr/a.nii.gz`, and `"labels": {"liver": 1}`; a list of values is a region.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg.cases import case_name
from ctseg.collections.listing import Candidate, Collection, Refusal, by_name, counted, image_files
from ctseg.errors import InputError

FILE = "dataset.json"
_CHANNEL = re.compile(r"_(\d{4})$")
_NO_STRUCTURE = ("background", "ignore")


def read_description(source: Path) -> dict[str, Any]:
    """Return the content of `dataset.json`.

    Raises:
        InputError: when it cannot be read or holds no object.
    """
    path = source / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); restore it from the collection") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, but an object is expected; restore it")
    return content


def lists_its_pairs(source: Path) -> bool:
    """Whether the `dataset.json` is a Decathlon's: it names pairs whose files exist under those names."""
    return any(_inside(source, entry["image"]).exists() for entry in _entries(read_description(source)))


def list_decathlon(source: Path) -> Collection:
    """List the pairs that `dataset.json` names."""
    description = read_description(source)
    candidates, refused = [], []
    for number, entry in enumerate(description.get("training") or []):
        if entry in _entries({"training": [entry]}):
            image, label = (_inside(source, entry[key]) for key in ("image", "label"))
            candidates.append(Candidate(case_name(image), image, label))
        else:
            refused.append(Refusal(f"training[{number}]", f"{FILE} names no image and label for it: {entry!r}"))
    values, notes = _values(description)
    if tests := description.get("test"):
        notes.append(f"{counted(len(tests), 'test image')} without a label left out")
    saw = f"a Medical Segmentation Decathlon task{_titled(description)}, {counted(len(candidates), 'pair')}"
    return Collection("msd", saw, tuple(candidates), tuple(refused), values, tuple(notes))


def list_nnunet(source: Path) -> Collection:
    """List the cases of `imagesTr` (their first channel) and `labelsTr`, and those that lack one of the two."""
    description = read_description(source)
    values, notes = _values(description)
    channels = [_CHANNEL.search(case_name(path)) for path in image_files(source / "imagesTr")]
    images: dict[str, Path] = {}
    more = set()
    for path, channel in zip(image_files(source / "imagesTr"), channels, strict=True):
        name = case_name(path)[: channel.start()] if channel else case_name(path)
        if channel and channel[1] != "0000":
            more.add(channel[1])
        else:
            images[name] = path
    labels = by_name(image_files(source / "labelsTr"))
    candidates = [Candidate(name, images[name], labels[name][0]) for name in sorted(images) if name in labels]
    refused = [Refusal(name, f"labelsTr has no label called {name}") for name in sorted(set(images) - set(labels))]
    refused += [Refusal(name, f"imagesTr has no {name}_0000") for name in sorted(set(labels) - set(images))]
    if more:
        names = description.get("channel_names") or description.get("modality") or {}
        first = f" ({names['0']})" if isinstance(names, Mapping) and "0" in names else ""
        notes.append(f"of each image's channels the first{first} is taken, {', '.join(sorted(more))} left out")
    if tests := image_files(source / "imagesTs"):
        notes.append(f"{counted(len(tests), 'file')} of imagesTs without a label left out")
    saw = f"an nnU-Net raw folder{_titled(description)}, {counted(len(candidates), 'pair')}"
    return Collection("nnunet", saw, tuple(candidates), tuple(refused), values, tuple(notes))


def _entries(description: Mapping[str, Any]) -> list[dict[str, str]]:
    training = description.get("training")
    return [
        entry
        for entry in (training if isinstance(training, list) else [])
        if isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))
    ]


def _inside(source: Path, name: str) -> Path:
    """Resolve a name of `dataset.json` below the collection; one that leads out of it is refused.

    Raises:
        InputError: when it leads out of the collection.
    """
    path = source / name
    if not path.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{source / FILE} names {name}, which lies outside {source}; correct {FILE}")
    return path


def _titled(description: Mapping[str, Any]) -> str:
    name = description.get("name")
    return f" called {name}" if isinstance(name, str) and name else ""


def _values(description: Mapping[str, Any]) -> tuple[dict[int, str], list[str]]:
    """Read `labels` in both spellings; a value that two regions share belongs to neither and is said."""
    named: dict[int, list[str]] = {}
    labels = description.get("labels")
    for key, value in (labels if isinstance(labels, Mapping) else {}).items():
        if isinstance(value, str):
            name, numbers = value, [key]
        else:
            name, numbers = str(key), value if isinstance(value, list) else [value]
        if name.lower() in _NO_STRUCTURE:
            continue
        for number in numbers:
            if str(number).isdigit() and int(number) > 0:
                named.setdefault(int(number), []).append(name)
    shared = sorted(value for value, names in named.items() if len(names) > 1)
    notes = []
    if shared:
        notes.append(
            f"the values {', '.join(map(str, shared))} belong to several regions of {FILE}: "
            "say with --label NAME=VALUE which structure each is"
        )
    return {value: names[0] for value, names in sorted(named.items()) if len(names) == 1}, notes
