"""Where the work runs: inference chooses by itself, training insists on CUDA."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ctseg.errors import DeviceError

if TYPE_CHECKING:
    import torch


def inference_device(name: str = "auto") -> str:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a torch device string; "auto" prefers CUDA.

    Raises:
        DeviceError: for an unknown name, or a GPU that is not there.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise DeviceError(f"The device {name!r} is not known: expected auto, cpu, cuda or cuda:N; choose one of these.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    if name == "cpu":
        return "cpu"
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise DeviceError(
            f"The device {name!r} was asked for, but PyTorch sees {count} GPU(s) here: "
            "use --device cpu, or install a GPU build of PyTorch and the NVIDIA driver."
        )
    return f"cuda:{index}"


def works_there(device: str | torch.device) -> bool:
    """Whether what lies around the network is done on the network's device, too: resampling there and back.

    On a CPU it is NumPy's, slice by slice in threads (`ctseg.grids.spacing`, `ctseg.grids.labels`); elsewhere torch's
    (`ctseg.grids.device`), so that an image goes to the device once as it was read and a label map comes back once.
    """
    return as_device(device).type != "cpu"


def wait_for(device: str) -> None:
    """Return when a device has done what it was told; a GPU works on while the processor goes ahead."""
    if not device.startswith("cuda"):
        return
    import torch

    torch.cuda.synchronize(device)


def use_threads(wanted: int | None) -> None:
    """Let the work on the CPU use so many threads from now on.

    Args:
        wanted: how many; a negative number leaves so many of the cores that this process may use free, but one thread
            there always is; None leaves things as they are.

    Raises:
        DeviceError: for 0.
    """
    if wanted is None:
        return
    if wanted == 0:
        raise DeviceError(
            "0 threads were asked for: expected at least 1, or -1 to leave one core free; leave it out to use all."
        )
    import os

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(wanted if wanted > 0 else max(1, cores + wanted))


def spread_device(name: str, slot: int, gpus: int) -> str:
    """Return the device of one of several workers: "auto" and "cuda" go round over the GPUs, others stay as they are.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        slot: number of the worker on this machine, from 0.
        gpus: how many GPUs there are.
    """
    return f"cuda:{slot % gpus}" if name in ("auto", "cuda") and gpus else name


def training_device() -> str:
    """Return the CUDA device that training runs on; the device of this process's rank under `torchrun`.

    Raises:
        SystemExit: without a GPU. Not a DeviceError: out of `monai.bundle run` only SystemExit reaches the user as a
            sentence, every other exception is wrapped in a traceback.
    """
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        raise SystemExit(
            "Training runs on CUDA and PyTorch sees no GPU here: train on a machine with one, "
            "or insist with `--device cpu` (slow; meant for tests and small data)."
        )
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return f"cuda:{rank % torch.cuda.device_count()}"


def as_device(device: str | torch.device) -> torch.device:
    """Return a `torch.device`: a configuration's `device` arrives as a string when it is overridden."""
    import torch

    return torch.device(device)
