"""Single DICOM images: a CT slice in Hounsfield units, ultrasound, a photograph, and the frames of a multi-frame file.

Volumes are read elsewhere (`ctseg.dicom.reading`, by GDCM); here pydicom is used, which knows the colours of
ultrasound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.flat.images import GREY, HU, RGB, FlatImage

_CENTIMETRES = 3  # PhysicalUnitsX of a region of ultrasound, PS3.3 C.8.5.5.1.15


def count_dicom(source: Path) -> int:
    """Return the number of frames.

    Raises:
        InputError: it is no DICOM image.
    """
    return max(1, int(getattr(_dataset(source, pixels=False), "NumberOfFrames", 1) or 1))


def read_dicom_frame(source: Path, frame: int) -> FlatImage:
    """Read one frame.

    Raises:
        InputError: no DICOM image, or compressed in a way that cannot be read here.
    """
    dataset = _dataset(source, pixels=True)
    count = max(1, int(getattr(dataset, "NumberOfFrames", 1) or 1))
    pixels, rescaled = _pixels(dataset, source)
    pixels = pixels[frame] if count > 1 else pixels
    notes: list[str] = []
    photometric = str(dataset.PhotometricInterpretation)
    spacing = _spacing(dataset)
    if int(dataset.SamplesPerPixel) == 3 or photometric == "PALETTE COLOR":
        array, white = _colours(dataset, pixels, photometric)
        return FlatImage(array, spacing, RGB, white, source, frame, count)
    values = pixels.astype(np.float32) if rescaled else _rescaled(dataset, pixels)
    if str(getattr(dataset, "Modality", "")) == "CT":
        return FlatImage(values[None], spacing, HU, None, source, frame, count)
    values, white, word = _grey(dataset, values)
    notes += [word] if word else []
    if photometric == "MONOCHROME1":
        values = np.float32(white) - values
        notes.append("it is stored with black as the largest value and was inverted")
    return FlatImage(np.ascontiguousarray(values[None]), spacing, GREY, white, source, frame, count, tuple(notes))


def _dataset(source: Path, pixels: bool) -> Any:
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise InputError(f"{source} is a DICOM image, which pydicom reads: pip install pydicom") from error
    try:
        dataset = pydicom.dcmread(source, stop_before_pixels=not pixels)
        wanted = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored"]
        missing = [name for name in wanted if name not in dataset]
    except InvalidDicomError as error:
        raise InputError(f"{source} is no DICOM file, whatever its name says; give another") from error
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise InputError(f"{source} is a damaged DICOM file ({type(error).__name__}); export it again") from error
    if pixels and "PixelData" not in dataset:
        missing.append("PixelData")
    if missing:
        raise InputError(f"{source} is a DICOM file without {', '.join(missing)}, so it holds no image; give another")
    return dataset


def _pixels(dataset: Any, source: Path) -> tuple[NDArray[Any], bool]:
    """Return the pixels of all frames, and whether they are rescaled already.

    pydicom decodes them, where it has a decoder; lossless JPEG and JPEG-LS, of grey or red, green and blue, are left to
    ITK's GDCM, which rescales as it reads.
    """
    try:
        return np.asarray(dataset.pixel_array), False
    except Exception as error:  # NotImplementedError, RuntimeError, ValueError, by what is missing
        if str(dataset.PhotometricInterpretation) in ("MONOCHROME2", "RGB"):
            found = _by_gdcm(dataset, source)
            if found is not None:
                return found, True
        syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else None
        raise InputError(
            f"{source} keeps its pixels in a form that cannot be read here ({getattr(syntax, 'name', 'unknown')}), or "
            "is damaged; store it uncompressed, for example with dcmdjpeg or gdcmconv --raw"
        ) from error


def _by_gdcm(dataset: Any, source: Path) -> NDArray[Any] | None:
    """Return (frames, H, W) or (frames, H, W, 3), the frames left out where there is one; None when it cannot."""
    import itk

    try:
        pixels = np.asarray(itk.array_from_image(itk.imread(str(source), imageio=itk.GDCMImageIO.New())))
    except (RuntimeError, KeyError):  # damaged; a pixel type that ITK's Python does not know
        return None
    count, samples = max(1, int(getattr(dataset, "NumberOfFrames", 1) or 1)), int(dataset.SamplesPerPixel)
    colours = (3,) if samples == 3 else ()
    shape = (count, int(dataset.Rows), int(dataset.Columns), *colours)
    if pixels.shape not in (shape, shape[1:]):
        return None
    return pixels.reshape(shape if count > 1 else shape[1:])


def _colours(dataset: Any, pixels: NDArray[Any], photometric: str) -> tuple[NDArray[np.float32], float]:
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

    white = float(2 ** int(dataset.BitsStored) - 1)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        white = float(np.iinfo(pixels.dtype).max)
    elif photometric.startswith("YBR_FULL") and not _decoded_to_rgb(dataset):
        pixels = convert_color_space(pixels, photometric, "RGB")
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1), dtype=np.float32), white


def _decoded_to_rgb(dataset: Any) -> bool:
    """Whether the decoder has given out red, green and blue already: JPEG 2000 and RLE do not change what is named."""
    return str(dataset.PhotometricInterpretation) == "RGB"


def _rescaled(dataset: Any, pixels: NDArray[Any]) -> NDArray[np.float32]:
    slope, intercept = (getattr(dataset, name, None) for name in ("RescaleSlope", "RescaleIntercept"))
    values: NDArray[Any] = pixels.astype(np.float64)
    values = values * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return np.ascontiguousarray(values, dtype=np.float32)


def _grey(dataset: Any, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, str]:
    """Return brightness from 0 to a white, by the window that the file names, else by its bits."""
    centre, width = (_first(getattr(dataset, name, None)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        shown = np.clip((values - np.float32(centre - width / 2)) / np.float32(width), 0, 1) * np.float32(255)
        return shown, 255.0, f"it is shown by its own window, {centre:g} wide {width:g}"
    if values.min() >= 0:
        return values, max(float(2 ** int(dataset.BitsStored) - 1), float(values.max())), ""
    low, high = float(values.min()), float(values.max())
    return values - np.float32(low), max(high - low, 1.0), "it names no window: its darkest value is taken as black"


def _first(value: Any) -> float | None:
    """The first of one or several numbers of an element."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (str, float, int)) else value[0])


def _spacing(dataset: Any) -> tuple[float, float] | None:
    """mm between rows and columns: of the patient, not of a detector."""
    given = getattr(dataset, "PixelSpacing", None)
    if given is not None and len(given) == 2 and min(map(float, given)) > 0:
        return (float(given[0]), float(given[1]))
    sizes = set()
    for region in getattr(dataset, "SequenceOfUltrasoundRegions", None) or ():
        units = [getattr(region, name, None) for name in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection")]
        if units == [_CENTIMETRES, _CENTIMETRES]:
            sizes.add((abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10))
    if len(sizes) == 1 and min(only := sizes.pop()) > 0:
        return only
    return None
