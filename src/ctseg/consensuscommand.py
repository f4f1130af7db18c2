"""`ctseg consensus`: finished masks of one image joined, each made apart, on whatever machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, OutputError

_EPILOG = """A voxel gets the label that at least --least of the masks hold there, else 0, the background.
The masks must lie on one grid; axes stored in another order are turned. The result lies on the first one's grid.

examples:
  ctseg consensus axial.nii.gz coronal.nii.gz sagittal.nii.gz -o mask.nii.gz
  ctseg consensus reader1.nii.gz reader2.nii.gz -o both.nii.gz --least 2"""


def add_command(commands: Any) -> None:
    """Add `ctseg consensus` to the command line."""
    command = commands.add_parser(
        "consensus",
        help="join masks of one image: the label that two of three agree on",
        description="Join finished label maps of one image by vote, for example those of three planes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("masks", type=Path, nargs="+", metavar="MASK", help="two or more label maps of one image")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="result, .nii or .nii.gz")
    command.add_argument("--least", type=int, metavar="N", help="masks that must agree (default: more than half)")
    command.add_argument("--overwrite", action="store_true", help="replace a FILE that is there")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    import numpy as np

    from ctseg.pairing import on_grid_of
    from ctseg.planes import consensus
    from ctseg.reading import read_volume
    from ctseg.writing import write_mask

    if len(arguments.masks) < 2:
        raise ConfigError("a consensus needs two masks or more: name them one after the other")
    if arguments.out.exists() and not arguments.overwrite:
        raise OutputError(f"{arguments.out} is there already: name a new file, or pass --overwrite")
    volumes = [read_volume(path, modality="label") for path in arguments.masks]
    whole = [np.rint(on_grid_of(volume, volumes[0])) for volume in volumes]
    for volume, array in zip(volumes, whole, strict=True):
        if not np.array_equal(array, on_grid_of(volume, volumes[0])) or array.min() < 0 or array.max() > 255:
            raise ConfigError(f"{volume.source} is no label map: expected whole numbers from 0 to 255")
    least = len(whole) // 2 + 1 if arguments.least is None else arguments.least
    found = consensus([array.astype(np.uint8) for array in whole], least)
    write_mask(found.labels, volumes[0], arguments.out)
    for number, voxels in found.counts.items():
        print(f"{voxels:>12,} voxels with one label in {number} of {len(whole)} masks")
    print(f"{found.lost:>12,} voxels labelled by some and given to the background, since fewer than {least} agree")
    print(f"wrote {arguments.out}")
