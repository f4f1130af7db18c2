"""How well a mask meets a reference: overlap and volume, per label, on one grid."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError, GeometryError, InputError


def evaluate_masks(
    prediction: str | Path, reference: str | Path, labels: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, float | int | None]]:
    """Compare two label maps of one study.

    Dice = 2 TP / (P + R) and IoU = TP / (P + R - TP), with P predicted, R reference and TP common voxels; None where
    the label is in neither.

    Args:
        prediction: NIfTI label map.
        reference: NIfTI label map on the same grid.
        labels: name -> (value in the prediction, value in the reference).

    Returns:
        name -> dice, iou, predicted_ml, reference_ml, voxels_common, voxels_predicted, voxels_reference.

    Raises:
        InputError: when a file cannot be read.
        GeometryError: when the two do not lie on one grid.
    """
    import numpy as np

    from ctseg.reading import read_volume

    one, other = (read_volume(path, modality="label") for path in (prediction, reference))
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-3):
        raise GeometryError(
            f"{prediction} of grid {one.shape} does not lie on the grid {other.shape} of {reference}: expected the "
            "same size, spacing, direction and origin; compare masks of the same image."
        )
    millilitres = abs(float(np.linalg.det(one.source_affine[:3, :3]))) / 1000
    result: dict[str, dict[str, float | int | None]] = {}
    for name, (predicted, referred) in labels.items():
        p, r = one.array == predicted, other.array == referred
        common, n_p, n_r = int((p & r).sum()), int(p.sum()), int(r.sum())
        result[name] = {
            "dice": 2 * common / (n_p + n_r) if n_p + n_r else None,
            "iou": common / (n_p + n_r - common) if n_p + n_r else None,
            "predicted_ml": n_p * millilitres,
            "reference_ml": n_r * millilitres,
            "voxels_common": common,
            "voxels_predicted": n_p,
            "voxels_reference": n_r,
        }
    return result


def parse_labels(text: str) -> dict[str, tuple[int, int]]:
    """Parse "liver=1:5,gallbladder=2" into name -> (value in the prediction, value in the reference).

    Raises:
        ConfigError: when an entry is not NAME=VALUE or NAME=VALUE:VALUE.
    """
    labels = {}
    for entry in text.split(","):
        name, _, values = entry.strip().partition("=")
        predicted, _, referred = values.partition(":")
        if not name or not predicted.isdigit() or (referred and not referred.isdigit()):
            raise ConfigError(
                f"The label {entry.strip()!r} cannot be understood: expected NAME=VALUE, or NAME=VALUE:REFERENCE_VALUE "
                "when the two files use different values, with commas between labels; for example liver=1:5."
            )
        labels[name] = (int(predicted), int(referred or predicted))
    return labels


def add_command(commands: Any) -> None:
    """Add `ctseg evaluate` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="compare a mask with a reference",
        description="Dice, IoU and volumes of a mask against a reference mask on the same grid.",
        epilog="example:\n  ctseg evaluate --prediction out/mask.nii.gz --reference seg.nii.gz --labels liver=1:5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--prediction", type=Path, required=True, metavar="FILE", help="NIfTI label map")
    command.add_argument("--reference", type=Path, required=True, metavar="FILE", help="NIfTI label map")
    command.add_argument(
        "--labels",
        required=True,
        metavar="LABELS",
        help="NAME=VALUE or NAME=VALUE:REFERENCE_VALUE, with commas",
    )
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    for path in (arguments.prediction, arguments.reference):
        if not path.exists():
            raise InputError(f"there is no file {path}; name a NIfTI label map")
    result = evaluate_masks(arguments.prediction, arguments.reference, parse_labels(arguments.labels))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    width = max(map(len, ["label", *result]))
    print(f"{'label':<{width}}    Dice     IoU  predicted   reference")
    for name, row in result.items():
        dice, iou = (f"{row[key]:.4f}" if row[key] is not None else "     -" for key in ("dice", "iou"))
        print(f"{name:<{width}}  {dice}  {iou}  {row['predicted_ml']:6.1f} ml   {row['reference_ml']:6.1f} ml")
