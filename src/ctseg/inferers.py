"""How a training step runs the network, beside MONAI's own inferers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer


class TrainingInferer(SimpleInferer):
    """Run the network in bfloat16 on a CPU that computes in it, else as it comes.

    MONAI's trainer switches mixed precision on for CUDA only; a CPU with AVX-512 BF16 needs half the time with it.
    The prediction is float32, so that losses lose no precision.
    """

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the network's prediction for a batch, float32 on a CPU."""
        if inputs.device.type != "cpu" or not cpu_has_bfloat16():
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = super().__call__(inputs, network, *args, **kwargs)
        return prediction.float()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
