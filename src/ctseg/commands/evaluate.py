"""`ctseg evaluate`: two masks, or two folders of masks, on the command line."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError, OutputError
from ctseg.evaluation.measuring import evaluate_folders, evaluate_masks, evaluate_pairs, parse_labels
from ctseg.evaluation.types import Evaluation, Settings

_EPILOG = """With two folders, masks are paired by the names of their cases: case_1.nii.gz with case_1.nrrd or with the
folder case_1 of a run, which holds mask.nii.gz. What does not fit is named, and the rest is scored.

what is written into OUT:
  evaluation.html   the report, one file with its pictures
  evaluation.json   everything; what --baseline takes
  cases.csv         a row for each case and organ
  summary.csv       means and pooled values with their intervals
  classes.csv       misclassification rate, FP/FN, Dice, IoU of each class, mean and variance over classes
  confusion.csv     which class is taken for which, in voxels
  slices.csv        a row for each case, organ and slice

examples:
  ctseg evaluate --prediction out/mask.nii.gz --reference seg.nii.gz --labels liver=1:5
  ctseg evaluate --prediction out --reference references --labels liver=1:5,gallbladder=2:4 -o evaluation
  ctseg evaluate --prediction new --reference references --labels liver=1 --images cts --baseline old/evaluation.json"""


def add_command(commands: Any) -> None:
    """Add `ctseg evaluate` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="compare masks with references",
        description="How well masks meet their references: overlap, surfaces, volumes, per case and over a data set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one_or_all = "a label map, or a folder of them"
    command.add_argument("--prediction", type=Path, required=True, metavar="PATH", help=one_or_all)
    command.add_argument("--reference", type=Path, required=True, metavar="PATH", help=one_or_all)
    command.add_argument(
        "--labels", required=True, metavar="LABELS", help="NAME=VALUE or NAME=VALUE:REFERENCE_VALUE, with commas"
    )
    command.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="folder for the report (default for folders: evaluation)"
    )
    command.add_argument("--images", type=Path, metavar="DIR", help="the CTs, for the pictures of the worst cases")
    command.add_argument("--baseline", type=Path, metavar="FILE", help="evaluation.json of an earlier run, to compare")
    command.add_argument(
        "--training", type=Path, metavar="FILE", help="evaluation.json of the training cases: how large the gap is"
    )
    command.add_argument(
        "--patients", type=Path, metavar="FILE", help="CSV with the columns case,patient, or a datalist.json"
    )
    command.add_argument(
        "--strip", default="", metavar="ENDINGS", help="endings to leave off names before pairing: _seg,_0000"
    )
    command.add_argument("--tolerance", type=float, default=3.0, metavar="MM", help="of NSD (default: 3)")
    command.add_argument("--beta", type=float, default=1.0, help="of F-beta (default: 1)")
    command.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    command.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    command.add_argument("--json", action="store_true", help="print as JSON")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    paths = (arguments.prediction, arguments.reference)
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no file or folder {path}; name a label map, or a folder of label maps")
    if paths[0].is_dir() != paths[1].is_dir():
        folder = next(path for path in paths if path.is_dir())
        raise InputError(f"{folder} is a folder, the other a file: give two label maps, or two folders of them")
    labels = parse_labels(arguments.labels)
    settings = Settings(labels, arguments.beta, arguments.tolerance, arguments.resamples, arguments.seed)
    wants_report = arguments.out or arguments.baseline or arguments.images or arguments.patients or arguments.training
    if not paths[0].is_dir() and not wants_report:
        _print_pair(evaluate_masks(*paths, labels), as_json=arguments.json)
        return
    _evaluate(arguments, settings)


def _evaluate(arguments: argparse.Namespace, settings: Settings) -> None:
    from ctseg.cases import case_name
    from ctseg.evaluation.comparison import compare, read_baseline
    from ctseg.evaluation.report import write_evaluation
    from ctseg.evaluation.traininggap import read_training, training_gap

    out = arguments.out or Path("evaluation")
    _check_out(out, arguments.baseline, arguments.training)
    baseline = read_baseline(arguments.baseline) if arguments.baseline else None
    training = read_training(arguments.training) if arguments.training else None
    patients = read_patients(arguments.patients) if arguments.patients else None
    strip = [ending.strip() for ending in arguments.strip.split(",") if ending.strip()]
    if arguments.images and not arguments.images.exists():
        raise InputError(f"there is no folder {arguments.images}; name the folder of the CTs")
    if arguments.prediction.is_dir():
        result = evaluate_folders(
            arguments.prediction, arguments.reference, settings, patients=patients, strip=strip, progress=_say
        )
    else:
        pair = {case_name(arguments.reference): (arguments.prediction, arguments.reference)}
        result = evaluate_pairs(pair, settings, patients=patients)
    if baseline is not None:
        result.results["comparison"] = compare(result.results, baseline, settings.resamples, settings.seed)
    if training is not None:
        result.results["training"] = training_gap(result.results, training)
    _say("writing the report")
    files = write_evaluation(result, out, images=arguments.images, strip=strip)
    print(json.dumps(result.results, indent=2) if arguments.json else summary(result, out, files))


