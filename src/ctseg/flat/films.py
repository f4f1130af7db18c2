"""Films, frame by frame, by imageio and its ffmpeg, which are installed apart: `pip install imageio imageio-ffmpeg`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError

_STRIDE = 100  # frames; beyond as many imageio jumps by time, which in films of uneven rate is another frame


class Film:
    """An open film.

    Args:
        source: its file.

    Attributes:
        count: of its frames.

    Raises:
        InputError: it is no film, damaged, or imageio with ffmpeg is missing.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        try:
            importlib.import_module("imageio_ffmpeg")  # its ffmpeg reads films for imageio
            imageio: Any = importlib.import_module("imageio.v2")
        except ImportError as error:
            raise InputError(
                f"{source} is a film, which imageio reads with ffmpeg, and {error.name} is not installed: "
                "pip install imageio imageio-ffmpeg"
            ) from error
        try:
            self._reader: Any = imageio.get_reader(source, "ffmpeg")
            self.count = int(self._reader.count_frames())
        except Exception as error:  # what ffmpeg says becomes an OSError, RuntimeError or IndexError
            raise self._damaged(error) from error
        self._at = -1

    def frame(self, number: int) -> NDArray[np.float32]:
        """Return a frame, (3, H, W), 0 to 255; frames in their order cost least.

        Raises:
            InputError: it cannot be decoded.
        """
        try:
            for before in range(self._at + _STRIDE, number, _STRIDE):
                self._reader.get_data(before)
            pixels = np.asarray(self._reader.get_data(number))
        except Exception as error:
            raise self._damaged(error) from error
        self._at = number
        if number == self.count - 1:
            self._reader.close()
            _KEPT.clear()
        return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1), dtype=np.float32)

    def _damaged(self, error: BaseException) -> InputError:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        return InputError(f"{self.source} cannot be read as a film ({said}): it is damaged or no film; export it again")


_KEPT: dict[tuple[str, int, int], Film] = {}  # the last one: frames are asked for one by one


def open_film(source: Path) -> Film:
    """Return a film, which stays open until its last frame was read or another is opened.

    Raises:
        InputError: as `Film`.
    """
    about = source.stat()
    key = (str(source.resolve()), about.st_mtime_ns, about.st_size)
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = Film(source)
    return _KEPT[key]
