"""Two folders, images and labels, that go together by name: `images/a.nii.gz` and `labels/a.nii.gz`."""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.collections.listing import Candidate, Collection, Refusal, by_name, counted, image_files
from ctseg.errors import InputError

IMAGES = ("images", "image", "imgs", "imagesTr", "ct", "cts", "scans")
LABELS = ("labels", "label", "masks", "mask", "labelsTr", "segmentations", "seg", "segs")
# What a label may be called beyond its image: "a_mask.png" is the label of "a.png".
_ADDED = re.compile(r"[_-](masks?|labels?|segmentation|seg|gt|annotation)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_0000$")


def find_folders(source: Path) -> tuple[Path, Path] | None:
    """Return the folder of images and the folder of labels, or None; upper and lower case are alike."""
    below = {path.name.lower(): path for path in source.iterdir() if path.is_dir()}
    images, labels = (
        next((below[name.lower()] for name in names if name.lower() in below), None) for names in (IMAGES, LABELS)
    )
    return (images, labels) if images and labels else None


def list_cases(source: Path) -> Collection:
    """List the pairs, and what has no partner or no unique name.

    Raises:
        InputError: when the two folders are not there.
    """
    folders = find_folders(source)
    if folders is None:
        raise InputError(
            f"{source} has no folder of images beside one of labels: expected one of {', '.join(IMAGES)} and one of "
            f"{', '.join(LABELS)}; name the folder above the two"
        )
    images = {_CHANNEL.sub("", name): paths for name, paths in by_name(image_files(folders[0])).items()}
    labels = _by_image_name(by_name(image_files(folders[1])), set(images))
    candidates, refused = [], []
    for name in sorted({*images, *labels}):
        if name not in labels:
            refused.append(Refusal(name, f"{folders[1]} has no label called {name}"))
        elif name not in images:
            refused.append(Refusal(name, f"{folders[0]} has no image called {name}"))
        elif len(images[name]) + len(labels[name]) > 2:
            several = ", ".join(path.name for path in [*images[name], *labels[name]])
            refused.append(Refusal(name, f"several files share its name ({several}): leave one image and one label"))
        else:
            candidates.append(Candidate(name, images[name][0], labels[name][0]))
    saw = f"pairs by name in {folders[0].name}/ and {folders[1].name}/, {counted(len(candidates), 'pair')}"
    return Collection("pairs", saw, tuple(candidates), tuple(refused))


def _by_image_name(labels: dict[str, list[Path]], images: set[str]) -> dict[str, list[Path]]:
    """Rename labels to their image's name where they carry an addition of their own."""
    named: dict[str, list[Path]] = {}
    for name, paths in labels.items():
        plain = _ADDED.sub("", name)
        named.setdefault(plain if name not in images and plain in images else name, []).extend(paths)
    return named
