"""Which case comes next, and many cases in one request: MONAI Label's own, without what makes them fail."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

logger = logging.getLogger(__name__)


class FirstCase(First):
    """The first case without a final label, by name."""


class RandomCase(Random):
    """A case without a final label, those not offered for long more likely."""

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return the case's `id` and `weight`, or None when every case has its label."""
        try:
            chosen: dict[str, Any] | None = super().__call__(request, datastore)
        except ValueError:
            # The weights are seconds since the last offer: all zero when each was offered within this second.
            images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
            chosen = {"id": random.choice(images), "weight": 0}
        return chosen


class BatchSegmentation(BatchInferTask):
    """Segment many cases: on the CPU too, and past a case that cannot be segmented."""

    def __call__(
        self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what `infer` answered for each image id; `{"error": sentence}` for those it refused."""
        import torch

        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False}  # stock divides by the number of GPUs

        def infer_or_say_why(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except HTTPException as refusal:
                logger.warning("Batch: %s", refusal.detail)
                return {"error": refusal.detail}

        result: dict[str, Any] = super().__call__(request, datastore, infer_or_say_why)
        return result
