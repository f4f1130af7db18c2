"""The datalist: which cases there are, where their images and labels lie, and which patient each belongs to.

`datalist.json` in a data folder::

    {"mask_values": {"255": "liver"}, "slice_spacing": [1.5, 1.5, 5.0],
     "cases": [{"case_id": "p1_s3", "patient": "p1", "image": "images/p1_s3.png", "label": "masks/p1_s3.png"}]}

A case whose label map does not show every organ of the task names those missing, `"not_annotated": ["gallbladder"]`:
they are ignored in the loss and the metrics, and not learnt as background (`ctseg.partial`).

Paths are absolute or relative to the data folder. What stands beside `cases` is a default for each case. The split
stands in the ledger beside it, `split.csv` (`ctseg.ledger`). No key may begin with `image_` or `label_`: MONAI's
`Spacingd` takes what is so named beside `image` and `label` for their meta data and writes into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.cases import is_volume_path
from ctseg.errors import CtsegError, InputError
from ctseg.files import write_beside
from ctseg.ledger import Ledger

DATALIST = "datalist.json"
LEDGER = "split.csv"
NOT_ANNOTATED = "not_annotated"
_OF_A_CASE = ("case_id", "patient", "image", "label")


def read_cases(dataset_dir: str | Path, datalist: str = "datalist.json") -> list[dict[str, Any]]:
    """Return every case of a data folder with absolute paths.

    Raises:
        InputError: when the datalist is missing, no JSON, has no cases, or a case lacks a patient, image or label.
    """
    folder = Path(dataset_dir)
    path = folder / datalist
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shared = {key: value for key, value in content.items() if key != "cases"}
        cases = [{**shared, **case} for case in content["cases"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"No datalist can be read from {path} ({type(error).__name__}: {error}): expected a JSON file with a list "
            'of "cases", each with case_id, patient, image and label; see docs/training.md on how to make one.'
        ) from error
    if not cases:
        raise InputError(f"The datalist {path} names no case: expected at least one; add cases to it.")
    for number, case in enumerate(cases):
        missing = [key for key in ("case_id", "patient", "image", "label") if not case.get(key)]
        if missing:
            name = case.get("case_id", number)
            raise InputError(f"Case {name} in {path} lacks {', '.join(missing)}: add it to the datalist.")
        case["patient"] = str(case["patient"])
        case["image"], case["label"] = (str(folder / case[key]) for key in ("image", "label"))
    return cases


def write_cases(dataset_dir: str | Path, cases: Sequence[Mapping[str, Any]]) -> Path:
    """Write a datalist in order of case name; what is the same for all cases stands once, above them.

    Args:
        dataset_dir: the data folder.
        cases: at least one, as `read_cases` returns them. Paths inside the data folder are written relative to it, so
            that it can be moved; others are absolute.

    Raises:
        OutputError: when it cannot be written.
    """
    home = Path(dataset_dir).resolve()
    items = [{**case, **{key: _portable(Path(case[key]), home) for key in ("image", "label")}} for case in cases]
    items.sort(key=lambda item: str(item["case_id"]))
    first = items[0]
    common = [
        key for key in first if key not in _OF_A_CASE and all(key in item and item[key] == first[key] for item in items)
    ]
    rest = [{key: value for key, value in item.items() if key not in common} for item in items]
    content = {**{key: first[key] for key in common}, "cases": rest}
    path = Path(dataset_dir) / DATALIST
    write_beside(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _portable(path: Path, home: Path) -> str:
    path = path.resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def cases_of(split: str, dataset_dir: str | Path, datalist: str = "datalist.json") -> list[dict[str, Any]]:
    """Return the cases of one split; patients that the ledger does not know yet are drawn first and kept.

    Called from a bundle's configuration. Every error becomes a SystemExit, since only that leaves `monai.bundle run`
    as a sentence.

    Args:
        split: "train", "validation" or "test".
        dataset_dir: the data folder with the datalist and the ledger.
        datalist: the datalist's file name.
    """
    try:
        cases = read_cases(dataset_dir, datalist)
        ledger = Ledger(Path(dataset_dir) / LEDGER)
        if any(ledger.split_of(case["patient"]) is None for case in cases):
            ledger.draw(case["patient"] for case in cases)
        chosen = [case for case in cases if ledger.split_of(case["patient"]) == split]
        if not chosen:
            raise InputError(
                f"None of the {len(cases)} cases in {Path(dataset_dir) / datalist} is in the split {split!r} of "
                f"{ledger.path}: expected at least one patient in it; add patients (3 at least for three splits)."
            )
        return chosen
    except CtsegError as error:
        raise SystemExit(f"ctseg: {error}") from error


def images_of(image: str | None, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Return the items of an inference run: one image (file, DICOM folder or zip), else every image of a folder.

    Raises:
        SystemExit: with a sentence, when there is nothing to read.
    """
    if image:
        return [{"image": str(image)}]
    folder = Path(dataset_dir)
    found = sorted(str(path) for path in folder.iterdir() if is_volume_path(path)) if folder.is_dir() else []
    if not found:
        raise SystemExit(
            f"ctseg: there is no image in {folder}: name one with --image PATH (NIfTI, NRRD, MetaImage, a DICOM "
            "folder or zip), or a folder of images with --dataset_dir FOLDER."
        )
    return [{"image": path} for path in found]
