"""What is asked of a preparation, and what must be clear before the first image is opened."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.cases import SLICE_ENDINGS
from ctseg.collections import FLAT_KINDS, Candidate, Collection, Refusal
from ctseg.errors import ConfigError
from ctseg.flat.masks import colour_values
from ctseg.registry import BundleInfo

RUNS = "runs"  # in place of a pattern of the patient


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        source: the collection.
        out: the data folder.
        kind: one of `ctseg.collections.KINDS`, or "auto".
        values: value in the label maps -> structure, over what the collection says.
        structures: structures beyond the task's, where each has a file of its own.
        patient: finds the patient in a case's name, as its only group; None leaves it to the collection.
        split: file with a given split; None draws one.
        fold: which fold of it.
        slice_spacing: mm of PNG and .npy slices.
        orientation: of .npy slices, see `ctseg.slices.read_slice`.
        columns: of a slice table, see `ctseg.collections.Layout`.
        flags: of a slice table, see `ctseg.collections.Layout`.
        other_labels: let unknown label values pass as background.
        turn: of the kind "turned": "mask" brings each mask to its CT now, "ct" leaves the transform in the item, for
            the task's `ApplyItkTransformd` to turn the CT.
        suffix: what a flat mask is called beyond its image; "" takes _mask.
        masks: name of the folder of flat masks; "" finds it.
        colors: of flat masks: structure -> (r, g, b), where they are colour-coded.
        pixel_spacing: mm between rows and columns of flat images that do not know it.
        sizes: a flat mask of another size than its image: "refuse" it, or "resize" it to the image's.
        empty: a flat mask without any structure: "keep" it as an image without, or "refuse" it.
        pictures: of an annotation service's export: the folder of the images that were sent, see
            `ctseg.collections.services`.
        draw: draw the split by patient even where the folders of the collection say one.
        existing: what to do with a datalist that is there: "refuse", "add" to it, or "replace" it.
    """

    source: Path
    out: Path
    kind: str = "auto"
    values: Mapping[int, str] = field(default_factory=dict)
    structures: tuple[str, ...] = ()
    patient: str | None = None
    split: Path | None = None
    fold: int = 0
    slice_spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    flags: str = "check"
    other_labels: bool = False
    turn: str = "mask"
    suffix: str = ""
    masks: str = ""
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    pixel_spacing: tuple[float, float] | None = None
    sizes: str = "refuse"
    empty: str = "keep"
    pictures: Path | None = None
    draw: bool = False
    existing: str = "refuse"


def codes_of(collection: Collection, bundle: BundleInfo, more: Sequence[str]) -> dict[str, int]:
    """Return structure -> value for the label maps that are made here; empty where there are none to make.

    The task's structures have their own codes, further ones the next free values.
    """
    if all(isinstance(candidate.label, Path) for candidate in collection.candidates):
        return {}
    codes = dict(bundle.labels)
    for name in more:
        codes.setdefault(name, max(codes.values(), default=0) + 1)
    return codes


def check_values(
    collection: Collection, values: Mapping[int, str], bundle: BundleInfo, more: Sequence[str] = ()
) -> None:
    """Refuse a collection whose label maps cannot tell all of the task's structures.

    Raises:
        ConfigError: a structure of the task has no value (it would be learnt as background), or one that was asked for
            beside the task's has neither a value nor a mask of its own.
    """
    maps = [candidate for candidate in collection.candidates if isinstance(candidate.label, Path)]
    missing = [name for name in bundle.labels if name not in values.values()]
    if maps and missing:
        known = ", ".join(f"{name}={value}" for value, name in list(values.items())[:12])
        raise ConfigError(
            f"nothing says which label value is {', '.join(missing)} of {bundle.name} "
            f"(known: {known or 'none'}): say it with --label {missing[0]}=VALUE"
        )
    vain = [name for name in more if name not in values.values()]
    if vain and len(maps) == len(collection.candidates):
        raise ConfigError(f"--label {vain[0]} names no value, which a label map needs: write --label {vain[0]}=VALUE")


