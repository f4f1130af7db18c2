"""`ctseg voxels`: how many voxels each class has in each case, how unequal that is, and whether left lies left."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.registry import get_bundle

_EPILOG = """what is said:
  a line for each case and class: voxels, ml, percent of the whole image and of all that is labelled
  a line for each class over all cases, and the imbalance ratio: voxels of the largest class / of the smallest
  cases whose left labels lie right (by the affine), by name; the command then ends with code 2

examples:
  ctseg voxels DATA --task liver_ct_segmentation
  ctseg voxels DATA --task liver_ct_segmentation -o voxels.csv"""
_COLUMNS = ("case", "class", "value", "voxels", "ml", "percent_of_image", "percent_of_labels")


@dataclass(frozen=True)
class Count:
    """One class of one case.

    Attributes:
        case: its name.
        name: the class.
        value: in the case's own label map; the lowest where several mean one class.
        voxels: how many.
        ml: their volume.
        image_voxels: of the whole image.
        labelled_voxels: of all classes of the case.
    """

    case: str
    name: str
    value: int
    voxels: int
    ml: float
    image_voxels: int
    labelled_voxels: int

    def row(self) -> dict[str, Any]:
        """Return the line of the table."""
        share = 100 * self.voxels / self.labelled_voxels if self.labelled_voxels else 0.0
        numbers = (round(self.ml, 3), round(100 * self.voxels / self.image_voxels, 5), round(share, 3))
        return dict(zip(_COLUMNS, (self.case, self.name, self.value, self.voxels, *numbers), strict=True))


def imbalance(voxels: Mapping[str, int]) -> float | None:
    """Return voxels of the largest class by those of the smallest; None where a class is missing or there is none."""
    return max(voxels.values()) / min(voxels.values()) if voxels and min(voxels.values()) > 0 else None


def total(counts: Sequence[Count]) -> dict[str, int]:
    """Return class -> voxels over all cases."""
    sums: dict[str, int] = {}
    for count in counts:
        sums[count.name] = sums.get(count.name, 0) + count.voxels
    return sums


def count_case(case: Mapping[str, Any], labels: Mapping[str, int]) -> tuple[list[Count], list[str]]:
    """Count one case of a datalist, and check its sides.

    Args:
        case: `case_id`, `label`, and `mask_values` where its values are not the task's codes.
        labels: the task's classes -> codes.

    Returns:
        A count for each class of the task, and a sentence for each label that lies on the wrong side.

    Raises:
        InputError: the label map cannot be read, or holds no whole numbers.
    """
    import numpy as np

    from ctseg.items import volume_of
    from ctseg.prepare.pairchecks import value_counts
    from ctseg.sides import wrong_sides

    item: dict[Hashable, Any] = dict(case.items())
    volume = volume_of(item["label"], item, "label")
    named = case.get("mask_values") or {number: name for number, name in enumerate(labels, start=1)}
    values = {int(value): str(name) for value, name in named.items() if str(name) in labels}
    found = value_counts(volume.array)
    sums = {name: sum(found.get(v, 0) for v, other in values.items() if other == name) for name in labels}
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    labelled = sum(sums.values())
    counts = [
        Count(
            str(case["case_id"]),
            name,
            min((value for value, other in values.items() if other == name), default=0),
            voxels,
            voxels * voxel_ml,
            volume.array.size,
            labelled,
        )
        for name, voxels in sums.items()
    ]
    return counts, [str(wrong) for wrong in wrong_sides(volume.array, volume.affine, values)]


def add_command(commands: Any) -> None:
    """Add `ctseg voxels` to the command line."""
    command = commands.add_parser(
        "voxels",
        help="count the voxels of each class and case, and check that left labels lie left",
        description="Count the voxels of each class in each case of a data folder, and check the sides.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("data", type=Path, metavar="DATA", help="data folder with datalist.json (ctseg prepare)")
    command.add_argument("--task", required=True, metavar="NAME", help="bundle whose classes are counted (ctseg tasks)")
    command.add_argument("-o", "--out", type=Path, metavar="CSV", help="write the table too")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ctseg.datalist import read_cases
    from ctseg.files import write_beside

    labels = get_bundle(arguments.task).labels
    counts: list[Count] = []
    wrong: dict[str, list[str]] = {}
    for case in tqdm(read_cases(arguments.data), unit="case", disable=None):
        found, sides = count_case(case, labels)
        counts += found
        if sides:
            wrong[str(case["case_id"])] = sides
    print(told(counts))
    if arguments.out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(count.row() for count in counts)
        write_beside(arguments.out, text.getvalue().encode())
        print(f"ctseg: wrote {arguments.out}", file=sys.stderr)
    if wrong:
        said = "; ".join(f"{case}: {', '.join(sides)}" for case, sides in wrong.items())
        raise InputError(
            f"{len(wrong)} of {len({count.case for count in counts})} cases have labels on the wrong side ({said}); "
            "correct their labels or orientation, or their values' names"
        )
    print("left labels lie left in every case where both sides are there")


def told(counts: Sequence[Count]) -> str:
    """Return the table for a terminal: every case and class, then the sums and the imbalance."""
    rows = [("case", "class", "voxels", "ml", "% of image", "% of labels")]
    for count in counts:
        row = count.row()
        shares = (f"{row['ml']:.2f}", f"{row['percent_of_image']:.4f}", f"{row['percent_of_labels']:.2f}")
        rows.append((count.case, count.name, f"{count.voxels:,}", *shares))
    sums = total(counts)
    every, images = sum(sums.values()), sum({count.case: count.image_voxels for count in counts}.values())
    for name, voxels in sums.items():
        ml = sum(count.ml for count in counts if count.name == name)
        share = 100 * voxels / every if every else 0.0
        rows.append(("all", name, f"{voxels:,}", f"{ml:.2f}", f"{100 * voxels / images:.4f}", f"{share:.2f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                f"{row[0]:<{widths[0]}}",
                f"{row[1]:<{widths[1]}}",
                *(f"{t:>{w}}" for t, w in zip(row[2:], widths[2:], strict=True)),
            ]
        )
        for row in rows
    ]
    lines.append("")
    by_case: dict[str, dict[str, int]] = {}
    for count in counts:
        by_case.setdefault(count.case, {})[count.name] = count.voxels
    for case, voxels_of in [*by_case.items(), ("all", sums)]:
        ratio = imbalance(voxels_of)
        missing = [name for name, voxels in voxels_of.items() if not voxels]
        lines.append(
            f"imbalance of {case}: " + (f"{ratio:.1f} to 1" if ratio is not None else f"no {', '.join(missing)}")
        )
    return "\n".join(lines)
