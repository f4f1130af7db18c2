"""`ctseg simulate-labels`: replay annotation on a labelled collection and compare the strategies."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, InputError

_EXAMPLES = """examples:
  ctseg simulate-labels liver_ct_segmentation --data work/liver_slices -o simulation
  ctseg simulate-labels liver_ct_segmentation --data DIR -o simulation --strategies random,uncertainty --seeds 5
  ctseg simulate-labels liver_ct_segmentation --data DIR -o simulation --device cpu --set 'spacing=[3.0, 3.0, 5.0]'

A second call with the same OUT goes on where the first was stopped."""


def add_command(commands: Any) -> None:
    """Add `ctseg simulate-labels` to the command line."""
    command = commands.add_parser(
        "simulate-labels",
        help="compare strategies of active learning on labelled data",
        description="Replay annotation on a labelled collection: train, choose the next patients, train again. Every "
        "strategy begins with the same patients; all are measured on the validation patients.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("task", metavar="TASK", help="the bundle that is trained, by name or folder")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder with datalist and ledger")
    command.add_argument(
        "--datalist", default="datalist.json", metavar="FILE", help="its name (default: datalist.json)"
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    command.add_argument(
        "--strategies",
        default="random,foreground,uncertainty,diversity,disagreement",
        metavar="NAMES",
        help="with commas between (default: all but first)",
    )
    for name, default, text in (
        ("seeds", 3, "replays, each from another start"),
        ("start", 3, "patients with a label at first"),
        ("step", 3, "patients added after each training"),
        ("rounds", 5, "trainings in a replay"),
        ("epochs", 50, "epochs of each training"),
        ("runs", 3, "runs that are compared for disagreement"),
    ):
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    command.add_argument("--way", default="augment", choices=("augment", "dropout"), help="how such runs differ")
    command.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to insist (default: cuda)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value in place of the one in train.json, as YAML; may be given again",
    )
    command.set_defaults(run=_run)


def overrides_of(pairs: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs, values as YAML.

    Raises:
        ConfigError: a pair without `=`, or a value that is no YAML.
    """
    import yaml

    found = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set got {pair!r}: expected KEY=VALUE, for example epochs=20")
        try:
            found[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set got {pair!r}, whose value is no YAML ({error}): quote it") from error
    return found


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.annotation.simulating import Plan, simulate
    from ctseg.annotation.simulation_report import write_simulation
    from ctseg.registry import get_bundle

    bundle = get_bundle(arguments.task)
    if not (bundle.path / "configs" / "train.json").is_file():
        raise ConfigError(f"bundle {bundle.name} cannot be trained: it has no train.json; name one that can")
    names = tuple(name.strip() for name in arguments.strategies.split(",") if name.strip())
    numbers = {key: getattr(arguments, key) for key in ("seeds", "start", "step", "rounds", "epochs", "runs", "way")}
    plan = Plan(strategies=names, **numbers)
    overrides = overrides_of(arguments.set)
    try:
        device = arguments.device
        if device == "cuda":
            from ctseg.devices import training_device

            device = training_device()
        rounds = simulate(
            bundle,
            arguments.data,
            plan,
            arguments.out,
            datalist=arguments.datalist,
            device=device,
            overrides=overrides,
            say=lambda text: print(f"ctseg: {text}", file=sys.stderr, flush=True),
        )
    except SystemExit as error:  # how a configuration refuses
        raise InputError(str(error.code).removeprefix("ctseg: ")) from error
    for row in write_simulation(rounds, arguments.out, f"{bundle.name}: which patients to annotate"):
        said = f"{row['strategy']}: mean Dice over rounds {row['mean_dice_over_rounds']}, last {row['last_dice']}"
        if "verdict" in row:
            half = row["against_random_half_interval"]
            said += f"; {row['against_random']} against random (+- {half}): {row['verdict']}"
        print(said)
    print(f"{arguments.out}: curves.png  strategies.csv  simulation.json")
