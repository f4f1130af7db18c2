"""The thresholded IoU of segmentation contests: an image's IoU counts only as far as it clears steps from 0.5 on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.metrics import Metric

from ctseg.errors import ConfigError
from ctseg.files import write_beside


def thresholded(iou: torch.Tensor) -> torch.Tensor:
    """Return ceil(clamp(20 (IoU - 0.5), 0, 10)) / 10: 0 up to an IoU of 0.5, then steps of 0.1, 1 above 0.95."""
    # Rounded first: 20 * (0.55 - 0.5) is a little more than 1 in floating point, and would clear the next step.
    return torch.ceil(torch.round(20 * (iou.double() - 0.5), decimals=9).clamp(0, 10)) / 10


def _pairs(output: Any) -> Any:
    return [(item["logits"], item["label"]) for item in output]


class ThresholdedIou(Metric):
    """Mean over images and labels of the thresholded IoU, with masks cut from the logits at a value of its own.

    An image with neither prediction nor reference (an empty union) counts 1, so an image without the structure, on
    which nothing is found, is right. Slices of a volume count as images.

    Args:
        labels: label names; class i+1 is labels[i].
        logit: above which a pixel is predicted: 0 is a probability of one half, 0.5 of 0.62. Of several classes a pixel
            belongs to the most probable one, whatever this says.
        save_to: JSON file for the values, written when the metric is computed; None for none.
        output_transform: of Ignite; must give pairs of logits (C, I, J) or (C, I, J, S), C = 1, or labels and
            background, and class maps (1, ...) of the same grid.

    Raises:
        ConfigError: when logits and labels do not fit.
    """

    def __init__(
        self,
        labels: Sequence[str],
        logit: float = 0.0,
        save_to: str | Path | None = None,
        output_transform: Callable[[Any], Any] = _pairs,
        device: str | torch.device = "cpu",
    ) -> None:
        self.labels = list(labels)
        self.logit = float(logit)
        self.save_to = Path(save_to) if save_to else None
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all images."""
        self._values: list[list[float]] = [[] for _ in self.labels]

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Score each pair (logits, reference)."""
        for answer, label in output:
            logits, reference = (t.as_tensor() if hasattr(t, "as_tensor") else t for t in (answer, label))
            channels = logits.shape[0]
            if (
                channels not in (1, len(self.labels) + 1)
                or channels < len(self.labels)
                or logits.shape[1:] != reference.shape[1:]
            ):
                raise ConfigError(
                    f"The thresholded IoU got logits {tuple(logits.shape)} and a reference {tuple(reference.shape)}: "
                    f"expected {len(self.labels) + 1} channels, or 1 of one label, on the same grid; "
                    "correct the postprocessing."
                )
            found = (logits[0] > self.logit).long() if channels == 1 else logits.argmax(dim=0)
            for number, values in enumerate(self._values, start=1):
                p, r = ((m if m.ndim == 3 else m[..., None]) == number for m in (found, reference[0]))
                union, common = (mask.sum(dim=(0, 1)).double().cpu() for mask in (p | r, p & r))
                iou = torch.where(union > 0, common / union.clamp(min=1), 1.0)
                values += thresholded(iou).tolist()

    def compute(self) -> float:
        """Return the mean; NaN without an image."""
        values = self._gathered()
        means = {name: sum(v) / len(v) if v else None for name, v in zip(self.labels, values, strict=True)}
        known = [value for value in means.values() if value is not None]
        mean = sum(known) / len(known) if known else float("nan")
        if self.save_to is not None and idist.get_rank() == 0:
            content = {"metric": "thresholded IoU", "logit": self.logit, "mean": mean, "values": means}
            content["images"] = max(map(len, values), default=0)
            write_beside(self.save_to, (json.dumps(content, indent=2) + "\n").encode())
        return mean

    def _gathered(self) -> list[list[float]]:
        if idist.get_world_size() == 1:
            return self._values
        gathered: Any = idist.all_gather(self._values)
        return [[value for values in each for value in values] for each in zip(*gathered, strict=True)]
