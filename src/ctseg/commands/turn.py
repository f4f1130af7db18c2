"""`ctseg turn`: a CT to its mask or a mask to its CT by an ITK transform, with pictures of before and after."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, CtsegError, InputError

_CT, _MASK, _PICTURE, _REPORT = "turned_ct.nii.gz", "mask_on_ct.nii.gz", "turn.png", "report.json"

_EPILOG = """what is written into OUT, for one case:
  turned_ct.nii.gz    the CT on the grid of its mask (--direction ct; without a mask on its own grid)
  mask_on_ct.nii.gz   the mask on exactly the CT's grid (--direction mask)
  turn.png            CT and mask as the files lie, turned, and turned the other way: look which one fits
  report.json         Euler angles in degrees, kind, and how much of the mask lies on brain tissue each time
for a folder of cases #.nii.gz, #.txt, #-seg.nii[.gz]:
  turns.csv, turns.html   the angles of every case and its pictures; nothing is resampled onto disk

The transform is ITK's (text .txt or .tfm, .mat, .h5), rigid or affine, in LPS, and leads from the turned space to
the scanner's, as ITK resamples. --inverse takes files that hold the opposite.

examples:
  ctseg turn 3.nii.gz 3.txt --mask 3-seg.nii.gz -o out                     the CT to its mask
  ctseg turn 3.nii.gz 3.txt --mask 3-seg.nii.gz -o out --direction mask    the mask back to the CT
  ctseg turn heads -o out                                                  angles and pictures of all cases"""


def add_command(commands: Any) -> None:
    """Add `ctseg turn` to the command line."""
    command = commands.add_parser(
        "turn",
        help="turn a CT to its mask, or back, by an ITK transform",
        description="Resample a CT or a mask by a rigid or affine ITK transform, and show before and after.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("input", type=Path, metavar="INPUT", help="the CT, or a folder of cases")
    command.add_argument("transform", type=Path, nargs="?", metavar="TRANSFORM", help="ITK transform file of the CT")
    command.add_argument("--mask", type=Path, metavar="MASK", help="label map that lies in the turned space")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    command.add_argument(
        "--direction", choices=("ct", "mask"), default="ct", help="what is turned to the other (default: ct)"
    )
    command.add_argument(
        "--interpolation", choices=("bspline", "linear"), default="bspline", help="of the CT (default: bspline)"
    )
    command.add_argument(
        "--labels",
        choices=("nearest", "gaussian", "linear"),
        default="nearest",
        help="interpolation of the mask (default: nearest)",
    )
    command.add_argument("--inverse", action="store_true", help="the files lead from the scanner's to the turned space")
    command.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT even when they are not from an earlier run"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.transform is None:
        _folder(arguments)
        return
    from ctseg.outputs.folder import check_folder, fill_folder
    from ctseg.reading import read_volume
    from ctseg.turning.itktransforms import read_transform
    from ctseg.turning.report import look_at, told

    if arguments.direction == "mask" and arguments.mask is None:
        raise ConfigError("--direction mask turns a mask, but none is named; add --mask MASK")
    result = _MASK if arguments.direction == "mask" else _CT
    check_folder(arguments.out, arguments.input, (result, _PICTURE, _REPORT), overwrite=arguments.overwrite)
    transform = read_transform(arguments.transform)
    transform = transform.inverse() if arguments.inverse else transform
    ct = read_volume(arguments.input)
    mask = read_volume(arguments.mask, "label") if arguments.mask is not None else None
    _check_values(mask)
    _say("drawing before and after")
    turned = look_at(ct.source.name.partition(".")[0], ct, transform, mask)

    def fill(folder: Path) -> tuple[list[Path], dict[str, Any]]:
        _say("resampling")
        files = [_write(ct, mask, transform, arguments, folder / result), folder / _PICTURE]
        files[1].write_bytes(turned.picture)
        report = _report(turned.row, arguments, files)
        (folder / _REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return [*files, folder / _REPORT], report

    files, _ = fill_folder(arguments.out, fill)
    print(told([turned.row]))
    print(f"{arguments.out}: {'  '.join(file.name for file in files)}")
    print(f"look at {arguments.out / _PICTURE}: the mask must fit after the turn")


def _write(ct: Any, mask: Any, transform: Any, arguments: argparse.Namespace, path: Path) -> Path:
    from ctseg.outputs.writing import write_mask
    from ctseg.turning.resampling import map_back, turn_volume

    if arguments.direction == "mask":
        return write_mask(map_back(mask.array, mask.affine, transform, ct, arguments.labels), ct, path)
    grid = ct if mask is None else mask
    turned = turn_volume(ct, transform, grid.affine, grid.shape, arguments.interpolation)
    import nibabel

    image = nibabel.Nifti1Image(turned.array, turned.affine)
    image.set_qform(turned.affine, 1)
    image.set_sform(turned.affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def _report(row: dict[str, Any], arguments: argparse.Namespace, files: list[Path]) -> dict[str, Any]:
    from ctseg import __version__
    from ctseg.files import REPORT_SCHEMA, file_sha256

    return {
        "schema": REPORT_SCHEMA,
        "ctseg": __version__,
        "direction": arguments.direction,
        "inverse": arguments.inverse,
        "turn": row,
        "outputs": {file.name: {"sha256": file_sha256(file)} for file in files},
    }


def _check_values(mask: Any) -> None:
    from ctseg.prepare.pairchecks import value_counts

    if mask is not None and (wrong := [value for value in value_counts(mask.array) if not 0 <= value <= 255]):
        raise InputError(f"{mask.source} has the value {wrong[0]}, but labels are 0 to 255; export the mask again")


def _folder(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ctseg.collections.turned import TRANSFORM, list_cases
    from ctseg.reading import read_volume
    from ctseg.turning.itktransforms import read_transform
    from ctseg.turning.report import look_at, told, write_turns

    if arguments.mask is not None:
        raise ConfigError("--mask goes with one CT and its transform; a folder has its masks inside (#-seg.nii.gz)")
    if not arguments.input.is_dir():
        raise InputError(
            f"{arguments.input} comes without a transform; name it after the CT, or give a folder of cases "
            "#.nii.gz, #.txt, #-seg.nii.gz"
        )
    collection = list_cases(arguments.input)
    refused = [(refusal.case_id, refusal.reason) for refusal in collection.refused]
    found = []
    for candidate in tqdm(collection.candidates, unit="case", disable=None):
        try:
            transform = read_transform(candidate.keys[TRANSFORM])
            transform = transform.inverse() if arguments.inverse else transform
            mask = read_volume(Path(str(candidate.label)), "label")
            _check_values(mask)
            found.append(look_at(candidate.case_id, read_volume(candidate.image), transform, mask))
        except CtsegError as error:
            refused.append((candidate.case_id, " ".join(str(error).split())))
    if not found:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in refused[:3]) or "no such files"
        raise InputError(f"{arguments.input} has no case #.nii.gz, #.txt, #-seg.nii.gz that can be used ({reasons})")
    files = write_turns(found, arguments.out)
    print(told([turned.row for turned in found]))
    for case, reason in refused:
        print(f"  refused {case}: {reason}")
    print(f"{arguments.out}: {'  '.join(file.name for file in files)}")


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)
