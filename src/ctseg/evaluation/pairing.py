"""Masks of two folders brought together by the names of their cases, and one pair read onto one grid."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.cases import case_name, is_volume_path
from ctseg.errors import GeometryError, InputError
from ctseg.flat.reading import PICTURES
from ctseg.volume import Volume

_MASK_OF_A_RUN = "mask.nii.gz"
_FLAT_MASK_OF_A_RUN = "mask.png"  # what `ctseg segment -o DIR/<case>` and a bundle's inference write
_SEG_OF_A_RUN = "segmentation.dcm"
_SEG = (".dcm", ".dicom")

_OF_A_RUN = (_MASK_OF_A_RUN, _FLAT_MASK_OF_A_RUN, _SEG_OF_A_RUN)


@dataclass
class Found:
    """The images of a folder.

    Attributes:
        paths: case -> file.
        doubled: case -> the names of the files that claim it.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    doubled: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """What fits together by name, and what does not.

    Attributes:
        pairs: case -> (prediction, reference), in the order of the names.
        refused: case -> why it cannot be scored.
    """

    pairs: dict[str, tuple[Path, Path]]
    refused: dict[str, str]


def find_images(folder: str | Path, strip: Sequence[str] = ()) -> Found:
    """Find the masks of a folder by case: volume files, flat images, DICOM SEG, and sub-folders with a mask of a run.

    Args:
        folder: where; hidden files and other files are passed over.
        strip: endings to leave off the names of cases, such as "_seg" or "_0000".

    Raises:
        InputError: when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name one with a mask for each case")
    claims: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        path = entry
        if entry.is_dir():
            path = next((p for name in _OF_A_RUN if (p := entry / name).is_file()), entry / _MASK_OF_A_RUN)
        if is_volume_path(path) or path.name.lower().endswith((*PICTURES, *_SEG)):
            claims.setdefault(_case(entry, strip), []).append(path)
    single = {case: paths[0] for case, paths in claims.items() if len(paths) == 1}
    doubled = {case: [p.relative_to(folder).as_posix() for p in paths] for case, paths in claims.items()}
    return Found(single, {case: names for case, names in doubled.items() if len(names) > 1})


def _case(entry: Path, strip: Sequence[str]) -> str:
    name = entry.name if entry.is_dir() else entry.stem if _is_seg(entry) else case_name(entry)
    for ending in strip:
        if ending and name.endswith(ending) and name != ending:
            return name[: -len(ending)]
    return name


def pair_folders(prediction: str | Path, reference: str | Path, strip: Sequence[str] = ()) -> Pairs:
    """Pair the masks of two folders by the names of their cases, never by position.

    Raises:
        InputError: when a folder is missing or holds no mask, or no name is in both.
    """
    one, other = find_images(prediction, strip), find_images(reference, strip)
    for found, folder, what in ((one, prediction, "prediction"), (other, reference, "reference")):
        if not found.paths and not found.doubled:
            raise InputError(
                f"there is no mask in {folder}; expected files such as case_1.nii.gz, or folders such as "
                f"case_1/{_MASK_OF_A_RUN}: name the folder of the {what}s"
            )
    refused: dict[str, str] = {}
    for found, what in ((one, "prediction"), (other, "reference")):
        for case, names in found.doubled.items():
            refused[case] = f"more than one {what} has this name: {', '.join(names)}; keep one"
    known = set(one.paths) | set(other.paths)
    for case in sorted(known - set(refused)):
        if case not in one.paths:
            refused[case] = "there is a reference, but no prediction of this name"
        elif case not in other.paths:
            refused[case] = "there is a prediction, but no reference of this name"
    pairs = {case: (one.paths[case], other.paths[case]) for case in sorted(known - set(refused))}
    if not pairs:
        examples = [", ".join(sorted({*found.paths, *found.doubled})[:3]) for found in (one, other)]
        raise InputError(
            f"no case has both a prediction and a reference: the predictions are called {examples[0]} and the "
            f"references {examples[1]}; give both the same names, or leave an ending off with --strip _seg"
        )
    return Pairs(pairs, dict(sorted(refused.items())))


def read_labels(path: str | Path, value: int | None = None) -> Volume:
    """Read a label map: of a volume, or of a flat image.

    Args:
        path: the file.
        value: what a black and white mask of a flat image stands for; None leaves its values.

    Raises:
        InputError: as `ctseg.reading.read_volume` and `ctseg.flat.masks.read_mask`.
    """
    if str(path).lower().endswith(PICTURES):
        from ctseg.flat.items import flat_item

        meaning: dict[Hashable, Any] = {"mask_values": {str(value): "asked"}} if value is not None else {}
        return flat_item(path, meaning, "label")
    from ctseg.reading import read_volume

    return read_volume(path, modality="label")


def read_pair(
    prediction: str | Path, reference: str | Path, values: tuple[int, int] | None = None
) -> tuple[Volume, NDArray[Any]]:
    """Read two label maps of one image.

    A prediction whose axes are stored in another order or direction than the reference's is turned to it, which moves
    voxels but changes none. One of the two may be a DICOM SEG; it is brought onto the other's grid, with the numbers of
    its segments as values.

    Args:
        prediction: its file.
        reference: its file.
        values: of a single structure in the two, what black and white masks of flat images stand for.

    Returns:
        The reference, and the prediction's label map on the reference's grid (I, J, K).

    Raises:
        InputError: when a file cannot be read, or is no label map.
        GeometryError: when the two do not lie on one grid.
    """
    wanted = values or (None, None)
    if _is_seg(prediction) or _is_seg(reference):
        one, other = _read_with_seg(prediction, reference)
    else:
        one, other = (read_labels(path, value) for path, value in zip((prediction, reference), wanted, strict=True))
    for volume in (one, other):
        if volume.array.dtype.kind == "f" and not np.array_equal(volume.array, np.rint(volume.array)):
            raise InputError(
                f"{volume.source} holds values that are no whole numbers, up to {float(volume.array.max()):g}: "
                "expected a label map with a whole number for each organ; write the mask, not the probability"
            )
    return other, on_grid_of(one, other)


def _is_seg(path: str | Path) -> bool:
    return Path(path).suffix.lower() in _SEG and Path(path).is_file()


def _read_with_seg(prediction: str | Path, reference: str | Path) -> tuple[Volume, Volume]:
    """Read a pair of which one is a DICOM SEG: its frames alone make no grid, so it takes the other's."""
    from ctseg.dicom.segreading import read_seg_on

    paths = [Path(prediction), Path(reference)]
    if all(_is_seg(path) for path in paths):
        raise InputError(
            f"{paths[0].name} and {paths[1].name} are both DICOM SEG, which keep only slices with something on them: "
            "give one of the two as NIfTI on its CT's grid (ctseg segment --output nifti)"
        )
    place = next(number for number, path in enumerate(paths) if _is_seg(path))
    like = read_labels(paths[1 - place])
    labels, _ = read_seg_on(paths[place], like)
    volume = replace(like, array=labels, source=paths[place])
    return (volume, like) if place == 0 else (like, volume)


