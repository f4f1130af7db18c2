"""What networks do not know about the cases without a label: scored in the background, kept, and never twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app_http import refused
from app_networks import Networks
from app_scoring import Scoring, read_scoring
from fastapi import Depends
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore

from ctseg.annotation.acquisition import ScoreBook, Scorer
from ctseg.annotation.strategies import CaseScore
from ctseg.devices import inference_device
from ctseg.errors import ConfigError, CtsegError
from ctseg.quality import calibrations_of, estimated, summary
from ctseg.registry import BundleInfo, fingerprint, get_bundle

logger = logging.getLogger(__name__)


class BackgroundScores:
    """The scores of one bundle's unlabelled cases in one way; a thread computes them once somebody has asked.

    Args:
        bundle: gives the version in use.
        networks: the loaded networks.
        store: the studies.
        folder: where the scores are kept.
        scoring: the way.
    """

    def __init__(
        self,
        bundle: Callable[[], BundleInfo],
        networks: Networks,
        store: Callable[[], Datastore],
        folder: Path,
        scoring: Scoring,
    ) -> None:
        self._bundle = bundle
        self._networks = networks
        self._store = store
        self._folder = folder
        self.scoring = scoring
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._book: ScoreBook | None = None
        self.failed: dict[str, str] = {}
        self.problem = ""  # why this network cannot be asked in this way
        self.idle = threading.Event()  # set while there is nothing to do

    def start(self) -> None:
        """Begin, or look again now."""
        with self._lock:
            self.idle.clear()
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ctseg-scores", daemon=True)
                self._thread.start()

    def known(self, cases: Sequence[str]) -> dict[str, CaseScore]:
        """Return the scores of cases that are known for the network in use."""
        try:
            book, store = self._current_book(), self._store()
        except CtsegError:
            return {}
        found = {case: book.get(case, _state(store, case)) for case in cases}
        return {case: score for case, score in found.items() if score}

    def told(self) -> dict[str, Any]:
        """Return what is shown: every known score (`shown`), what is left, and what could not be scored."""
        bundle, store = self._bundle(), self._store()
        cases = store.get_unlabeled_images()
        known = self.known(cases)
        return {
            "model": bundle.name,
            "version": bundle.version,
            **asdict(self.scoring),
            "scored": {case: self.shown(score) for case, score in sorted(known.items())},
            "left": sorted(set(cases) - known.keys() - self.failed.keys()),
            "failed": dict(self.failed),
            "problem": self.problem,
            "running": self._thread is not None and not self.idle.is_set(),
        }

    def shown(self, score: CaseScore) -> dict[str, Any]:
        """Return a score as JSON, without what nobody reads.

        Its `quality` is the estimate that an inference's answer has, made of the same probabilities.
        """
        bundle = self._bundle()
        quality = summary(estimated(score.expected_dice, calibrations_of(bundle.quality, bundle.name)))
        plain = {key: value for key, value in asdict(score).items() if key not in ("case_id", "features")}
        return {**plain, "quality": quality}

    def _current_book(self) -> ScoreBook:
        bundle = self._bundle()
        # Weights of a user's own have no sha256: then it is the file that must be the same.
        version = f"{bundle.version} {bundle.weights_sha256 or fingerprint(bundle)}"
        if self._book is None or self._book.version != version:
            self._book = ScoreBook(self._folder / self.scoring.file, version)
            self.failed.clear()
            self.problem = ""
        return self._book

    def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                while self._one():
                    pass
            except Exception:
                logger.exception("Scoring stopped; it is tried again when somebody asks")
            with self._lock:
                if not self._wake.is_set():  # else somebody has asked again just now
                    self.idle.set()
            self._wake.wait()  # until somebody asks again: then there may be new cases, or another network

    def _one(self) -> bool:
        """Score the next case; False when there is none."""
        bundle = self._bundle()
        if not bundle.ready:
            return False
        book, store = self._current_book(), self._store()
        if self.problem:
            return False
        cases = store.get_unlabeled_images()
        known = self.known(cases)
        case = next((case for case in sorted(cases) if case not in known and case not in self.failed), None)
        if case is None:
            return False
        try:
            state, device = _state(store, case), inference_device()
            scorer = Scorer(self._networks.load(bundle, device), self.scoring.way, self.scoring.runs)
            study = self._networks.study(Path(store.get_image_uri(case)), bundle.modality, device)
            book.put(scorer(case, [study]), state)
        except ConfigError as error:  # of the network, such as dropout asked of one that has none
            self.problem = str(error)
            logger.warning("Nothing is scored with %s: %s", bundle.name, error)
            return False
        except CtsegError as error:
            self.failed[case] = str(error)
            logger.warning("Case %s is not scored: %s", case, error)
        return True


def _state(store: Datastore, case: str) -> str:
    """Text that changes when a case's image does; for a series of a server its UID says all."""
    path = Path(store.get_image_uri(case)) if not _is_series(case) else None
    if path is None or not path.is_file():
        return case
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_series(case: str) -> bool:
    return bool(case) and set(case) <= set("0123456789.")