def slice_keys(collection: Collection, request: Request) -> dict[str, Any]:
    """Return the keys that every slice's or flat image's item needs; a volume knows its own place.

    Raises:
        ConfigError: there are slices, and the user did not say their spacing or orientation.
    """
    slices = [candidate for candidate in collection.candidates if is_slice(candidate)]
    if collection.kind in FLAT_KINDS:
        given = {"spacing": list(request.pixel_spacing)} if request.pixel_spacing else {}
        return given | (
            {"mask_colors": {name: list(rgb) for name, rgb in request.colors.items()}} if request.colors else {}
        )
    if not slices:
        return {}
    if request.slice_spacing is None:
        raise ConfigError(
            f"{slices[0].image.name} is a slice, which does not know its size: add --slice-spacing X Y THICKNESS in mm"
        )
    keys: dict[str, Any] = {"slice_spacing": list(request.slice_spacing)}
    if request.orientation is not None:
        keys["slice_orientation"] = request.orientation
    elif any(candidate.image.suffix.lower() == ".npy" for candidate in slices):
        raise ConfigError(
            f"{slices[0].image.name} is an .npy slice, which does not tell left from right: add --orientation array "
            "(cut as ct[:, :, k] of a NIfTI image's array) or --orientation radiological (rows from front to back, "
            "columns from the patient's right to left)"
        )
    return keys


def is_slice(candidate: Candidate) -> bool:
    """Whether its image is a single slice in a file that knows no place."""
    return bool(candidate.keys.get("flat")) or candidate.image.name.lower().endswith(SLICE_ENDINGS)


def flat_values(collection: Collection, request: Request, bundle: BundleInfo) -> dict[int, str]:
    """Return value -> structure of flat masks: by their colours, as said, or black and white for a single structure.

    Raises:
        ConfigError: colours for what is no mask picture, or a colour of a structure that nobody knows.
    """
    if collection.kind not in FLAT_KINDS:
        if request.colors:
            raise ConfigError(
                f"--color is for the masks of flat images, not for the kind {collection.kind}: leave it out"
            )
        return {}
    if request.colors:
        return colour_values(request.colors)
    if collection.values:
        return {}
    return {255: next(iter(bundle.labels))} if len(bundle.labels) == 1 and not request.values else {}


def runs_of_numbers(names: Sequence[str]) -> dict[str, str]:
    """Return name -> the first name of its run: names that are alike but for a last number, one more each.

    For slices of which nobody says the patient: neighbours are of one.
    """
    numbered = sorted((match[1], int(match[2]), name) for name in names if (match := re.fullmatch(r"(.*?)(\d+)", name)))
    runs: dict[str, str] = {name: name for name in names}
    for before, here in itertools.pairwise(numbered):
        if before[0] == here[0] and here[1] - before[1] <= 1:
            runs[here[2]] = runs[before[2]]
    return runs


def with_patients(
    candidates: Sequence[Candidate], pattern: str | None
) -> tuple[list[tuple[Candidate, str]], list[Refusal]]:
    """Return each case with its patient, and refuse a name that comes twice.

    Args:
        candidates: the cases as listed.
        pattern: regular expression with one group, searched in the case's name (before a service renamed it); "runs"
            (`runs_of_numbers`); None takes what the collection says, else the name itself.

    Raises:
        ConfigError: the pattern is no regular expression with one group.
    """
    if pattern == RUNS:
        runs = runs_of_numbers([one.raw or one.case_id for one in candidates])
        candidates = [dataclasses.replace(one, patient=runs[one.raw or one.case_id]) for one in candidates]
        pattern = None
    try:
        compiled = re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise ConfigError(f"--patient {pattern!r} is no regular expression ({error})") from error
    if compiled is not None and compiled.groups != 1:
        raise ConfigError(
            f"--patient {pattern!r} has {compiled.groups} groups: expected one, round what names the patient, "
            "for example '^(\\w+)_\\d+$'"
        )
    named: list[tuple[Candidate, str]] = []
    refused, seen = [], set()
    for candidate in candidates:
        match = compiled.search(candidate.raw or candidate.case_id) if compiled else None
        patient = match[1] if match else (candidate.patient or candidate.case_id) if compiled is None else None
        if candidate.case_id in seen:
            refused.append(Refusal(candidate.case_id, "another case has the same name: rename one of them"))
        elif not patient:
            refused.append(Refusal(candidate.case_id, f"--patient {pattern!r} finds no patient in its name"))
        else:
            seen.add(candidate.case_id)
            named.append((candidate, patient))
    return named, refused
