"""`ctseg learn-fusion`: from finished masks and their references, how much each source of masks is worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import InputError

if TYPE_CHECKING:
    from ctseg.planes.learnedfusion import LearnedFusion

_EPILOG = """Masks are paired with the references by the names of their cases. Use cases that no network was trained on:
on its training cases a network looks better than it is, and would be believed too much.

examples:
  ctseg learn-fusion axial coronal sagittal --reference references -o fusion.json
  ctseg consensus a.nii.gz c.nii.gz s.nii.gz --fusion fusion.json -o mask.nii.gz"""


def add_command(commands: Any) -> None:
    """Add `ctseg learn-fusion` to the command line."""
    command = commands.add_parser(
        "learn-fusion",
        help="learn from finished masks how to join them",
        description="Count on cases with a reference how often each source of masks is right, for ctseg consensus.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("masks", type=Path, nargs="+", metavar="FOLDER", help="two or more folders of label maps")
    command.add_argument("--reference", type=Path, required=True, metavar="FOLDER", help="the true label maps")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="result, .json")
    command.add_argument("--strip", default="", metavar="ENDINGS", help="endings to leave off names, with commas")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.files import write_beside

    strip = [ending.strip() for ending in arguments.strip.split(",") if ending.strip()]
    found = learn(arguments.masks, arguments.reference, strip)
    write_beside(arguments.out, found.as_bytes())
    print(f"{found.cases} cases; of the voxels with a label in the reference, the share that gets this label:")
    for name, right in zip(found.sources, found.counts, strict=True):
        labelled = right[1:].sum()
        share = f"{right.diagonal()[1:].sum() / labelled:.3f}" if labelled else "none is labelled"
        print(f"  {name}: {share}")
    print(f"wrote {arguments.out}; next: ctseg consensus {' '.join(found.sources)} --fusion {arguments.out} -o OUT")


def learn(folders: list[Path], reference: Path, strip: list[str]) -> LearnedFusion:
    """Count over all cases that have a reference and a mask in each folder.

    Raises:
        InputError: a folder without masks, or no case that is everywhere.
        GeometryError: a mask on another grid than its reference.
        ConfigError: fewer than two folders, or values that are no labels.
    """
    from ctseg.evaluation.pairing import find_images, read_pair
    from ctseg.planes.learnedfusion import Counter

    found = [find_images(folder, strip).paths for folder in [*folders, reference]]
    cases = sorted(set(found[0]).intersection(*found[1:]))
    if not cases:
        counts = ", ".join(
            f"{folder}: {len(paths)}" for folder, paths in zip([*folders, reference], found, strict=True)
        )
        raise InputError(
            f"no case has a mask in each folder and a reference ({counts}); give the files the same names, or leave "
            "endings off with --strip _seg"
        )
    counter = Counter(_names(folders))
    for case in cases:
        pairs = [read_pair(paths[case], found[-1][case]) for paths in found[:-1]]
        counter.add([mask for _, mask in pairs], pairs[0][0].array)
    return counter.learned()


def _names(folders: list[Path]) -> list[str]:
    """A name for each folder: its own, with a number where two are called alike."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names, start=1)]
