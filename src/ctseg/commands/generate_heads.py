"""`ctseg generate-heads`: labelled head CTs out of an atlas and a template, to train on where there are no patients."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError

_TASK = "aspects_ct_segmentation"  # whose labels 1 to 20 these are

_EPILOG = """what is written into DIR:
  images/head_SEED_NNNN.nii.gz   CT in HU, oblique, turned, of varied slice thickness
  labels/head_SEED_NNNN.nii.gz   the labels 1 to 20 on the same grid
  dataset.json                   names and pairs, as ctseg prepare takes them
  generated.json                 what was drawn at random for each head

The heads are made up: nothing that is measured on them is evidence about patients.

example:
  ctseg generate-heads aspects_atlas head_ct_template --number 60 --seed 0 --output heads
  ctseg prepare heads -o DATA --task aspects_ct_segmentation"""


def add_command(commands: Any) -> None:
    """Add `ctseg generate-heads` to the command line."""
    command = commands.add_parser(
        "generate-heads",
        help="make labelled head CTs from an ASPECTS atlas and a head template",
        description="Generate head CTs with the twenty ASPECTS regions; the same seed gives the same files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("atlas", type=Path, metavar="ATLAS_FOLDER", help="two levels: {sub,}cortical_{image,label}_*")
    command.add_argument("template", type=Path, metavar="TEMPLATE", help="folder with scct, scgrey, scwhite, sccsf")
    command.add_argument("--number", type=int, required=True, metavar="N", help="how many heads")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="other seeds, other heads (default: 0)")
    command.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--task", default=_TASK, metavar="NAME", help=f"bundle whose label names are written ({_TASK})"
    )
    command.add_argument(
        "--pixel", type=float, nargs=2, metavar="MM", help="smallest and largest size of a pixel (default: 0.8 1.2)"
    )
    command.add_argument(
        "--slices", type=float, nargs="+", metavar="MM", help="slice thicknesses to choose from (1.25 2.5 3 5)"
    )
    command.add_argument("--turn", type=float, metavar="DEGREES", help="largest turn of the head (default: 20)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ctseg.heads.drawing import Limits
    from ctseg.heads.generating import DATASET, TOLD, generate_heads
    from ctseg.registry import get_bundle

    limits = Limits()
    pixels = tuple(arguments.pixel or limits.pixels)
    slices = tuple(arguments.slices or limits.slices)
    turn = limits.turn if arguments.turn is None else arguments.turn
    if not (0.2 <= pixels[0] <= pixels[1] <= 10 and all(0.2 <= mm <= 20 for mm in slices) and 0 <= turn <= 40):
        raise ConfigError(
            f"heads with pixels of {pixels} mm, slices of {slices} mm, turned up to {turn:g} degrees cannot be made: "
            "expected pixels of 0.2 to 10 mm (the smaller first), slices of 0.2 to 20 mm, 0 to 40 degrees"
        )
    names = get_bundle(arguments.task).labels
    with tqdm(total=arguments.number, unit="head", disable=None) as bar:
        written = generate_heads(
            arguments.atlas,
            arguments.template,
            arguments.output,
            arguments.number,
            arguments.seed,
            names,
            Limits(turn=turn, pixels=(pixels[0], pixels[1]), slices=slices),
            lambda _: bar.update(),
        )
    print(f"{arguments.output}: {len(written)} heads  {DATASET}  {TOLD}")
    print(f"next: ctseg prepare {arguments.output} -o DATA --task {arguments.task}")
