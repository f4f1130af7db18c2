"""Scores of cases without a label, computed by a bundle's network once for each of its versions and kept in a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.annotation.strategies import CaseScore
from ctseg.files import write_beside
from ctseg.quality import expected_dice

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ctseg.prediction import Predictor, StudyLike
    from ctseg.volume import Volume

    Run = Callable[[torch.Tensor], torch.Tensor]

_DIGITS = 5
_FIELDS = CaseScore.__dataclass_fields__.keys()


class Scorer:
    """Scores cases by a loaded network.

    Args:
        predictor: the network.
        way: how several runs are made: "augment" or "dropout" (`ctseg.annotation.uncertainty.several_runs`).
        runs: how many beside the plain one; 0 leaves out the disagreement, and the entropy is that of the plain run,
            else that of the mean over all.
    """

    def __init__(self, predictor: Predictor, way: str = "augment", runs: int = 0) -> None:
        self.predictor = predictor
        self.way = way
        self.runs = runs

    def __call__(self, case_id: str, sources: Sequence[str | Path | Volume | StudyLike]) -> CaseScore:
        """Score a case of one image or several (slices of one patient): entropies and features are averaged.

        Raises:
            CtsegError: for an image that cannot be used.
            ConfigError: dropout was asked of a network that has none.
        """
        return pooled(case_id, [self.predictor.explore(source, self._look) for source in sources])

    def _look(self, image: torch.Tensor, run: Run, network: nn.Module) -> CaseScore:
        names = [str(entry["name"]) for entry in self.predictor.bundle.label_entries]
        return score_image(image, run, network, names, self.way, self.runs)


def score_image(
    image: torch.Tensor, run: Run, network: nn.Module, names: Sequence[str], way: str = "augment", runs: int = 0
) -> CaseScore:
    """Score one image as the network sees it.

    Args:
        image: (1, C, ...).
        run: runs the network on it and returns logits (1, K, ...).
        network: what runs.
        names: of the organs, in the order of the network's channels.
        way: as `Scorer`.
        runs: as `Scorer`.
    """
    from ctseg.annotation.uncertainty import (
        deepest_features,
        disagreement,
        foreground_entropy,
        mean_logits,
        organ_sums,
        several_runs,
    )

    with deepest_features(network) as passed:
        plain = run(image)[0]
    more = [one[0] for one in several_runs(run, network, image, way, runs)] if runs else []
    sums = organ_sums(plain, entropy=not more)  # of the plain run: the mask that an annotator would get
    entropy = foreground_entropy(mean_logits([plain, *more])) if more else [one.entropy for one in sums]
    expected = {name: expected_dice(one.overlap) for name, one in zip(names, sums, strict=True)}
    features = (sum(part.sum(axis=0) for part in passed) / sum(len(part) for part in passed)) if passed else ()
    return CaseScore(
        "",
        dict(zip(names, entropy, strict=True)),
        {name: one.voxels for name, one in zip(names, sums, strict=True)},
        dict(zip(names, disagreement([plain, *more]), strict=True)) if more else {},
        tuple(round(float(value), _DIGITS) for value in features),
        {name: value for name, value in expected.items() if value is not None},
    )


def pooled(case_id: str, parts: Sequence[CaseScore]) -> CaseScore:
    """Return one score of several images of a case: voxels added, all else averaged (where it is known)."""
    first = parts[0]

    def mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        known = {name: [one[name] for one in values if name in one] for value in values for name in value}
        return {name: sum(found) / len(found) for name, found in known.items()}

    return CaseScore(
        case_id,
        mean([part.entropy for part in parts]),
        {name: sum(part.voxels[name] for part in parts) for name in first.voxels},
        mean([part.disagreement for part in parts]),
        tuple(sum(values) / len(parts) for values in zip(*(part.features for part in parts), strict=True)),
        mean([part.expected_dice for part in parts]),
    )


class ScoreBook:
    """The scores of one bundle's cases in a JSON file; those of another version of the network are forgotten.

    Args:
        path: the file; made when the first score is kept.
        version: of the network, or any text that changes when its weights do.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self.version = version
        self._lock = threading.Lock()
        self._cases: dict[str, dict[str, Any]] = self._read()

    def get(self, case_id: str, state: str) -> CaseScore | None:
        """Return the score of a case; None when it is not known, or the image is not what it was.

        Args:
            case_id: the case.
            state: any text that changes when its image does.
        """
        with self._lock:
            kept = self._cases.get(case_id)
        if kept is None or kept["state"] != state:
            return None
        score = kept["score"]
        return CaseScore(**{**score, "features": tuple(score["features"])})

    def put(self, score: CaseScore, state: str) -> None:
        """Keep a score.

        Raises:
            OutputError: the file cannot be written.
        """
        entry = {"state": state, "score": asdict(score)}
        with self._lock:
            self._cases[score.case_id] = entry
            content = {"version": self.version, "cases": self._cases}
            write_beside(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def __len__(self) -> int:
        """How many cases are known."""
        return len(self._cases)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            fits = content["version"] == self.version
            cases: dict[str, dict[str, Any]] = {
                str(name): entry for name, entry in content["cases"].items() if entry["score"].keys() == _FIELDS
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # scores can always be computed again
        return cases if fits else {}
