"""An evaluation as CSV tables: a row for each case and organ, for each summed-up value, for each slice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ctseg.evaluation.classrates import RATES, SPREAD_OF
from ctseg.evaluation.scoring import COUNTS, METRICS, overlaps, plain

_IN_SLICES = ("dice", "iou", "precision", "recall", "f_beta", "accuracy", "specificity")


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)  # None becomes an empty cell: no value
    return text.getvalue().encode()


def cases_table(results: Mapping[str, Any]) -> bytes:
    """Return `cases.csv`; a case that could not be scored has a row too, with its reason."""
    header = ["case", "patient", "organ", "found", *METRICS, "predicted_ml", "reference_ml", "difference_ml", *COUNTS]
    header += [*RATES]
    header += ["slices_with_organ", "slices_missed", "slices_false", "not_scored_because"]
    rows: list[list[Any]] = []
    for case in results["cases"]:
        for name, row in case["labels"].items():
            values = [row["found"], *(row[metric] for metric in METRICS), row["predicted_ml"], row["reference_ml"]]
            values += [row["predicted_ml"] - row["reference_ml"], *(row["voxels"][part] for part in COUNTS)]
            values += [row[rate] for rate in RATES]
            values += [row["slices"][part] for part in ("with_organ", "missed", "false")]
            rows.append([case["case"], case["patient"], name, *values, None])
    blank = [None] * (len(header) - 2)
    rows += [[row["case"], *blank, row["reason"]] for row in results["refused"]]
    return _table(header, rows)


def summary_table(results: Mapping[str, Any]) -> bytes:
    """Return `summary.csv`: organ ("all" for all organs), way of summing up, metric, value and interval."""
    rows: list[list[Any]] = []

    def add(organ: str, way: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
        for metric, entry in entries.items():
            rows.append([organ, way, metric, *(entry[key] for key in ("value", "low", "high", "n", "patients"))])

    for name, label in results["summary"]["labels"].items():
        add(name, "mean over cases", label["macro"])
        add(name, "pooled over voxels", label["micro"])
        add(name, "mean over slices with organ", label["slices"]["mean"])
        add(name, "pooled over slices with organ", label["slices"]["pooled"])
        presence = {key: value for key, value in label["slices"]["presence"].items() if key != "slices"}
        add(name, "presence per slice", presence)
    add("all", "mean over organs", results["summary"]["overall"]["macro"])
    add("all", "pooled over voxels", results["summary"]["overall"]["micro"])
    return _table(["organ", "summed_up", "metric", "value", "low", "high", "n", "patients"], rows)


def classes_table(results: Mapping[str, Any]) -> bytes:
    """Return `classes.csv`: figures of each class from all cases' voxels, then mean and variance over classes."""
    classes = results["classes"]
    rows: list[list[Any]] = [[name, *(row[f] for f in SPREAD_OF)] for name, row in classes["labels"].items()]
    over = classes["over_classes"]
    for key, title in (("mean", "mean over classes"), ("variance", "variance over classes"), ("n", "classes counted")):
        rows.append([title, *(over[figure][key] for figure in SPREAD_OF)])
    return _table(["class", *SPREAD_OF], rows)


def confusion_table(results: Mapping[str, Any]) -> bytes:
    """Return `confusion.csv`: voxels, rows the reference, columns the prediction."""
    names, counts = results["confusion"]["names"], results["confusion"]["counts"]
    return _table(["reference", *names], [[name, *row] for name, row in zip(names, counts, strict=True)])


def slices_table(slices: Sequence[tuple[str, str, int, int, int, int, int]], beta: float) -> bytes:
    """Return `slices.csv`: slices that have the organ in either mask, numbered from 1 as the reference stores them."""
    rows = []
    for case, name, number, *counts in slices:
        values = plain(overlaps(np.array(counts), beta))
        rows.append([case, name, number, *counts, *(values[metric] for metric in _IN_SLICES)])
    return _table(["case", "organ", "slice", *COUNTS, *_IN_SLICES], rows)
