"""Triptychs of a run's cases: image, reference mask and prediction side by side; best, median and worst are named."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.metrics import Metric
from numpy.typing import NDArray

from ctseg.cases import case_name
from ctseg.files import write_beside

INDEX = "triptychs.json"
CHOSEN = ("best", "median", "worst")
_SIDE = 256  # pixels of the longest side of each of the three
GAP = 6
_COLOURS = np.array([(0, 190, 255), (240, 150, 60), (150, 210, 120), (230, 200, 100), (200, 140, 220)], np.uint8)
_GROUND = (11, 13, 16)


def _items(output: Any) -> Any:
    return [(item["image"], item["pred"], item["label"]) for item in output]


class Triptychs(Metric):
    """Draws each case of a run as it comes, and lists the cases by their Dice when it is computed.

    A volume shows the axial slice on which reference and prediction together are largest. A case without any mask in
    either has no Dice and is not drawn. The files are numbered, since a case's name may be a patient's.

    Args:
        labels: label names; class i+1 is labels[i].
        save_to: folder of the pictures, `0001.png` ... and `triptychs.json`: cases with their Dice, best first.
        output_transform: of Ignite; must give (image (C, ...), prediction (1, ...), reference (1, ...)) of one grid.
    """

    def __init__(
        self,
        labels: Sequence[str],
        save_to: str | Path,
        output_transform: Callable[[Any], Any] = _items,
        device: str | torch.device = "cpu",
    ) -> None:
        self.labels = list(labels)
        self.save_to = Path(save_to)
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all cases."""
        self._rows: list[dict[str, Any]] = []

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Draw each case."""
        if idist.get_rank() != 0:  # a share of the cases is enough to look at
            return
        for image, prediction, reference in output:
            picture, found, known = (_plain(tensor) for tensor in (image, prediction, reference))
            overall = 2.0 * np.count_nonzero((found == known) & (known > 0))
            size = np.count_nonzero(found) + np.count_nonzero(known)
            if not size:
                continue
            meta: Mapping[str, Any] = getattr(reference, "meta", {})
            name = f"{len(self._rows) + 1:04d}.png"
            write_beside(self.save_to / name, draw_triptych(picture, known[0], found[0], _rows_first(reference)))
            row = {
                "picture": name,
                "case": case_name(str(meta.get("filename_or_obj", ""))),
                "patient": str(meta.get("patient", "")),
                "dice": overall / size,
            }
            self._rows.append(row)

    def compute(self) -> float:
        """Write the list and return the mean Dice over cases, all labels of a case together; NaN without any."""
        rows = sorted(self._rows, key=lambda row: (-row["dice"], row["picture"]))
        if rows:
            write_beside(self.save_to / INDEX, (json.dumps({"cases": rows}, indent=1) + "\n").encode())
        return sum(row["dice"] for row in rows) / len(rows) if rows else math.nan


def chosen_cases(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the best, the median (the lower of two) and the worst case by `dice`; fewer where there are fewer."""
    order = sorted(rows, key=lambda row: -float(row["dice"]))
    if not order:
        return {}
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    taken: dict[str, Mapping[str, Any]] = {}
    for name, place in places.items():
        if not any(order[place] is row for row in taken.values()):
            taken[name] = order[place]
    return taken


def read_triptychs(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder of triptychs with the `file` of each; empty when there are none."""
    try:
        rows = json.loads((folder / INDEX).read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [{**row, "file": folder / row["picture"]} for row in rows if (folder / row["picture"]).is_file()]


def draw_triptych(
    image: NDArray[Any], reference: NDArray[Any], prediction: NDArray[Any], rows_first: bool = False
) -> bytes:
    """Return a PNG: the image, the image with the reference mask, the image with the predicted mask.

    Args:
        image: (C, I, J) or (C, I, J, K); three channels are shown in colour, else the first in grey, each from its 1st
            to its 99th percentile.
        reference: class indices without the channel axis.
        prediction: the same shape.
        rows_first: the first axis runs down the picture; else it runs across, as a volume's in LPS.
    """
    from PIL import Image

    if image.ndim == 4:
        area = np.count_nonzero(reference, axis=(0, 1)) + np.count_nonzero(prediction, axis=(0, 1))
        place = int(area.argmax())
        image, reference, prediction = image[..., place], reference[..., place], prediction[..., place]
    if not rows_first:
        image, reference, prediction = image.transpose(0, 2, 1), reference.T, prediction.T
    ground = _shades(image)
    parts = [Image.fromarray(part) for part in (ground, _with(ground, reference), _with(ground, prediction))]
    scale = _SIDE / max(parts[0].size)
    size = (max(1, round(parts[0].width * scale)), max(1, round(parts[0].height * scale)))
    sheet = Image.new("RGB", (3 * size[0] + 2 * GAP, size[1]), _GROUND)
    for number, part in enumerate(parts):
        sheet.paste(part.resize(size, Image.Resampling.BILINEAR), (number * (size[0] + GAP), 0))
    content = io.BytesIO()
    sheet.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _shades(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(C, H, W) to (H, W, 3) of 0..255."""
    shown = np.asarray(image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0), np.float32)
    low, high = np.percentile(shown, (1, 99))
    scaled = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1) * 255
    return np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(1, 2, 0))


def _with(ground: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
    """The picture with a third of the label's colour over it, and the full colour on the label's rim."""
    from scipy.ndimage import binary_erosion

    classes = np.asarray(mask).astype(int)
    drawn = ground.copy()
    for value in np.unique(classes[classes > 0]):
        colour, here = _COLOURS[(value - 1) % len(_COLOURS)], classes == value
        drawn[here] = (0.67 * drawn[here] + 0.33 * colour).round().astype(np.uint8)
        drawn[here & ~binary_erosion(here)] = colour
    return drawn


def _rows_first(reference: torch.Tensor) -> bool:
    """Whether the first axis runs mainly to the front or back (a picture's rows), and not to left or right."""
    affine = np.asarray(getattr(reference, "affine", np.eye(4)))
    return bool(np.abs(affine[:3, 0]).argmax() == 1)


def _plain(tensor: Any) -> NDArray[Any]:
    bare = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return np.asarray(bare.detach().cpu())
