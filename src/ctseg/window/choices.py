"""What can be looked for on an image with the bundles that lie here, and what to say where that is nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctseg.errors import InputError
from ctseg.flat.images import HU, RGB, FlatImage
from ctseg.organchoice import segmented_organs
from ctseg.registry import BundleInfo, bundles_root, find_bundles
from ctseg.window.case import Case
from ctseg.window.flatcase import FlatCase

MODALITY = "CT"
_PICTURES = {"CT": "CT slice", "MR": "MR slice", "US": "ultrasound", "XC": "photograph"}  # by DICOM's code
_GREY = ("CT", "MR")  # are shown without colours, but for letters and arrows
_COLOURED = 0.05  # share of pixels from which on a picture counts as coloured
_ENOUGH = 250_000  # pixels to look at, evenly spread
_MANY = 4  # structures of a bundle that are listed one by one
_CHROMA = 0.1  # of white, between the strongest and the weakest of red, green and blue


@dataclass(frozen=True)
class Choice:
    """One thing that can be looked for: the name that `find` takes, what is shown, and whether it is proposed.

    The structures of a bundle of more than `_MANY` are one thing together, under the bundle's name.
    """

    name: str
    text: str
    proposed: bool = False


@dataclass(frozen=True)
class Choices:
    """What can be looked for on an image.

    Attributes:
        options: in the order in which they are shown.
        several: whether more than one can be looked for at once.
        word: what is missing and what to do about it, as sentences; "" where nothing is.
    """

    options: tuple[Choice, ...]
    several: bool
    word: str = ""


def choices_for(case: Case | FlatCase, root: Path | None = None) -> Choices:
    """Return what can be looked for on an image with the bundles of a folder; None takes the shipped ones."""
    return _on_flat(case.image, root) if isinstance(case, FlatCase) else _on_volume(root)


def organs_ready(root: Path | None = None) -> dict[str, BundleInfo]:
    """Return the organs that can be found in a volume now, each with the bundle that is taken for it."""
    known = segmented_organs(find_bundles(root), MODALITY)
    ready = {name: [info for info in infos if info.ready] for name, infos in known.items()}
    return {name: min(infos, key=lambda info: len(info.labels)) for name, infos in ready.items() if infos}


def organs_of(chosen: Iterable[str], root: Path | None = None) -> list[str]:
    """Return the organs behind names of `Choice`s on a volume, in the same order."""
    ready = organs_ready(root)
    bundles = {info.name: info for info in ready.values()}
    organs: list[str] = []
    for one in chosen:
        if one in ready or one not in bundles:
            organs.append(one)
        else:
            organs += [organ for organ in bundles[one].labels if ready.get(organ) == bundles[one]]
    return organs


def flat_bundles(root: Path | None = None) -> list[BundleInfo]:
    """Return the bundles that look at flat images, ready or not."""
    return [info for info in find_bundles(root).values() if info.flat and (info.segments or info.classifies)]


def check_fits(image: FlatImage, info: BundleInfo) -> None:
    """Refuse an image of plainly another kind than a bundle was made for.

    Raises:
        InputError: a picture in colours for CT or MR, or a CT slice in HU for anything else than CT.
    """
    kind = _PICTURES.get(info.modality, info.modality)
    if image.kind == HU and info.modality != MODALITY:
        raise InputError(
            f"this is a CT slice in Hounsfield units, and {structures_of(info)} is looked for on a {kind}; drop one, "
            "or choose something else"
        )
    if info.modality in _GREY and (share := coloured_share(image)) > _COLOURED:
        raise InputError(
            f"{share:.0%} of this picture's pixels are coloured, and {structures_of(info)} is looked for on a {kind}, "
            "which is grey; drop one, or choose something else"
        )


def coloured_share(image: FlatImage) -> float:
    """Share of the pixels whose red, green and blue differ by more than compression makes them."""
    if image.kind != RGB:
        return 0.0
    step = max(1, math.isqrt(image.array[0].size // _ENOUGH))
    some = image.array[:, ::step, ::step]
    strength = some.max(axis=0) - some.min(axis=0)
    return float(np.mean(strength > _CHROMA * float(image.white or 1.0)))


def structures_of(info: BundleInfo) -> str:
    """What a bundle looks for, in SNOMED CT's words where it names them."""
    entries = info.label_entries
    return ", ".join(str((entry.get("snomed") or {}).get("meaning") or entry["name"]).lower() for entry in entries)