class AllScores:
    """The scores of every model, made when first asked for.

    Args:
        bundles: those that are served.
        in_use: gives a bundle's version in use.
        networks: the loaded networks.
        store: gives the studies.
        folder: gives the folder of the trainings; None where there is none to keep scores in.
        usual: how cases are scored when nothing else is asked for.
    """

    def __init__(
        self,
        bundles: Mapping[str, BundleInfo],
        in_use: Callable[[BundleInfo], BundleInfo],
        networks: Networks,
        store: Callable[[], Datastore],
        folder: Callable[[], Path | None],
        usual: Scoring,
    ) -> None:
        self._bundles = {name: info for name, info in bundles.items() if info.segments and info.needs_weights}
        self._in_use = in_use
        self._networks = networks
        self._store = store
        self._folder = folder
        self.usual = usual
        self._lock = threading.Lock()
        self._made: dict[tuple[str, Scoring], BackgroundScores] = {}

    def get(self, model: str | None, scoring: Scoring | None = None) -> BackgroundScores | None:
        """Return the scores of a model; None where there is none, or no folder.

        For no model those of the first that can run, one with a caution after all others.

        Args:
            model: its name.
            scoring: the way; None takes the usual one.

        Raises:
            HTTPException: 404 with the known names.
        """
        folder = self._folder()
        unasked = sorted(self._bundles, key=lambda name: bool(self._bundles[name].caution))
        ready = (name for name in unasked if self._in_use(self._bundles[name]).ready)
        name = model or next(ready, None)
        if folder is None or name is None:
            return None
        if name not in self._bundles:
            known = ", ".join(self._bundles)
            raise refused(404, f"there is no model {name!r} that scores cases; the known ones are: {known}")
        shipped, key = self._bundles[name], (name, scoring or self.usual)
        with self._lock:
            if key not in self._made:
                self._made[key] = BackgroundScores(
                    lambda: self._in_use(get_bundle(shipped.name, shipped.path.parent)),
                    self._networks,
                    self._store,
                    folder / name,
                    key[1],
                )
            return self._made[key]

    def forget(self) -> None:
        """Begin anew, as a server that was started again; what is on disk stays."""
        self._made.clear()


def score_routes(scores: AllScores) -> list[APIRoute]:
    """Make the route `GET /scores/{model}`, which also begins the scoring."""
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

    def show_scores(model: str, way: str = "", runs: str = "", user: Any = user) -> dict[str, Any]:
        """Show what a model does not know of each case without a label."""
        try:
            found = scores.get(model, read_scoring(way, runs, scores.usual))
        except ConfigError as error:
            raise refused(400, str(error)) from error
        if found is None:
            raise refused(404, f"the cases are not scored here: there is no folder to keep {model}'s scores in")
        found.start()
        return found.told()

    return [APIRoute("/scores/{model}", show_scores, methods=["GET"])]