def on_grid_of(volume: Volume, like: Volume) -> NDArray[Any]:
    """Return a volume's array in the order of axes of another one on the same grid.

    Raises:
        GeometryError: when the two do not lie on one grid.
    """
    import nibabel as nib

    here, there = (nib.orientations.io_orientation(each.affine) for each in (volume, like))
    turn = nib.orientations.ornt_transform(here, there)
    array = nib.orientations.apply_orientation(volume.array, turn)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)
    if array.shape != like.shape or not np.allclose(affine, like.affine, atol=1e-3):
        raise GeometryError(
            f"{volume.source} of grid {_grid(volume)} does not lie on the grid {_grid(like)} of {like.source}: "
            "expected the same size, spacing, direction and origin; compare masks of the same image."
        )
    return np.asarray(array)


def _grid(volume: Volume) -> str:
    size = "x".join(map(str, volume.shape))
    spacing = "x".join(f"{length:.4g}" for length in volume.spacing)
    origin = ", ".join(f"{length:.1f}" for length in volume.affine[:3, 3])
    return f"{size} at {spacing} mm from ({origin})"


def axial_axis(affine: NDArray[Any]) -> int:
    """Return the index axis that runs nearest to feet and head: the one that axial slices are counted along."""
    import nibabel as nib

    return int(np.flatnonzero(nib.orientations.io_orientation(affine)[:, 0] == 2)[0])
