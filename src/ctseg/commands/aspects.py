"""`ctseg aspects`: mean HU of each region of a head, left against right, as table, JSON and picture."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, GeometryError, InputError
from ctseg.registry import BundleInfo, find_bundles, get_bundle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctseg.heads.levels import Levels
    from ctseg.heads.regions import Region, Regions, Twins
    from ctseg.volume import Volume

SCHEMA = "ctseg-regions/1"
TABLE, REPORT, PICTURE, MASK = "aspects.csv", "aspects.json", "aspects.png", "aspects_mask.nii.gz"
_COLUMNS = (
    "region", "side", "value", "voxels", "ml", "mean_hu", "sd_hu", "median_hu", "twin_mean_hu",
    "left_minus_right_hu", "spread_hu", "below_threshold", "darker_than_twin",
)  # fmt: skip
_EPILOG = """what is written into OUT:
  aspects.csv    a line for each region: voxels, ml, mean, SD and median HU, left minus right with its spread
  aspects.json   the same, with settings, notes and versions
  aspects.png    two levels with the regions, and the table; image left is the patient's right
  aspects_mask.nii.gz   the mask, where a network made it

Which label lies on which side is said by its name; that left ones lie left is checked by the affine, and a mirrored
mask is refused. Nothing here is a score or a diagnosis: research only.

examples:
  ctseg aspects head.nii.gz -o out
  ctseg aspects head.nii.gz --mask regions.nii.gz -o out --threshold 30
  ctseg aspects head.nii.gz --mask regions.nii.gz -o out --difference 3 --hu-range 0 80"""


def add_command(commands: Any) -> None:
    """Add `ctseg aspects` to the command line."""
    command = commands.add_parser(
        "aspects",
        help="mean HU of the regions of a head, left against right",
        description="Mean HU of each region, the left-right difference with its spread, and the regions below a "
        "stated threshold: as table, JSON and picture. Research only.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("ct", type=Path, metavar="CT", help="NIfTI, NRRD, MetaImage, a DICOM folder, or a zip of one")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    command.add_argument("--mask", type=Path, metavar="MASK", help="finished mask on the CT's grid; runs no network")
    command.add_argument(
        "--task", metavar="NAME", help="bundle whose labels these are (default: the one whose labels all have a twin)"
    )
    command.add_argument("--threshold", type=float, metavar="HU", help="name the regions whose mean lies below it")
    command.add_argument(
        "--difference", type=float, metavar="HU", help="name the regions darker than their twin by this or more"
    )
    command.add_argument(
        "--hu-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="voxels that count (default: all)"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    command.set_defaults(run=_run)


def bundle_of(name: str | None) -> BundleInfo:
    """Return the bundle of a name, or the one whose labels all come left and right; of several with the same labels the
    first that is ready, else the first.

    Raises:
        BundleError: there is none, or several with different labels.
    """
    from ctseg.sides import partners  # late: NumPy

    if name is not None:
        return get_bundle(name)
    known = [info for info in find_bundles().values() if not info.problem and info.segments]
    paired = [info for info in known if info.labels and 2 * len(partners(list(info.labels))) == len(info.labels)]
    if not paired or any(info.labels != paired[0].labels for info in paired):
        found = ", ".join(info.name for info in paired) or "none"
        raise BundleError(
            f"one bundle whose labels all come left and right is needed, found {found}; name the bundle with --task"
        )
    return next((info for info in paired if info.ready), paired[0])


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.heads.levels import find_levels
    from ctseg.heads.regions import measure_regions
    from ctseg.heads.sheet import write_sheet
    from ctseg.outputs.folder import check_folder
    from ctseg.reading import read_volume

    info = bundle_of(arguments.task)
    out: Path = arguments.out
    check_folder(out, arguments.ct, ())
    if arguments.mask is not None:
        volume = read_volume(arguments.ct)
        labels, values = mask_on(volume, arguments.mask), dict(info.labels)
    else:
        volume, labels, drawn = _predicted(arguments, info)
        values = dict(drawn)
    found = measure_regions(
        volume.array,
        labels,
        volume.affine,
        values,
        threshold=arguments.threshold,
        darker_by=arguments.difference,
        hu_range=arguments.hu_range,
    )
    if arguments.mask is None:
        found = replace(found, notes=(*found.notes, *info.said_caution))
    levels = find_levels(volume.array, labels, volume.affine, values)
    files = [_write(out / TABLE, table(found))]
    origin = f"the file {arguments.mask.name}" if arguments.mask is not None else f"{info.name} {info.version}"
    files.append(_write(out / REPORT, json.dumps(report(found, levels, volume, origin), indent=2) + "\n"))
    files.append(write_sheet(levels, found, out / PICTURE))
    if arguments.mask is None:
        from ctseg.outputs.writing import write_mask

        files.append(Path(write_mask(labels, volume, out / MASK)))
    print(told(found))
    print(f"{out}: {'  '.join(file.name for file in files)}")


def _predicted(arguments: argparse.Namespace, info: BundleInfo) -> tuple[Volume, NDArray[Any], Mapping[str, int]]:
    from ctseg.commands.segment import say
    from ctseg.registry import verify_weights

    if not arguments.ct.exists():
        raise InputError(f"there is no file or folder {arguments.ct}; name a head CT")
    verify_weights(info)
    say(f"loading {info.name} {info.version}")
    from ctseg.study import Study

    prediction = Study(arguments.ct, device=arguments.device, modality=info.modality).prediction(info, say)
    return prediction.volume, prediction.label_map, prediction.labels


def mask_on(volume: Volume, path: Path) -> NDArray[Any]:
    """Read a finished mask onto a CT's own grid: (I, J, K) integers.

    A mask whose axes are stored in another order is turned, which changes no voxel; one on the slices of a tilted
    gantry, which only its own CT can say, is taken as it lies.

    Raises:
        InputError: it cannot be read, or is no label map.
        GeometryError: it lies on another grid than the CT.
    """
    import numpy as np

    from ctseg.dicom.tilt import is_tilted
    from ctseg.evaluation.pairing import on_grid_of
    from ctseg.prepare.pairchecks import value_counts
    from ctseg.reading import read_volume

    if is_tilted(volume.affine) and path.name.lower().endswith((".nii", ".nii.gz")):
        labels = _askew(volume, path)
    else:
        labels = on_grid_of(read_volume(path, "label"), volume)
    value_counts(labels)
    return np.asarray(labels).astype(np.int32, copy=False)


def _askew(volume: Volume, path: Path) -> NDArray[np.int32]:
    """A NIfTI mask on sheared slices, which the reader of images refuses."""
    import nibabel
    import numpy as np

    try:
        image: Any = nibabel.load(path)
        array = np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); give the mask of this CT") from error
    if array.shape != volume.shape or not np.allclose(image.affine, volume.affine, atol=1e-2):
        raise GeometryError(f"{path} does not lie on the tilted slices of its CT; give the mask of this CT")
    return array


def _write(path: Path, text: str) -> Path:
    from ctseg.files import write_beside

    write_beside(path, text.encode())
    return path


def rows(found: Regions) -> list[dict[str, Any]]:
    """Return a line for each region, as the table and the JSON hold it; None where there is no value."""
    below, darker = set(found.below()), set(found.darker())
    twin_of: dict[str, tuple[Twins | None, Region | None]] = {}
    for pair in found.twins:
        twin_of[pair.left.name], twin_of[pair.right.name] = (pair, pair.right), (pair, pair.left)
    lines = []
    for one in found.regions:
        both, twin = twin_of.get(one.name, (None, None))
        numbers = (one.mean, one.sd, one.median, twin.mean if twin else None)
        of_pair = (both.difference, both.spread) if both else (None, None)
        marks = (
            one.name in below if found.threshold is not None and one.mean is not None else None,
            one.name in darker if found.darker_by is not None and of_pair[0] is not None else None,
        )
        values = (one.name, one.side, one.value, one.voxels, round(one.ml, 3), *map(_rounded, numbers + of_pair))
        lines.append(dict(zip(_COLUMNS, (*values, *marks), strict=True)))
    return lines


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def table(found: Regions) -> str:
    """Return the CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows(found):
        yes_no = {key: {True: "yes", False: "no"}.get(row[key], "") for key in _COLUMNS[-2:]}
        writer.writerow({**row, **yes_no})
    return text.getvalue()


