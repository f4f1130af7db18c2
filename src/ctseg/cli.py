"""The command line. Heavy packages are imported only where a command needs them, so that help is there at once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ctseg import __version__, calibrating, curves, importing, ratefinder
from ctseg.commands import (
    api,
    app,
    aspects,
    consensus,
    doctor,
    evaluate,
    experiments,
    export,
    export_images,
    folds,
    generate_heads,
    histograms,
    join_planes,
    learn_fusion,
    prepare,
    segment,
    serve,
    simulate,
    sweep,
    turn,
    voxels,
)
from ctseg.commands.segment import say
from ctseg.dependencies import dependency_problem
from ctseg.errors import BundleError, CtsegError
from ctseg.registry import BundleInfo, bundles_root, find_bundles
from ctseg.serving import users

_EXAMPLES = """examples:
  ctseg segment ct.nii.gz -o out              mask, mesh, preview and report into the folder out
  ctseg segment dicom_folder -o out --output nifti,json
  ctseg segment ct.nii.gz -o out --organs ORGAN,ORGAN    several organs, the first wins a shared voxel
  ctseg segment study.zip -o out --device cuda:1
  ctseg tasks                                 what there is to segment, and how well it is known to work

Research use only: not a medical device, not for diagnosis."""


_MORE_COMMANDS = (
    evaluate,
    join_planes,
    prepare,
    export_images,
    importing,
    experiments,
    folds,
    ratefinder,
    consensus,
    learn_fusion,
    curves,
    calibrating,
    simulate,
    generate_heads,
    sweep,
    turn,
    voxels,
    histograms,
    aspects,
    serve,
    app,
    users,
    doctor,
    export,
    api,
)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ctseg", description="Segment organs on CT.", epilog=_EXAMPLES, formatter_class=plain
    )
    parser.add_argument("--version", action="version", version=f"ctseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    segment.add_command(commands)
    tasks = commands.add_parser(
        "tasks",
        help="list the bundles",
        description="List every bundle: labels, modality, trained or not, evidence, licence.",
    )
    tasks.add_argument("--json", action="store_true", help="as JSON")
    tasks.set_defaults(run=_tasks)
    for module in _MORE_COMMANDS:
        module.add_command(commands)
    return parser


def _task_entry(info: BundleInfo) -> dict[str, Any]:
    return {
        "task": info.name,
        "version": info.version,
        "description": info.description,
        "labels": info.labels,
        "modality": info.modality,
        "kind": info.kind,
        "status": info.status,
        "trained": info.trained,
        "depends_on": list(info.depends_on),
        "problem": info.problem or dependency_problem(info),
        "evidence": info.problem or info.evidence,
        "licence": info.licence,
    }


def _in_short(names: list[str], room: int = 44) -> str:
    """Names in a row; what goes beyond the room is counted instead."""
    shown = names
    while len(shown) > 1 and len(", ".join(shown)) > room:
        shown = shown[:-1]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _tasks(arguments: argparse.Namespace) -> None:
    bundles = find_bundles()
    entries = [_task_entry(info) for info in bundles.values()]
    if arguments.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    if not entries:
        raise BundleError(f"there are no bundles in {bundles_root()}; make them with scripts/build_bundles")
    rows = [("task", "version", "modality", "labels", "status", "licence of code / weights")]
    for entry in entries:
        labels = _in_short(list(entry["labels"])) or "-"
        licence = " / ".join(entry["licence"].get(part, "-") for part in ("code", "weights"))
        rows.append(
            (entry["task"], entry["version"] or "-", entry["modality"] or "-", labels, entry["status"], licence)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
        if number:
            entry = entries[number - 1]
            if entry["status"] != "broken":
                print(f"    evidence: {entry['evidence']}")
            if entry["depends_on"]:
                print(f"    needs: {', '.join(one['bundle'] for one in entry['depends_on'])}")
            if entry["problem"]:
                print(f"    problem: {entry['problem']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what a user can mend, 130 and 141 when it was stopped.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.own_program = argv is None
        arguments.run(arguments)
        sys.stdout.flush()
    except CtsegError as error:
        say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    except BrokenPipeError:  # `ctseg tasks | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is to be written at the exit
        return 128 + signal.SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(main())
