"""A labelled head in 3D from a 2D ASPECTS atlas of two levels and a head template with tissue maps.

The atlas is two pictures. Each level is laid on the slice of the template that looks most alike, by the outline of the
brain; from there its regions are carried up and down: cortical ones follow the brain's outline slice by slice, deep
ones shrink like an ellipsoid. What is fluid in the template is no region. A rule, not anatomy drawn by a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError

Array = NDArray[np.float32]
Affine = NDArray[np.float64]

LEVELS = ("subcortical", "cortical")  # the names of the atlas' files; the level of the ganglia, and the one above
REGIONS = 10
# Value in the atlas -> the label on the left; on the right 10 more. The atlas counts M1-M3 before M4-M6, the task
# (as reference system B) M4-M6 before M1-M3.
LABEL_OF = {1: 1, 2: 2, 3: 3, 4: 4, 5: 8, 6: 9, 7: 10, 8: 5, 9: 6, 10: 7}
_DEEP = (1, 2, 3, 4)
# mm below and above the level in which a region is drawn; the cortical ones of the two levels meet half way
_REACH_MM = {1: (9.0, 17.0), 2: (11.0, 13.0), 3: (10.0, 15.0), 4: (14.0, 13.0)}
_CORTEX_BELOW_MM, _CORTEX_ABOVE_MM = 14.0, 22.0
LEAST_SCORE = 0.5
_BLUR = 1.5  # of a picture brought to 96 x 96
_MIDDLE = (slice(25, 71), slice(14, 82))  # of it: without the cortex, whose folds an average does not show
_LEAST_PIXELS = 10
_TISSUES = {"grey": "scgrey.nii.gz", "white": "scwhite.nii.gz", "csf": "sccsf.nii.gz", "head": "scct.nii.gz"}


@dataclass(frozen=True)
class Level:
    """One picture of the atlas, in the patient's axes.

    Attributes:
        image: (X, Y), HU of the brain, 0 outside; X grows to the patient's right, Y to the front.
        labels: (X, Y), the atlas' values.
    """

    image: Array
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Template:
    """A head in standard space, RAS, cubes.

    Attributes:
        grey, white, csf: (X, Y, Z) shares of tissue, 0 to 1.
        head: (X, Y, Z) HU of the whole head, an average of many.
        affine: (4, 4), index to RAS mm; x = 0 is the mid-plane.
    """

    grey: Array
    white: Array
    csf: Array
    head: Array
    affine: Affine

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Where grey matter, white matter and fluid together are more than half."""
        return np.asarray(self.grey + self.white + self.csf > 0.5)


def read_atlas(folder: str | Path) -> dict[str, tuple[Level, Level]]:
    """Read an atlas: age group -> (level of the ganglia, level above).

    Args:
        folder: holds `<level>_image_<group>.nii.gz` and `<level>_label_<group>.nii.gz` for both levels.

    Raises:
        InputError: no such files, a partner missing, or labels that are not those of the level.
    """
    folder = Path(folder)
    groups = sorted(
        path.name[len("cortical_label_") : -len(".nii.gz")] for path in folder.glob("cortical_label_*.nii.gz")
    )
    if not groups:
        raise InputError(
            f"there is no ASPECTS atlas in {folder}: expected cortical_label_GROUP.nii.gz, cortical_image_GROUP.nii.gz "
            "and the same for subcortical; name the folder of the atlas"
        )
    return {group: (_level(folder, "subcortical", group), _level(folder, "cortical", group)) for group in groups}


def _level(folder: Path, level: str, group: str) -> Level:
    image, labels = (_picture(folder / f"{level}_{what}_{group}.nii.gz") for what in ("image", "label"))
    wanted = {1, 2, 3, 4, 5, 6, 7} if level == "subcortical" else {8, 9, 10}
    found = set(np.unique(labels).astype(int)) - {0}
    if found != wanted or image.shape != labels.shape:
        raise InputError(
            f"the {level} level {group} of the atlas in {folder} has the labels {sorted(found)} on a grid "
            f"{labels.shape} and an image {image.shape}: expected {sorted(wanted)} and one grid; check the files"
        )
    return Level(image.astype(np.float32), labels.astype(np.uint8))


