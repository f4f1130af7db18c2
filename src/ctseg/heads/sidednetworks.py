"""Left and right that a network cannot confuse: it gets, beside the image, how far each voxel lies from the mid-plane.

A plane that cannot see the side (sagittal slices: both hemispheres look alike) has to guess it. Two ways out: the
network answers side-free, and the sign of the distance says which side it is; or it sees the distance as a channel.
"""

from __future__ import annotations

import torch
from torch import nn

from ctseg.errors import ConfigError
from ctseg.sentences import said_plainly

SIDES = ("split", "channel", "none")
_BELOW = 30.0  # a label of the other side gets the background's logit less this: no share in float32, a finite loss


class SidedNetwork(nn.Module):
    """A network for labels that come in pairs, first all left ones, then all right ones in the same order.

    Args:
        network: for "split": 1 channel in, background and `pairs` logits out; for "none": 1 channel in, background and
            twice `pairs` out; for "channel": 2 channels in, background and twice `pairs` out. 2D or 3D.
        pairs: regions of one side.
        sides: "split" gives each side-free logit to the side on which the voxel lies, "channel" shows the network the
            distance from the mid-plane, "none" leaves it to guess (for comparison).

    Raises:
        ConfigError: for an unknown `sides` or no pair.
    """

    @said_plainly
    def __init__(self, network: nn.Module, pairs: int, sides: str = "split") -> None:
        super().__init__()
        if sides not in SIDES or pairs < 1:
            raise ConfigError(
                f"SidedNetwork got sides {sides!r} and {pairs} pairs: expected one of {', '.join(SIDES)}, and 1 or more"
            )
        self.network = network
        self.split = sides == "split"
        self.below = _BELOW
        self.seen = 2 if sides == "channel" else 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1 + 2 pairs, ...) of an image (B, 2, ...): grey values, and the distance, left above 0."""
        logits: torch.Tensor = self.network(image[:, : self.seen])
        if not self.split:
            return logits
        background, regions = logits[:, :1], logits[:, 1:]
        left = image[:, 1:2] > 0
        nothing = (background.detach() - self.below).expand_as(regions)
        return torch.cat([background, torch.where(left, regions, nothing), torch.where(left, nothing, regions)], dim=1)
