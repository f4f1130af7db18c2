"""`ctseg prepare` on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, InputError
from ctseg.registry import get_bundle

_FLAT = ("flat", "ph2", "isic", "coco", "labelme", "yolo")
_KINDS = ("auto", "totalsegmentator", "msd", "nnunet", "pairs", "turned", "slices", *_FLAT)
_SHOWN = 20  # refusals on the terminal; all of them stand in the report

_EPILOG = """what is understood:
  totalsegmentator  s0001/ct.nii.gz with segmentations/<structure>.nii.gz, or one label map beside it
  msd               Medical Segmentation Decathlon: dataset.json that lists its pairs
  nnunet            nnU-Net raw: dataset.json, imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz
  pairs             images/ and labels/ (or masks/), matched by name
  turned            #.nii.gz, its ITK transform #.txt, and the mask of the turned head #-seg.nii.gz
  slices            a CSV with a row for each .npy slice: case, image, mask, 0/1 for each structure
flat images (photographs, ultrasound, single slices; png, jpg, bmp, tif, dcm), always by --kind:
  flat              a.png and a_mask.png in one folder (--suffix), or images/ and masks/, matched by name
  ph2, isic         the trees of these collections; PH2's regions of interest are ignored
  coco, labelme, yolo
                    exports of annotation services: polygons, COCO's run lengths

what is written into DATA:
  datalist.json          the cases, for training; images are never copied
  split.csv              the ledger: who trains, validates, tests; drawn or taken over once, then never changed
  prepare-report.json    voxels for each class and case, and every refusal with its reason; .csv too
  samples.html           look at it: pictures with the masks drawn
  labels/                only where masks of single structures had to be joined

