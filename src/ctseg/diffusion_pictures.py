"""Maps of doubt of a diffusion model: its mean answer and the spread of its samples, beside image and reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric

from ctseg.cases import case_name
from ctseg.errors import ConfigError
from ctseg.files import write_beside
from ctseg.flat.sheets import PREDICTED, REFERENCE, draw_sheet, draw_tile

INDEX = "doubt.json"
LARGEST = 0.5  # of a standard deviation of probabilities: half of the samples say 0, half 1


def _items(output: Any) -> Any:
    return [(item["image"], item["label"]) for item in output]


class DoubtPictures(Metric):
    """Draws for each flat image of a run what the samples agree on and where they differ.

    Each picture has three tiles: the image with the reference's outline (cyan) and the mean's (orange), the mean
    probability (black 0, white 1), and the standard deviation over the samples (black 0, white 0.5, the largest).

    Args:
        network: with `mean_and_spread(image)`, for images (B, C, H, W).
        save_to: folder of the pictures, `0001.png` ..., and of `doubt.json`: case, mean spread over all pixels, within
            the mean's mask, and over the pixels where that mask is wrong and where it is right.
        output_transform: of Ignite; must give (image (C, H, W, 1), reference (1, H, W, 1)) pairs.

    Raises:
        ConfigError: the network has no samples.
    """

    def __init__(
        self, network: Any, save_to: str | Path, output_transform: Callable[[Any], Any] = _items, device: str = "cpu"
    ) -> None:
        self.network = getattr(network, "module", network)
        if not hasattr(self.network, "mean_and_spread"):
            raise ConfigError(f"The network is a {type(self.network).__name__}: expected a DiffusionSegmenter.")
        self.save_to = Path(save_to)
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all images."""
        self._rows: list[dict[str, Any]] = []

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Sample and draw each image."""
        place = next(self.network.parameters()).device
        for image, reference in output:
            picture = torch.as_tensor(image)[..., 0].float().to(place)
            with torch.no_grad():
                both = self.network.mean_and_spread(picture[None])
            mean, spread = (one[0, 0].cpu().numpy() for one in both)
            known = torch.as_tensor(reference)[0, ..., 0].cpu().numpy() > 0
            name = f"{len(self._rows) + 1:04d}.png"
            tiles = [
                draw_tile(picture.cpu().numpy(), [(known, REFERENCE), (mean > 0.5, PREDICTED)]),
                draw_tile(mean[None]),
                draw_tile((spread / LARGEST)[None]),
            ]
            write_beside(self.save_to / name, draw_sheet([[tile] for tile in tiles], ("image", "mean", "spread")))
            wrong = known != (mean > 0.5)
            case = case_name(str(getattr(image, "meta", {}).get("filename_or_obj", "")))
            parts = {"everywhere": np.ones_like(known), "in_mask": mean > 0.5, "wrong": wrong, "right": ~wrong}
            about = {part: float(spread[where].mean()) if where.any() else None for part, where in parts.items()}
            self._rows.append({"picture": name, "case": case, **about})

    def compute(self) -> float:
        """Write the list and return the mean spread over images; NaN without any."""
        if not self._rows:
            return math.nan
        write_beside(self.save_to / INDEX, (json.dumps({"cases": self._rows}, indent=1) + "\n").encode())
        return float(np.mean([row["everywhere"] for row in self._rows]))
