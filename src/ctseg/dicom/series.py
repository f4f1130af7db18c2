"""The geometry of a DICOM series: which series to take, and whether its slices make one even, straight stack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import GeometryError, InputError
from ctseg.geometry import SHEAR_TOLERANCE, check_affine, check_spacing, ras_from_lps

# Positions are often written with one decimal: each may be 0.05 mm off, so that 0.625 mm shows as 0.6 and 0.7.
_EVEN_MM = 0.105
_EVEN_SHARE = 0.03
_SIDEWAYS_MM = 0.1
_TILT_DEGREES = 0.1
LARGEST_TILT = 35.0  # degrees; scanners tilt by 30 at most
_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3


@dataclass(frozen=True)
class Slice:
    """What one file says about where its image lies. Lengths in mm, directions and positions in LPS."""

    TAGS: ClassVar[tuple[str, ...]] = (
        "0008|0008", "0008|0018", "0008|0060", "0018|0050", "0018|1120", "0020|000e", "0020|0011", "0020|0032",
        "0020|0037", "0020|0052", "0028|0002", "0028|0008", "0028|0010", "0028|0011", "0028|0030", "0028|0100",
        "0028|1052", "0028|1053",
    )  # fmt: skip

    path: Path
    series_uid: str
    series_number: str
    image_uid: str
    frame_of_reference: str
    rows: int
    columns: int
    frames: int
    bits: int
    rescaled: bool
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    thickness: float
    tilt: float

    @classmethod
    def from_tags(cls, path: Path, tags: dict[str, str], modality: str) -> tuple[Slice | None, str]:
        """Return the slice, or None with the reason why the file is passed over."""
        found = tags.get("0008|0060", "").upper()
        if found != modality:
            return None, f"of modality {found or 'unknown'}"
        if "LOCALIZER" in tags.get("0008|0008", "").upper():
            return None, "localizer"
        if tags.get("0028|0002", "1") != "1":
            return None, "colour image"
        frames = int(_number(tags, "0028|0008", 1))
        lists = [_numbers(tags, key) for key in ("0020|0032", "0020|0037", "0028|0030")]
        if frames == 1 and [len(numbers) for numbers in lists] != [3, 6, 2]:
            return None, "image without position, orientation or pixel spacing"
        return cls(
            path=path,
            series_uid=tags.get("0020|000e", ""),
            series_number=tags.get("0020|0011", ""),
            image_uid=tags.get("0008|0018", ""),
            frame_of_reference=tags.get("0020|0052", ""),
            rows=int(_number(tags, "0028|0010", 0)),
            columns=int(_number(tags, "0028|0011", 0)),
            frames=frames,
            bits=int(_number(tags, "0028|0100", 16)),
            rescaled=(_number(tags, "0028|1053", 1), _number(tags, "0028|1052", 0)) != (1.0, 0.0),
            position=lists[0],
            orientation=lists[1],
            pixel_spacing=lists[2],
            thickness=_number(tags, "0018|0050", 0),
            tilt=_number(tags, "0018|1120", 0),
        ), ""


def _numbers(tags: dict[str, str], key: str) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in tags.get(key, "").split("\\") if text.strip())
    except ValueError:
        return ()


def _number(tags: dict[str, str], key: str, default: float) -> float:
    numbers = _numbers(tags, key)
    return numbers[0] if numbers else default


def choose_series(images: Sequence[Slice], modality: str) -> tuple[list[Slice], list[str]]:
    """Take the series with the most images (then the lower UID); files that repeat an image are left out.

    Returns:
        Its slices in no order, and the notes. Never a patient's name: only series number and UID.
    """
    series: dict[str, dict[str, Slice]] = defaultdict(dict)
    repeated: dict[str, int] = defaultdict(int)
    for image in images:
        if series[image.series_uid].setdefault(image.image_uid or str(image.path), image) is not image:
            repeated[image.series_uid] += 1
    sizes = {uid: sum(image.frames for image in members.values()) for uid, members in series.items()}
    uid = min(sizes, key=lambda uid: (-sizes[uid], uid))
    chosen = list(series[uid].values())
    notes = []
    if len(series) > 1:
        number = chosen[0].series_number or "without a number"
        notes.append(
            f"of {len(series)} {modality} series the largest was taken: series {number}, {sizes[uid]} images, UID {uid}"
        )
    if repeated[uid]:
        notes.append(f"{repeated[uid]} files repeat an image of the series and were left out")
    return chosen, notes


def stack(images: Sequence[Slice], what: str) -> tuple[list[Slice], NDArray[np.float64], list[str]]:
    """Order the slices along their normal and check that they make one even, straight grid.

    Returns:
        The ordered slices, the affine (index (column, row, slice) to RAS mm), and notes.

    Raises:
        InputError: one file holds many frames.
        GeometryError: mixed sizes, directions or spacings; images at one place; missing or uneven slices; a tilt of
            more than `LARGEST_TILT`.
    """
    if any(image.frames > 1 for image in images):
        raise InputError(
            f"{what} keeps all slices in one multi-frame (enhanced) DICOM file, but one file per slice is read; "
            "convert it to NIfTI or to a classic series first"
        )
    _check_alike(images, what)
    first = images[0]
    check_spacing(first.pixel_spacing, what)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    length = float(np.linalg.norm(normal))
    if not np.isfinite(first.position).all() or not abs(length - 1) < 2 * SHEAR_TOLERANCE:
        raise GeometryError(
            f"{what} has image directions that are no unit vectors at right angles, or positions that are no numbers; "
            "export it again"
        )
    normal /= length
    ordered = sorted(images, key=lambda image: (float(np.dot(image.position, normal)), image.image_uid))
    positions = np.array([image.position for image in ordered])
    words: list[str] = []
    if len(ordered) == 1:
        step = first.thickness
        if step <= 0:
            raise GeometryError(
                f"{what} is a single slice that states no thickness, but one is needed; export it again"
            )
    else:
        step, words = _step(positions, normal, first, what)
        _check_tilt_tag(first, normal, what)
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_spacing[1]  # PixelSpacing is (between rows, between columns)
    affine[:3, 1] = column * first.pixel_spacing[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0]
    check_affine(ras_from_lps(affine), what)
    if len(ordered) > 1 and (angle := _tilt(positions, normal)) > np.degrees(SHEAR_TOLERANCE):
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(ordered) - 1)
        words.append(
            f"the gantry was tilted ({angle:.1f} degrees between the slices' normal and their stack): corrected on the "
            "way in, and the mask is brought back onto the slices as they lie"
        )
    affine = ras_from_lps(affine)
    return ordered, affine, words


def _check_alike(images: Sequence[Slice], what: str) -> None:
    first = images[0]
    for image in images:
        for name, one, other in (
            ("sizes", (image.columns, image.rows), (first.columns, first.rows)),
            ("frames of reference", image.frame_of_reference, first.frame_of_reference),
        ):
            if one != other:
                raise GeometryError(
                    f"{what} mixes images of different {name} in one series ({other} and {one}); {_APART}"
                )
        turned = np.abs(np.subtract(image.orientation, first.orientation)).max()
        if not turned <= _SAME_DIRECTION:
            raise GeometryError(f"{what} mixes images of different orientations in one series; {_APART}")
        if not np.allclose(image.pixel_spacing, first.pixel_spacing, rtol=_SAME_SPACING, atol=0):
            raise GeometryError(f"{what} mixes images of different pixel spacings in one series; {_APART}")


_APART = "give a folder with the images of one stack only"


def _step(
    positions: NDArray[np.float64], normal: NDArray[np.float64], first: Slice, what: str
) -> tuple[float, list[str]]:
    """Return the distance of neighbouring slices in mm, after checking that it is one distance, straight up."""
    count = len(positions)
    places = positions @ normal
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    same = np.flatnonzero(gaps < max(0.01, 0.01 * usual))
    if same.size:
        raise GeometryError(
            f"{what} has two images at one place, {same.size} times in {count} images (first at "
            f"{places[same[0]]:.2f} mm along the stack: several phases in one series?), but one image per slice is "
            f"needed; {_APART}"
        )
    allowed = max(_EVEN_MM, _EVEN_SHARE * usual)
    uneven = np.flatnonzero(np.abs(gaps - usual) > allowed)
    if uneven.size:
        at = int(uneven[np.abs(gaps[uneven] - usual).argmax()])
        missing = round(gaps[at] / usual) - 1
        whole = missing > 0 and abs(gaps[at] / usual - missing - 1) < 0.1
        raise GeometryError(
            f"{what} has {f'missing slices ({missing})' if whole else 'uneven slices'} between images {at + 1} and "
            f"{at + 2} of {count} (at {places[at]:.2f} and {places[at + 1]:.2f} mm along the stack: {gaps[at]:.2f} mm "
            f"apart, elsewhere {usual:.2f} mm); give the complete series"
        )
    step = float(places[-1] - places[0]) / (count - 1)
    strayed = np.abs(places - places[0] - step * np.arange(count))
    if strayed.max() > max(_EVEN_MM, 0.25 * step):
        raise GeometryError(
            f"{what} has uneven slices (image {int(strayed.argmax()) + 1} of {count} lies {strayed.max():.2f} mm off "
            f"an even stack of {step:.3f} mm); give an evenly spaced series"
        )
    _check_straight(positions, places, normal, what)
    words = []
    if first.thickness > 0 and step > 1.5 * first.thickness:
        words.append(
            f"the slices are {step:g} mm apart but {first.thickness:g} mm thick: what lies between was not seen"
        )
    return step, words


def _check_straight(
    positions: NDArray[np.float64], places: NDArray[np.float64], normal: NDArray[np.float64], what: str
) -> None:
    moved = positions - positions[0]
    sideways = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1)
    height = float(places[-1] - places[0])
    if sideways.max() <= max(_SIDEWAYS_MM, SHEAR_TOLERANCE * height):
        return
    angle = _tilt(positions, normal)
    line = positions[0] + np.outer(places - places[0], moved[-1]) / height
    if angle > np.degrees(SHEAR_TOLERANCE) and np.linalg.norm(positions - line, axis=1).max() <= _EVEN_MM:
        if angle <= LARGEST_TILT:
            return
        raise GeometryError(
            f"{what} was taken with a tilted gantry ({angle:.2f} degrees between its slices' normal and their stack), "
            f"but at most {LARGEST_TILT:g} are corrected; resample it to a straight grid first"
        )
    raise GeometryError(
        f"{what} has slices that are shifted sideways by up to {sideways.max():.2f} mm, but each must lie above the "
        "other; give a straight stack"
    )


def _tilt(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Degrees between the slices' normal and the line from the first to the last slice."""
    moved = positions[-1] - positions[0]
    height = float(moved @ normal)
    return float(np.degrees(np.arctan2(np.linalg.norm(moved - height * normal), height)))


def _check_tilt_tag(first: Slice, normal: NDArray[np.float64], what: str) -> None:
    """Refuse a stated tilt that the image directions do not show: then either may be wrong."""
    if abs(first.tilt) <= _TILT_DEGREES:
        return
    shown = float(np.degrees(np.arccos(min(1.0, abs(float(normal[2]))))))
    if abs(shown - abs(first.tilt)) > 1.0:
        raise GeometryError(
            f"{what} states a gantry tilt of {first.tilt:g} degrees (GantryDetectorTilt), but its image directions "
            f"show {shown:.2f}; resample it to a straight grid first, without that entry"
        )
