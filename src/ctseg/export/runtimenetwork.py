"""A network of another runtime in PyTorch's clothes, so that the same inferer runs it."""

from __future__ import annotations

import torch

from ctseg.errors import ConfigError
from ctseg.light.sessions import Session


class RuntimeNetwork(torch.nn.Module):
    """Call a `Session` as a network: a tensor in, a float32 tensor out, both on the CPU.

    Args:
        session: the opened network.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's answer for a batch.

        Raises:
            ConfigError: the tensor is on another device.
            BundleError: the network does not take such an image.
        """
        if image.device.type != "cpu":
            raise ConfigError(f"the runtime {self.session.runtime} runs on the processor, not on {image.device}")
        plain = image.as_tensor() if hasattr(image, "as_tensor") else image
        return torch.from_numpy(self.session(plain.detach().to(torch.float32).numpy()))
