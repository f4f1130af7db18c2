"""`ctseg consensus`: finished masks of one image joined, each made apart, on whatever machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from ctseg.planes.learnedfusion import LearnedFusion

_EPILOG = """A voxel gets the label that at least --least of the masks hold there, else 0, the background.
The masks must lie on one grid; axes stored in another order are turned. The result lies on the first one's grid.
With folders instead of masks, each case that is in all of them is joined into the folder of -o.
With --fusion each mask counts by how often it was right (ctseg learn-fusion); the order of the masks is the one learnt.

examples:
  ctseg consensus axial.nii.gz coronal.nii.gz sagittal.nii.gz -o mask.nii.gz
  ctseg consensus reader1.nii.gz reader2.nii.gz -o both.nii.gz --least 2
  ctseg consensus axial coronal sagittal -o joined --fusion fusion.json"""


def add_command(commands: Any) -> None:
    """Add `ctseg consensus` to the command line."""
    command = commands.add_parser(
        "consensus",
        help="join masks of one image: the label that two of three agree on",
        description="Join finished label maps of one image by vote, for example those of three planes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "masks", type=Path, nargs="+", metavar="MASK", help="two or more label maps of one image, or folders"
    )
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="result, .nii or .nii.gz; a folder for folders"
    )
    command.add_argument("--least", type=int, metavar="N", help="masks that must agree (default: more than half)")
    command.add_argument("--fusion", type=Path, metavar="FILE", help="of ctseg learn-fusion, instead of a vote")
    command.add_argument("--overwrite", action="store_true", help="replace a FILE that is there")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.planes.learnedfusion import read_fusion

    if len(arguments.masks) < 2:
        raise ConfigError("a consensus needs two masks or more: name them one after the other")
    if arguments.fusion is not None and arguments.least is not None:
        raise ConfigError("--least is of a vote and --fusion takes none: give one of the two")
    fusion = None if arguments.fusion is None else read_fusion(arguments.fusion)
    folders = [path for path in arguments.masks if path.is_dir()]
    if not folders:
        _join(arguments.masks, arguments.out, arguments, fusion)
        return
    if len(folders) < len(arguments.masks):
        raise InputError(f"{folders[0]} is a folder, and not all others are: give masks only, or folders only")
    if arguments.out.is_file():
        raise OutputError(f"{arguments.out} is a file, and folders are joined: name a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case, paths in _cases(arguments.masks).items():
        print(f"{case}:")
        _join(paths, arguments.out / f"{case}.nii.gz", arguments, fusion)


def _cases(folders: list[Path]) -> dict[str, list[Path]]:
    """Case -> its masks in the order of the folders, of those cases that all folders have."""
    from ctseg.evaluation.pairing import find_images

    found = [find_images(folder).paths for folder in folders]
    cases = sorted(set(found[0]).intersection(*found[1:]))
    if not cases:
        counts = ", ".join(f"{folder}: {len(paths)}" for folder, paths in zip(folders, found, strict=True))
        raise InputError(f"no case has a mask in each folder ({counts}): give the files of a case the same name")
    for case in sorted({name for paths in found for name in paths} - set(cases)):
        print(f"{case}: not in every folder, left out")
    return {case: [paths[case] for paths in found] for case in cases}


def _join(masks: list[Path], out: Path, arguments: argparse.Namespace, fusion: LearnedFusion | None) -> None:
    """Read the masks of one image, join them, write the result and print what came of it."""
    import numpy as np

    from ctseg.evaluation.pairing import on_grid_of
    from ctseg.outputs.writing import write_mask
    from ctseg.planes.voting import consensus
    from ctseg.reading import read_volume

    if out.exists() and not arguments.overwrite:
        raise OutputError(f"{out} is there already: name a new file, or pass --overwrite")
    volumes = [read_volume(path, modality="label") for path in masks]
    whole = [np.rint(on_grid_of(volume, volumes[0])) for volume in volumes]
    for volume, array in zip(volumes, whole, strict=True):
        if not np.array_equal(array, on_grid_of(volume, volumes[0])) or array.min() < 0 or array.max() > 255:
            raise ConfigError(f"{volume.source} is no label map: expected whole numbers from 0 to 255")
    arrays = [array.astype(np.uint8) for array in whole]
    if fusion is not None:
        labels = fusion.fuse(arrays)
        some = np.any([array > 0 for array in arrays], axis=0)
        print(f"{int((labels > 0).sum()):>12,} voxels labelled by the fusion learnt of {fusion.cases} cases")
        print(f"{int((some & (labels == 0)).sum()):>12,} voxels labelled by some and given to the background")
    else:
        least = len(arrays) // 2 + 1 if arguments.least is None else arguments.least
        found = consensus(arrays, least)
        labels = found.labels
        for number, voxels in found.counts.items():
            print(f"{voxels:>12,} voxels with one label in {number} of {len(arrays)} masks")
        print(f"{found.lost:>12,} voxels labelled by some and given to the background, since fewer than {least} agree")
    write_mask(labels, volumes[0], out)
    print(f"wrote {out}")
