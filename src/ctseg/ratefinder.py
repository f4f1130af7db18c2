"""`ctseg find-lr`: the learning rate range test (Smith, arXiv:1506.01186), by MONAI's finder, over a bundle's training.

The rate grows from step to step; a good one lies where the loss falls fastest, well below where it begins to rise.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import InputError
from ctseg.files import write_beside

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

FEWEST = 5  # steps; a curve of fewer has no slope worth a name


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: the learning rate of each step, growing.
        losses: the smoothed loss of each step; the last ones are missing when it diverged.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest."""
        import numpy as np

        return self.rates[int(np.gradient(np.asarray(self.losses)).argmin())]

    @property
    def lowest(self) -> float:
        """The rate at which the loss is lowest: already at the edge; a tenth of it is the usual choice."""
        return self.rates[min(range(len(self.losses)), key=self.losses.__getitem__)]


def add_command(commands: Any) -> None:
    """Add `ctseg find-lr` to the command line."""
    command = commands.add_parser(
        "find-lr",
        help="find a learning rate for a training",
        description="Take a few training steps with a growing learning rate, and draw the loss over it. The bundle's "
        "weights are not touched. All parameter groups have the same rate; precision is float32.",
    )
    command.add_argument("task", metavar="TASK", help="a bundle, by name or folder")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder with datalist and ledger")
    command.add_argument("--datalist", default="datalist.json", metavar="FILE", help="its name (datalist.json)")
    command.add_argument("--over", type=Path, metavar="FILE", help="an experiment laid over the bundle's training")
    command.add_argument("--from", dest="start", type=float, default=1e-6, metavar="RATE", help="first rate (1e-6)")
    command.add_argument("--to", dest="end", type=float, default=1.0, metavar="RATE", help="last rate (1)")
    command.add_argument("--steps", type=int, default=100, metavar="N", help="training steps between the two (100)")
    command.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: the GPU, as for training)")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for find_lr.csv and .png")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.registry import get_bundle

    bundle = get_bundle(arguments.task)
    if arguments.over is not None and not arguments.over.is_file():
        raise InputError(f"there is no experiment file {arguments.over}")
    try:
        network, optimizer, loss, batches = _training_of(bundle.path, arguments)
    except SystemExit as error:  # how a configuration refuses
        raise InputError(str(error.code).removeprefix("ctseg: ")) from error
    found = range_test(network, optimizer, loss, batches, arguments.start, arguments.end, arguments.steps)
    write_beside(arguments.out / "find_lr.csv", _table(found).encode())
    what = bundle.name if arguments.over is None else f"{bundle.name}, {arguments.over.stem}"
    write_beside(arguments.out / "find_lr.png", draw(found, what))
    print(f"{arguments.out}: find_lr.csv  find_lr.png")
    print(f"the loss falls fastest at {found.steepest:.2g}; a tenth of where it is lowest is {found.lowest / 10:.2g}")
    if len(found.rates) < arguments.steps:
        print(f"it diverged at {found.rates[-1]:.2g}")


def _training_of(bundle: Path, arguments: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Network, optimiser, loss and an endless row of batches (image, label), those of the bundle's own training."""
    import torch
    from monai.bundle import ConfigParser
    from monai.utils import set_determinism

    from ctseg.devices import as_device
    from ctseg.partial import PartialLoss

    parser = ConfigParser()
    files = [bundle / "configs" / "train.json", *([arguments.over] if arguments.over else [])]
    parser.read_config([str(file) for file in files])
    parser["bundle_root"], parser["ckpt_dir"] = str(bundle), str(arguments.out)
    parser["dataset_dir"], parser["datalist"] = str(arguments.data), arguments.datalist
    parser["cache_dir"], parser["cache_rate"], parser["num_workers"] = None, 0.0, 0
    if arguments.device:
        parser["device"] = arguments.device
    set_determinism(seed=int(parser.get_parsed_content("seed")))
    device: torch.device = as_device(parser.get_parsed_content("device"))
    loader = parser.get_parsed_content("train::dataloader")
    prepare = parser.get_parsed_content("train::prepare_batch")
    network = parser.get_parsed_content("network")

    def batches() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for batch in loader:
                yield prepare(batch, device)

    loss = PartialLoss(parser.get_parsed_content("loss"))
    return network, parser.get_parsed_content("optimizer"), loss, batches()


def range_test(
    network: nn.Module,
    optimizer: Optimizer,
    loss: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    start: float = 1e-6,
    end: float = 1.0,
    steps: int = 100,
) -> RangeTest:
    """Train for some steps with a rate that grows from `start` to `end` by a constant factor.

    Network and optimiser are as they were afterwards. It ends early when the loss is five times its best.

    Args:
        network: in training, on the device of the batches.
        optimizer: of its parameters, without a schedule.
        loss: of (prediction, label).
        batches: (image, label), at least as many as steps.

    Raises:
        InputError: for rates or steps that cannot be, or a loss that is no number from the start.
    """
    if not 0 < start < end < math.inf or steps < FEWEST:
        raise InputError(
            f"The range test got rates {start} to {end} in {steps} steps: expected a first rate above 0, a last one "
            f"above it, and at least {FEWEST} steps."
        )
    from monai.optimizers import LearningRateFinder
    from torch.utils.data import DataLoader

    # MONAI's finder wants a DataLoader; with batch_size None this one hands each batch on as it is.
    handed_on: Any = _Batches(batches, steps)
    loader: Any = DataLoader(handed_on, batch_size=None)
    finder = LearningRateFinder(network, optimizer, loss, verbose=False)
    finder.range_test(loader, start_lr=start, end_lr=end, num_iter=steps)
    losses = [float(value) for value in finder.history["loss"]]
    whole = next((number for number, value in enumerate(losses) if not math.isfinite(value)), len(losses))
    if whole < FEWEST:
        raise InputError(
            f"The range test's loss was no number, or five times its best, after {whole} steps: expected at least "
            f"{FEWEST}; begin with a smaller rate (--from) or take more steps."
        )
    return RangeTest(tuple(float(rate) for rate in finder.history["lr"][:whole]), tuple(losses[:whole]))


class _Batches:
    """A data set of batches that are taken in their order, whatever the index."""

    def __init__(self, batches: Iterable[tuple[Any, Any]], count: int) -> None:
        self.batches, self.count = iter(batches), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return next(self.batches)


def _table(found: RangeTest) -> str:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("lr", "smoothed_loss"))
    rows.writerows((f"{rate:.6g}", f"{loss:.6g}") for rate, loss in zip(found.rates, found.losses, strict=True))
    return stream.getvalue()


def draw(found: RangeTest, title: str = "") -> bytes:
    """Return a PNG of the loss over the rate, with the two rates that a reader looks for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="#0072B2", label="loss, smoothed")
    marks = ((found.steepest, "o", "#D55E00", "falls fastest"), (found.lowest, "s", "#009E73", "lowest"))
    for rate, mark, colour, words in marks:
        loss = found.losses[found.rates.index(rate)]
        axes.plot([rate], [loss], mark, color=colour, markersize=9, label=f"{words}: {rate:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(color="#d8d8d8", linewidth=0.6)
    axes.legend()
    if title:
        axes.set_title(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
