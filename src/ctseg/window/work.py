"""What the window does when a button is pressed: read an image, find what was chosen, write the files to take home."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.flat.images import HU
from ctseg.flat.reading import FILMS, count_frames, is_flat_path, read_flat
from ctseg.outputs.folder import REPORT, write_outputs
from ctseg.outputs.meshes import FACES
from ctseg.reading import read_volume
from ctseg.registry import BundleInfo
from ctseg.study import Predictors
from ctseg.window.case import Case
from ctseg.window.choices import MODALITY, check_fits, flat_bundles, organs_of
from ctseg.window.flatcase import Answer, FlatCase

KINDS = ("nifti", "stl", "glb", "png", "json")
VOLUMES = ".nii, .nii.gz, .nrrd, .mha, or a zip of a DICOM folder"
PICTURES = ".png, .jpg, .bmp, .tif, or one .dcm"
_VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip")
_FILMS = tuple(ending for ending in FILMS if ending != ".gif")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """What was found, measured and written.

    Attributes:
        case: the image with what was found.
        files: what can be taken home, by name.
        report: the content of the report.
    """

    case: Case | FlatCase
    files: dict[str, Path]
    report: dict[str, Any]


def read_case(path: Path, root: Path | None = None) -> Case | FlatCase:
    """Read what was dropped: a picture or a single DICOM image as a flat image, all else as a volume.

    A single DICOM slice of a CT is a volume of one slice where no bundle of the folder looks at single CT slices.

    Args:
        path: the file, or a folder of DICOM files.
        root: folder of the bundles; None takes the shipped ones.

    Raises:
        InputError, GeometryError: see `ctseg.reading.read_volume` and `ctseg.flat.reading.read_flat`.
    """
    if path.is_file() and not is_flat_path(path) and not path.name.lower().endswith(_VOLUME_ENDINGS):
        raise InputError(
            f"{path} is of no format that the window knows; give a CT ({VOLUMES}) or a flat image ({PICTURES})"
        )
    if not is_flat_path(path):
        return Case(read_volume(path, MODALITY))
    if (frames := _frames(path)) != 1:
        raise InputError(
            f"{path} is {f'{frames} pictures in one file' if frames else 'a film'}, and the window takes one picture; "
            "save one as a PNG, or take ctseg segment, which goes through them all"
        )
    image = read_flat(path)
    if image.kind == HU and not any(info.modality == MODALITY and info.ready for info in flat_bundles(root)):
        return Case(read_volume(path, MODALITY))
    return FlatCase(image)


def find(
    case: Case | FlatCase, chosen: Sequence[str], predictors: Predictors, out: Path, progress: Progress | None = None
) -> Results:
    """Look for what was chosen, measure it and write everything that can be taken home.

    Args:
        case: the image.
        chosen: names of `ctseg.window.choices.Choice`s; of organs in order of priority.
        predictors: loaded networks, kept warm between images.
        out: folder of the files.
        progress: called with the name of each stage when it begins.

    Raises:
        InputError: nothing is chosen, or the image is of another kind.
        CtsegError: see `ctseg.api.segment_volume` and `ctseg.prediction.Predictor.predict`.
    """
    if not chosen:
        raise InputError("nothing is chosen; choose what is to be looked for")
    if isinstance(case, FlatCase):
        return _find_on_flat(case, chosen[0], predictors, out, progress or (lambda stage: None))
    return find_organs(case, organs_of(chosen, predictors.root), predictors, out, progress)


def find_organs(
    case: Case, organs: Sequence[str], predictors: Predictors, out: Path, progress: Progress | None = None
) -> Results:
    """Do what `find` does with a volume.

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
    return _results(Case(case.volume, found), files, report, out)


def _find_on_flat(case: FlatCase, bundle: str, predictors: Predictors, out: Path, tell: Progress) -> Results:
    from ctseg.flat.items import flat_volume
    from ctseg.flat.outputs import with_load, write_flat

    info = predictors.bundle(bundle)
    check_fits(case.image, info)
    if info.classifies:
        return _answered(case, info, predictors, out, tell)
    started = time.perf_counter()
    predictor = predictors.segmenter(info)
    load = time.perf_counter() - started
    found = with_load(predictor.predict(flat_volume(case.image), tell), load)
    tell("write")
    files, report = write_flat(found, case.image, out)
    return _results(FlatCase(case.image, found), files, report, out)


def _answered(case: FlatCase, info: BundleInfo, predictors: Predictors, out: Path, tell: Progress) -> Results:
    """What a classifier says of the image, and its report."""
    from ctseg.flat.items import flat_volume
    from ctseg.outputs.report import build_presence_report, write_report

    found = predictors.classifier(info).predict(flat_volume(case.image), tell)
    tell("write")
    values = zip(found.labels, found.probability[0], strict=True)
    answers = tuple(Answer(name, float(value), bool(value >= found.threshold)) for name, value in values)
    report = build_presence_report(found, found.seconds, [])
    out.mkdir(parents=True, exist_ok=True)
    return _results(FlatCase(case.image, answers=answers), [write_report(report, out / REPORT)], report, out)


def _results(done: Case | FlatCase, files: Sequence[Path], report: dict[str, Any], out: Path) -> Results:
    done.rows(done.planes[0], 0)  # measures it here, where the page does not wait
    everything = _zipped(files, out / "everything.zip")
    return Results(done, {file.name: file for file in (*files, everything)}, report)


def _zipped(files: Sequence[Path], path: Path) -> Path:
    """All files in one; masks and pictures are compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for file in files:
            bundle.write(file, file.name)
    return path


def _frames(path: Path) -> int:
    """How many pictures a file holds; 0 for a film, which nobody has counted."""
    return 0 if path.name.lower().endswith(_FILMS) else count_frames(path)
