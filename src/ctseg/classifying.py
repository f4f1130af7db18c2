"""How a 2D classifier is run on the slices of a volume, and how its batches are prepared for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from ctseg.errors import ConfigError
from ctseg.inferers import half_where_fast
from ctseg.training import PrepareBatch


class SliceClassifierInferer(Inferer):
    """Run a 2D classifier on every slice of a volume, so many at a time.

    Args:
        batch_size: slices in one forward pass.

    Raises:
        ConfigError: for a `batch_size` below 1.
    """

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"SliceClassifierInferer got batch_size {batch_size}: expected at least 1.")
        self.batch_size = batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return logits (1, L, S), float32, of a volume (1, C, I, J, S), on its device.

        Raises:
            ConfigError: for a batch of several volumes, fewer axes, or a network that does not answer with (B, L).
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1 or not inputs.shape[-1]:
            raise ConfigError(f"SliceClassifierInferer got a tensor {tuple(inputs.shape)}: expected (1, C, I, J, S).")
        volume: torch.Tensor = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        slices = volume[0].permute(3, 0, 1, 2)
        logits = []
        for batch in slices.split(self.batch_size):
            batch = batch.contiguous(memory_format=torch.channels_last)
            with half_where_fast(batch):
                logits.append(network(batch).float())
        if logits[0].ndim != 2:
            raise ConfigError(
                f"The network of a classifier gave {tuple(logits[0].shape)}: expected (slices, organs); take one of "
                "ctseg.networks.make_classifier."
            )
        return torch.cat(logits).T[None]


class PrepareSlices(PrepareBatch):
    """`PrepareBatch` for a classifier: images are resized to the size of the stage, presence (B, L) stays as it is."""

    def __call__(
        self, batchdata: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, C, H, W) and presence (B, L)."""
        spread = {**batchdata, "label": batchdata["label"][..., None, None]}  # (B, L, 1, 1): a picture of one pixel
        image, label = super().__call__(spread, device, non_blocking, **kwargs)
        return image, label[..., 0, 0]


class EachLabel(nn.Module):
    """A loss of one logit, taken for each organ of each image: presence of one organ does not rule out another's.

    Args:
        loss: takes logits and targets (N, 1), for example one of `ctseg.losses.make_loss`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, L) and presence (B, L).

        Raises:
            ConfigError: when the two differ in shape.
        """
        if prediction.shape != target.shape:
            raise ConfigError(
                f"The classifier gives logits {tuple(prediction.shape)} for presence {tuple(target.shape)}: expected "
                "one logit an organ; correct `classes` of the network."
            )
        loss: torch.Tensor = self.loss(prediction.reshape(-1, 1), target.reshape(-1, 1))
        return loss
