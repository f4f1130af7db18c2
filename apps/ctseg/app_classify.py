"""The task of a bundle that classifies: it answers with a table of slices instead of a mask."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from app_infer import SegmentationTask, wanted_device
from monailabel.interfaces.tasks.infer_v2 import InferType

from ctseg.presence.table import table_json
from ctseg.registry import verify_weights

logger = logging.getLogger(__name__)


class ClassificationTask(SegmentationTask):
    """One bundle that says on which slices its organs are; listed and kept as one that segments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Describe the bundle; see `SegmentationTask`."""
        super().__init__(*args, **kwargs)
        self.type = InferType.CLASSIFICATION

    def __call__(self, request: dict[str, Any]) -> tuple[None, dict[str, Any]]:  # type: ignore[override]
        """Say of each slice of one image whether the organs are on it.

        Args:
            request: `image` (a path that the app has checked) and `device`.

        Returns:
            No file, and the answer: `presence` (`ctseg.presence.table.table_json`), `label_names` (the organs found),
            `latencies`, `device`, `model`, `version`, `notes`.

        Raises:
            CtsegError: one sentence, for everything that the caller can mend.
        """
        begin = time.perf_counter()
        device = wanted_device(request.get("device"))
        bundle = self._bundle()
        if not bundle.ready:
            verify_weights(bundle)  # raises the sentence that says what to do
        found = self._networks.classify(bundle, Path(request["image"]), device)
        table = table_json(found)
        seconds = {stage: round(value, 3) for stage, value in found.seconds.items()}
        present = [organ["name"] for organ in table["organs"] if organ["found"]]
        answer = {
            "presence": table,
            "label_names": {name: code for name, code in bundle.labels.items() if name in present},
            "latencies": {"total": round(time.perf_counter() - begin, 3), "transform": seconds},
            "device": found.device,
            "model": bundle.name,
            "version": bundle.version,
            "notes": list(found.volume.notes),
        }
        logger.info("Classified with %s on %s: %s", bundle.name, found.device, answer["latencies"])
        return None, answer
