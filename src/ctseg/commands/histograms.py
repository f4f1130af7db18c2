"""`ctseg histograms`: HU histograms of a data folder's cases, those that deviate, and a window that fits the labels."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.registry import BundleInfo, get_bundle

if TYPE_CHECKING:
    from ctseg.prepare.histograms import CaseCounts, Deviation, Found, Loss

BINS, CASES, WINDOW, PICTURE = "histograms.csv", "cases.csv", "window.csv", "histograms.png"
_BIN_HU = 10
_EPILOG = """what is written into OUT:
  histograms.csv   a line for each case and 10 HU: share of the image without air, share of what is labelled
  cases.csv        a line for each case: percentiles, distance to the median histogram, whether it deviates
  window.csv       the proposed window and the task's own: what each leaves out, by class
  histograms.png   all of it as a picture

A case deviates when its earth mover's distance to the median histogram has a modified z-score above 3.5 and is 5 HU
or more (docs/heads.md). The window holds the 0.5th to the 99.5th percentile of what is labelled.

examples:
  ctseg histograms DATA --task liver_ct_segmentation -o histograms
  ctseg histograms DATA --task liver_ct_segmentation -o histograms --percentiles 1 99"""


def add_command(commands: Any) -> None:
    """Add `ctseg histograms` to the command line."""
    command = commands.add_parser(
        "histograms",
        help="HU histograms of cases, those that deviate, and a window that fits the labels",
        description="HU histograms of each case of a data folder; names those that deviate, proposes a window.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("data", type=Path, metavar="DATA", help="data folder with datalist.json (ctseg prepare)")
    command.add_argument("--task", required=True, metavar="NAME", help="bundle whose classes are meant (ctseg tasks)")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for tables and picture")
    command.add_argument(
        "--percentiles", type=float, nargs=2, default=(0.5, 99.5), metavar=("LOW", "HIGH"), help="of the window"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    from ctseg.datalist import read_cases
    from ctseg.files import write_beside
    from ctseg.outputs.folder import check_folder
    from ctseg.prepare.histogramplot import histogram_plot
    from ctseg.prepare.histograms import judge

    info = get_bundle(arguments.task)
    check_folder(arguments.out, arguments.data, ())
    cases = [counts_of(case, info) for case in tqdm(read_cases(arguments.data), unit="case", disable=None)]
    found = judge(cases, task_window(info), arguments.percentiles)
    contents = {
        BINS: bins_table(found.cases),
        CASES: cases_table(found),
        WINDOW: window_table(found),
        PICTURE: histogram_plot(found),
    }
    for name, content in contents.items():
        write_beside(arguments.out / name, content)
    print(told(found))
    print(f"ctseg: wrote {', '.join(contents)} into {arguments.out}", file=sys.stderr)


def counts_of(case: Mapping[str, Any], info: BundleInfo) -> CaseCounts:
    """Count one case of a datalist.

    Raises:
        InputError, GeometryError: image or label cannot be read, or do not lie on one grid.
    """
    from ctseg.items import check_same_grid, volume_of
    from ctseg.prepare.histograms import count_case

    item: dict[Hashable, Any] = dict(case.items())
    image, label = volume_of(item["image"], item, info.modality), volume_of(item["label"], item, "label")
    check_same_grid(image.shape, image.affine, label.shape, label.affine, Path(str(item["label"])).name)
    named = case.get("mask_values") or {number: name for number, name in enumerate(info.labels, start=1)}
    values = {int(value): str(name) for value, name in named.items() if str(name) in info.labels}
    return count_case(str(case["case_id"]), str(case["patient"]), image.array, label.array, values, list(info.labels))


def task_window(info: BundleInfo) -> tuple[float, float] | None:
    """Return the window of a bundle's pipeline in HU; None where it states none."""
    try:
        content = json.loads((info.path / "configs" / "inference.json").read_text(encoding="utf-8"))
        low, high = (float(bound) for bound in content["window"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return low, high


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def bins_table(cases: Sequence[CaseCounts]) -> bytes:
    """Return `histograms.csv`; bins without a voxel in any case are left out."""
    import numpy as np

    from ctseg.prepare.histograms import LOWEST

    rows: list[list[Any]] = []
    for case in cases:
        parts = []
        for counts in (case.image, case.labelled):
            padded = np.pad(counts, (0, -len(counts) % _BIN_HU)).reshape(-1, _BIN_HU).sum(axis=1)
            parts.append(padded / max(1, int(padded.sum())))
        for number in np.flatnonzero(parts[0] + parts[1]):
            low = LOWEST + int(number) * _BIN_HU
            rows.append([case.case, low, low + _BIN_HU, *(f"{part[number]:.6f}" for part in parts)])
    return _csv(["case", "hu_from", "hu_below", "share_of_image", "share_of_labels"], rows)


def cases_table(found: Found) -> bytes:
    """Return `cases.csv`."""
    import numpy as np

    from ctseg.prepare.histograms import quantiles

    shares = np.array([0.005, 0.05, 0.5, 0.95, 0.995])
    header = ["case", "patient", "deviates_by"]
    for what in ("image", "labels"):
        header += [f"{what}_voxels", *(f"{what}_p{100 * share:g}" for share in shares)]
        header += [f"{what}_distance_hu", f"{what}_shift_hu", f"{what}_score"]
    rows: list[list[Any]] = []
    for case, image, labels in zip(found.cases, found.image, found.labels, strict=True):
        row: list[Any] = [case.case, case.patient, " and ".join(_reasons(image, labels))]
        for counts, one in ((case.image, image), (case.labelled, labels)):
            row += [int(counts.sum()), *(_cell(value) for value in quantiles(counts, shares))]
            row += [_cell(value) for value in (one.distance, one.shift, one.score)]
        rows.append(row)
    return _csv(header, rows)


def _reasons(image: Deviation, labels: Deviation) -> list[str]:
    return ["image"] * image.deviates + ["labels"] * labels.deviates


def _cell(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}"


def window_table(found: Found) -> bytes:
    """Return `window.csv`."""
    rows = []
    bounds = {"proposed": found.window, "task": found.own}
    for name, losses in found.losses.items():
        low, high = bounds[name] or (0.0, 0.0)
        for loss in losses:
            shares = (f"{100 * share:.4f}" for share in (loss.below, loss.above, loss.worst))
            rows.append([name, f"{low:g}", f"{high:g}", loss.what, *shares, loss.worst_case, loss.cases])
    header = ["window", "low_hu", "high_hu", "of", "percent_below", "percent_above"]
    return _csv([*header, "percent_outside_in_worst_case", "worst_case", "cases"], rows)


def told(found: Found) -> str:
    """Return the sentences for a terminal."""
    from ctseg.prepare.histograms import FAR, FEWEST, LEAST_HU

    lines = []
    if len(found.cases) < FEWEST:
        lines.append(f"{len(found.cases)} cases: too few to say which deviates; {FEWEST} are needed")
    named = 0
    for image, labels in zip(found.image, found.labels, strict=True):
        for what, one in (("image without air", image), ("labelled voxels", labels)):
            if one.deviates and one.distance is not None and one.shift is not None:
                side = "brighter" if one.shift > 0 else "darker"
                lines.append(
                    f"{one.case} deviates by its {what}: {one.distance:.0f} HU from the median histogram (score "
                    f"{one.score:.1f}), by the median {abs(one.shift):.0f} HU {side}"
                )
                named += 1
    if not named and len(found.cases) >= FEWEST:
        lines.append(f"no case deviates (score above {FAR:g} and {LEAST_HU:g} HU or more)")
    for name, key, bounds in (("proposed window", "proposed", found.window), ("the task's window", "task", found.own)):
        if bounds is not None:
            lines.append(f"{name}: {bounds[0]:g} to {bounds[1]:g} HU, leaves out")
            lines += [_of_loss(loss) for loss in _worth_saying(found.losses[key])]
    if found.window is None:
        lines.append("no window: no case has a labelled voxel")
    return "\n".join(lines)


def _worth_saying(losses: Sequence[Loss]) -> list[Loss]:
    """The class that loses most, then all labels and the image; every class is in the table."""
    *classes, every, image = losses if len(losses) > 1 else (*losses, *losses)
    return [*sorted(classes, key=lambda loss: -(loss.below + loss.above))[:1], every, image]


def _of_loss(loss: Loss) -> str:
    below, above, worst = (100 * share for share in (loss.below, loss.above, loss.worst))
    shares = f"{below + above:6.2f} % of {loss.what} (below {below:.2f}, above {above:.2f}"
    return f"  {shares}; at most {worst:.2f} in {loss.worst_case})"
