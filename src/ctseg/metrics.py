"""Overlap by patient: every voxel of every slice of a patient counts once, then patients are averaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.metrics import Metric

from ctseg.datalist import NOT_ANNOTATED
from ctseg.errors import ConfigError
from ctseg.files import write_beside


def _pairs(output: Any) -> Any:
    return [(item["pred"], item["label"]) for item in output]


class PatientOverlap(Metric):
    """Mean over patients (and labels) of Dice or IoU, from counts pooled over all images of a patient.

    Dice = 2 TP / (P + R), IoU = TP / (P + R - TP), with P predicted, R reference and TP common voxels of a label in one
    patient. A patient without a label in both prediction and reference says nothing on it and is left out; one with
    it in only one of the two counts 0. In an image whose label was not annotated for an organ (`not_annotated` in its
    meta) nothing is counted of it.

    Args:
        labels: label names; class i+1 is labels[i].
        overlap: "dice" or "iou".
        save_to: JSON file for the value of each patient and label, written when the metric is computed; None for none.
        output_transform: of Ignite; must give pairs of class maps (1, ...) whose reference is a `MetaTensor` with
            "patient" in its meta.

    Raises:
        ConfigError: for an unknown `overlap`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        overlap: str = "dice",
        save_to: str | Path | None = None,
        output_transform: Callable[[Any], Any] = _pairs,
        device: str | torch.device = "cpu",
    ) -> None:
        if overlap not in ("dice", "iou"):
            raise ConfigError(f"The overlap {overlap!r} is not known: expected dice or iou.")
        self.labels = list(labels)
        self.overlap = overlap
        self.save_to = Path(save_to) if save_to else None
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all patients."""
        self._counts: dict[str, list[list[int]]] = {}

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Count the voxels of each pair (prediction, reference)."""
        for prediction, reference in output:
            patient = str(reference.meta["patient"])  # type: ignore[attr-defined]
            counts = self._counts.setdefault(patient, [[0, 0, 0] for _ in self.labels])
            unknown = str(reference.meta.get(NOT_ANNOTATED) or "").split(",")  # type: ignore[attr-defined]
            for index, name in enumerate(self.labels):
                if name in unknown:
                    continue
                p, r = prediction == index + 1, reference == index + 1
                for i, mask in enumerate((p & r, p, r)):
                    counts[index][i] += int(mask.sum())

    def per_patient(self) -> dict[str, dict[str, float | None]]:
        """Return patient -> label -> value; None where the label is in neither prediction nor reference."""
        return {
            patient: {name: self._value(*counts[i]) for i, name in enumerate(self.labels)}
            for patient, counts in sorted(self._gathered().items())
        }

    def compute(self) -> float:
        """Return the mean over patients and labels that have a value; NaN when none has."""
        table = self.per_patient()
        values = [value for row in table.values() for value in row.values() if value is not None]
        mean = sum(values) / len(values) if values else float("nan")
        if self.save_to is not None and idist.get_rank() == 0:
            content = {"metric": f"patient-wise {self.overlap}", "mean": mean, "patients": len(table), "values": table}
            write_beside(self.save_to, (json.dumps(content, indent=2) + "\n").encode())
        return mean

    def _value(self, common: int, predicted: int, reference: int) -> float | None:
        if predicted + reference == 0:
            return None
        if self.overlap == "dice":
            return 2 * common / (predicted + reference)
        return common / (predicted + reference - common)

    def _gathered(self) -> dict[str, list[list[int]]]:
        if idist.get_world_size() == 1:
            return self._counts
        merged: dict[str, list[list[int]]] = {}
        gathered: Any = idist.all_gather(self._counts)
        for counts in gathered:
            for patient, rows in counts.items():
                known = merged.setdefault(patient, [[0, 0, 0] for _ in self.labels])
                for old, new in zip(known, rows, strict=True):
                    old[:] = [a + b for a, b in zip(old, new, strict=True)]
        return merged
