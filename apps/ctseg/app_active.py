"""Strategies of active learning as MONAI Label asks for them: thin adapters of `ctseg.annotation.strategies`."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from app_http import refused
from app_scores import AllScores
from app_scoring import AUGMENT, DROPOUT, WAYS, Scoring, read_scoring, shown_scoring
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from ctseg.annotation.strategies import NEEDS, CaseScore, Pool, choose
from ctseg.errors import ConfigError

logger = logging.getLogger(__name__)

_SAID = {
    "foreground": "Random, two of three from the cases in which the network sees an organ",
    "uncertainty": "The case that the network is least sure of, organ by organ, with noise that fades",
    "diversity": "A case that is unlike those with a label: for the first ones",
    "disagreement": "The case on which several runs of the network agree least",
}
# The ways that a strategy can be asked for; the others take the scores that are there.
_WAYS = {"uncertainty": WAYS, "disagreement": (AUGMENT, DROPOUT)}


class ScoredCase(Strategy):
    """The next case by a strategy that needs a network's scores."""

    def __init__(self, name: str, scores: AllScores) -> None:
        """Describe the strategy.

        Args:
            name: one of `ctseg.annotation.strategies.NEEDS`.
            scores: of every model.
        """
        super().__init__(_SAID[name])
        self.name = name
        self._scores = scores

    def info(self) -> dict[str, Any]:
        """Return the description, and the options of a strategy that has some."""
        answer: dict[str, Any] = super().info()
        return {**answer, "config": shown_scoring(self._usual(), _WAYS[self.name])} if self.name in _WAYS else answer

    def _usual(self) -> Scoring:
        return self._scores.usual.with_runs() if self.name == "disagreement" else self._scores.usual

    def _scoring(self, request: dict[str, Any]) -> Scoring:
        """How the cases are scored for this request; strategies that compare no entropies take the usual scores."""
        if self.name not in _WAYS:
            return self._usual()
        try:
            asked = read_scoring(request.get("way"), request.get("runs"), self._usual())
        except ConfigError as error:
            raise refused(400, str(error)) from error
        return asked.with_runs() if self.name == "disagreement" else asked

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the case's `id`, its `scores`, and how it was chosen; None when every case has its label.

        Cases whose scores are not there yet are not waited for: the choice is made among those that are known, and at
        random while none is (`chosen_by` says so).

        Args:
            request: optionally `model` (whose scores count), `way` and `runs` (`app_scoring`), `label_tag`, `labels`
                and `seed`.
            datastore: the studies.

        Raises:
            HTTPException: 4xx with one sentence, for a model or a way that is not known.
        """
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        model = request.get("model")
        scores = self._scores.get(str(model) if model else None, self._scoring(request))
        known: dict[str, CaseScore] = {}
        done: list[CaseScore] = []
        if scores is not None:
            scores.start()
            known = scores.known(images)
            done = list(scores.known(datastore.get_labeled_images(request.get("label_tag"))).values())
        name = self.name if known else "random"
        pool = Pool([known[case] for case in images if case in known] or [CaseScore(case) for case in images], done)
        seed = request.get("seed")
        chosen = choose(name, pool, 1, np.random.default_rng(seed if isinstance(seed, int) else None))[0]
        told = scores.shown(known[chosen]) if scores is not None and chosen in known else {}
        logger.info("Next case by %s among %d of %d cases", name, len(known), len(images))
        return {
            "id": chosen,
            "chosen_by": name,
            "scored_cases": len(known),
            "scores": told,
            **({"problem": scores.problem} if scores is not None and scores.problem else {}),
        }


def scored_strategies(scores: AllScores) -> dict[str, Strategy]:
    """Return every strategy that needs scores, by name."""
    return {name: ScoredCase(name, scores) for name in NEEDS}
