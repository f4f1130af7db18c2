"""What an annotation service did to flat images on their way: renamed, copied and dealt into folders of a split.

A service may rename `a.png` to `a_png.rf.0f3b.jpg` and add changed copies of it, each with another end: the raw name is
what stands before, and by it the patient is found, and the picture that was sent.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctseg.collections.folders import side_of_path
from ctseg.collections.listing import Candidate, Collection, Refusal, counted
from ctseg.errors import InputError
from ctseg.flat.reading import flat_name, is_flat_path

_RENAMED = re.compile(r"^(.+)_(?:png|jpe?g|bmp|tiff?)\.rf\.(\w+)$", re.IGNORECASE)
_MANIFEST = "export.json"  # of `ctseg export-images`


def put_right(collection: Collection, source: Path, pictures: Path | None = None) -> Collection:
    """Return a collection of flat images with raw names, the side of each image's folder, and the pictures sent.

    Args:
        collection: as listed.
        source: its folder.
        pictures: the images that were sent (`ctseg export-images`): they take the place of the service's copies, with
            the millimetres that `export.json` beside their folder knows. None keeps the copies.

    Raises:
        InputError: there is no such folder of pictures, or no picture in it.
    """
    candidates = _raw_names(collection.candidates)
    candidates = [replace(one, side=side_of_path(one.image, source, collection.kind == "isic")) for one in candidates]
    refused = list(collection.refused)
    saw = collection.saw
    if pictures is not None:
        candidates, more = _onto(candidates, pictures)
        refused += more
        saw += f", {counted(len(candidates), 'picture')} of {pictures}"
    return replace(collection, candidates=tuple(candidates), refused=tuple(refused), saw=saw)


def _raw_names(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """Call a renamed image as it was; of several copies each gets the beginning of its own end."""
    found = [_RENAMED.match(one.case_id) for one in candidates]
    count = Counter(match[1] for match in found if match)
    others = {one.case_id for one, match in zip(candidates, found, strict=True) if not match}
    named = []
    for one, match in zip(candidates, found, strict=True):
        if match is None:
            named.append(one)
            continue
        raw = match[1]
        single = count[raw] == 1 and raw not in others
        name = raw if single else f"{raw}_{match[2][:8]}"
        named.append(replace(one, case_id=name, raw=raw, patient=one.patient or raw))
    return named


def _onto(candidates: list[Candidate], folder: Path) -> tuple[list[Candidate], list[Refusal]]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} of pictures; name the images that were sent to be outlined")
    sent: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if is_flat_path(path):
            sent.setdefault(flat_name(path), []).append(path)
    if not sent:
        raise InputError(f"{folder} holds no picture; name the images that were sent to be outlined")
    spacing = _spacing(folder)
    count = Counter(one.raw or one.case_id for one in candidates)
    taken, refused = [], []
    for one in candidates:
        name = one.raw or one.case_id
        paths = sent.get(name, [])
        if count[name] > 1:
            refused.append(
                Refusal(
                    one.case_id,
                    f"the service made {count[name]} changed copies of {name}, whose outlines do not lie on the "
                    "picture itself: export without augmentation, or leave out --pictures",
                )
            )
        elif len(paths) != 1:
            refused.append(Refusal(one.case_id, f"{folder} has {len(paths)} pictures called {name}, one was expected"))
        else:
            known = {"spacing": spacing[paths[0].name]} if paths[0].name in spacing else {}
            taken.append(replace(one, image=paths[0], keys={**one.keys, **known}))
    return taken, refused


def _spacing(folder: Path) -> Mapping[str, list[float]]:
    """Return picture -> mm between its rows and columns, as far as `ctseg export-images` wrote it down."""
    for path in (folder / _MANIFEST, folder.parent / _MANIFEST):
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            return {str(one["image"]): list(map(float, one["spacing"])) for one in content["images"] if one["spacing"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}