def _picture(path: Path) -> NDArray[Any]:
    array = np.asarray(_canonical(path).dataobj)
    if array.ndim != 3 or array.shape[2] != 1:
        raise InputError(f"{path} is a grid of {array.shape}: expected one picture (2D); check the atlas")
    return array[:, :, 0]


def _canonical(path: Path) -> Any:
    """A NIfTI file with its axes turned to RAS; a picture becomes a volume of one slice."""
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        if len(image.shape) == 2:
            image = nib.Nifti1Image(np.asarray(image.dataobj)[:, :, None], image.affine)
        return nib.as_closest_canonical(image)
    except (OSError, nib.filebasedimages.ImageFileError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}): expected a NIfTI file; check the path") from error


def read_template(folder: str | Path) -> Template:
    """Read the head template: `scct`, `scgrey`, `scwhite`, `sccsf` (.nii.gz) on one grid.

    The head is in Cormack units, which stretch -100..100 HU by 11 (Rorden et al., NeuroImage 61:957, 2012).

    Raises:
        InputError: a file is missing or lies on another grid.
    """
    folder = Path(folder)
    images = {name: _canonical(folder / file) for name, file in _TISSUES.items()}
    first = images["head"]
    for name, image in images.items():
        if image.shape != first.shape or not np.allclose(image.affine, first.affine):
            raise InputError(f"{folder / _TISSUES[name]} lies on another grid than the head: expected one; check it")
    arrays = {name: np.asarray(image.dataobj, dtype=np.float32) for name, image in images.items()}
    units = arrays.pop("head")
    hu = np.where(units <= 900, units - 1000, np.where(units <= 3100, (units + 9000) / 11 - 1000, units - 3000))
    return Template(**arrays, head=hu.astype(np.float32), affine=np.asarray(first.affine, dtype=np.float64))


def find_height(level: Level, template: Template, heights: tuple[float, float] = (-16.0, 44.0)) -> tuple[float, float]:
    """Find the slice of the template that looks most like a level.

    The middle of the brain decides, where the ventricles are: correlation of both pictures, a little blurred and
    brought to one outline.

    Args:
        level: of the atlas.
        template: the head.
        heights: mm between which to look.

    Returns:
        z in mm, and the correlation there.
    """
    from scipy import ndimage

    picture = ndimage.gaussian_filter(_in_outline(level.image, level.image > 0), _BLUR)[_MIDDLE]
    best = (0.0, -1.0)
    for k in range(template.head.shape[2]):
        z = float(template.affine[2, 3] + template.affine[2, 2] * k)
        if not heights[0] <= z <= heights[1]:
            continue
        cut = 34 * template.grey[..., k] + 30 * template.white[..., k] + 6 * template.csf[..., k]
        other = ndimage.gaussian_filter(_in_outline(cut, template.brain[..., k]), _BLUR)[_MIDDLE]
        if other.std() > 0 and picture.std() > 0:
            score = float(np.corrcoef(picture.ravel(), other.ravel())[0, 1])
            best = max(best, (z, score), key=lambda found: found[1])
    return best


def label_template(levels: tuple[Level, Level], template: Template) -> NDArray[np.uint8]:
    """Carry both levels of an atlas into 3D.

    Returns:
        (X, Y, Z) uint8 on the template's grid, labels 1 to 20; 1 to 10 are left.

    Raises:
        InputError: a level is found nowhere in the template, or the upper one below the lower one.
    """
    ganglia, above = (find_height(level, template) for level in levels)
    if min(ganglia[1], above[1]) < LEAST_SCORE or above[0] <= ganglia[0]:
        raise InputError(
            f"the atlas' levels were found at {ganglia[0]:g} mm (correlation {ganglia[1]:.2f}) and {above[0]:g} mm "
            f"({above[1]:.2f}) of the template: expected {LEAST_SCORE} or more, the cortical one higher; check both"
        )
    labels = np.zeros(template.head.shape, dtype=np.uint8)
    half = (above[0] + ganglia[0]) / 2
    bands = ((ganglia[0] - _CORTEX_BELOW_MM, half), (half, above[0] + _CORTEX_ABOVE_MM))
    for level, band in zip(levels, bands, strict=True):
        _carry_cortex(labels, level, template, band)
    _carry_deep(labels, levels[0], template, ganglia[0])
    labels[(template.csf > 0.5) | ~template.brain] = 0
    x = template.affine[0, 3] + template.affine[0, 0] * np.arange(labels.shape[0])
    labels[(labels > 0) & (x > 0)[:, None, None]] += REGIONS  # RAS: x grows to the patient's right
    return labels


