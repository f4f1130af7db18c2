"""Overlap pooled over a data set, or averaged over its images: two ways that other systems measure in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.metrics import Metric

from ctseg.errors import ConfigError
from ctseg.files import write_beside

OVERLAPS, WAYS = ("iou", "dice"), ("dataset", "image")


def class_map(logits: torch.Tensor) -> torch.Tensor:
    """Return class indices (1, ...) of logits (C, ...): one channel is one class above 0, more are an argmax."""
    return (logits > 0).long() if logits.shape[0] == 1 else logits.argmax(dim=0, keepdim=True)


def slice_counts(prediction: torch.Tensor, reference: torch.Tensor, classes: int) -> torch.Tensor:
    """Count the voxels of each slice and class.

    Args:
        prediction: class indices (1, I, J) of a slice or (1, I, J, S) of a volume's slices along the last axis.
        reference: the same shape.
        classes: how many, without the background 0.

    Returns:
        (S, classes, 3): common voxels, predicted ones and reference ones, int64 on the CPU; S is 1 for a slice.

    Raises:
        ConfigError: when the shapes differ, or are no slice or volume.
    """
    if prediction.shape != reference.shape or prediction.ndim not in (3, 4) or prediction.shape[0] != 1:
        raise ConfigError(
            f"The overlap got a prediction {tuple(prediction.shape)} and a reference {tuple(reference.shape)}: "
            "expected class maps (1, I, J) or (1, I, J, S) of one shape; correct the postprocessing."
        )
    p, r = (tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor for tensor in (prediction, reference))
    if p.ndim == 3:
        p, r = p[..., None], r[..., None]
    rows = []
    for number in range(1, classes + 1):
        mine, theirs = p == number, r == number
        rows.append(torch.stack([mask.sum(dim=(0, 1, 2)) for mask in (mine & theirs, mine, theirs)], dim=-1))
    return torch.stack(rows, dim=1).cpu()


@dataclass
class Overlap:
    """What is counted of one label.

    Attributes:
        common, predicted, reference: voxels, over the slices that count.
        images: slices that count.
        sums: the sum of the overlap of each of them, by its name.
    """

    common: int = 0
    predicted: int = 0
    reference: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OVERLAPS, 0.0))

    def add(self, counts: torch.Tensor, only_with_organ: bool) -> None:
        """Add the counts (S, 3) of slices; those with the label in neither mask never count."""
        here = counts[:, 2] > 0 if only_with_organ else counts[:, 1:].sum(dim=1) > 0
        counts = counts[here]
        common, predicted, reference = counts.double().unbind(dim=1)
        self.sums["iou"] += float((common / (predicted + reference - common)).sum())
        self.sums["dice"] += float((2 * common / (predicted + reference)).sum())
        self.images += len(counts)
        self.common += int(common.sum())
        self.predicted += int(predicted.sum())
        self.reference += int(reference.sum())

    def merge(self, other: Overlap) -> None:
        """Add what was counted elsewhere."""
        for name in ("common", "predicted", "reference", "images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sums = {name: value + other.sums[name] for name, value in self.sums.items()}

    def value(self, overlap: str, over: str) -> float | None:
        """Return the overlap over the data set or the mean over images; None without a slice that counts."""
        if not self.images:
            return None
        if over == "image":
            return self.sums[overlap] / self.images
        if overlap == "dice":
            return 2 * self.common / (self.predicted + self.reference)
        return self.common / (self.predicted + self.reference - self.common)


def _pairs(output: Any) -> Any:
    return [(item["pred"], item["label"]) for item in output]


class PooledOverlap(Metric):
    """IoU or Dice over all pixels of a data set at once, or the mean over its slices; averaged over the labels.

    With TP common, P predicted and R reference pixels: IoU = TP / (P + R - TP), Dice = 2 TP / (P + R). Masks are
    compared where the run has them, on the network's grid. With `only_with_organ`, a slice counts for a label only
    when its reference has it: false positives elsewhere go unseen, which is why `ctseg.metrics.PatientOverlap` stands
    beside it. A slice with the label in neither mask says nothing and never counts.

    Args:
        labels: label names; class i+1 is labels[i].
        overlap: "iou" or "dice".
        over: "dataset" pools the pixels, "image" averages the slices.
        only_with_organ: count only slices whose reference has the label.
        save_to: JSON file for the values, written when the metric is computed; None for none.
        output_transform: of Ignite; must give pairs of class maps (1, I, J) or (1, I, J, S).

    Raises:
        ConfigError: for an unknown `overlap` or `over`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        overlap: str = "iou",
        over: str = "dataset",
        only_with_organ: bool = True,
        save_to: str | Path | None = None,
        output_transform: Callable[[Any], Any] = _pairs,
        device: str | torch.device = "cpu",
    ) -> None:
        for name, value, known in (("overlap", overlap, OVERLAPS), ("over", over, WAYS)):
            if value not in known:
                raise ConfigError(f"PooledOverlap got {name} {value!r}: expected {' or '.join(known)}.")
        self.labels = list(labels)
        self.overlap = overlap
        self.over = over
        self.only_with_organ = only_with_organ
        self.save_to = Path(save_to) if save_to else None
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all slices."""
        self._counted = [Overlap() for _ in self.labels]
        self._patients: set[str] = set()

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Count the pixels of each pair (prediction, reference)."""
        for prediction, reference in output:
            counts = slice_counts(prediction, reference, len(self.labels))
            for number, counted in enumerate(self._counted):
                counted.add(counts[:, number], self.only_with_organ)
            patient = getattr(reference, "meta", {}).get("patient")
            if patient is not None:
                self._patients.add(str(patient))

    def compute(self) -> float:
        """Return the mean over the labels that have a value; NaN when none has."""
        counted, patients = self._gathered()
        values = {name: one.value(self.overlap, self.over) for name, one in zip(self.labels, counted, strict=True)}
        known = [value for value in values.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        if self.save_to is not None and idist.get_rank() == 0:
            content = {
                "metric": f"{self.overlap} over the {self.over}, on the network's grid",
                "slices": "that have the organ" if self.only_with_organ else "all",
                "mean": mean,
                "patients": len(patients),
                "values": values,
                "counts": {
                    name: {"common": c.common, "predicted": c.predicted, "reference": c.reference, "slices": c.images}
                    for name, c in zip(self.labels, counted, strict=True)
                },
            }
            write_beside(self.save_to, (json.dumps(content, indent=2) + "\n").encode())
        return float("nan") if mean is None else mean

    def _gathered(self) -> tuple[list[Overlap], set[str]]:
        if idist.get_world_size() == 1:
            return self._counted, self._patients
        merged, patients = [Overlap() for _ in self.labels], set()
        gathered: Any = idist.all_gather((self._counted, self._patients))
        for counted, names in gathered:
            patients |= names
            for known, new in zip(merged, counted, strict=True):
                known.merge(new)
        return merged, patients