examples:
  ctseg prepare Totalsegmentator_dataset_v201 -o DATA --task liver_ct_segmentation
  ctseg prepare Task03_Liver -o DATA --task liver_ct_segmentation --label liver=2
  ctseg prepare my_cts -o DATA --task liver_ct_segmentation --label liver=255 --patient '^(P\\d+)_'
  ctseg prepare slices.csv -o DATA --task liver_ct_segmentation --label liver=36 --ignore-other-labels \\
      --orientation array --slice-spacing 0.8 0.8 2.5 --split split.json
  ctseg prepare slices -o DATA --task stroke_ct_segmentation --kind flat --patient '^(\\w+)_\\d+$'
  ctseg prepare export -o DATA --task skin_lesion_segmentation --kind flat --color lesion=255,0,0"""


def add_command(commands: Any) -> None:
    """Add `ctseg prepare` to the command line."""
    command = commands.add_parser(
        "prepare",
        help="turn a collection of images and labels into a data folder for training",
        description="Check every pair of a collection and write a datalist with a split by patient.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("source", type=Path, metavar="SOURCE", help="folder of the collection, or a slice table")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="DATA", help="data folder to write")
    command.add_argument("--task", required=True, metavar="NAME", help="bundle that will be trained (ctseg tasks)")
    command.add_argument("--kind", choices=_KINDS, default="auto", help="layout of SOURCE (default: auto)")
    command.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what a value in the label files means; again for more; NAME alone: one more mask to join",
    )
    command.add_argument(
        "--ignore-other-labels", action="store_true", help="values without a name are background, not a refusal"
    )
    command.add_argument(
        "--patient",
        metavar="REGEX",
        help="its one group is the patient in a case's name; or the "
        "word runs: names with neighbouring numbers are one patient's",
    )
    command.add_argument("--split", type=Path, metavar="FILE", help="take over a split: JSON, YAML or CSV")
    command.add_argument("--fold", type=int, default=0, metavar="N", help="fold of splits_final.json (default: 0)")
    command.add_argument(
        "--orientation", metavar="HOW", help=".npy slices: radiological, array, or array:XY (axes towards X and Y)"
    )
    command.add_argument(
        "--slice-spacing", type=float, nargs=3, metavar=("X", "Y", "THICK"), help="mm of PNG and .npy slices"
    )
    command.add_argument(
        "--column", action="append", default=[], metavar="MEANING=NAME", help="column of a slice table, e.g. case=CT"
    )
    command.add_argument(
        "--flags",
        choices=("check", "masks"),
        default="check",
        help="presence flags of a slice table: check them against the masks, or make them from the masks",
    )
    command.add_argument(
        "--turn",
        choices=("mask", "ct"),
        default="mask",
        help="kind turned: bring each mask to its CT now, or let the task's ApplyItkTransformd turn the CT "
        "(default: mask)",
    )
    _add_flat_options(command)
    command.add_argument("--samples", type=int, default=24, metavar="N", help="pictures on the page (default: 24)")
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--add", action="store_true", help="keep the cases of a datalist in DATA, add these")
    existing.add_argument("--replace", action="store_true", help="make a datalist in DATA anew; the ledger stays")
    command.set_defaults(run=_run)


def _add_flat_options(command: Any) -> None:
    flat = command.add_argument_group("flat images")
    flat.add_argument("--suffix", default="", metavar="TEXT", help="of a mask's name beyond its image's (_mask)")
    flat.add_argument(
        "--masks", default="", metavar="NAME", help="folder of the masks below SOURCE, where several may be"
    )
    flat.add_argument(
        "--color",
        action="append",
        default=[],
        metavar="NAME=R,G,B",
        help="what a colour in the masks means; again for more",
    )
    flat.add_argument(
        "--pixel-spacing", type=float, nargs=2, metavar=("ROWS", "COLUMNS"), help="mm between rows and between columns"
    )
    flat.add_argument(
        "--pictures", type=Path, metavar="DIR",
        help="an annotation service's export: the images that were sent (images/ of ctseg export-images), to be used "
        "in place of its copies; with --sizes resize where the service changed their size",
    )  # fmt: skip
    flat.add_argument(
        "--draw", action="store_true", help="draw a split by patient though there are folders train/, valid/, test/"
    )
    flat.add_argument(
        "--sizes", choices=("refuse", "resize"), default="refuse", help="masks of another size than their image"
    )
    flat.add_argument("--empty", choices=("keep", "refuse"), default="keep", help="images on which nothing is outlined")


def parse_colors(texts: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Split "lesion=255,0,0" into structure -> (r, g, b).

    Raises:
        ConfigError: when it is no such text, or a structure or colour comes twice.
    """
    colors: dict[str, tuple[int, int, int]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        parts = [part.strip() for part in value.split(",")]
        if not name.strip() or len(parts) != 3 or not all(part.isdigit() and int(part) < 256 for part in parts):
            raise ConfigError(f"--color {text!r} cannot be understood: expected NAME=R,G,B with numbers 0 to 255")
        color = (int(parts[0]), int(parts[1]), int(parts[2]))
        if name.strip() in colors or color in colors.values():
            raise ConfigError(f"--color {text!r}: the structure or the colour was named before; name each once")
        colors[name.strip()] = color
    return colors


def parse_values(texts: Sequence[str]) -> tuple[dict[int, str], tuple[str, ...]]:
    """Split "liver=36" and "liver" into value -> structure and further structures.

    Raises:
        ConfigError: when a value is no whole number from 1, or has two names.
    """
    values: dict[int, str] = {}
    names = []
    for text in texts:
        name, given, value = text.partition("=")
        name = name.strip()
        if not name or (given and not (value.strip().isdigit() and int(value) > 0)):
            raise ConfigError(f"--label {text!r} cannot be understood: expected NAME=VALUE with a whole number from 1")
        if not given:
            names.append(name)
        elif values.setdefault(int(value), name) != name:
            raise ConfigError(f"--label gives the value {value} two names, {values[int(value)]} and {name}")
    return values, tuple(names)


def _columns(texts: Sequence[str]) -> dict[str, str]:
    columns = {}
    for text in texts:
        meaning, given, column = text.partition("=")
        if not (meaning and given and column):
            raise ConfigError(f"--column {text!r} cannot be understood: expected MEANING=NAME, for example case=CT")
        columns[meaning.strip()] = column.strip()
    return columns


def _run(arguments: argparse.Namespace) -> None:
    bundle = get_bundle(arguments.task)
    values, structures = parse_values(arguments.label)
    columns = _columns(arguments.column)
    spacing = arguments.slice_spacing
    if spacing is not None and not all(0 < mm < 1000 for mm in spacing):
        raise ConfigError(f"--slice-spacing {' '.join(map(str, spacing))}: expected three sizes above 0 mm")
    if arguments.orientation is not None:
        from ctseg.slices import axes_of

        axes_of(arguments.orientation)

    from tqdm import tqdm  # type: ignore[import-untyped]

    from ctseg.prepare.plan import Request
    from ctseg.prepare.preparing import prepare
    from ctseg.prepare.report import SAMPLES, summarise, write_report, write_samples

    request = Request(
        source=arguments.source,
        out=arguments.out,
        kind=arguments.kind,
        values=values,
        structures=structures,
        patient=arguments.patient,
        split=arguments.split,
        fold=arguments.fold,
        slice_spacing=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
        orientation=arguments.orientation,
        columns=columns,
        flags=arguments.flags,
        other_labels=arguments.ignore_other_labels,
        turn=arguments.turn,
        suffix=arguments.suffix,
        masks=arguments.masks,
        colors=parse_colors(arguments.color),
        pixel_spacing=_pixel_spacing(arguments.pixel_spacing),
        sizes=arguments.sizes,
        empty=arguments.empty,
        pictures=arguments.pictures,
        draw=arguments.draw,
        existing="add" if arguments.add else "replace" if arguments.replace else "refuse",
    )
    prepared = prepare(request, bundle, _say, lambda cases: tqdm(cases, unit="case", disable=None))
    report = summarise(prepared, bundle, arguments.source)
    files = write_report(report, arguments.out)
    if prepared.taken:
        _say("drawing samples")
        write_samples(prepared, bundle, report, arguments.out / SAMPLES, max(1, arguments.samples))
        if prepared.turns:
            from ctseg.turning.report import PAGE, write_turns

            write_turns(prepared.turns, arguments.out)
            _say(f"wrote {arguments.out / PAGE}: CT and mask before and after the turn")
    print(_told(report))
    if not prepared.taken:
        raise InputError(f"no case could be taken, {len(prepared.refused)} were refused; the reasons are in {files[1]}")
    print(f"{arguments.out}: datalist.json  split.csv  {files[0].name}  {files[1].name}  {SAMPLES}")
    print(f"look at {arguments.out / SAMPLES} before training")


def _pixel_spacing(given: Sequence[float] | None) -> tuple[float, float] | None:
    if given is not None and not all(0 < mm < 1000 for mm in given):
        raise ConfigError(f"--pixel-spacing {' '.join(map(str, given))}: expected two sizes above 0 mm")
    return None if given is None else (given[0], given[1])


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr)


def _told(report: dict[str, Any]) -> str:
    lines = [f"saw {report['saw']}", ""]
    names = report["structures"]
    rows = [("split", "patients", "cases", *(f"{report['unit']} of {name}" for name in names))]
    for split, sums in report["splits"].items():
        counts = (f"{sums['voxels'][name]:,}" for name in names)
        rows.append((split, str(sums["patients"]), str(sums["cases"]), *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        lines.append("  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))
    empty = [split for split, sums in report["splits"].items() if not sums["patients"]]
    lines += ["", *(f"note: {note}" for note in report["notes"])]
    if empty and report["cases"]:
        lines.append(f"note: nobody is in {', '.join(empty)}")
    refused = report["refused"]
    lines.append(f"{len(report['cases'])} cases taken, {len(refused)} refused")
    lines += [f"  {refusal['case_id']}: {refusal['reason']}" for refusal in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        lines.append(f"  ... and {len(refused) - _SHOWN} more, in the report")
    return "\n".join(lines)
