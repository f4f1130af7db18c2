"""`ctseg experiments`: list experiments, run them one after another, and compare them in one table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import CtsegError, InputError

if TYPE_CHECKING:
    from ctseg.experiments.files import Experiment
    from ctseg.experiments.runs import Plan

_EPILOG = """OUT/TASK/NAME holds of each experiment: checkpoint_epoch=N.pt, model.pt (the best weights), history.csv,
curves.png, evaluation/, log.txt and run.json. OUT holds the table: comparison.csv, .json, .md and .html, and
the written report with curves and pictures: report.html. Run the same command again to go on: what is finished is
skipped, what was interrupted goes on after its last epoch.

examples:
  ctseg experiments list configs/experiments
  ctseg experiments run configs/experiments/liver_ct --data DATA --out runs/liver
  ctseg experiments run configs/experiments --only '*resnet18*' --data DATA --out runs/small --epochs 2 --device cpu
  ctseg experiments run configs/experiments/liver_ct --data DATA --out runs/liver --set batch_size=4
  torchrun --nproc_per_node 4 -m ctseg experiments run configs/experiments/skin_lesion --data DATA --out runs/skin
  ctseg experiments table runs/liver"""


def add_command(commands: Any) -> None:
    """Add `ctseg experiments` to the command line."""
    plain = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "experiments",
        help="run experiments and compare them",
        description="Run experiments, each a file of differences over a bundle's training, and compare them.",
        epilog=_EPILOG,
        formatter_class=plain,
    )
    parts = command.add_subparsers(dest="part", required=True, metavar="PART")
    listing = parts.add_parser("list", help="name the experiments of files and folders, and what each needs")
    _add_paths(listing)
    listing.set_defaults(run=_list)
    run = parts.add_parser("run", help="run them, then write the table", epilog=_EPILOG, formatter_class=plain)
    _add_paths(run)
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data folder (docs/training.md)")
    run.add_argument("--datalist", default="datalist.json", metavar="F", help="file in it (default: datalist.json)")
    run.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for the runs and the table")
    run.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: the GPU, which training insists on)")
    run.add_argument(
        "--epochs", type=count_of_epochs, metavar="N", help="instead of each experiment's own; stages are scaled"
    )
    run.add_argument(
        "--split", choices=("validation", "test", "train"), default="validation", help="what is measured (validation)"
    )
    run.add_argument(
        "--set", action="append", default=[], type=setting, metavar="PLACE=VALUE",
        help="a setting laid over every experiment: batch_size=4, network_def#encoder_weights=null",
    )  # fmt: skip
    run.set_defaults(run=_run)
    table = parts.add_parser("table", help="write the table of a folder of runs again")
    table.add_argument("out", type=Path, metavar="OUT", help="folder of the runs")
    table.set_defaults(run=_table)


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="experiment files, or folders of them")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="only names like this: 'liver_ct/*', resnet18"
    )
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="folder of the bundles (default: the shipped ones)")


def count_of_epochs(text: str) -> int:
    """Read a count from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of epochs; expected a whole number from 1 on")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """Read PLACE=VALUE, for argparse; the value is JSON where it can be read so, else text."""
    place, equals, value = text.partition("=")
    if not equals or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; expected PLACE=VALUE, for example batch_size=4")
    try:
        return place, json.loads(value)
    except ValueError:
        return place, value


def _list(arguments: argparse.Namespace) -> None:
    from ctseg.experiments.files import bundle_of, find_experiments

    for experiment in find_experiments(arguments.paths, arguments.only):
        figures = ", ".join(f"{name} {value}" for name, value in experiment.theirs.items())
        try:
            over = f"over {bundle_of(experiment, arguments.bundles).name}"
        except CtsegError as error:
            over = f"cannot be run: {error}"
        print(f"{experiment.name}\n    theirs: {figures or '-'}; {over}")


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.experiments.files import find_experiments
    from ctseg.experiments.runs import Plan

    experiments = find_experiments(arguments.paths, arguments.only)
    plan = Plan(
        arguments.data, arguments.out, arguments.datalist, arguments.device, arguments.epochs, arguments.split,
        dict(arguments.set), arguments.bundles,
    )  # fmt: skip
    run_and_write(experiments, plan)


def run_and_write(experiments: Sequence[Experiment], plan: Plan) -> None:
    """Run experiments, shared with the other processes of a `torchrun`, and write table and report.

    Raises:
        InputError: when one of them failed; the table is there all the same.
        SystemExit: with 130, interrupted.
    """
    from ctseg.experiments.runs import FINISHED, run_experiments
    from ctseg.experiments.share import join, leave

    share = join()
    plan = dataclasses.replace(plan, device=plan.device or share.device)
    try:
        states = run_experiments(share.of(experiments), plan, _say)
    except KeyboardInterrupt:
        write_tables(plan.out)
        _say("stopped; run the same command again to go on")
        raise SystemExit(130) from None
    share.wait()
    if share.rank == 0:
        write_tables(plan.out)
    leave(share)
    failed = [state["experiment"] for state in states if state["status"] != FINISHED]
    if failed:
        raise InputError(f"{len(failed)} of {len(states)} experiments failed, the table says why: {', '.join(failed)}")


def _table(arguments: argparse.Namespace) -> None:
    if not arguments.out.is_dir():
        raise InputError(f"there is no folder {arguments.out}; name the OUT of a run")
    write_tables(arguments.out)


def write_tables(out: Path) -> None:
    """Write table and report of a folder of runs, and print a line for each experiment."""
    from ctseg.experiments.report import write_reports
    from ctseg.experiments.table import read_rows, write_table

    files = [*write_table(out), *write_reports(out)]
    for row in read_rows(out):
        ours = [f"{name} {row[key]:.4f}" for key, name in _SHOWN.items() if row.get(key) is not None]
        theirs = "" if row["theirs"] is None else f"theirs {row['theirs']}, "
        measured = f"{theirs}ours {', '.join(ours)}; {row['patients']} patients of {row['split']}"
        said = measured if ours else row["reason"]
        print(f"{row['experiment']}: {row['status']}, {row['epochs']} epochs; {said}")
    print(f"{out}: {'  '.join(str(file.relative_to(out)) for file in files)}")


_SHOWN = {
    "ours_their_way": "their way",
    "ours_patient_iou": "IoU by patient",
    "ours_patient_dice": "Dice by patient",
    "ours_patient_f1": "F1 by patient",
}


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)
