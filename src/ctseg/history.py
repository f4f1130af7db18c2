"""What a training remembers of itself: a row for each epoch, its configuration and the versions that it ran with.

It lies in the checkpoint as text, so that the file still loads with `weights_only=True`, and curves can be drawn again
from the checkpoint alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.files import write_beside

Row = dict[str, Any]


class History:
    """The epochs of a training, kept over its interruptions.

    Attributes:
        rows: one for each epoch, in order: `epoch`, `seconds`, `train_loss`, `lr` (or `lr_GROUP` for each group) and
            what else was measured. A value that was not measured, or is no number, is not in the row.
        configuration: every setting by its place in the configuration, for example "train::trainer::max_epochs".
        versions: of the packages, of Python, and the name of the device.
        run: a random name, kept when a training is resumed, by which a tracker knows it again.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.configuration: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.run = secrets.token_hex(6)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add an epoch. One of the same number or later, of a training that was taken back, is replaced."""
        epoch = int(row["epoch"])
        kept = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        self.rows = [*(old for old in self.rows if old["epoch"] < epoch), kept]

    def values(self, name: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of each epoch that has the value."""
        return [(int(row["epoch"]), float(row[name])) for row in self.rows if row.get(name) is not None]

    def best(self, name: str) -> float | None:
        """Return the largest value; None when there is none."""
        return max((value for _, value in self.values(name)), default=None)

    @property
    def names(self) -> list[str]:
        """What the rows hold, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def seconds(self) -> float:
        """How long the epochs took together, validation included."""
        return sum(float(row.get("seconds", 0.0)) for row in self.rows)

    def as_csv(self) -> str:
        """Return the rows as a table with a heading."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.names or ["epoch"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()

    def state_dict(self) -> dict[str, str]:
        """Return everything as text."""
        parts = {"rows": self.rows, "configuration": self.configuration, "versions": self.versions, "run": self.run}
        return {name: json.dumps(part) for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            KeyError, ValueError: when it is something else.
        """
        parts = {name: json.loads(state[name]) for name in ("rows", "configuration", "versions", "run")}
        self.__dict__.update(parts)


def read_history(path: str | Path) -> History:
    """Read the history out of a checkpoint, tensors and text only.

    Raises:
        InputError: when the file is missing, is no checkpoint, or has no history.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; name a checkpoint_epoch=N.pt of a training")
    history = History()
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        history.load_state_dict(content["history"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} holds no history of a training ({type(error).__name__}): expected a checkpoint_epoch=N.pt; "
            "model.pt holds the weights only, and older checkpoints have none"
        ) from error
    return history


def write_table(history: History, path: Path) -> None:
    """Write the rows as CSV, in one step. Raises OutputError when it cannot be written."""
    write_beside(path, history.as_csv().encode())


def stalled(values: Sequence[float]) -> int:
    """Return how many values at the end brought no better one; what early stop counts."""
    best, count = -math.inf, 0
    for value in values:
        best, count = (value, 0) if value > best else (best, count + 1)
    return count
