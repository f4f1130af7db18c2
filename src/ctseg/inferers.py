"""How the network is run: half precision where the processor has it, and only the slices that hold the organ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type

from ctseg.errors import ConfigError

Network = Callable[..., torch.Tensor]


class TrainingInferer(SimpleInferer):
    """Run the network in bfloat16 on a CPU that computes in it, else as it comes.

    MONAI's trainer switches mixed precision on for CUDA only; a CPU with AVX-512 BF16 needs half the time with it.
    The prediction is float32, so that losses lose no precision.
    """

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the network's prediction for a batch, float32 on a CPU."""
        if not _in_half(inputs):
            return super().__call__(inputs, network, *args, **kwargs)
        with half_on_cpu(inputs):
            return super().__call__(inputs, network, *args, **kwargs).float()


class SlicewiseInferer(Inferer):
    """Run a 2D network on the slices of a volume, whole slices in batches, and only where the organ is.

    First every `probe`-th slice is run. The organ ends before the nearest empty probes on its two sides, so the slices
    between these are run too, and the rest is background without being run. When no probe finds anything, every slice
    is run: an organ thinner than the gap is not lost.

    Where the volume's meta has `run_slices` (`ctseg.transforms.GateSlicesd`), these slices are run, and no others. The
    result's meta tells `slices_run` and `slices`.

    Args:
        batch_size: slices in one forward pass.
        probe: distance of the probes in slices; 1 runs every slice at once.
        margin: slices that are run beyond the empty probes.

    Raises:
        ConfigError: for a `batch_size` or `probe` below 1, or a negative `margin`.
    """

    def __init__(self, batch_size: int = 8, probe: int = 1, margin: int = 0) -> None:
        super().__init__()
        if batch_size < 1 or probe < 1 or margin < 0:
            raise ConfigError(
                f"SlicewiseInferer got batch_size {batch_size}, probe {probe}, margin {margin}: "
                "expected at least 1, at least 1 and at least 0; correct the inferer of the task's kind."
            )
        self.batch_size = batch_size
        self.probe = probe
        self.margin = margin

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return logits of shape (1, K, I, J, S) for a volume of shape (1, C, I, J, S), on its device, float32.

        Slices that were not run hold the logits of certain background: the lowest for a single class, else the lowest
        for each class but the first.

        Raises:
            ConfigError: for a batch of several volumes, or fewer axes.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise ConfigError(f"SlicewiseInferer got a tensor {tuple(inputs.shape)}: expected (1, C, I, J, S).")
        volume = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        opened = inputs.meta.get("run_slices") if isinstance(inputs, MetaTensor) else None
        if opened is None:
            logits, run = self._probed(volume[0], network)
        else:
            logits, run = self._gated(volume[0], network, torch.as_tensor(opened).ravel())
        result: torch.Tensor = convert_to_dst_type(logits[None], inputs)[0]
        if isinstance(result, MetaTensor):
            result.meta.update(slices_run=run, slices=volume.shape[-1])
        return result

    def _probed(self, volume: torch.Tensor, network: Network) -> tuple[torch.Tensor, int]:
        """Run the slices around what the probes find; return all logits and how many slices were run."""
        count = volume.shape[-1]
        probes = sorted({*range(0, count, self.probe), count - 1})
        logits, found = self._run(volume, network, probes, None)
        if len(probes) == count:
            return logits, count
        first, last = self._range(found, count)
        rest = [index for index in range(first, last + 1) if index not in found]
        logits, _ = self._run(volume, network, rest, logits)
        return logits, len(probes) + len(rest)

    def _gated(self, volume: torch.Tensor, network: Network, opened: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Run the open slices; return all logits and how many slices were run."""
        if len(opened) != volume.shape[-1]:
            raise ConfigError(
                f"SlicewiseInferer got {volume.shape[-1]} slices and a gate for {len(opened)}: expected one grid; "
                "no step between GateSlicesd and the network may change the slices."
            )
        indices = torch.nonzero(opened)[:, 0].tolist()
        if indices:
            return self._run(volume, network, indices, None)[0], len(indices)
        # How many channels the network answers with, only it can tell.
        logits, _ = self._run(volume, network, [0], None)
        return _background(logits.permute(3, 0, 1, 2), volume), 0

    def _range(self, found: dict[int, bool], count: int) -> tuple[int, int]:
        """The slices to run, first and last, by what the probes found."""
        hits = [index for index, hit in found.items() if hit]
        if not hits:
            return 0, count - 1
        below = max((index for index in found if index < min(hits)), default=0)
        above = min((index for index in found if index > max(hits)), default=count - 1)
        return max(0, below - self.margin), min(count - 1, above + self.margin)

    def _run(
        self, volume: torch.Tensor, network: Network, indices: list[int], logits: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[int, bool]]:
        """Run some slices of a (C, I, J, S) volume; return all logits (K, I, J, S) and which slices hold a class."""
        found: dict[int, bool] = {}
        for batch in _batches(indices, self.batch_size):
            slices = volume[..., batch].permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last)
            with half_on_cpu(slices):
                predicted = network(slices).float()
            if logits is None:
                logits = _background(predicted, volume)
            logits[..., batch] = predicted.permute(1, 2, 3, 0)
            present = (predicted > 0).flatten(1) if predicted.shape[1] == 1 else (predicted.argmax(1) > 0).flatten(1)
            found.update(zip(batch, present.any(1).tolist(), strict=True))
        if logits is None:
            raise ConfigError("SlicewiseInferer got a volume without slices.")
        return logits, found


def _batches(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _background(predicted: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    classes = predicted.shape[1]
    lowest = torch.finfo(torch.float32).min
    logits = torch.full((classes, *volume.shape[1:]), lowest, dtype=torch.float32, device=volume.device)
    if classes > 1:
        logits[0] = 0
    return logits


def _in_half(inputs: torch.Tensor) -> bool:
    return inputs.device.type == "cpu" and cpu_has_bfloat16()


def half_on_cpu(inputs: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context in which a network runs on `inputs`: bfloat16 on a CPU that has it, else nothing special."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if _in_half(inputs) else nullcontext()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