def _on_volume(root: Path | None) -> Choices:
    ready = organs_ready(root)
    if ready:
        # A dictionary, as several names of a large bundle become one choice.
        options = {
            _name(name, info): Choice(_name(name, info), _said(name, info), _proposed(info))
            for name, info in ready.items()
        }
        cautions = {_said(name, info): info.caution for name, info in ready.items() if info.caution}
        word = " ".join(f"{said}: {caution}." for said, caution in cautions.items())
        return Choices(tuple(options.values()), several=True, word=word)
    flat = [info for info in flat_bundles(root) if info.ready]
    only = f" What can be looked for here is found on flat images: {_listed(flat)}." if flat else ""
    return Choices((), True, f"No bundle in {_folder(root)} finds organs in a CT volume.{only} {_other_folder()}")


def _together(info: BundleInfo) -> bool:
    """Whether a bundle has so many structures that they are one choice."""
    return len(info.labels) > _MANY


def _name(organ: str, info: BundleInfo) -> str:
    return info.name if _together(info) else organ


def _said(organ: str, info: BundleInfo) -> str:
    names = [name.replace("_", " ") for name in info.labels]
    return f"{names[0]} to {names[-1]} ({len(names)} structures)" if _together(info) else organ.replace("_", " ")


def _proposed(info: BundleInfo) -> bool:
    """Whether the structures of a bundle are looked for unless somebody says no."""
    return info.trained_without_caution and not _together(info)


def _on_flat(image: FlatImage, root: Path | None) -> Choices:
    known = flat_bundles(root)
    ready = [info for info in known if info.ready]
    fitting = [info.name for info in ready if _fits(image, info)]
    options = tuple(Choice(info.name, _text(info), info.name in fitting[:1]) for info in ready)
    findable = {structures_of(info) for info in ready}
    waiting = [info for info in known if not info.ready and structures_of(info) not in findable]
    if not known:
        return Choices((), False, f"No bundle in {_folder(root)} looks at flat images. {_other_folder()}")
    if not waiting:
        return Choices(options, several=False)
    word = f"{_listed(waiting).capitalize()} cannot be looked for yet: no weights come with it."
    if not options:
        word += (
            f" Train a bundle (docs/flat_images.md) and put its weights into {_folder(root)}/NAME/models/model.pt, or "
            "start the window with a folder of trained ones: ctseg app --bundles FOLDER."
        )
    return Choices(options, False, word)


def _fits(image: FlatImage, info: BundleInfo) -> bool:
    """Whether a bundle is what an image of this kind is likely dropped for."""
    try:
        check_fits(image, info)
    except InputError:
        return False
    if image.kind == HU:
        return info.modality == MODALITY
    return (info.modality == "XC") == (coloured_share(image) > _COLOURED)


def _text(info: BundleInfo) -> str:
    what = structures_of(info)
    asked = f"{what}: present or not" if info.classifies else what
    return f"{asked[:1].upper()}{asked[1:]} ({_PICTURES.get(info.modality, info.modality)})"


def _listed(infos: Iterable[BundleInfo]) -> str:
    names: Mapping[str, None] = dict.fromkeys(structures_of(info) for info in infos)
    return _and(list(names))


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _folder(root: Path | None) -> str:
    return str(bundles_root() if root is None else root)


def _other_folder() -> str:
    return "Start the window with a folder of others: ctseg app --bundles FOLDER."
