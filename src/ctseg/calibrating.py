"""`ctseg calibrate`: how well a bundle's estimate of its own Dice holds on patients that it was not trained on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.files import write_beside
from ctseg.quality import Calibration

FEWEST = 5  # patients; a line through fewer says nothing


def add_command(commands: Any) -> None:
    """Add `ctseg calibrate` to the command line."""
    command = commands.add_parser(
        "calibrate",
        help="fit a bundle's estimate of its own Dice",
        description="Run a bundle on labelled patients that it was not trained on, compare the Dice that it expects "
        "of itself with the real one, and fit a line between them for the task's file.",
    )
    command.add_argument("task", metavar="TASK", help="a trained bundle, by name or folder")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder with datalist and ledger")
    command.add_argument(
        "--datalist", default="datalist.json", metavar="FILE", help="its name (default: datalist.json)"
    )
    command.add_argument("--split", choices=("validation", "test"), default="validation", help="default: validation")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="folder for quality.json and .png"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ctseg.registry import get_bundle, verify_weights

    bundle = get_bundle(arguments.task)
    verify_weights(bundle)
    try:
        table = measure(bundle.path, arguments.data, arguments.datalist, arguments.split, arguments.device)
    except SystemExit as error:  # how a configuration refuses
        raise InputError(str(error.code).removeprefix("ctseg: ")) from error
    fitted = {name: fit([row[name] for row in table.values() if name in row]) for name in bundle.labels}
    content = {
        "bundle": bundle.name,
        "version": bundle.version,
        "split": arguments.split,
        "quality": {name: asdict(line) for name, line in fitted.items()},
        "patients": table,
    }
    write_beside(arguments.out / "quality.json", (json.dumps(content, indent=2) + "\n").encode())
    write_beside(arguments.out / "quality.png", draw(table, fitted))
    print(f"{arguments.out}: quality.json  quality.png\nfor the task's file:\n\nquality:")
    for name, line in fitted.items():
        print(f"  {name}: {{" + ", ".join(f"{key}: {value:.4g}" for key, value in asdict(line).items()) + "}")


def measure(
    bundle: Path, data: Path, datalist: str, split: str, device: str
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return patient -> organ -> (expected Dice, Dice), all slices or volumes of a patient taken together.

    The cases, transforms, network and inferer are those of the bundle's own evaluation. An organ that is not found in a
    patient is left out.

    Args:
        bundle: its folder.
        data: data folder with datalist and ledger.
        datalist: its name.
        split: "validation" or "test".
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        SystemExit: a sentence of the configuration, such as no case of this split.
    """
    import torch
    from monai.bundle import ConfigParser

    from ctseg.devices import as_device, inference_device
    from ctseg.quality import expected_dice, overlap_sums
    from ctseg.weights import load_weights

    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    values: dict[str, Any] = {
        "bundle_root": str(bundle),
        "dataset_dir": str(data),
        "datalist": datalist,
        "split": split,
        "device": inference_device(device),
        "cache_rate": 0.0,
    }
    parser.update(values)
    labels = parser.get_parsed_content("labels")
    network = parser.get_parsed_content("network").eval()
    load_weights(network, bundle / "models" / "model.pt")
    inferer, on = parser.get_parsed_content("validate::inferer"), as_device(values["device"])
    sums: dict[str, list[list[float]]] = {}
    for item in parser.get_parsed_content("validate::dataset"):
        with torch.inference_mode():
            logits = inferer(item["image"][None].to(on), network)[0].cpu()
        rows = sums.setdefault(str(item["label"].meta["patient"]), [[0.0] * 6 for _ in labels])
        plain = item["label"].as_tensor()[0]
        mask = logits[0] > 0 if len(labels) == 1 else logits.argmax(dim=0)
        for index, (row, own) in enumerate(zip(rows, overlap_sums(logits), strict=True), start=1):
            found, there = mask == (index if len(labels) > 1 else 1), plain == index
            counts = (float((found & there).sum()), float(found.sum()), float(there.sum()))
            row[:] = [old + new for old, new in zip(row, (*own, *counts), strict=True)]
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for patient, rows in sorted(sums.items()):
        table[patient] = {}
        for name, row in zip(labels, rows, strict=True):
            expected = expected_dice((row[0], row[1], row[2]))
            if expected is not None:  # something was found, so that the real one is a number too
                table[patient][name] = (expected, 2 * row[3] / (row[4] + row[5]))
    return table


def fit(pairs: Sequence[tuple[float, float]]) -> Calibration:
    """Fit the line through (expected Dice, Dice) of patients, by least squares.

    Raises:
        InputError: for fewer than five patients, or when all expect the same.
    """
    import numpy as np
    from scipy import stats

    if len(pairs) < FEWEST or len({expected for expected, _ in pairs}) < 2:
        raise InputError(
            f"there are {len(pairs)} patients with the organ, expected at least {FEWEST} that differ: "
            "label more, or leave the estimate uncalibrated"
        )
    expected, real = np.asarray(pairs, dtype=np.float64).T
    slope, intercept = np.polyfit(expected, real, 1)
    errors = []
    for index in range(len(pairs)):
        kept = np.arange(len(pairs)) != index
        a, b = np.polyfit(expected[kept], real[kept], 1)
        errors.append(abs(a * expected[index] + b - real[index]))
    return Calibration(
        slope=float(slope),
        intercept=float(intercept),
        patients=len(pairs),
        error=float(np.mean(errors)),
        pearson=float(stats.pearsonr(expected, real).statistic),
        spearman=float(stats.spearmanr(expected, real).statistic),
        low=float(expected.min()),
        high=float(expected.max()),
    )


def draw(table: Mapping[str, Mapping[str, tuple[float, float]]], fitted: Mapping[str, Calibration]) -> bytes:
    """Return a PNG with a panel for each organ: each patient's expected and real Dice, and the line."""
    import io

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(fitted), 5.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, line) in enumerate(fitted.items(), start=1):
        axes = figure.add_subplot(1, len(fitted), number)
        points = np.asarray([row[name] for row in table.values() if name in row])
        ends = np.asarray([points[:, 0].min(), points[:, 0].max()])
        axes.scatter(points[:, 0], points[:, 1], color="#0072B2", label=f"{len(points)} patients")
        axes.plot(ends, line.slope * ends + line.intercept, color="#D55E00", label="the line fitted")
        axes.set_xlabel("Dice that the network expects of itself")
        axes.set_ylabel("Dice against the reference")
        axes.set_title(f"{name}: r = {line.pearson:.2f}, mean error {line.error:.3f}", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
