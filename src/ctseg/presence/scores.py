"""How well a classifier finds the slices of an organ: counts, rates, and the slices that it missed, by name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.metrics import Metric

from ctseg.errors import ConfigError
from ctseg.files import write_beside
from ctseg.presence.slices import checked_threshold

SCORES = ("f1", "recall", "precision", "accuracy", "specificity")
REPORT, SLICES, MISSED = "presence.json", "presence_slices.csv", "missed_slices.csv"


@dataclass(frozen=True)
class SliceResult:
    """One organ on one slice: what the reference says and what the network does.

    Attributes:
        case: the case's id.
        patient: the patient's id.
        slice: number of the slice in the source, from 1.
        label: name of the organ.
        present: whether the reference has it there.
        probability: of the network, 0 to 1.
    """

    case: str
    patient: str
    slice: int
    label: str
    present: bool
    probability: float


def confusion(results: Iterable[SliceResult], threshold: float) -> dict[str, int]:
    """Return tp, fp, fn and tn; a probability at the threshold counts as present."""
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for one in results:
        found = np.float32(one.probability) >= np.float32(threshold)
        counts[("tp" if found else "fn") if one.present else ("fp" if found else "tn")] += 1
    return counts


def rates(tp: int, fp: int, fn: int, tn: int) -> dict[str, float | None]:
    """Return f1, recall, precision, accuracy and specificity; None where the denominator is 0.

    recall = TP / (TP + FN), precision = TP / (TP + FP), F1 = 2 TP / (2 TP + FP + FN), specificity = TN / (TN + FP),
    accuracy = (TP + TN) / all (Powers, Evaluation: from precision, recall and F-measure to ROC, 2011).
    """

    def part(of: int, whole: int) -> float | None:
        return of / whole if whole else None

    return {
        "f1": part(2 * tp, 2 * tp + fp + fn),
        "recall": part(tp, tp + fn),
        "precision": part(tp, tp + fp),
        "accuracy": part(tp + tn, tp + fp + fn + tn),
        "specificity": part(tn, tn + fp),
    }


def scored(results: Sequence[SliceResult], threshold: float) -> dict[str, Any]:
    """Return slices, support (slices with the organ), cases, patients, the counts and the rates of some slices."""
    counts = confusion(results, threshold)
    return {
        "slices": len(results),
        "support": counts["tp"] + counts["fn"],
        "cases": len({one.case for one in results}),
        "patients": len({one.patient for one in results}),
        **counts,
        **rates(**counts),
    }


def presence_report(
    results: Sequence[SliceResult], labels: Sequence[str], threshold: float, split: str | None = None
) -> dict[str, Any]:
    """Return the whole evaluation as plain JSON types: by organ, by organ and patient, and the wrong slices by name."""
    by_label = {label: [one for one in results if one.label == label] for label in labels}
    patients = sorted({one.patient for one in results})
    return {
        "threshold": threshold,
        "split": split,
        "labels": {label: scored(rows, threshold) for label, rows in by_label.items()},
        "patients": {
            label: {p: scored([one for one in rows if one.patient == p], threshold) for p in patients}
            for label, rows in by_label.items()
        },
        "missed": _named(one for one in results if one.present and not _found(one, threshold)),
        "false_alarms": _named(one for one in results if not one.present and _found(one, threshold)),
    }


def _found(one: SliceResult, threshold: float) -> bool:
    return bool(np.float32(one.probability) >= np.float32(threshold))


def _named(results: Iterable[SliceResult]) -> list[dict[str, Any]]:
    keys = ("case", "patient", "slice", "label", "probability")
    return [{key: value for key, value in asdict(one).items() if key in keys} for one in results]


def write_presence_report(
    results: Sequence[SliceResult], labels: Sequence[str], threshold: float, folder: Path, split: str | None = None
) -> dict[str, Any]:
    """Write `presence.json`, every slice (`presence_slices.csv`) and the missed ones (`missed_slices.csv`).

    Returns:
        What is in the JSON.

    Raises:
        OutputError: when a file cannot be written.
    """
    report = presence_report(results, labels, threshold, split)
    write_beside(folder / REPORT, (json.dumps(report, indent=2) + "\n").encode())
    every = [{**asdict(one), "present": int(one.present), "found": int(_found(one, threshold))} for one in results]
    columns = ["case", "patient", "slice", "label", "present", "found", "probability"]
    write_beside(folder / SLICES, _csv(every, columns).encode())
    write_beside(folder / MISSED, _csv(report["missed"], ["case", "patient", "slice", "label", "probability"]).encode())
    return report


def _csv(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "probability": f"{row['probability']:.5f}"} for row in rows)
    return text.getvalue()


def _pairs(output: Any) -> Any:
    return [(item["pred"], item["label"]) for item in output]


class PresenceScore(Metric):
    """One score of a classifier over all slices of a run, mean over the organs; a bundle's metric to follow.

    A score that is not defined (precision where nothing was found, say) counts 0 here, so that a training can follow
    it; the report says null.

    Args:
        labels: names of the organs, in the order of the logits.
        score: f1, recall, precision, accuracy or specificity.
        threshold: from this probability on an organ counts as present.
        save_to: folder of the report, written when the metric is computed; None writes nothing.
        split: the split's name, for the report.
        output_transform: of Ignite; must give pairs of probabilities (L, S) and presence (L, S), the latter a
            `MetaTensor` as `ctseg.transforms.ToPresenced` makes it.

    Raises:
        ConfigError: for an unknown score or a threshold outside of 0 to 1.
    """

    def __init__(
        self,
        labels: Sequence[str],
        score: str = "f1",
        threshold: float = 0.5,
        save_to: str | Path | None = None,
        split: str | None = None,
        output_transform: Callable[[Any], Any] = _pairs,
        device: str | torch.device = "cpu",
    ) -> None:
        if score not in SCORES:
            raise ConfigError(f"The score {score!r} is not known: expected one of {', '.join(SCORES)}.")
        self.labels = list(labels)
        self.score = score
        self.threshold = checked_threshold(threshold)
        self.save_to = Path(save_to) if save_to else None
        self.split = split
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all slices."""
        self._results: list[SliceResult] = []

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take the slices of each pair (probabilities, presence)."""
        for probability, presence in output:
            meta: Any = presence.meta  # type: ignore[attr-defined]
            numbers = np.asarray(meta["slice_index"]).ravel().astype(int) + 1
            case, patient = str(meta["case_id"]), str(meta["patient"])
            self._results += [
                SliceResult(case, patient, int(number), label, bool(presence[row, k] > 0.5), float(probability[row, k]))
                for row, label in enumerate(self.labels)
                for k, number in sorted(enumerate(numbers), key=lambda pair: pair[1])
            ]

    def compute(self) -> float:
        """Return the mean over organs of the score; write the report."""
        results = self._gathered()
        if not results:
            return float("nan")
        if self.save_to is not None and idist.get_rank() == 0:
            write_presence_report(results, self.labels, self.threshold, self.save_to, self.split)
        values = [
            rates(**confusion((one for one in results if one.label == label), self.threshold))[self.score] or 0.0
            for label in self.labels
        ]
        return sum(values) / len(values)

    def _gathered(self) -> list[SliceResult]:
        if idist.get_world_size() == 1:
            return self._results
        gathered: Any = idist.all_gather(self._results)
        return [one for results in gathered for one in results]
