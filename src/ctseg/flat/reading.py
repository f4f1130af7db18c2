"""Flat images, read as what they are: PNG, JPEG, BMP, TIFF, a single DICOM image, and the frames of a film.

Pixels stay what the file says they are: 8 or 16 bits of brightness, or Hounsfield units of a CT slice. The array is the
picture as a viewer shows it: an EXIF orientation is applied, a palette resolved, transparency laid on black.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.dicom.files import may_be_dicom
from ctseg.errors import InputError
from ctseg.flat.images import GREY, RGB, FlatImage

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM = (".dcm", ".dicom", ".ima")
FILMS = (".gif", ".mp4", ".avi", ".mov", ".mkv")
FLAT_ENDINGS = PICTURES + DICOM + FILMS
SUPPORTED = "PNG, JPEG, BMP, TIFF, a single DICOM image, GIF or a film"


def is_flat_path(path: Path) -> bool:
    """Whether a path is named like a flat image, or is a DICOM file without an ending."""
    if not path.is_file() or path.name.startswith("."):
        return False
    return path.name.lower().endswith(FLAT_ENDINGS) or (not path.suffix and may_be_dicom(path))


def flat_name(path: str | Path) -> str:
    """Return the name of a flat image: its file's without the ending."""
    name = Path(path).name
    ending = next((ending for ending in FLAT_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def read_flat(path: str | Path, frame: int | None = None) -> FlatImage:
    """Read one flat image.

    Args:
        path: a file of one of the formats above.
        frame: which frame, from 0, of a file with several; None takes the only one.

    Raises:
        InputError: missing, damaged, no image, several frames and none named, or a frame that is not there.
    """
    source = Path(path)
    count = count_frames(source)
    if frame is None and count > 1:
        raise InputError(
            f"{source} holds {count} frames, but one picture is needed: name a frame, or take its frames one by one"
        )
    wanted = 0 if frame is None else int(frame)
    if not 0 <= wanted < count:
        raise InputError(
            f"{source} has the frames 0 to {count - 1}, but frame {wanted} was asked for; name one of these"
        )
    return _read(source, wanted, count)


def read_frames(path: str | Path) -> Iterator[FlatImage]:
    """Give the frames of a file one by one; a picture gives one.

    Raises:
        InputError: as `read_flat`.
    """
    source = Path(path)
    count = count_frames(source)
    for frame in range(count):
        yield _read(source, frame, count)


def count_frames(path: str | Path) -> int:
    """Return how many frames a file holds; its pixels are not read.

    Raises:
        InputError: missing, damaged, or no format that can be read.
    """
    source = Path(path)
    form = _form(source)
    if form == "dicom":
        from ctseg.flat.dicom import count_dicom

        return count_dicom(source)
    if form == "film":
        from ctseg.flat.films import open_film

        return open_film(source).count
    return _with_picture(source, lambda picture: int(getattr(picture, "n_frames", 1)))


def _form(source: Path) -> str:
    if not source.exists():
        raise InputError(f"{source} does not exist; check the path")
    if not source.is_file():
        raise InputError(f"{source} is a folder, but one image was expected; name a file: {SUPPORTED}")
    name = source.name.lower()
    if name.endswith(DICOM) or (not name.endswith(FLAT_ENDINGS) and may_be_dicom(source)):
        return "dicom"
    if name.endswith(FILMS) and not name.endswith(".gif"):
        return "film"
    if name.endswith(FLAT_ENDINGS):
        return "picture"
    raise InputError(f"{source} has a name that tells no known format; give {SUPPORTED}")


def _read(source: Path, frame: int, count: int) -> FlatImage:
    form = _form(source)
    if form == "dicom":
        from ctseg.flat.dicom import read_dicom_frame

        return read_dicom_frame(source, frame)
    if form == "film":
        from ctseg.flat.films import open_film

        return FlatImage(open_film(source).frame(frame), None, RGB, 255.0, source, frame, count)
    deep = _deep_colours(source) if count == 1 else None
    if deep is not None:
        return FlatImage(deep, None, RGB, 65535.0, source)
    return _with_picture(source, lambda picture: _from_picture(picture, source, frame, count))


def open_picture(source: Path) -> Any:
    """Open a picture with Pillow.

    Raises:
        InputError: it cannot be read.
    """
    return _with_picture(source, lambda picture: picture.copy())


def _with_picture(source: Path, use: Any) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as picture:
            return use(picture)
    except UnidentifiedImageError as error:
        raise InputError(f"{source} is no image, whatever its name says; give {SUPPORTED}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{source} is too large to be a picture ({error}); crop it or make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for damaged files
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise InputError(f"{source} cannot be read as an image ({reason}): it is damaged; export it again") from error


def _from_picture(picture: Any, source: Path, frame: int, count: int) -> FlatImage:
    notes: list[str] = []
    if count > 1:
        picture.seek(frame)
    upright = _upright(picture)
    if upright is not picture:
        notes.append("its EXIF orientation was applied")
    picture = _without_palette(upright)
    if picture.mode in ("LA", "RGBA"):
        alpha = np.asarray(picture.getchannel("A"))
        pixels = np.asarray(picture)[..., :-1].astype(np.float32) * (alpha[..., None].astype(np.float32) / 255)
        if alpha.min() < 255:
            notes.append("its transparent pixels were laid on black")
    elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"its colours were turned from {picture.mode} to red, green and blue")
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    else:
        pixels = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    array, white = _channels_first(pixels, picture.mode, source)
    if _is_deep_png(source):
        notes.append("its colours of 16 bits were read with 8")
    if white > 255 and array.max() <= white / 16:
        notes.append(f"its brightest value is {array.max():g} of {white:g}: it will look dark")
    kind = RGB if len(array) == 3 else GREY
    return FlatImage(array, None, kind, white, source, frame, count, tuple(notes))


def _upright(picture: Any) -> Any:
    from PIL import ExifTags, ImageOps

    turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return ImageOps.exif_transpose(picture) if turn in range(2, 9) else picture


def _without_palette(picture: Any) -> Any:
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")
    return picture


def _channels_first(pixels: NDArray[Any], mode: str, source: Path) -> tuple[NDArray[np.float32], float]:
    if pixels.ndim not in (2, 3) or not pixels.size or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise InputError(f"{source} is an image of mode {mode} and shape {pixels.shape}; expected grey or colours")
    if mode == "F":
        raise InputError(f"{source} holds fractions, of which nobody says what is white; export it with 8 or 16 bits")
    white = 65535.0 if mode.startswith("I") else 255.0
    if pixels.min() < 0 or pixels.max() > white:
        raise InputError(f"{source} holds {pixels.min()} to {pixels.max()}; expected 0 to {white:g}: export it anew")
    stacked = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(stacked, dtype=np.float32), white


def _deep_colours(source: Path) -> NDArray[np.float32] | None:
    """Return (3, H, W) of a colour TIFF of 16 bits, of which Pillow keeps 8; None for every other file."""
    with source.open("rb") as stream:
        start = stream.read(4)
    if start not in (b"II*\0", b"MM\0*") or _bits_of_tiff(source)[:3] != (16, 16, 16):
        return None
    import tifffile

    try:
        pixels = np.asarray(tifffile.imread(source))
    except (RuntimeError, ValueError, OSError, KeyError) as error:  # tifffile's own are ValueErrors
        raise InputError(f"{source} cannot be read as an image of 16-bit colours; export it anew") from error
    if pixels.ndim != 3 or min(pixels.shape) < 1:
        raise InputError(f"{source} holds colours of shape {pixels.shape}; expected rows, columns and three colours")
    pixels = pixels if pixels.shape[2] in (3, 4) else pixels.transpose(1, 2, 0)  # stored plane by plane
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1), dtype=np.float32)


def _is_deep_png(source: Path) -> bool:
    """Whether it is a PNG of 16-bit colours, of which Pillow, the only reader of it here, keeps 8 bits."""
    with source.open("rb") as stream:
        start = stream.read(26)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) == 26 and start[24] == 16 and start[25] in (2, 6)


def _bits_of_tiff(source: Path) -> tuple[int, ...]:
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    try:
        with Image.open(source) as picture:
            tags = getattr(picture, "tag_v2", {})
            return tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE, ()))
    except UnidentifiedImageError:  # Pillow has no mode for it, ITK may
        return (16, 16, 16)
    except OSError:
        return ()
