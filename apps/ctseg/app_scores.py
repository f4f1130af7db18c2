"""What networks do not know about the cases without a label: scored in the background, kept, and never twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app_http import refused
from fastapi import Depends
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore

from ctseg.acquisition import ScoreBook, Scorer
from ctseg.devices import inference_device
from ctseg.errors import CtsegError
from ctseg.registry import BundleInfo, get_bundle
from ctseg.strategies import CaseScore

if TYPE_CHECKING:
    from ctseg.prediction import Predictor

logger = logging.getLogger(__name__)

RUNS = 3  # of the network beside the plain one, where a strategy compares several
FILE = "scores.json"


class BackgroundScores:
    """The scores of one bundle's unlabelled cases; a thread computes them once somebody has asked.

    Args:
        bundle: gives the version in use.
        load: makes or returns a loaded network.
        store: the studies.
        folder: where the scores are kept.
    """

    def __init__(
        self,
        bundle: Callable[[], BundleInfo],
        load: Callable[[BundleInfo, str], Predictor],
        store: Callable[[], Datastore],
        folder: Path,
    ) -> None:
        self._bundle = bundle
        self._load = load
        self._store = store
        self._folder = folder
        self._runs = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._book: ScoreBook | None = None
        self.failed: dict[str, str] = {}
        self.idle = threading.Event()  # set while there is nothing to do

    def start(self, runs: int = 0) -> None:
        """Begin, or look again now.

        Args:
            runs: of the network for each image beside the plain one; once asked for, every case gets them.
        """
        with self._lock:
            self._runs = max(self._runs, runs)
            self.idle.clear()
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ctseg-scores", daemon=True)
                self._thread.start()

    def known(self, cases: Sequence[str], runs: int = 0) -> dict[str, CaseScore]:
        """Return the scores of cases that are known for the network in use."""
        try:
            book, store = self._current_book(), self._store()
        except CtsegError:
            return {}
        found = {case: book.get(case, _state(store, case)) for case in cases}
        return {case: score for case, score in found.items() if score and (score.disagreement or not runs)}

    def told(self) -> dict[str, Any]:
        """Return what is shown: every known score without its features, what is left, and what could not be scored."""
        bundle, store = self._bundle(), self._store()
        cases = store.get_unlabeled_images()
        known = self.known(cases)
        return {
            "model": bundle.name,
            "version": bundle.version,
            "scored": {
                case: {key: value for key, value in asdict(score).items() if key not in ("case_id", "features")}
                for case, score in sorted(known.items())
            },
            "left": sorted(set(cases) - known.keys() - self.failed.keys()),
            "failed": dict(self.failed),
            "running": self._thread is not None and not self.idle.is_set(),
        }

    def _current_book(self) -> ScoreBook:
        bundle = self._bundle()
        version = f"{bundle.version} {bundle.weights_sha256 or 'own'}"
        if self._book is None or self._book.version != version:
            self._book = ScoreBook(self._folder / FILE, version)
            self.failed.clear()
        return self._book

    def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                while self._one():
                    pass
            except Exception:
                logger.exception("Scoring stopped; it is tried again when somebody asks")
            self.idle.set()
            self._wake.wait()  # until somebody asks again: then there may be new cases, or another network

    def _one(self) -> bool:
        """Score the next case; False when there is none."""
        bundle = self._bundle()
        if not bundle.ready:
            return False
        book, store, runs = self._current_book(), self._store(), self._runs
        cases = store.get_unlabeled_images()
        known = self.known(cases, runs)
        case = next((case for case in sorted(cases) if case not in known and case not in self.failed), None)
        if case is None:
            return False
        try:
            state = _state(store, case)
            scorer = Scorer(self._load(bundle, inference_device()), runs=runs)
            book.put(scorer(case, [Path(store.get_image_uri(case))]), state)
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
        networks: the loaded networks, with `load(bundle, device)`.
        store: gives the studies.
        folder: gives the folder of the trainings; None where there is none to keep scores in.
    """

    def __init__(
        self,
        bundles: Mapping[str, BundleInfo],
        in_use: Callable[[BundleInfo], BundleInfo],
        networks: Any,
        store: Callable[[], Datastore],
        folder: Callable[[], Path | None],
    ) -> None:
        self._bundles = {name: info for name, info in bundles.items() if info.segments and info.needs_weights}
        self._in_use = in_use
        self._networks = networks
        self._store = store
        self._folder = folder
        self._lock = threading.Lock()
        self._made: dict[str, BackgroundScores] = {}

    def get(self, model: str | None) -> BackgroundScores | None:
        """Return the scores of a model, for None of the first that can run; None where there is none, or no folder.

        Raises:
            HTTPException: 404 with the known names.
        """
        folder = self._folder()
        ready = (name for name, info in self._bundles.items() if self._in_use(info).ready)
        name = model or next(ready, None)
        if folder is None or name is None:
            return None
        if name not in self._bundles:
            known = ", ".join(self._bundles)
            raise refused(404, f"there is no model {name!r} that scores cases; the known ones are: {known}")
        shipped = self._bundles[name]
        with self._lock:
            if name not in self._made:
                self._made[name] = BackgroundScores(
                    lambda: self._in_use(get_bundle(shipped.name, shipped.path.parent)),
                    self._networks.load,
                    self._store,
                    folder / name,
                )
            return self._made[name]

    def forget(self) -> None:
        """Begin anew, as a server that was started again; what is on disk stays."""
        self._made.clear()


def score_routes(scores: AllScores) -> list[APIRoute]:
    """Make the route `GET /scores/{model}`, which also begins the scoring."""
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))

    def show_scores(model: str, user: Any = user) -> dict[str, Any]:
        """Show what a model does not know of each case without a label."""
        found = scores.get(model)
        if found is None:
            raise refused(404, f"the cases are not scored here: there is no folder to keep {model}'s scores in")
        found.start()
        return found.told()

    return [APIRoute("/scores/{model}", show_scores, methods=["GET"])]
