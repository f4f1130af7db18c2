"""Flat images with mask pictures: in one folder by a suffix, in two by name; PH2's and ISIC's trees. Never by order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ctseg.collections.classtables import read_class_table
from ctseg.collections.folders import side_folders, side_of_folder
from ctseg.collections.listing import Candidate, Collection, Layout, Refusal, counted
from ctseg.errors import InputError
from ctseg.flat.reading import flat_name, is_flat_path

SUFFIX = "_mask"
_IMAGES = re.compile(r"^(images?|jpegimages|imgs?|pictures|photos|frames|slices|data)", re.IGNORECASE)
_MASKS = re.compile(r"^(masks?|labels?|seg(?!mentationobject)|gt|ground.?truth|annotations?|lesions?)", re.IGNORECASE)
_ISIC = re.compile(r"^(ISIC_\d+)(_downsampled)?$", re.IGNORECASE)
_ISIC_MASK = re.compile(r"^(ISIC_\d+)_segmentation$", re.IGNORECASE)
_PH2_IMAGE, _PH2_MASK = "_dermoscopic_image", "_lesion"


def list_flat(source: Path, layout: Layout) -> Collection:
    """List pairs of one folder (`a.png` and `a_mask.png`), or of a folder of images and one of masks.

    Folders below the two count into the names: `images/p1/3.png` is called p1_3. The folders of a split (train, valid,
    test) right below are listed one by one and do not count.

    Raises:
        InputError: there is no image, or a class table says something that cannot be.
    """
    parts = side_folders(source)
    listed = [_list_one(part, layout) for part in parts] if parts else [_list_one(source, layout)]
    count = Counter(one.case_id for collection in listed for one in collection.candidates)
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    for collection, folder in zip(listed, parts or [source], strict=True):
        refused += collection.refused
        for one in collection.candidates:
            unique = one if count[one.case_id] == 1 else replace(one, case_id=f"{folder.name}_{one.case_id}")
            candidates.append(unique)
    values, colors = read_class_table(source, layout)
    notes = []
    if parts and (left := sum(is_flat_path(path) for path in source.iterdir())):
        notes.append(f"{counted(left, 'image')} beside the folders {', '.join(path.name for path in parts)} left out")
    saw = listed[0].saw if not parts else f"pairs of flat images by name, {counted(len(candidates), 'pair')}"
    return Collection("flat", saw, tuple(candidates), tuple(refused), values, tuple(notes), colors)


def _list_one(source: Path, layout: Layout) -> Collection:
    suffix = layout.suffix or SUFFIX
    folders = _two_folders(source, layout.masks)
    if folders is None:
        files = _files(source)
        masks = {name[: -len(suffix)]: paths for name, paths in files.items() if _ends(name, suffix)}
        images = {name: paths for name, paths in files.items() if not _ends(name, suffix)}
        where = f"in {source.name}, masks named ...{suffix}"
    else:
        images, found = _files(folders[0]), _files(folders[1])
        masks = {}
        for name, paths in found.items():
            plain = name[: -len(suffix)] if _ends(name, suffix) and name not in images else name
            masks.setdefault(plain, []).extend(paths)
        where = f"in {folders[0].name}/ and {folders[1].name}/"
    if not images:
        raise InputError(f"{source} holds no flat image; name a folder with images and masks")
    return _paired("flat", f"pairs of flat images by name {where}", images, masks, suffix)


def list_ph2(source: Path) -> Collection:
    """List the images of PH2's tree; its regions of interest are ignored.

    Raises:
        InputError: it is no such tree.
    """
    images: dict[str, list[Path]] = {}
    masks: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        folder = path.parent.name.lower()
        if not is_flat_path(path):
            continue
        if folder.endswith(_PH2_IMAGE):
            images.setdefault(flat_name(path), []).append(path)
        elif folder.endswith(_PH2_MASK):
            masks.setdefault(re.sub(r"_lesion$", "", flat_name(path), flags=re.IGNORECASE), []).append(path)
    if not images:
        raise InputError(
            f"{source} is not PH2's tree: expected .../IMD002/IMD002_Dermoscopic_Image/IMD002.bmp and "
            ".../IMD002_lesion/IMD002_lesion.bmp; name the folder above these"
        )
    return _paired("ph2", "PH2's tree", images, masks, "_lesion")


def list_isic(source: Path) -> Collection:
    """List ISIC's images (`ISIC_0000000.jpg`) with their masks (`..._segmentation.png`, or in a folder of masks).

    Raises:
        InputError: there is none.
    """
    images: dict[str, list[Path]] = {}
    masks: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if not is_flat_path(path):
            continue
        if match := _ISIC_MASK.match(flat_name(path)):
            masks.setdefault(match[1], []).append(path)
        elif match := _ISIC.match(flat_name(path)):
            side = masks if _MASKS.match(path.parent.name) else images
            side.setdefault(match[1], []).append(path)
    if not images:
        raise InputError(
            f"{source} holds no image called ISIC_ and a number; name the folder of ISIC's images and masks"
        )
    return _paired("isic", "ISIC's images", images, masks, "_segmentation")


def _paired(
    kind: str, what: str, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]], suffix: str
) -> Collection:
    candidates, refused = [], []
    for name in sorted({*images, *masks}):
        if name not in masks:
            refused.append(
                Refusal(name, f"{images[name][0].name} has no mask: expected one called {name}{suffix} or {name}")
            )
        elif name not in images:
            refused.append(Refusal(name, f"{masks[name][0].name} has no image: expected one called {name}"))
        elif len(images[name]) + len(masks[name]) > 2:
            several = ", ".join(path.name for path in [*images[name], *masks[name]])
            refused.append(Refusal(name, f"several files share its name ({several}): leave one image and one mask"))
        else:
            candidates.append(Candidate(name, images[name][0], masks[name][0], keys={"flat": True}))
    saw = f"{what}, {counted(len(candidates), 'pair')}"
    return Collection(kind, saw, tuple(candidates), tuple(refused))


def _two_folders(source: Path, named: str) -> tuple[Path, Path] | None:
    below = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    masks = [path for path in below if _MASKS.match(path.name)]
    images = [path for path in below if _IMAGES.match(path.name) and path not in masks]
    if named:
        if not (source / named).is_dir():
            raise InputError(
                f"{source} has no folder {named} of masks; it has {', '.join(path.name for path in below)}"
            )
        masks, images = [source / named], [path for path in images if path != source / named]
    if len(images) > 1 or len(masks) > 1:
        found = ", ".join(path.name for path in [*images, *masks])
        raise InputError(
            f"{source} has several folders of images or masks ({found}): name that of the masks with --masks"
        )
    return (images[0], masks[0]) if images and masks else None


def _files(folder: Path) -> dict[str, list[Path]]:
    """Name -> files below a folder; the names of folders in between come first, those of a split only if they must."""
    paths = [path for path in sorted(folder.rglob("*")) if is_flat_path(path)]
    whole = [[*path.relative_to(folder).parts[:-1], flat_name(path)] for path in paths]
    plain = [[*(part for part in parts[:-1] if side_of_folder(part) is None), parts[-1]] for parts in whole]
    chosen = plain if len({tuple(parts) for parts in plain}) == len({tuple(parts) for parts in whole}) else whole
    named: dict[str, list[Path]] = {}
    for path, parts in zip(paths, chosen, strict=True):
        named.setdefault("_".join(parts), []).append(path)
    return named


def _ends(name: str, suffix: str) -> bool:
    return len(name) > len(suffix) and name.lower().endswith(suffix.lower())
