"""How the network is run: half precision where the processor has it, and only the slices that hold the organ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type

from ctseg.coarseregion import Found, Region, touches_edge
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

    With a `region` only pieces of some size count for the probes, and the slices between them are run in a box around
    these pieces. A slice whose mask comes to an edge of the box is run again, whole, so that the box never cuts it.

    Args:
        batch_size: slices in one forward pass.
        probe: distance of the probes in slices; 1 runs every slice at once.
        margin: slices that are run beyond the empty probes.
        region: values of `ctseg.coarseregion.Region`; None lets every piece count and runs whole slices.
        half: run the network in bfloat16; None: where the device multiplies in it (`computes_in_half`).

    Raises:
        ConfigError: for a `batch_size` or `probe` below 1, a negative `margin`, or as `Region`.
    """

    def __init__(
        self,
        batch_size: int = 8,
        probe: int = 1,
        margin: int = 0,
        region: Mapping[str, Any] | None = None,
        half: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or probe < 1 or margin < 0:
            raise ConfigError(
                f"SlicewiseInferer got batch_size {batch_size}, probe {probe}, margin {margin}: "
                "expected at least 1, at least 1 and at least 0; correct the inferer of the task's kind."
            )
        self.batch_size = batch_size
        self.probe = probe
        self.margin = margin
        self.region = Region(**(region or {}))
        self.half = half

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return logits of shape (1, K, I, J, S) for a volume of shape (1, C, I, J, S), on its device, float32.

        What was not run holds the logits of certain background: the lowest for a single class, else the lowest for
        each class but the first.

        Raises:
            ConfigError: for a batch of several volumes, or fewer axes.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1:
            raise ConfigError(f"SlicewiseInferer got a tensor {tuple(inputs.shape)}: expected (1, C, I, J, S).")
        volume = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        opened = inputs.meta.get("run_slices") if isinstance(inputs, MetaTensor) else None
        run = _Run(volume[0], network, self.batch_size, self.half)
        if opened is None:
            self._probed(run, list(range(volume.shape[-1])), widen=True)
        else:
            self._gated(run, torch.as_tensor(opened).ravel())
        if run.logits is None:
            raise ConfigError("SlicewiseInferer got a volume without slices.")
        result: torch.Tensor = convert_to_dst_type(run.logits[None], inputs)[0]
        if isinstance(result, MetaTensor):
            result.meta.update(slices_run=len(run.done), slices=volume.shape[-1])
        return result

    def _probed(self, run: _Run, slices: list[int], widen: bool) -> None:
        """Run the slices around what the probes find.

        Args:
            slices: those that may be run, ascending.
            widen: leave out what lies beyond the empty probes; else all of them are run.
        """
        probes = sorted({*slices[:: self.probe], slices[-1]})
        run.whole(probes)
        rest = [index for index in slices if index not in run.done]
        found = self.region.find(run.masks) if rest else Found()
        if widen and found.slices:
            below = max((index for index in probes if index < found.slices[0]), default=slices[0])
            above = min((index for index in probes if index > found.slices[-1]), default=slices[-1])
            rest = [index for index in rest if below - self.margin <= index <= above + self.margin]
        if found.slices:
            run.part(rest, self.region.box(found, run.volume.shape[1:3]))
        else:
            run.whole(rest)

    def _gated(self, run: _Run, opened: torch.Tensor) -> None:
        """Run the open slices."""
        count = run.volume.shape[-1]
        if len(opened) != count:
            raise ConfigError(
                f"SlicewiseInferer got {count} slices and a gate for {len(opened)}: expected one grid; "
                "no step between GateSlicesd and the network may change the slices."
            )
        indices = torch.nonzero(opened)[:, 0].tolist()
        if not indices:  # how many channels the network answers with, only it can tell
            run.whole([0])
            run.forget()
        elif self.region.margin_px is None:
            run.whole(indices)
        else:
            self._probed(run, indices, widen=False)


class _Run:
    """One volume on its way through a network: all logits so far, and what was found on which slice.

    Attributes:
        volume: (C, I, J, S).
        logits: (K, I, J, S) float32, certain background where nothing was run; None before the first slice.
        done: the slices that were run.
        masks: slice -> (L, I, J) bool, one for each class, of the slices that were run whole.
    """

    def __init__(self, volume: torch.Tensor, network: Network, batch_size: int, half: bool | None = None) -> None:
        self.volume, self._network, self._batch_size, self._half = volume, network, batch_size, half
        self.logits: torch.Tensor | None = None
        self.done: set[int] = set()
        self.masks: dict[int, torch.Tensor] = {}

    def whole(self, indices: list[int]) -> None:
        """Run whole slices."""
        size = self.volume.shape[1:3]
        for batch in _batches(indices, self._batch_size):
            predicted = self._predicted(batch, (slice(0, size[0]), slice(0, size[1])))
            self.masks.update(zip(batch, _classes(predicted), strict=True))

    def part(self, indices: list[int], box: tuple[slice, slice]) -> None:
        """Run a part of slices, and those again whose mask comes to an inner edge of it."""
        size, again = self.volume.shape[1:3], []
        for batch in _batches(indices, self._batch_size):
            masks = _classes(self._predicted(batch, box)).any(dim=1)
            again += [index for index, cut in zip(batch, touches_edge(masks, box, size).tolist(), strict=True) if cut]
        self.whole(again)

    def forget(self) -> None:
        """Make all background again, as if nothing had been run."""
        if self.logits is not None:
            self.logits = _background(self.logits.permute(3, 0, 1, 2), self.volume)
        self.done.clear()

    def _predicted(self, batch: list[int], box: tuple[slice, slice]) -> torch.Tensor:
        """Run one batch, note its logits, and return them: (B, K, I', J')."""
        chosen = self.volume[:, box[0], box[1]][..., batch]
        slices = chosen.permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last)
        with half_where_fast(slices, self._half):
            predicted = self._network(slices).float()
        if self.logits is None:
            self.logits = _background(predicted, self.volume)
        self.logits[:, box[0], box[1]][..., batch] = predicted.permute(1, 2, 3, 0)
        self.done.update(batch)
        return predicted


def _classes(logits: torch.Tensor) -> torch.Tensor:
    """Return (B, L, I, J): where each class is, of logits (B, K, I, J) of one class, or of background and classes."""
    if logits.shape[1] == 1:
        return logits > 0
    best = logits.argmax(dim=1, keepdim=True)
    return best == torch.arange(1, logits.shape[1], device=logits.device)[:, None, None]


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


def half_where_fast(inputs: torch.Tensor, half: bool | None = None) -> AbstractContextManager[Any]:
    """Return the context in which a network is used on `inputs`: bfloat16 where that is fast, unless it is said."""
    wanted = computes_in_half(inputs.device) if half is None else half
    return torch.autocast(inputs.device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def computes_in_half(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware: a CPU with AVX-512 BF16 or AMX, a CUDA GPU from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
