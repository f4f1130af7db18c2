"""Cases in one folder, each with the transform by which its head was turned before its mask was drawn.

`7.nii.gz`, `7.txt` (or .tfm, .mat, .h5: ITK's own transform files) and `7-seg.nii.gz` (or .nii) are one case of one
patient. The mask lies in the turned space; what is done about that is `ctseg.prepare.preparing`'s.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.cases import case_name
from ctseg.collections.listing import Candidate, Collection, Refusal, counted
from ctseg.turning.itktransforms import READ

TRANSFORM = "itk_transform"  # the key of its path in a datalist's item
_MASK = re.compile(r"-seg\.nii(\.gz)?$", re.IGNORECASE)
_IMAGE = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def is_turned(source: Path) -> bool:
    """Whether a folder holds a mask with a transform of the same name."""
    files = _files(source)
    masks = {_MASK.sub("", path.name) for path in files if _MASK.search(path.name)}
    return any(path.stem in masks for path in files if path.name.lower().endswith(READ))


def list_cases(source: Path) -> Collection:
    """List the cases by their number or name, and those that lack one of the three files, or have one twice."""
    parts: dict[str, dict[str, list[Path]]] = {}
    for path in _files(source):
        if _MASK.search(path.name):
            name, part = _MASK.sub("", path.name), "mask"
        elif _IMAGE.search(path.name):
            name, part = case_name(path), "image"
        elif path.name.lower().endswith(READ) and not path.name.lower().startswith("readme"):
            name, part = path.stem, "transform"
        else:
            continue
        parts.setdefault(name, {}).setdefault(part, []).append(path)
    candidates, refused = [], []
    for name in sorted(parts, key=lambda name: (name.zfill(12), name)):
        files = parts[name]
        expected = {"image": f"{name}.nii.gz", "transform": f"{name}.txt", "mask": f"{name}-seg.nii.gz"}
        if set(files) == {"transform"}:
            continue  # any other text
        if missing := [expected[part] for part in expected if part not in files]:
            refused.append(Refusal(name, f"{source} has no {' and no '.join(missing)} for it"))
        elif several := [path.name for paths in files.values() if len(paths) > 1 for path in paths]:
            refused.append(Refusal(name, f"several files share its name ({', '.join(several)}): leave one of each"))
        else:
            image, transform, mask = (files[part][0] for part in ("image", "transform", "mask"))
            candidates.append(Candidate(name, image, mask, patient=name, keys={TRANSFORM: str(transform.resolve())}))
    saw = f"images with a transform and a mask of the turned head, {counted(len(candidates), 'case')}"
    return Collection("turned", saw, tuple(candidates), tuple(refused))


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
