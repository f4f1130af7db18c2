"""The whole evaluation as a metric of a bundle's run: every score, and the same report as `ctseg evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from ignite.metrics import Metric

from ctseg.cases import case_name
from ctseg.errors import OutputError
from ctseg.evaluation.comparison import compare, read_baseline
from ctseg.evaluation.measuring import build_results, score_maps
from ctseg.evaluation.traininggap import read_training, training_gap
from ctseg.evaluation.types import Evaluation, Settings, SliceRow
from ctseg.sentences import said_plainly


def _pairs(output: Any) -> Any:
    return [(item["pred"], item["label"]) for item in output]


class CaseScores(Metric):
    """Scores every case of an Ignite run and writes the report of `ctseg.evaluation.report` when it is computed.

    Masks are compared where the run has them, on the network's grid; to compare on the images' own grids, write the
    masks and run `ctseg evaluate`. The metric's value is the mean Dice over organs and cases, NaN without any.

    Args:
        labels: label names; class i+1 is labels[i].
        save_to: folder of the report; None writes nothing.
        baseline: `evaluation.json` of an earlier run to compare with; None for none.
        training: `evaluation.json` of the training cases, to show the gap; None for none.
        beta: of F-beta.
        tolerance_mm: of NSD.
        output_transform: of Ignite; must give pairs of class maps (1, I, J, K) whose reference is a `MetaTensor` with
            "patient" and "filename_or_obj" in its meta.

    Raises:
        ConfigError: for a setting that cannot work.
        InputError: when the baseline, or the evaluation of the training cases, cannot be read.
        OutputError: when the report would replace one of these.
    """

    @said_plainly
    def __init__(
        self,
        labels: Sequence[str],
        save_to: str | Path | None = None,
        beta: float = 1.0,
        tolerance_mm: float = 3.0,
        baseline: str | Path | None = None,
        training: str | Path | None = None,
        output_transform: Callable[[Any], Any] = _pairs,
        device: str | torch.device = "cpu",
    ) -> None:
        self.settings = Settings({name: (i, i) for i, name in enumerate(labels, start=1)}, beta, tolerance_mm)
        self.save_to = Path(save_to) if save_to else None
        self.baseline = read_baseline(baseline) if baseline else None
        self.training = read_training(training) if training else None
        for file in (baseline, training):
            if self.save_to and file and (self.save_to / "evaluation.json").resolve() == Path(file).resolve():
                raise OutputError(f"The file {file} would be replaced by this run: name another report_dir.")
        super().__init__(output_transform=output_transform, device=device, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all cases."""
        self._cases: list[tuple[dict[str, Any], list[SliceRow]]] = []

    def update(self, output: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Score each pair (prediction, reference)."""
        for prediction, reference in output:
            meta: Any = reference.meta  # type: ignore[attr-defined]
            affine = np.asarray(reference.affine.cpu(), dtype=np.float64)  # type: ignore[attr-defined]
            patient, name = str(meta["patient"]), case_name(str(meta["filename_or_obj"]))
            known = {row["case"] for row, _ in self._cases}
            if name in known:  # a folder for each patient, the same file name in all
                name = f"{patient} {name}"
            name = next(n for n in (name, *(f"{name} {i}" for i in range(2, len(known) + 3))) if n not in known)
            p, r = (np.asarray(t.detach().cpu()[0]).round().astype(np.int16) for t in (prediction, reference))
            row, rows = score_maps(name, p, r, affine, self.settings)
            self._cases.append(({"case": name, "patient": patient, **row}, rows))

    def compute(self) -> float:
        """Write the report and return the mean Dice."""
        scored = self._gathered()
        if not scored:
            return float("nan")
        cases = [row for row, _ in scored]
        results = build_results(cases, {}, [], self.settings, own_patients=True)
        if self.baseline is not None:
            results["comparison"] = compare(results, self.baseline, self.settings.resamples, self.settings.seed)
        if self.training is not None:
            results["training"] = training_gap(results, self.training)
        if self.save_to is not None and idist.get_rank() == 0:
            from ctseg.evaluation.report import write_evaluation

            write_evaluation(Evaluation(results, [row for _, rows in scored for row in rows], {}), self.save_to)
        value = results["summary"]["overall"]["macro"]["dice"]["value"]
        return float("nan") if value is None else float(value)

    def _gathered(self) -> list[tuple[dict[str, Any], list[SliceRow]]]:
        if idist.get_world_size() == 1:
            return self._cases
        gathered: Any = idist.all_gather(self._cases)
        return [case for cases in gathered for case in cases]