def report(found: Regions, levels: Levels, volume: Volume, mask: str) -> dict[str, Any]:
    """Return the JSON; it names the CT by its file or series, never by a path or a patient."""
    from ctseg.heads.sheet import CONVENTION
    from ctseg.outputs.report import INTENDED_USE, source_of, versions

    return {
        "schema": SCHEMA,
        "intended_use": INTENDED_USE,
        "source": source_of(volume),
        "mask": mask,
        "settings": {"threshold_hu": found.threshold, "darker_by_hu": found.darker_by, "hu_range": found.hu_range},
        "regions": rows(found),
        "left_minus_right_over_pairs_hu": {key: _rounded(value) for key, value in found.over_twins().items()},
        "spread": "standard deviation of the difference of a voxel left and one right: sqrt(sd_left² + sd_right²)",
        "below_threshold": found.below(),
        "darker_than_twin": found.darker(),
        "picture": {
            "convention": CONVENTION,
            "straightened_degrees": round(levels.degrees, 2),
            "levels": [{"height_mm": round(one.height_mm, 1), "shows": list(one.shown)} for one in levels.levels],
        },
        "notes": [*volume.notes, *found.notes],
        "versions": versions(),
    }


def told(found: Regions) -> str:
    """Return the table for a terminal."""
    from ctseg.heads.sheet import hu
    from ctseg.outputs.report import INTENDED_USE

    lines = [f"{'region':<24} {'left':>7} {'right':>7} {'L - R':>7} {'spread':>7}   HU"]
    for pair in found.twins:
        cells = (hu(pair.left.mean), hu(pair.right.mean), hu(pair.difference, signed=True), hu(pair.spread))
        lines.append(f"{pair.name:<24} " + " ".join(f"{cell:>7}" for cell in cells))
    paired = {name for pair in found.twins for name in (pair.left.name, pair.right.name)}
    lines += [f"{one.name:<24} {hu(one.mean):>7}" for one in found.regions if one.name not in paired]
    over = found.over_twins()
    if over["pairs"]:
        lines.append(f"left minus right over {over['pairs']} pairs: {hu(over['mean'])} HU, SD {hu(over['sd'])} HU")
    if found.threshold is not None:
        lines.append(f"mean below {found.threshold:g} HU: {', '.join(found.below()) or 'none'}")
    if found.darker_by is not None:
        lines.append(f"darker than the twin by {found.darker_by:g} HU or more: {', '.join(found.darker()) or 'none'}")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, INTENDED_USE])
