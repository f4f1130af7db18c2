"""Raw captures made ready to be outlined elsewhere: uniform PNGs with nothing about the patient in them.

What an annotation service gives back is read onto the same pictures by `ctseg prepare`: the names stay the key.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.files import may_be_dicom
from ctseg.errors import CtsegError, InputError, OutputError
from ctseg.files import write_beside
from ctseg.flat.images import LUMINANCE
from ctseg.flat.reading import FlatImage, count_frames, flat_name, is_flat_path, read_flat
from ctseg.flat.sectors import find_sector

IMAGES, MANIFEST = "images", "export.json"
SCHEMA = "ctseg-export/1"


@dataclass(frozen=True)
class Picking:
    """How captures become pictures.

    Attributes:
        every: of a file with several frames, each so-manieth, from the first.
        frames: these frames instead, from 0; a file that lacks one is refused.
        crop: pixels taken away at the top, bottom, left and right of every frame.
        whole: keep pictures whole in which no ultrasound sector is found, instead of refusing them.
        sector: look for the ultrasound sector, crop to it and blacken what is outside.
        grey: write one channel, the luminance.
        window: HU that become black and white, of CT slices.
    """

    every: int = 1
    frames: tuple[int, ...] | None = None
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    whole: bool = False
    sector: bool = True
    grey: bool = False
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Exported:
    """One picture that was written.

    Attributes:
        image: its name in the folder of images.
        source: where it came from, relative to the folder of captures.
        frame: which frame of it, from 0.
        box: first row, end row, first column, end column of the capture that it shows; ends are exclusive.
        sector: whether the sector was found and everything outside is black.
        spacing: mm between rows and columns; None where unknown.
        sha256: of the PNG.
    """

    image: str
    source: str
    frame: int
    box: tuple[int, int, int, int]
    sector: bool
    spacing: tuple[float, float] | None
    sha256: str


def export_images(folder: Path, out: Path, picking: Picking) -> tuple[list[Exported], dict[str, str]]:
    """Write a PNG of 8 bits for each frame picked out of a folder of captures, below its sub-folders too.

    A picture is called as its capture, sub-folders joined by "_", frames as "_f012" at the end. Pixels are written
    anew, so nothing of the capture's metadata comes along. Where a DICOM's own patient name or number stands in its
    path, the picture is called by a sum of its content instead.

    Args:
        folder: captures: pictures, films, DICOM images.
        out: gets `images/` and `export.json`, which says where each picture comes from and is not for the service.
        picking: what to take of them.

    Returns:
        What was written, and the reason for each capture that was refused; a refused one stops nothing.

    Raises:
        InputError: no captures are there.
        OutputError: `out` holds images already, or cannot be written.
    """
    captures = _captures(folder, out)
    images = out / IMAGES
    if images.is_dir() and any(images.iterdir()):
        raise OutputError(f"{images} has files in it; name another folder with -o, so that nothing outlined is lost")
    written: dict[str, Exported] = {}
    refused: dict[str, str] = {}
    for capture in captures:
        where = capture.relative_to(folder).as_posix()
        try:
            for one, content in _pictures(capture, where, picking):
                if one.image in written:
                    raise InputError(
                        f"its picture would be called {one.image} like that of {written[one.image].source}; "
                        "rename one of them"
                    )
                _write(images / one.image, content)
                written[one.image] = one
        except CtsegError as error:
            if isinstance(error, OutputError):
                raise
            refused[where] = str(error)
    listed = {
        "schema": SCHEMA,
        "images": [asdict(one) for one in written.values()],
        "refused": refused,
    }
    _write(out / MANIFEST, (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return list(written.values()), refused


def _captures(folder: Path, out: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name the folder of captures")
    inside = out.resolve()
    found = sorted(path for path in folder.rglob("*") if is_flat_path(path) and inside not in path.resolve().parents)
    if not found:
        raise InputError(f"there is no capture in {folder}: expected pictures, films or DICOM images")
    return found


def _pictures(capture: Path, where: str, picking: Picking) -> list[tuple[Exported, bytes]]:
    """All pictures of one capture, or none: half a film would be taken for a whole one."""
    count = count_frames(capture)
    name = _name(capture, where)
    pictures = []
    for frame in _frames(count, picking):
        image = read_flat(capture, frame)
        pixels, box, found = _cut(image, picking)
        content = _png(pixels)
        numbered = f"{name}_f{frame:0{max(3, len(str(count - 1)))}d}" if count > 1 else name
        entry = Exported(f"{numbered}.png", where, frame, box, found, image.spacing, sha256(content).hexdigest())
        pictures.append((entry, content))
    return pictures


def _frames(count: int, picking: Picking) -> Sequence[int]:
    if count == 1:
        return (0,)
    if picking.frames is None:
        return range(0, count, picking.every)
    if missing := [frame for frame in picking.frames if not 0 <= frame < count]:
        raise InputError(f"it has the frames 0 to {count - 1}, but {missing[0]} was asked for; name others")
    return picking.frames


def _cut(image: FlatImage, picking: Picking) -> tuple[NDArray[np.uint8], tuple[int, int, int, int], bool]:
    """Pixels (H, W) or (H, W, 3), the part of the capture that they show, and whether its sector was found."""
    rows, columns = image.size
    top, bottom, left, right = picking.crop
    if top + bottom >= rows or left + right >= columns:
        raise InputError(
            f"the margins {picking.crop} (top, bottom, left, right) leave nothing of {rows} x {columns} pixels; "
            "take smaller ones"
        )
    box = (top, rows - bottom, left, columns - right)
    values = image.brightness(picking.window)[:, box[0] : box[1], box[2] : box[3]]
    sector = find_sector(values.max(axis=0)) if picking.sector else None
    if sector is None and picking.sector and not picking.whole:
        raise InputError(
            "no ultrasound sector was found, so text burnt into its margin cannot be told from the picture; look at "
            "it, and say --whole to keep it as it is, or --crop to cut margins away"
        )
    if sector is not None:
        inside = np.argwhere(sector)
        (first_row, first_column), (last_row, last_column) = inside.min(axis=0), inside.max(axis=0)
        values = np.where(sector, values, 0)[:, first_row : last_row + 1, first_column : last_column + 1]
        box = (
            box[0] + int(first_row),
            box[0] + int(last_row) + 1,
            box[2] + int(first_column),
            box[2] + int(last_column) + 1,
        )
    if picking.grey and len(values) == 3:
        values = np.tensordot(np.array(LUMINANCE, dtype=np.float32), values, axes=1)[None]
    pixels = np.rint(values * 255).astype(np.uint8)
    return (pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), box, sector is not None


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _name(capture: Path, where: str) -> str:
    """The picture's name without frame and ending: the capture's, unless that says who the patient is."""
    path = Path(where)
    name = "_".join((*path.parts[:-1], flat_name(path)))
    if any(part in _plain(name) for part in _identity(capture)):
        return f"image_{sha256(capture.read_bytes()).hexdigest()[:12]}"
    return name


def _identity(capture: Path) -> list[str]:
    """What a DICOM file says of its patient, as it could stand in a path: parts of the name, and the number."""
    if not may_be_dicom(capture):
        return []
    from pydicom import dcmread

    header: Any = dcmread(capture, force=True, stop_before_pixels=True, specific_tags=["PatientName", "PatientID"])
    parts = [*re.split(r"[\^=\s,]+", str(header.get("PatientName", ""))), str(header.get("PatientID", ""))]
    # Two letters, or a number like "1", stand in many a path by chance.
    return [plain for part in parts if len(plain := _plain(part)) >= 3]


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; make room or name another folder") from error
