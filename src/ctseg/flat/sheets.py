"""Pictures beside a training's checkpoints: what the network gets, and what it finds after each epoch."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from ctseg.files import write_beside
from ctseg.history import History
from ctseg.prepare.sample_pictures import outline

SAMPLES, PREDICTIONS = "samples.png", "predictions"
REFERENCE, PREDICTED = (90, 220, 230), (255, 150, 40)
_TILE = 224  # pixels of a tile's longer side
_GAP = 4
_CAPTION = 16

Outline = tuple[NDArray[np.bool_], tuple[int, int, int]]


def draw_tile(picture: NDArray[Any], outlines: Sequence[Outline] = (), longest: int = _TILE) -> Any:
    """Return a Pillow image of a picture with outlines.

    Args:
        picture: (C, H, W), brightness 0 to 1; of other than three channels the first is shown, in grey.
        outlines: masks (H, W) with their colours, the last on top.
        longest: pixels of the longer side.
    """
    from PIL import Image

    shown = picture if len(picture) == 3 else np.repeat(picture[:1], 3, axis=0)
    low, high = float(shown.min()), float(shown.max())
    if low < -0.01 or high > 1.01:  # normalised: stretched to be seen
        shown = (shown - low) / max(high - low, 1e-6)
    pixels = (np.clip(shown, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    scale = longest / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    tile = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    for mask, colour in outlines:
        inside = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        tile[outline(inside)] = colour
    return Image.fromarray(tile)


def draw_sheet(columns: Sequence[Sequence[Any]], captions: Sequence[str] = ()) -> bytes:
    """Return a PNG: columns of tiles beside each other, each with a caption below it.

    Args:
        columns: of Pillow images, at least one.
        captions: one a column, or none.
    """
    from PIL import Image, ImageDraw

    widths = [max(tile.width for tile in column) for column in columns]
    heights = [max(column[row].height for column in columns) for row in range(len(columns[0]))]
    below = _CAPTION if captions else 0
    size = (sum(widths) + _GAP * (len(widths) - 1), sum(heights) + _GAP * (len(heights) - 1) + below)
    sheet = Image.new("RGB", size, (11, 13, 16))
    pen = ImageDraw.Draw(sheet)
    left = 0
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        top = 0
        for tile, height in zip(column, heights, strict=True):
            sheet.paste(tile, (left, top))
            top += height + _GAP
        if captions:
            pen.text((left + 2, size[1] - _CAPTION + 2), captions[number], fill=(230, 233, 237))
        left += width + _GAP
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    return content.getvalue()


def planes_of(item: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return picture (C, H, W), label map (H, W) and prediction (H, W) or None of an item of a flat training."""
    picture, label, prediction = (
        None if item.get(key) is None else torch.as_tensor(item[key]).detach().float().cpu().numpy()
        for key in ("image", "label", "pred")
    )
    if picture is None or label is None:
        raise KeyError("image or label")
    picture, label = (array[..., 0] if array.ndim == 4 else array for array in (picture, label))
    if prediction is not None and prediction.ndim == 4:
        prediction = prediction[..., 0]
    return picture, label[0].round(), None if prediction is None else prediction[0].round()


class SampleSheet:
    """Handler of the trainer that draws some of its images with their masks, as the network gets them: `samples.png`.

    Args:
        dataset: of the training.
        folder: of the checkpoints.
        number: of images, evenly spread; 0 or None for none.
    """

    def __init__(self, dataset: Any, folder: str | Path, number: int | None = 6) -> None:
        self.dataset, self.folder, self.number = dataset, Path(folder), int(number or 0)

    def attach(self, engine: Engine) -> None:
        """Draw when `engine` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw now."""
        count = min(self.number, len(self.dataset))
        if not count:
            return
        # A twin with random transforms of its own: the training draws what it would have drawn without this picture.
        twin = copy.copy(self.dataset)
        twin.transform = copy.deepcopy(self.dataset.transform)
        columns = []
        for index in dict.fromkeys(np.linspace(0, len(twin) - 1, count).round().astype(int).tolist()):
            item = twin[index]
            picture, label, _ = planes_of(item[0] if isinstance(item, list) else item)
            columns.append([draw_tile(picture), draw_tile(picture, [(label > 0, REFERENCE)])])
        write_beside(self.folder / SAMPLES, draw_sheet(columns))


class PredictionSheets:
    """Handler of the validator that draws its first images with mask and prediction: `predictions/epoch_0001.png`.

    The reference is outlined in cyan, the prediction in orange; below stands the Dice of the two.

    Args:
        folder: of the checkpoints.
        number: of images; 0 or None for none.
        history: of the training, which knows the epoch.
    """

    def __init__(self, folder: str | Path, number: int | None = 6, history: History | None = None) -> None:
        self.folder, self.number, self.history = Path(folder), int(number or 0), history
        self._columns: list[list[Any]] = []
        self._captions: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Draw after each run of `engine`, the validator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._columns, self._captions = [], []

    def _step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output if isinstance(output, list) else []:
            if len(self._columns) >= self.number:
                return
            picture, label, found = planes_of(item)
            if found is None or found.shape != label.shape:
                return
            both = [(label > 0, REFERENCE), (found > 0, PREDICTED)]
            self._columns.append([draw_tile(picture), draw_tile(picture, both)])
            sizes = int((label > 0).sum()) + int((found > 0).sum())
            dice = 2 * int(((label > 0) & (found == label)).sum()) / sizes if sizes else None
            self._captions.append("both empty" if dice is None else f"Dice {dice:.2f}")

    def _write(self, engine: Engine) -> None:
        if self._columns:
            epoch = 1 + (len(self.history.rows) if self.history is not None else 0)
            path = self.folder / PREDICTIONS / f"epoch_{epoch:04d}.png"
            write_beside(path, draw_sheet(self._columns, self._captions))
