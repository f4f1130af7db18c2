"""What the window does when a button is pressed: read an image, find organs, write the files to take home."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.meshes import FACES
from ctseg.organchoice import segmented_organs
from ctseg.outputs import write_outputs
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo, find_bundles
from ctseg.study import Predictors
from ctseg.window.case import Case

KINDS = ("nifti", "stl", "glb", "png", "json")
MODALITY = "CT"


@dataclass(frozen=True)
class Results:
    """What was found, measured and written.

    Attributes:
        case: the image with its mask.
        files: what can be taken home, by name.
        report: the content of report.json.
        diameters: longest axial diameter in mm of each organ that was found.
    """

    case: Case
    files: dict[str, Path]
    report: dict[str, Any]
    diameters: dict[str, float]


def organs_ready(root: Path | None = None) -> dict[str, BundleInfo]:
    """Return the organs that can be found now, each with the bundle that is taken for it."""
    known = segmented_organs(find_bundles(root), MODALITY)
    ready = {name: [info for info in infos if info.ready] for name, infos in known.items()}
    return {name: min(infos, key=lambda info: len(info.labels)) for name, infos in ready.items() if infos}


def read_case(path: Path) -> Case:
    """Read what was dropped.

    Raises:
        InputError, GeometryError: see `ctseg.reading.read_volume`.
    """
    return Case(read_volume(path, MODALITY))


def find_organs(
    case: Case,
    organs: Sequence[str],
    predictors: Predictors,
    out: Path,
    progress: Callable[[str], None] | None = None,
) -> Results:
    """Segment, measure and write everything that can be taken home.

    Args:
        case: the image.
        organs: names in order of priority.
        predictors: loaded networks, kept warm between images.
        out: folder of the files.
        progress: called with the name of each stage when it begins.

    Raises:
        InputError: no organ is chosen.
        CtsegError: see `ctseg.api.segment_volume`.
    """
    from ctseg.api import segment_volume

    if not organs:
        raise InputError("no organ is chosen; choose one or more")
    tell = progress or (lambda stage: None)
    found = segment_volume(case.volume, organs=organs, predictors=predictors, progress=tell).prediction
    tell("write")
    files, report = write_outputs(found, out, KINDS, faces=FACES)
    done = Case(case.volume, found)
    everything = _zipped(files, out / "everything.zip")
    return Results(done, {file.name: file for file in (*files, everything)}, report, dict(done.diameters_mm()))


def _zipped(files: Sequence[Path], path: Path) -> Path:
    """All files in one; masks and pictures are compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for file in files:
            bundle.write(file, file.name)
    return path
