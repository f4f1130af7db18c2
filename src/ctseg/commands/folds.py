"""`ctseg folds`: a bundle trained k times, each patient held out once; mean, spread, pictures, and the ensemble."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.commands.experiments import count_of_epochs, setting
from ctseg.errors import InputError

if TYPE_CHECKING:
    from ctseg.folds.dealing import Fold
    from ctseg.registry import BundleInfo

_EPILOG = """Test patients of DATA's ledger (split.csv) are in no fold. Patients are dealt once, into OUT/folds.json. A
second run of the command goes on: finished folds are skipped, an interrupted one goes on after its last epoch.

what is written into OUT:
  folds.csv, summary.json, folds.png    a row for each fold; mean and spread over folds and over patients
  best.png, median.png, worst.png       image, reference and prediction, of all held-out cases
  TASK/fold_N/                          model.pt (best), checkpoint_epoch=E.pt (last), curves, evaluation, log
  ensemble/BUNDLE_folds/                the folds as one bundle: ctseg segment IMAGE --task OUT/ensemble/BUNDLE_folds

examples:
  ctseg folds liver_ct_segmentation --data DATA --k 5 --out runs/folds
  ctseg folds liver_ct_segmentation --data DATA --leave-one-out --out runs/loo --early-stop 5
  ctseg folds liver_ct_segmentation --data DATA --k 5 --out runs/folds --fold 3 --device cuda:1"""


def add_command(commands: Any) -> None:
    """Add `ctseg folds` to the command line."""
    command = commands.add_parser(
        "folds",
        help="train with cross-validation by patient",
        description="Train a bundle k times, each patient held out once, and tell mean and spread.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle of any kind, by name or folder")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data folder (docs/training.md)")
    command.add_argument("--datalist", default="datalist.json", metavar="F", help="file in it (default: datalist.json)")
    command.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for everything")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--k", type=int, metavar="K", help="number of folds (that of --over, else 5)")
    how.add_argument("--leave-one-out", action="store_true", help="a fold for each patient")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the dealing (0)")
    command.add_argument(
        "--epoch-by", choices=("inner", "held-out"), default="inner",
        help="who chooses the epoch that is measured: 15 %% of the training patients (default), or the held-out ones, "
        "whose figures then flatter",
    )  # fmt: skip
    command.add_argument(
        "--no-test", action="store_true", help="patients whom the ledger does not know all go into the folds"
    )
    command.add_argument("--over", type=Path, metavar="FILE", help="an experiment laid over the bundle's training")
    command.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: the GPU, which training insists on)")
    command.add_argument("--epochs", type=count_of_epochs, metavar="N", help="instead of the bundle's own")
    command.add_argument(
        "--early-stop", type=count_of_epochs, metavar="N", help="end a fold after N validations without a better one"
    )
    command.add_argument(
        "--fold", type=int, action="append", default=[], metavar="N", help="run only this one now; may be given again"
    )
    command.add_argument(
        "--set", action="append", default=[], type=setting, metavar="PLACE=VALUE", help="a setting, e.g. batch_size=4"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.folds.runs import FoldPlan, folds_wanted, is_finished, run_folds
    from ctseg.registry import get_bundle

    bundle = get_bundle(arguments.bundle)
    k = None if arguments.leave_one_out else arguments.k or folds_wanted(arguments.over)
    plan = FoldPlan(
        bundle, arguments.data, arguments.out, k, arguments.datalist, arguments.seed, arguments.epoch_by,
        arguments.no_test, arguments.over, arguments.device, arguments.epochs, arguments.early_stop,
        dict(arguments.set), tuple(arguments.fold),
    )  # fmt: skip
    try:
        folds = run_folds(plan, _say)
    except KeyboardInterrupt:
        _say("stopped; run the same command again to go on")
        raise SystemExit(130) from None
    unfinished = [fold.number for fold in folds if not is_finished(arguments.out, bundle, fold)]
    _tell(arguments.out, bundle, folds, arguments.over, ensemble=not unfinished)
    asked = [number for number in unfinished if not arguments.fold or number in arguments.fold]
    if asked:
        raise InputError(
            f"{len(asked)} of {len(folds)} folds did not end well, folds.csv says why: {', '.join(map(str, asked))}"
        )


def _tell(out: Path, bundle: BundleInfo, folds: list[Fold], over: Path | None, *, ensemble: bool) -> None:
    from ctseg.folds.summary import MEASURES, summarise, write_summary, write_triptychs

    summary = {**summarise(out, bundle, folds), "pictures": write_triptychs(out, bundle, folds)}
    files = [file.name for file in write_summary(summary, out)] + [f"{name}.png" for name in summary["pictures"]]
    for row in summary["folds"]:
        values = ", ".join(f"{MEASURES[name]} {row[name]:.4f}" for name in MEASURES if row[name] is not None)
        print(f"fold {row['fold']}: {row['status']}, {row['held_out']} held out; {values or row['reason']}")
    for name, entry in summary["over_folds"].items():
        print(f"{MEASURES[name]}: {_words(entry)} over folds", end="")
        patients = summary["over_patients"].get(name)
        print(f", {_words(patients)} over patients" if patients else "")
    print(f"{out}: {'  '.join(files)}")
    if ensemble:
        print(f"{_ensemble(out, bundle, folds, summary, over)}: the folds as one bundle")


def _words(entry: Mapping[str, Any]) -> str:
    sd = "" if entry["sd"] is None else f" sd {entry['sd']:.4f}"
    return f"{entry['mean']:.4f}{sd} (n {entry['n']})"


def _ensemble(out: Path, bundle: BundleInfo, folds: list[Fold], summary: Mapping[str, Any], over: Path | None) -> Path:
    from ctseg.experiments.runs import MODEL
    from ctseg.folds.ensemblebundle import write_ensemble
    from ctseg.folds.runs import run_of
    from ctseg.folds.summary import MEASURES, main_measure

    name = main_measure(summary)
    patients = summary["over_patients"][name]
    evidence = (
        f"{MEASURES[name]} {patients['mean']:.3f}, mean over {patients['n']} patients of {len(folds)} folds, each "
        "measured by the network that had not seen it; the ensemble itself was not measured"
    )
    weights = [run_of(out, bundle, fold) / MODEL for fold in folds]
    target = out / "ensemble" / f"{bundle.name}_folds"
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_ensemble(bundle, weights, target, evidence, over).path


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)
