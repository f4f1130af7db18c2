"""`ctseg sweep`: one or two settings of a training over lists of values, as experiments, with a plot."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.commands.experiments import count_of_epochs, run_and_write, setting
from ctseg.errors import ConfigError

if TYPE_CHECKING:
    from ctseg.experiments.files import Experiment
    from ctseg.experiments.findings import Run

PICTURE = "sweep.png"
FOLDER = "experiments"  # in OUT, for the experiments that are made
_EPILOG = """Each value, or pair of values, is an experiment in OUT/experiments and is repeated like any other. OUT
holds the table (comparison.csv, .json, .md, .html), report.html, and sweep.png.

examples:
  ctseg sweep liver_ct_segmentation --value optimizer#lr=0.0003,0.001,0.003 --data DATA --out runs/rates
  ctseg sweep tversky.yaml --value loss#alpha=0.15,0.5,0.85 --value loss#beta=0.15,0.5,0.85 --data DATA --out runs/ab
  ctseg sweep tversky.yaml --value loss#alpha=0.15,0.5,0.85 --set 'loss#beta=$1 - @loss#alpha' --data DATA --out OUT"""


def add_command(commands: Any) -> None:
    """Add `ctseg sweep` to the command line."""
    command = commands.add_parser(
        "sweep",
        help="run a training over values of one or two settings",
        description="Run a training over values of one or two settings, and plot what they come to.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("base", metavar="BUNDLE|FILE", help="a bundle, or an experiment's file to begin from")
    command.add_argument(
        "--value", action="append", required=True, type=_values, metavar="PLACE=A,B,C",
        help="a place in the configuration and its values; once or twice",
    )  # fmt: skip
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data folder (docs/training.md)")
    command.add_argument("--datalist", default="datalist.json", metavar="F", help="file in it (default: datalist.json)")
    command.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for everything")
    command.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: the GPU, which training insists on)")
    command.add_argument("--epochs", type=count_of_epochs, metavar="N", help="instead of the training's own")
    command.add_argument(
        "--split", choices=("validation", "test", "train"), default="validation", help="what is measured (validation)"
    )
    command.add_argument(
        "--bundles", type=Path, metavar="DIR", help="folder of the bundles (default: the shipped ones)"
    )
    command.add_argument(
        "--set", action="append", default=[], type=setting, metavar="PLACE=VALUE", help="a setting, the same for all"
    )
    command.set_defaults(run=_run)


def _values(text: str) -> tuple[str, list[Any]]:
    place, value = setting(text)
    values = value if isinstance(value, list) else [_plain(part) for part in str(text.partition("=")[2]).split(",")]
    if len(values) < 2 or len({json.dumps(one) for one in values}) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} has no two different values; expected PLACE=A,B,C")
    return place, values


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.experiments.runs import Plan

    base = _base(arguments.base, arguments.bundles)
    experiments = write_experiments(base, dict(arguments.value), arguments.out / FOLDER)
    plan = Plan(
        arguments.data, arguments.out, arguments.datalist, arguments.device, arguments.epochs, arguments.split,
        dict(arguments.set), arguments.bundles,
    )  # fmt: skip
    try:
        run_and_write(experiments, plan)
    finally:
        if picture := write_picture(arguments.out):
            print(picture)


def _base(name: str, bundles: Path | None) -> dict[str, Any]:
    """The content of an experiment's file, or an empty one over a bundle."""
    from ctseg.experiments.files import ENDINGS, read_experiment
    from ctseg.registry import get_bundle

    if name.endswith(ENDINGS):
        return dict(read_experiment(Path(name)).content)
    return {"experiment": {"task": get_bundle(name, bundles).task}}


def write_experiments(base: Mapping[str, Any], values: Mapping[str, Sequence[Any]], folder: Path) -> list[Experiment]:
    """Write an experiment for each combination of values; one that lies there with other content is refused later.

    Args:
        base: what all have.
        values: place in the configuration ("loss#alpha") -> its values; one or two places.
        folder: for the files.

    Raises:
        ConfigError: for other than one or two places.
    """
    import yaml

    from ctseg.experiments.files import read_experiment
    from ctseg.files import write_beside

    if not 1 <= len(values) <= 2:
        raise ConfigError(f"a sweep goes over one or two settings, and {len(values)} are given; leave some out")
    made = []
    for combination in itertools.product(*values.values()):
        content = copy.deepcopy(dict(base))
        pairs = dict(zip(values, combination, strict=True))
        for place, value in pairs.items():
            _put(content, place, value)
        content["experiment"]["grid"] = {_axis(place, values): str(value) for place, value in pairs.items()}
        name = "_".join(f"{_axis(place, values)}_{value}" for place, value in pairs.items())
        path = folder / f"{re.sub('[^A-Za-z0-9_.-]', '-', name)}.yaml"
        write_beside(path, yaml.safe_dump(content, sort_keys=False).encode())
        made.append(read_experiment(path))
    return made


def _put(content: dict[str, Any], place: str, value: Any) -> None:
    """Set a value in a dictionary of the file where that is written out, else by its place."""
    *way, last = place.split("#")
    node: Any = content
    for part in way:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node[last] = value
    else:
        content[place] = value


def _axis(place: str, places: Mapping[str, Any]) -> str:
    """The last part of a place, where that tells the two apart."""
    last = place.rpartition("#")[2]
    return last if sum(other.rpartition("#")[2] == last for other in places) == 1 else place.replace("#", " ")


def write_picture(out: Path) -> Path | None:
    """Draw `OUT/sweep.png` of the finished experiments: a line over one number, else a matrix; None without any."""
    from ctseg.experiments.findings import axes_of, read_runs
    from ctseg.files import write_beside

    runs = read_runs(out) if any(out.glob("*/*/run.json")) else []
    axes = axes_of(runs)
    if not axes:
        return None
    drawn = _drawn(runs, axes)
    if drawn is not None:
        write_beside(out / PICTURE, drawn)
        return out / PICTURE
    return None


def _drawn(runs: Sequence[Run], axes: Sequence[str]) -> bytes | None:
    from ctseg.experiments.plots import line, matrix
    from ctseg.experiments.report import MEASURES

    name = next((name for name in MEASURES if all(run.row.get(name) is not None for run in runs)), None)
    if name is None:
        return None
    if len(axes) == 1:
        values = {run.grid[axes[0]]: float(run.row[name]) for run in runs}
        try:
            return line([(float(text), value) for text, value in values.items()], (axes[0], MEASURES[name]))
        except ValueError:  # names, such as those of optimisers
            return matrix(
                {(text, ""): v for text, v in values.items()}, list(values), [""], (axes[0], "", MEASURES[name])
            )
    cells = {(run.grid[axes[0]], run.grid[axes[1]]): float(run.row[name]) for run in runs}
    rows, columns = (sorted({run.grid[axis] for run in runs}, key=_order) for axis in axes)
    return matrix(cells, rows, columns, (*axes, MEASURES[name]))


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
