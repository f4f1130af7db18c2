"""What the benchmark of a GPU is made of: a phantom, a watch over memory and utilisation, timing, a training loop."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

Answer = TypeVar("Answer")
_LOOK_S = 0.5  # between two looks at the utilisation
_WARM_UP = 3  # steps of a training that are not counted


def body_phantom(out: Path, shape: Sequence[int]) -> Path:
    """Write an ellipse of soft tissue in air, with noise, as int16 NIfTI of 350 mm across, and return the file.

    Args:
        out: the NIfTI file.
        shape: its size (I, J, K); slices are 2.5 mm apart.
    """
    import nibabel

    i, j, _ = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij", sparse=True)
    body = np.where((i / 0.9) ** 2 + (j / 0.7) ** 2 < 1, 60, -1000) + np.zeros(tuple(shape))
    body += np.random.default_rng(0).normal(0, 20, tuple(shape))
    spacing = 350 / shape[0]
    affine = np.diag([-spacing, -spacing, 2.5, 1])
    nibabel.save(nibabel.Nifti1Image(body.astype(np.int16), affine), out)
    return out


class Watch:
    """The peak of GPU memory and the mean utilisation while it is open; on a CPU it counts nothing.

    Args:
        device: "cpu" or a CUDA device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._stop = threading.Event()
        self._seen: list[float] = []

    def __enter__(self) -> Watch:
        """Begin to count."""
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        if self.device != "cpu":
            self._stop.set()
            self._thread.join()

    def _look(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stop.wait(_LOOK_S):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
                self._seen.append(float(said.split()[0]))
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                return

    def told(self) -> str:
        """Return two cells of the table: peak in GiB and mean utilisation."""
        import torch

        if self.device == "cpu":
            return "| |"
        peak = torch.cuda.max_memory_allocated() / 2**30
        return f"{peak:.2f} | {sum(self._seen) / len(self._seen):.0f} % |" if self._seen else f"{peak:.2f} | |"


def best_of(work: Callable[[], Answer], rounds: int, device: str) -> tuple[float, Answer]:
    """Run once to warm up and then `rounds` times; return the least seconds and the last answer."""
    import torch

    answer, least = work(), float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        answer = work()
        if device != "cpu":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - start)
    return least, answer


def samples_per_second(network: Any, images: Iterator[Any], device: str, batch: int, count: int) -> float:
    """Train a network of images (B, 1, H, W) in mixed precision and return how many it saw a second.

    Args:
        network: on the device, in training mode.
        images: batches; what is brighter than 0.5 is to be found.
        device: "cpu" or a CUDA device.
        batch: images in a batch.
        count: steps that are counted, after three to warm up.
    """
    import torch
    from monai.losses import DiceCELoss

    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss, kind = DiceCELoss(sigmoid=True), torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=kind == "cuda")
    start = time.perf_counter()
    for step in range(count + _WARM_UP):
        if step == _WARM_UP:
            if kind == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
        image = next(images).to(device, non_blocking=True)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype=torch.float16 if kind == "cuda" else torch.bfloat16):
            answer = network(image)
            value = loss(answer[:, :1].float(), (image > 0.5).float())
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
    if kind == "cuda":
        torch.cuda.synchronize()
    return batch * count / (time.perf_counter() - start)


def images_forever(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the images of batches again and again."""
    while True:
        for item in batches:
            yield item["image"].as_tensor() if hasattr(item["image"], "as_tensor") else item["image"]


def nnunet_network(patch: Sequence[int]) -> Any:
    """Return the 2D network that nnU-Net plans by default for a patch like this, None where it is not installed."""
    try:
        unet: Any = import_module("dynamic_network_architectures.architectures.unet")
    except ImportError:
        return None
    import torch

    stages = 3 if max(patch) < 128 else 7
    return unet.PlainConvUNet(
        1, stages, [min(512, 32 * 2**n) for n in range(stages)], torch.nn.Conv2d, 3, [1] + [2] * (stages - 1), 2, 2,
        2, conv_bias=True, norm_op=torch.nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
