"""The output folder of a run: checked before the long work, filled all at once, nobody else's files touched.

A file may be replaced when an earlier report in the folder names it with the sha256 that it still has: then it is
ours and nobody worked on it since. Anything else of that name stays, unless the user insists.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import OutputError
from ctseg.files import REPORT_SCHEMA, file_sha256
from ctseg.outputs.labelfiles import FILES as LABEL_FILES
from ctseg.outputs.labelfiles import write_label_file
from ctseg.outputs.meshes import FACES, MESH_KINDS, mesh_names, write_meshes

if TYPE_CHECKING:
    from ctseg.organs import Organ
    from ctseg.prediction import Prediction

KINDS = ("nifti", "seg", *MESH_KINDS, "png", "json", *LABEL_FILES)
FLAT_KINDS = ("mask", "png", "json")  # of a flat image (`ctseg.flat.outputs`)
USUAL_KINDS = ("nifti", "stl", "png", "json")  # what is written when no kinds are named
MASK, SEG, PREVIEW, REPORT = "mask.nii.gz", "segmentation.dcm", "preview.png", "report.json"
_STAGING = ".ctseg-"  # of the hidden folder that is filled first


def file_names(kinds: Collection[str], labels: Mapping[str, int]) -> list[str]:
    """Names of the files that a run with these kinds of output may write."""
    names = [MASK] * ("nifti" in kinds) + [SEG] * ("seg" in kinds) + [PREVIEW] * ("png" in kinds)
    names += [name for kind, name in LABEL_FILES.items() if kind in kinds]
    return names + mesh_names(kinds, labels) + [REPORT] * ("json" in kinds)


def _own_files(out: Path) -> set[str]:
    """Names of the files in `out` that its report says ctseg wrote, and that have not changed since."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        if report["schema"] != REPORT_SCHEMA:
            return set()
        listed = {str(name): str(entry["sha256"]) for name, entry in report["outputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    own = {REPORT}
    for name, sha256 in listed.items():
        file = out / name
        if Path(name).name == name and file.is_file() and file_sha256(file) == sha256:
            own.add(name)
    return own


def check_folder(out: Path, source: Path, names: Collection[str], *, overwrite: bool = False) -> None:
    """Refuse an output folder that could not be filled, before any long work; nothing stays behind.

    Args:
        out: the folder; it need not exist.
        source: the input, which must not be written over or into.
        names: the files that are going to be written.
        overwrite: whether files that are not from an earlier run may be replaced.

    Raises:
        OutputError: `out` is a file, cannot be made or written, is the input itself, or holds a file of another's; a
            DICOM SEG is asked for of something else than DICOM.
    """
    if SEG in names:
        from ctseg.dicom.seg import check_can_write

        check_can_write(source)
    if out.exists() and not out.is_dir():
        raise OutputError(f"cannot write into {out}: it is a file, expected a folder; name another with -o")
    if out.resolve() == source.resolve():
        raise OutputError(f"cannot write into {out}: it is the input itself; name another folder with -o")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        # Rights alone do not tell: read-only mounts, network folders, root. So a folder is made there and taken back.
        Path(tempfile.mkdtemp(prefix=_STAGING, dir=there)).rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot write into {out}: {there} takes no files ({error.strerror}); name another folder with -o"
        ) from error
    own = _own_files(out)
    for name in names:
        file = out / name
        if file.exists() and source.exists() and file.samefile(source):
            raise OutputError(f"cannot write {file}: it is the input itself; name another folder with -o")
        if file.exists() and name not in own and not overwrite:
            raise OutputError(
                f"{file} is there already and is not the unchanged file of an earlier run; "
                f"name another folder with -o, or insist with --overwrite"
            )


def _write_all(
    prediction: Prediction, organs: list[Organ], kinds: Collection[str], folder: Path, faces: int | None
) -> tuple[list[Path], dict[str, float]]:
    """Write every kind but the report into a folder, and time each."""
    volume, label_map, labels = prediction.volume, prediction.label_map, prediction.labels
    files: list[Path] = []
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[stage], started = now - started, now

    if "nifti" in kinds:
        from ctseg.outputs.writing import write_mask

        files.append(Path(write_mask(label_map, volume, folder / MASK)))
        done("write mask")
    if "seg" in kinds:
        from ctseg.dicom.seg import write_prediction

        files.append(write_prediction(prediction, folder / SEG))
        done("write seg")
    colors = prediction.bundle.colors
    if not set(kinds).isdisjoint(MESH_KINDS):
        files += write_meshes(volume, label_map, labels, folder, kinds=kinds, faces=faces, colors=colors)
        done("write meshes")
    if "png" in kinds:
        from ctseg.outputs.preview import SOFT_TISSUE, width_and_level, write_preview

        shown = prediction.bundle.shown_window
        window = SOFT_TISSUE if shown is None else width_and_level(shown)
        files.append(write_preview(volume, label_map, labels, folder / PREVIEW, window=window, colors=colors))
        done("write preview")
    if asked := [kind for kind in LABEL_FILES if kind in kinds]:
        files += [write_label_file(kind, labels, colors, folder) for kind in asked]
        done("write label files")
    return files, seconds


def write_outputs(
    prediction: Prediction, out: Path, kinds: Collection[str] = USUAL_KINDS, *, faces: int | None = FACES
) -> tuple[list[Path], dict[str, Any]]:
    """Write the results of a prediction into a folder.

    All files are written into a hidden folder first and then moved, so that a failure on the way leaves `out` as it
    was. Files of an earlier run that this one does not write again (a mesh of an organ that is not found now) go.

    Args:
        prediction: what the network said.
        out: the folder, made when it is not there. `check_folder` is the caller's to ask first.
        kinds: which of `KINDS` to write.
        faces: at most so many faces for each organ's surface; None keeps all.

    Returns:
        The files written, and the report (also when "json" is not among the kinds).

    Raises:
        OutputError: a file cannot be written.
        GeometryError: the label map does not lie on the volume's grid.
    """
    from ctseg.organs import measure_organs
    from ctseg.outputs.report import build_report, write_report

    organs = measure_organs(prediction.label_map, prediction.labels, prediction.volume.source_affine)

    def fill(staging: Path) -> tuple[list[Path], dict[str, Any]]:
        files, seconds = _write_all(prediction, organs, kinds, staging, faces)
        report = build_report(prediction, organs, {**prediction.seconds, **seconds}, files)
        return files + ([write_report(report, staging / REPORT)] if "json" in kinds else []), report

    return fill_folder(out, fill)


def fill_folder(
    out: Path, fill: Callable[[Path], tuple[list[Path], dict[str, Any]]]
) -> tuple[list[Path], dict[str, Any]]:
    """Let `fill` write files into a hidden folder, then move them into `out` in place of an earlier run's.

    Args:
        out: the folder, made when it is not there.
        fill: writes into the folder that it is given, and returns its files and the report.

    Raises:
        OutputError: a file cannot be written; `out` is as it was.
    """
    earlier = _own_files(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"cannot write into {out}: {error.strerror}; name another folder with -o") from error
    try:
        files, report = fill(staging)
        written = [file.replace(out / file.name) for file in files]
        for name in earlier - {file.name for file in written}:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror}; make room or name another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(made)
    return written, report


def remove_leftovers(out: Path) -> None:
    """Take away what a run that was killed left in its folder of results, and the folder when nothing else is in it."""
    for staging in out.glob(f"{_STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True)
    _remove_empty([out])


def _remove_empty(folders: Collection[Path]) -> None:
    """Take back folders that were made for nothing; one with files in it stays."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
