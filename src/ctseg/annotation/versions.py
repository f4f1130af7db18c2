"""The networks of one bundle that were trained on studies annotated here, and which of them is in use.

A new network is taken into use only when it is not worse than the one in use on the same validation cases by more than
a tolerance. Every one stays on disk, the shipped one first of all, and can be chosen again. The list is a JSON file
beside the trainings (`versions.json`), replaced in one step, so that a reader never sees half of it; who changes it
holds a lock, since the server and a training may do so at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ctseg.errors import BundleError
from ctseg.files import locked, remove_unfinished, write_beside
from ctseg.registry import BundleInfo, get_bundle

FILE = "versions.json"
_LOCK, _TRAINING = "versions.lock", "training.lock"
TOLERANCE = 0.01  # Dice; validation on few cases varies by more than this from one training to the next


@dataclass(frozen=True)
class Version:
    """One network.

    Attributes:
        version: its name, unique for the bundle; the shipped one has the bundle's own version.
        folder: of its bundle, relative to the list's folder; "" for the shipped one.
        dice: mean Dice on the validation cases, NaN-free; None when it was not measured.
        previous: the version in use before it was made; "" for the shipped one.
        previous_dice: that one's Dice on the same cases, None when it has no weights.
        cases: how many validation cases there were.
        tolerance: by how much its Dice might be lower.
        metric: what stands for the Dice in a bundle of another kind, such as F1.
        accepted: whether it was taken into use when it was made.
        made: when, UTC, ISO 8601.
    """

    version: str
    folder: str = ""
    dice: float | None = None
    previous: str = ""
    previous_dice: float | None = None
    cases: int = 0
    tolerance: float = TOLERANCE
    accepted: bool = True
    made: str = ""
    metric: str = "Dice"

    @property
    def verdict(self) -> str:
        """One sentence on why it was taken into use or not."""
        if not self.folder:
            return "the network that the bundle came with"
        measured = f"validation {self.metric} {_number(self.dice)} on {self.cases} case{'s' * (self.cases != 1)}"
        if self.previous_dice is None:
            return f"{measured}; there was no network before it"
        against = f"{measured}, {_number(self.previous_dice)} for {self.previous} before it"
        if self.accepted:
            return f"{against}: taken into use"
        return f"{against}: worse by more than {self.tolerance:g}, so {self.previous} stays in use"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def is_good_enough(dice: float | None, previous_dice: float | None, tolerance: float = TOLERANCE) -> bool:
    """Whether a network may replace another: not worse by more than the tolerance, or the first that was measured."""
    if previous_dice is None:
        return True
    return dice is not None and dice >= previous_dice - tolerance


class Versions:
    """The networks of one bundle.

    Args:
        folder: where the list is kept, and below which the bundles of the trained ones lie.
        shipped: the bundle as it came.
    """

    def __init__(self, folder: Path, shipped: BundleInfo) -> None:
        self.folder = folder
        self.shipped = shipped

    def all(self) -> list[Version]:
        """Return the shipped one, then the others in the order in which they were made; those deleted are left out."""
        return [Version(self.shipped.version), *(one for one in self._trained(self._read()) if self._is_there(one))]

    def current(self) -> BundleInfo:
        """Return the bundle in use: the one chosen, or the shipped one where that is gone or broken."""
        name = self._read().get("current")
        for one in reversed(self.all()):
            if one.version == name and one.folder:
                try:
                    return get_bundle(self.folder / one.folder)
                except BundleError:
                    break
        return self.shipped

    def add(
        self,
        made: BundleInfo,
        dice: float | None,
        previous_dice: float | None,
        cases: int,
        tolerance: float = TOLERANCE,
        metric: str = "Dice",
    ) -> Version:
        """Enter a new network, and take it into use when it is good enough.

        Args:
            made: its bundle, below `folder`.
            dice: its mean Dice on the validation cases.
            previous_dice: that of the one in use, on the same cases.
            cases: how many these are.
            tolerance: by how much it may be worse.
            metric: what stands for the Dice in a bundle of another kind.

        Raises:
            BundleError: the bundle lies elsewhere, or its version is taken.
            OutputError: the list cannot be written.
        """
        if not made.path.is_relative_to(self.folder.resolve()):
            raise BundleError(f"the bundle {made.path} lies outside {self.folder}, expected it below; move it there")
        with locked(self.folder / _LOCK):
            content = self._read()
            trained = self._trained(content)
            if made.version in (self.shipped.version, *(one.version for one in trained)):
                raise BundleError(
                    f"the version {made.version} of {made.name} is entered already; give it another version"
                )
            new = Version(
                version=made.version,
                folder=made.path.relative_to(self.folder.resolve()).as_posix(),
                dice=dice,
                previous=self.current().version,
                previous_dice=previous_dice,
                cases=cases,
                tolerance=tolerance,
                accepted=is_good_enough(dice, previous_dice, tolerance),
                metric=metric,
                made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
            current = new.version if new.accepted else str(content.get("current") or self.shipped.version)
            self._write(current, [*trained, new])
            return new

    def use(self, version: str) -> Version:
        """Take a version into use, whatever its Dice.

        Raises:
            BundleError: naming the known ones, for another name, or when its files are broken.
            OutputError: the list cannot be written.
        """
        with locked(self.folder / _LOCK):
            known = {one.version: one for one in self.all()}
            if version not in known:
                raise BundleError(
                    f"there is no version {version!r} of {self.shipped.name}; the known ones are: {', '.join(known)}"
                )
            if known[version].folder:
                get_bundle(self.folder / known[version].folder)
            self._write(version, self._trained(self._read()))
            return known[version]

    @contextmanager
    def being_trained(self, patience: float = 30.0) -> Iterator[bool]:
        """Hold the folder for a training, so that there is one at a time; False when another one holds it.

        What killed trainings left half written in the runs goes.

        Args:
            patience: seconds to wait for it: the processes that augment for a killed training end some seconds later.
        """
        deadline = time.monotonic() + patience
        while True:
            with locked(self.folder / _TRAINING, wait=False) as free:
                if free or time.monotonic() >= deadline:
                    for run in self.folder.glob("runs/*") if free else ():
                        remove_unfinished(run)
                    yield free
                    return
            time.sleep(0.2)

    def tidy(self) -> None:
        """Remove all that killed processes left half written, unless a training is running; for a server's start."""
        if self.folder.is_dir():
            with self.being_trained(patience=0.0) as free:
                if free:
                    remove_unfinished(self.folder)

    def _is_there(self, one: Version) -> bool:
        folder = (self.folder / one.folder).resolve()
        inside = bool(one.folder) and folder.is_relative_to(self.folder.resolve())
        return inside and (folder / "configs" / "metadata.json").is_file()

    def _read(self) -> Mapping[str, Any]:
        try:
            content = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BundleError(
                f"the list of versions {self.folder / FILE} cannot be read ({type(error).__name__}): correct it, or "
                "move it away, and the shipped network is in use"
            ) from error
        return content if isinstance(content, dict) else {}

    @staticmethod
    def _trained(content: Mapping[str, Any]) -> list[Version]:
        entries = content.get("versions")
        fields = Version.__dataclass_fields__
        rows = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        return [Version(**{key: row[key] for key in fields if key in row}) for row in rows if row.get("version")]

    def _write(self, current: str, trained: list[Version]) -> None:
        content = {"current": current, "versions": [asdict(one) for one in trained]}
        write_beside(self.folder / FILE, (json.dumps(content, indent=2) + "\n").encode())
