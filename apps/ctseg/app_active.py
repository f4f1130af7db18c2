"""Strategies of active learning as MONAI Label asks for them: thin adapters of `ctseg.strategies`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from app_scores import RUNS, BackgroundScores
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from ctseg.strategies import NEEDS, CaseScore, Pool, choose

logger = logging.getLogger(__name__)

_SAID = {
    "foreground": "Random, two of three from the cases in which the network sees an organ",
    "uncertainty": "The case that the network is least sure of, organ by organ, with noise that fades",
    "diversity": "A case that is unlike those with a label: for the first ones",
    "disagreement": "The case on which several runs of the network agree least",
}


class ScoredCase(Strategy):
    """The next case by a strategy that needs a network's scores."""

    def __init__(self, name: str, scores_of: Callable[[str | None], BackgroundScores | None]) -> None:
        """Describe the strategy.

        Args:
            name: one of `ctseg.strategies.NEEDS`.
            scores_of: returns the scores of a model, of the first that can run for None; None where none can.
        """
        super().__init__(_SAID[name])
        self.name = name
        self._scores_of = scores_of

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the case's `id`, its `scores`, and how it was chosen; None when every case has its label.

        Cases whose scores are not there yet are not waited for: the choice is made among those that are known, and at
        random while none is (`chosen_by` says so).

        Args:
            request: optionally `model` (whose scores count), `label_tag`, `labels` and `seed`.
            datastore: the studies.
        """
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        runs = RUNS if self.name == "disagreement" else 0
        model = request.get("model")
        scores = self._scores_of(str(model) if model else None)
        known: dict[str, CaseScore] = {}
        done: list[CaseScore] = []
        if scores is not None:
            scores.start(runs)
            known = scores.known(images, runs)
            done = list(scores.known(datastore.get_labeled_images(request.get("label_tag"))).values())
        name = self.name if known else "random"
        pool = Pool([known[case] for case in images if case in known] or [CaseScore(case) for case in images], done)
        seed = request.get("seed")
        chosen = choose(name, pool, 1, np.random.default_rng(seed if isinstance(seed, int) else None))[0]
        logger.info("Next case by %s among %d of %d cases", name, len(known), len(images))
        return {
            "id": chosen,
            "chosen_by": name,
            "scored_cases": len(known),
            "scores": _shown(known.get(chosen)),
        }


def _shown(score: CaseScore | None) -> dict[str, Any]:
    if score is None:
        return {}
    parts = {"entropy": score.entropy, "voxels": score.voxels, "disagreement": score.disagreement}
    return {name: dict(values) for name, values in parts.items() if values}


def scored_strategies(scores_of: Callable[[str | None], BackgroundScores | None]) -> dict[str, Strategy]:
    """Return every strategy that needs scores, by name."""
    return {name: ScoredCase(name, scores_of) for name in NEEDS}