def _check_out(out: Path, *earlier: Path | None) -> None:
    """Refuse before the work what would fail, or lose something, after it."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, expected a folder for the report; name another one with --out")
    for file in earlier:
        if file is not None and (out / "evaluation.json").resolve() == file.resolve():
            raise OutputError(f"the file {file} would be replaced by this run; name another folder with --out")


def read_patients(path: Path) -> dict[str, str]:
    """Read case -> patient from a CSV with the columns case and patient, or from a datalist (case_id, patient).

    Raises:
        InputError: when it cannot be read, or names no case.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found = {str(case["case_id"]): str(case["patient"]) for case in json.loads(text)["cases"]}
        else:
            found = {row["case"].strip(): row["patient"].strip() for row in csv.DictReader(text.splitlines())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"the patients cannot be read from {path} ({type(error).__name__}); expected a CSV with the columns case "
            "and patient, or a datalist.json whose cases have case_id and patient"
        ) from error
    if not found or not all(found.values()):
        raise InputError(f"{path} lacks a patient: expected one for each of its {len(found)} cases; fill it in")
    return found


def _print_pair(result: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    width = max(map(len, ["label", *result]))
    print(f"{'label':<{width}}    Dice     IoU  predicted   reference")
    for name, row in result.items():
        dice, iou = (f"{row[key]:.4f}" if row[key] is not None else "     -" for key in ("dice", "iou"))
        print(f"{name:<{width}}  {dice}  {iou}  {row['predicted_ml']:6.1f} ml   {row['reference_ml']:6.1f} ml")


def summary(result: Evaluation, out: Path, files: Sequence[Path]) -> str:
    """Return the small table at the end of a run."""
    results = result.results
    names = list(results["summary"]["labels"])
    width = max(map(len, ["organ", *names]))
    lines = [f"{'organ':<{width}}  cases  Dice (95 % interval)     IoU     NSD     HD95"]
    for name in names:
        macro = results["summary"]["labels"][name]["macro"]
        dice = macro["dice"]
        low_high = f"({dice['low']:.3f} to {dice['high']:.3f})" if dice["low"] is not None else ""
        value = f"{dice['value']:.4f} {low_high}" if dice["value"] is not None else "-"
        iou, nsd = (_number(macro[metric]["value"], 4) for metric in ("iou", "nsd"))
        hd95 = _number(macro["hd95_mm"]["value"], 1)
        lines.append(f"{name:<{width}}  {dice['n']:5d}  {value:<23} {iou:>7} {nsd:>7} {hd95:>5} mm")
    if results["comparison"]:
        for name, row in results["comparison"]["labels"].items():
            mean = row["mean"]["dice"]
            change = f"{mean['value']:+.4f}" if mean["value"] is not None else "-"
            if mean["low"] is not None:
                change += f" ({mean['low']:+.4f} to {mean['high']:+.4f})"
            worse = ", ".join(row["worse"]) or "none"
            lines.append(f"{name} beside the baseline: Dice {change}, {mean['verdict']}; worse: {worse}")
        lines += [f"note: {note}" for note in results["comparison"]["notes"]]
    lines += _of_classes(results)
    lines += [f"note: {note}" for note in results["notes"]]
    lines += [f"not scored: {row['case']}: {row['reason']}" for row in results["refused"]]
    lines += [f"{out}: {'  '.join(file.name for file in files)}", results["intended_use"]]
    return "\n".join(lines)


def _of_classes(results: Mapping[str, Any]) -> list[str]:
    """Lines on the classes together, on left and right, and on the training cases."""
    lines, over = [], results["classes"]["over_classes"]
    if over["iou"]["n"] > 1:
        rate, ratio = over["misclassification"], over["fp_fn"]
        lines.append(
            f"over {rate['n']} classes: misclassified {1000 * rate['mean']:.3f} per 1000 voxels "
            f"(variance {1e6 * rate['variance']:.3g}e-6), FP/FN {_number(ratio['mean'], 2)} (variance "
            f"{_number(ratio['variance'], 2)}, {ratio['n']} classes)"
        )
    if sides := (results["confusion"] or {}).get("sides"):
        lines.append(f"left for right or right for left: {sides['as_other_side']} of {sides['voxels']} voxels")
    if training := results["training"]:
        mean = training["mean"]["iou"]
        lines.append(f"training minus these cases: IoU {_number(mean['gap'], 3)} on average over {mean['n']} classes")
        lines += [f"note: {note}" for note in training["notes"]]
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)