def _carry_cortex(labels: NDArray[np.uint8], level: Level, template: Template, band: tuple[float, float]) -> None:
    """Each slice of the band takes the level's cortical regions by its own outline of the brain."""
    outline = _box(level.image > 0)
    for k in range(labels.shape[2]):
        z = template.affine[2, 3] + template.affine[2, 2] * k
        if not band[0] <= z < band[1] or template.brain[..., k].sum() < _LEAST_PIXELS:
            continue
        here = _nearest(level.labels, outline, _box(template.brain[..., k]), labels.shape[:2])
        for value, label in LABEL_OF.items():
            if value not in _DEEP:
                labels[..., k][here == value] = label


def _carry_deep(labels: NDArray[np.uint8], level: Level, template: Template, height: float) -> None:
    """Deep regions keep the scale of their own level; away from it they shrink about their middle, side by side."""
    at = round((height - template.affine[2, 3]) / template.affine[2, 2])
    here = _nearest(level.labels, _box(level.image > 0), _box(template.brain[..., at]), labels.shape[:2])
    middle_x = -template.affine[0, 3] / template.affine[0, 0]
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in here.shape], indexing="ij"))
    # the thin ones last, so that a neighbour does not cover them
    for value in (2, 1, 4, 3):
        for side in (grid[0] < middle_x, grid[0] > middle_x):
            own = (here == value) & side
            if not own.any():
                continue
            # the capsule and the insula wrap the lentiform nucleus: all three shrink about its middle
            core = own if value == 1 else (here == 2) & side
            centre = np.argwhere(core).mean(axis=0)
            for k in range(labels.shape[2]):
                away = template.affine[2, 3] + template.affine[2, 2] * k - height
                share = 1 - (away / _REACH_MM[value][int(away > 0)]) ** 2
                if share <= 0.05:
                    continue
                index = [
                    np.rint(c + (g - c) / max(0.5, np.sqrt(share))).astype(int)
                    for g, c in zip(grid, centre, strict=True)
                ]
                for axis in (0, 1):
                    np.clip(index[axis], 0, here.shape[axis] - 1, out=index[axis])
                labels[..., k][own[index[0], index[1]]] = LABEL_OF[value]


def _box(mask: NDArray[np.bool_]) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last index of a mask along both axes."""
    ends = [np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    return ((float(ends[0][0]), float(ends[0][1])), (float(ends[1][0]), float(ends[1][1])))


def _nearest(picture: NDArray[Any], outline: Any, target: Any, shape: Any) -> NDArray[Any]:
    """A picture on another grid, so that its outline's box falls on the target's."""
    index = []
    for axis in (0, 1):
        (low, high), (to_low, to_high) = outline[axis], target[axis]
        place = low + (np.arange(shape[axis]) - to_low) * (high - low) / max(1.0, to_high - to_low)
        index.append(np.clip(np.rint(place), 0, picture.shape[axis] - 1).astype(int))
    return np.asarray(picture[np.ix_(*index)])


def _in_outline(image: Array, mask: NDArray[np.bool_], size: int = 96) -> Array:
    """An image cut to the box of its brain and brought to one size, both axes by themselves."""
    from scipy import ndimage

    if mask.sum() < _LEAST_PIXELS:
        return np.zeros((size, size), np.float32)
    where = np.meshgrid(*[np.linspace(low, high, size) for low, high in _box(mask)], indexing="ij")
    found: Array = ndimage.map_coordinates(image.astype(np.float32), where, order=1)
    return found
