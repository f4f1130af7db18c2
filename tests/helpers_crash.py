"""A process that does nothing but save labels through the app's datastore, and is killed, or finds its disk full.

Run as `python helpers_crash.py kill STUDIES MASKS ROUNDS SEED`, `... full STUDIES MASKS STEPS` (each writing call fails
once) or `... small STUDIES MASKS 0` (the disk is small); prints what was found as JSON. The imports are paid for once:
each victim is a fork.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def open_studies(studies: Path) -> Any:
    from app_studies import StudiesFolder

    return StudiesFolder(str(studies), ["*.nii.gz", "*.nii", "*.nrrd"], organs=lambda: {"block": 1})


def save_for_ever(studies: Path, masks: list[Path], acknowledged: int, start: int) -> None:
    """Save one mask after the other; a line for each that was accepted goes into a pipe."""
    store, number = open_studies(studies), start
    while True:
        mask = masks[number % len(masks)]
        store.save_label("case1", str(mask), "final", {"mask": mask.name, "round": number})
        os.write(acknowledged, f"{number} {mask.name} {store.saved_version.number}\n".encode())
        number += 1


def check(studies: Path, masks: dict[str, bytes], accepted: list[tuple[int, str, int]]) -> dict[str, int]:
    """Look at what a crash left, then open the studies as the next server does; AssertionError when it is wrong."""
    index, current = studies / "datastore_v2.json", studies / "labels" / "final" / "case1.nii.gz"
    json.loads(index.read_text())  # whole, before anything is mended
    assert not current.exists() or current.read_bytes() in masks.values(), "half a label"
    versions = studies / "ctseg" / "versions"
    left = {
        "pending": (versions / "pending.json").exists(),
        "unfinished": len([path for path in studies.rglob(".*-*") if path.is_file()]),
    }
    store = open_studies(studies)
    assert not [path for path in studies.rglob(".*-*") if path.is_file()], "unfinished files stay"
    assert not (versions / "pending.json").exists()
    kept = {version.number: version for version in store._versions.of("final", "case1")}
    for number, mask, version in accepted:
        assert kept[version].info["round"] == number, "an accepted label is not kept"
        assert store._versions.file(kept[version]).read_bytes() == masks[mask]
    if accepted:
        info = store.get_label_info("case1", "final")
        newest = max(version for _, _, version in accepted)
        assert info["version"] >= newest, "an accepted label is not the current one"
        assert info == json.loads(index.read_text())["objects"]["case1"]["labels"]["final"]["info"]
        assert current.read_bytes() == masks[info["mask"]], "the label is not the one that its names are of"
    return {key: int(value) for key, value in left.items()}


def kill_rounds(studies: Path, masks: list[Path], rounds: int, seed: int) -> dict[str, int]:
    """Kill two savers at once at a random moment, again and again."""
    chance, contents = random.Random(seed), {mask.name: mask.read_bytes() for mask in masks}
    told = {"kills": 0, "accepted": 0, "pending": 0, "unfinished": 0}
    accepted: list[tuple[int, str, int]] = []
    for number in range(rounds):
        reader, writer = os.pipe()
        victims = []
        for half in (0, 1):
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                try:
                    save_for_ever(studies, masks, writer, number * 100_000 + half * 50_000)
                finally:
                    os._exit(1)
            victims.append(pid)
        os.close(writer)
        first = os.read(reader, 1 << 16)
        time.sleep(chance.uniform(0, 0.08))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            os.waitpid(pid, 0)
        lines = first
        while block := os.read(reader, 1 << 16):
            lines += block
        os.close(reader)
        new = [(int(a), b, int(c)) for a, b, c in (line.split() for line in lines.decode().splitlines())]
        assert new, "nothing was saved"
        accepted += new
        told["kills"] += 2
        told["accepted"] += len(new)
        for key, value in check(studies, contents, accepted).items():
            told[key] += value
    return told


def full_disk(studies: Path, masks: list[Path], steps: int) -> dict[str, int]:
    """Let the n-th writing call of a save find the disk full, for every n."""
    contents = {mask.name: mask.read_bytes() for mask in masks}
    store = open_studies(studies)
    store.save_label("case1", str(masks[0]), "final", {"mask": masks[0].name, "round": 0})
    accepted, refusals = [(0, masks[0].name, store.saved_version.number)], 0
    for step in range(steps):
        mask = masks[1 + step % (len(masks) - 1)]
        with FullDisk(step):
            try:
                store.save_label("case1", str(mask), "final", {"mask": mask.name, "round": step + 1})
                accepted.append((step + 1, mask.name, store.saved_version.number))
            except Exception as error:
                assert getattr(error, "status_code", 0) == 507 and "space" in str(error.detail), repr(error)
                refusals += 1
        check(studies, contents, accepted)
        assert store.get_unlabeled_images() == []
    mask = masks[0]
    store.save_label("case1", str(mask), "final", {"mask": mask.name, "round": -1})  # there is room again
    check(studies, contents, [*accepted, (-1, mask.name, store.saved_version.number)])
    return {"refusals": refusals, "accepted": len(accepted)}


class FullDisk:
    """The n-th call that writes raises ENOSPC, as the system does; `more` are further calls: (owner, name)."""

    def __init__(self, step: int, *more: tuple[Any, str]) -> None:
        self._left = step
        self._more = more
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        for owner, name in ((shutil, "copyfile"), (Path, "write_bytes"), (os, "fsync"), (Path, "replace"), *self._more):
            real = getattr(owner, name)
            self._kept.append((owner, name, real))
            setattr(owner, name, self._failing(real))

    def _failing(self, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return call

    def __exit__(self, *_: object) -> None:
        for owner, name, real in self._kept:
            setattr(owner, name, real)


def small_disk(studies: Path, masks: list[Path], _: int) -> dict[str, int]:
    """Save until the disk under the studies is full, then a few times more."""
    contents = {mask.name: mask.read_bytes() for mask in masks}
    store, accepted, refusals = open_studies(studies), [], 0
    for number in range(10_000):
        mask = masks[number % len(masks)]
        try:
            store.save_label("case1", str(mask), "final", {"mask": mask.name, "round": number})
            accepted.append((number, mask.name, store.saved_version.number))
        except Exception as error:
            assert getattr(error, "status_code", 0) == 507, repr(error)
            refusals += 1
            if refusals == 5:
                break
    (studies / "filler").unlink(missing_ok=True)  # somebody makes room
    check(studies, contents, accepted)
    return {"refusals": refusals, "accepted": len(accepted)}


def main() -> None:
    from ctseg.registry import app_root

    sys.path.insert(0, str(app_root()))
    how, studies, masks = sys.argv[1], Path(sys.argv[2]), sorted(Path(sys.argv[3]).glob("*.nii.gz"))
    numbers = [int(text) for text in sys.argv[4:]]
    told = {"kill": kill_rounds, "full": full_disk, "small": small_disk}[how](studies, masks, *numbers)  # type: ignore[operator]
    print("FOUND " + json.dumps(told), flush=True)
    os._exit(0)  # without the seconds that torch's modules need to go


if __name__ == "__main__":
    main()
