"""Which layout a folder has: told by the files that only this layout has, or as the user says."""

from __future__ import annotations

from pathlib import Path

from ctseg.collections import datasetjson, flatpairs, outlined, pairs, services, slicetable, totalsegmentator, turned
from ctseg.collections.listing import Collection, Layout
from ctseg.errors import InputError

FLAT_KINDS = ("flat", "ph2", "isic", "coco", "labelme", "yolo")
KINDS = ("totalsegmentator", "msd", "nnunet", "pairs", "turned", "slices", *FLAT_KINDS)


def find_collection(source: Path, kind: str = "auto", layout: Layout | None = None) -> Collection:
    """List the cases of a collection.

    Args:
        source: its folder; a slice table may be named itself.
        kind: one of `KINDS`, or "auto".
        layout: what the files do not say.

    Raises:
        InputError: when there is nothing there, its layout cannot be told, or is not the one that was named.
    """
    if not source.exists():
        raise InputError(f"there is no folder {source}; name the folder of a collection")
    if source.is_file() and source.suffix.lower() != ".csv":
        raise InputError(f"{source} is a file; name the folder of a collection, or the CSV table of its slices")
    layout = layout or Layout()
    kind = _kind_of(source) if kind == "auto" else kind
    if source.is_file() and kind != "slices":
        raise InputError(f"{source} is a table, which only --kind slices takes; name a folder for --kind {kind}")
    if kind in FLAT_KINDS:
        return services.put_right(_flat(source, kind, layout), source, layout.pictures)
    if kind == "slices":
        return slicetable.list_cases(source, layout)
    if kind == "totalsegmentator":
        return totalsegmentator.list_cases(source, layout)
    if kind == "pairs":
        return pairs.list_cases(source)
    if kind == "turned":
        return turned.list_cases(source)
    return datasetjson.list_decathlon(source) if kind == "msd" else datasetjson.list_nnunet(source)


def _flat(source: Path, kind: str, layout: Layout) -> Collection:
    if kind == "flat":
        return flatpairs.list_flat(source, layout)
    if kind in ("ph2", "isic"):
        return flatpairs.list_ph2(source) if kind == "ph2" else flatpairs.list_isic(source)
    listed = {"coco": outlined.list_coco, "labelme": outlined.list_labelme, "yolo": outlined.list_yolo}
    return listed[kind](source, layout)


def _kind_of(source: Path) -> str:
    if source.is_file():
        return "slices"
    if (source / datasetjson.FILE).is_file():
        return "msd" if datasetjson.lists_its_pairs(source) else "nnunet"
    if totalsegmentator.find_subjects(source):
        return "totalsegmentator"
    if slicetable.find_table(source) is not None:
        return "slices"
    if pairs.find_folders(source) is not None:
        return "pairs"
    if turned.is_turned(source):
        return "turned"
    below = sorted(path.name for path in source.iterdir())
    found = f"{', '.join(below[:6])}{' ...' if len(below) > 6 else ''}" if below else "nothing"
    raise InputError(
        f"the layout of {source} cannot be told: found {found}; expected ct.nii.gz beside segmentations/ "
        "(TotalSegmentator), a dataset.json (Decathlon, nnU-Net), images/ beside labels/, #.nii.gz with #.txt and "
        "#-seg.nii.gz (turned heads), or a CSV table of .npy slices; name the folder right above these, or say "
        f"--kind {'|'.join(KINDS)}"
    )
