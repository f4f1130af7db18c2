"""Training from the viewer: for now an honest refusal that says how to train on the command line.

MONAI Label's own task overwrites the shipped weights, ends "done" with nothing saved when no case validates, and trains
on the CPU without a word; none of that may happen to a user's model.
"""

from __future__ import annotations

from typing import Any, NoReturn

from app_http import refused
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from ctseg.registry import BundleInfo


class TrainingRefused(TrainTask):
    """Listed among the trainers, so that a viewer shows the sentence and not an empty list."""

    def __init__(self, info: BundleInfo) -> None:
        """Keep the bundle whose training is described."""
        self._bundle = info
        super().__init__(f"Not from the viewer yet: {self._how()}")

    def info(self) -> dict[str, Any]:
        """Return the description and the bundle's version; there are no options."""
        return {**super().info(), "version": self._bundle.version}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> NoReturn:
        """Refuse.

        Raises:
            HTTPException: 409, always.
        """
        raise refused(409, f"training from the viewer comes with a later release; {self._how()}")

    def _how(self) -> str:
        config = self._bundle.path / "configs" / "train.json"
        return f"train {self._bundle.name} on the command line: python -m monai.bundle run --config_file {config}"
