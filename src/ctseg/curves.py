"""Learning curves as a picture: losses, learning rates and metrics over the epochs; and `ctseg curves CHECKPOINT`."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.files import write_beside
from ctseg.history import History, read_history

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008), and marks for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
MARKS = "osD^vP*X"
PANELS = (("loss", "Loss"), ("metric", "Metrics"), ("lr", "Learning rate"))
_NOT_DRAWN = ("epoch", "seconds")


def add_command(commands: Any) -> None:
    """Add `ctseg curves` to the command line."""
    command = commands.add_parser(
        "curves",
        help="draw the learning curves of a checkpoint",
        description="Draw a training's learning curves from its checkpoint alone.",
        epilog="examples:\n  ctseg curves runs/mine/checkpoint_epoch=60.pt -o curves.png\n"
        "  ctseg curves runs/mine/checkpoint_epoch=60.pt -o curves.png --csv history.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_epoch=N.pt of a training")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers too, a row for each epoch")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix.lower() != ".png":
        raise InputError(f"the picture {arguments.out} is no PNG; give it a name that ends in .png")
    history = read_history(arguments.checkpoint)
    write_curves(history, arguments.out, title_of(history))
    if arguments.csv is not None:
        write_beside(arguments.csv, history.as_csv().encode())
    last = history.rows[-1]["epoch"] if history.rows else 0
    print(f"{arguments.out}: {len(history.rows)} epochs, the last is {last}, {history.seconds:.0f} s of training")


def title_of(history: History) -> str:
    """Return the name of the training as its configuration has it: project and run."""
    names = [history.configuration.get(key) for key in ("project", "run_name")]
    return ", ".join(str(name) for name in names if name)


def write_curves(history: History, path: Path, title: str = "") -> None:
    """Draw the curves into a PNG, written in one step.

    Raises:
        InputError: when there is no epoch.
        OutputError: when it cannot be written.
    """
    write_beside(path, draw_curves(history, title))


def draw_curves(history: History, title: str = "") -> bytes:
    """Return a PNG with a panel each for losses, metrics and learning rates.

    Raises:
        InputError: when there is no epoch.
    """
    if not history.rows:
        raise InputError("the history has no epoch yet: there is nothing to draw; train for one epoch at least")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(kind, text, _names_of(history, kind)) for kind, text in PANELS]
    panels = [panel for panel in panels if panel[2]]
    figure = Figure(figsize=(6.0 * len(panels), 5.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (kind, text, names) in enumerate(panels, start=1):
        _panel(figure.add_subplot(1, len(panels), number), history, kind, text, names)
    if title:
        figure.suptitle(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def kind_of(name: str) -> str:
    """Return the panel of a value: loss, lr or metric."""
    if name.endswith("loss"):
        return "loss"
    return "lr" if name == "lr" or name.startswith("lr_") else "metric"


def _names_of(history: History, kind: str) -> list[str]:
    return [name for name in history.names if name not in _NOT_DRAWN and kind_of(name) == kind]


def _panel(axes: Any, history: History, kind: str, text: str, names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    few = len(history.rows) <= 40  # marks on more would hide the lines
    smallest = []
    for number, name in enumerate(names):
        epochs, values = zip(*history.values(name), strict=True)
        smallest.append(min(values))
        style = "--" if name.startswith("train_") else "-"
        mark = MARKS[number % len(MARKS)] if few or len(epochs) == 1 else ""
        axes.plot(
            epochs, values, linestyle=style, marker=mark, markersize=5, color=COLOURS[number % len(COLOURS)],
            label=_words(name, values, kind),
        )  # fmt: skip
    if kind == "lr" and min(smallest) > 0:
        axes.set_yscale("log")
    elif kind == "metric" and min(smallest) >= 0:
        axes.set_ylim(0, max(1.02, axes.get_ylim()[1]))
    axes.set_title(text)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#d8d8d8", linewidth=0.6)
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, frameon=False)


def _words(name: str, values: Sequence[float], kind: str) -> str:
    """What the legend says: the name, and the best or last value."""
    plain = name.replace("_", " ")
    if kind == "lr":
        return f"{plain}, last {values[-1]:.3g}"
    return f"{plain}, {'lowest' if kind == 'loss' else 'best'} {(min if kind == 'loss' else max)(values):.4f}"
