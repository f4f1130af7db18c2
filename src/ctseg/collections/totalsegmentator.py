"""TotalSegmentator's data set and its program's output: a folder a subject, `s0001/ct.nii.gz`.

Labels beside the image either one binary mask a structure, `segmentations/<structure>.nii.gz`, or one label map for
all. The program (`--ml`) writes the names of a label map's values into the NIfTI file itself, as a Caret label table in
a header extension; they are read from there.
"""

from __future__ import annotations

import re
from pathlib import Path

from ctseg.collections.listing import Candidate, Collection, Layout, Refusal, counted

IMAGES = ("ct.nii.gz", "ct.nii", "mri.nii.gz", "mri.nii")
MASKS = "segmentations"
LABEL_MAPS = tuple(
    f"{name}{ending}"
    for name in ("segmentations", "segmentation", "seg", "combined_labels", "labels", "label", "mask")
    for ending in (".nii.gz", ".nii")
)
_ENTRY = re.compile(rb'<Label Key="(\d+)"[^>]*><!\[CDATA\[([^\]]*)\]\]></Label>')


def find_subjects(source: Path) -> list[Path]:
    """Return the folders that hold a subject: `source` itself, or those right below it."""
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))]
    return [folder for folder in folders if _first(folder, IMAGES) and (_label_map(folder) or _has_masks(folder))]


def list_cases(source: Path, layout: Layout) -> Collection:
    """List the subjects; a folder with an image and no labels, or without a structure that is wanted, is refused."""
    candidates, refused = [], []
    subjects = {*find_subjects(source), *(path.parent for name in IMAGES for path in source.glob(f"*/{name}"))}
    for folder in sorted(subjects):
        case_id, image = folder.name or folder.resolve().name, _first(folder, IMAGES)
        combined = _label_map(folder)
        if combined is not None:
            candidates.append(Candidate(case_id, image or folder, combined))
            continue
        files = {name: _mask(folder, name) for name in layout.structures}
        found = {name: path for name, path in files.items() if path is not None}
        if missing := [name for name in files if name not in found]:
            wanted = ", ".join(f"{MASKS}/{name}.nii.gz" for name in missing)
            refused.append(Refusal(case_id, f"{folder} has no {wanted}, nor one label map for all"))
        else:
            candidates.append(Candidate(case_id, image or folder, found))
    apart = sum(not isinstance(candidate.label, Path) for candidate in candidates)
    forms = []
    if apart:
        forms.append(f"{apart} with a binary mask for each structure")
    if len(candidates) - apart:
        forms.append(f"{len(candidates) - apart} with one label map")
    saw = f"TotalSegmentator's layout, {counted(len(subjects), 'subject')} ({', '.join(forms) or 'none usable'})"
    maps = [candidate.label for candidate in candidates if isinstance(candidate.label, Path)]
    notes = []
    if (source / "meta.csv").is_file():
        notes.append(f"{source / 'meta.csv'} may hold the data set's own split: take it over with --split")
    return Collection(
        "totalsegmentator", saw, tuple(candidates), tuple(refused), label_table(maps[0]) if maps else {}, tuple(notes)
    )


def label_table(path: Path) -> dict[int, str]:
    """Return value -> name from the Caret label table inside a NIfTI label map; empty where there is none."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        extensions = getattr(nib.load(path).header, "extensions", [])
    except (OSError, ImageFileError, ValueError):  # what is wrong with it is said when the case is checked
        return {}
    table: dict[int, str] = {}
    for extension in extensions:
        content = extension.get_content()
        if isinstance(content, bytes):
            table.update({int(key): name.decode("utf-8", "replace") for key, name in _ENTRY.findall(content)})
    return {value: name for value, name in table.items() if value > 0}


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _label_map(folder: Path) -> Path | None:
    return _first(folder, LABEL_MAPS)


def _has_masks(folder: Path) -> bool:
    return any((folder / MASKS).glob("*.nii*"))


def _mask(folder: Path, name: str) -> Path | None:
    return _first(folder / MASKS, (f"{name}.nii.gz", f"{name}.nii"))
