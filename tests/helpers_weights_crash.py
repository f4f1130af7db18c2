"""Processes that train, publish and choose versions of a network, and are killed, or find their disk full.

Run as `python helpers_weights_crash.py kill DATA BUNDLE ROUNDS SEED` or `... small DATA BUNDLE` (the disk is small);
prints what was found as JSON. `full_disk` needs no process of its own. Every tensor of the network
that is trained n-th is full of n, so that a mixture of two files, or half of one, is seen. The imports are paid for
once: each victim is a fork.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from helpers_crash import FullDisk
from ignite.engine import Engine

from ctseg.annotation.versions import Versions
from ctseg.bundlecopy import copy_with_weights
from ctseg.errors import OutputError
from ctseg.history import History
from ctseg.registry import BundleInfo, get_bundle, verify_weights
from ctseg.training import SaveBest, SaveEachEpoch, newest_checkpoint
from ctseg.weights import read_weights

EPOCHS = 2


def train(data: Path, shipped: BundleInfo, number: int) -> str:
    """Do all the writing of one training from the viewer: checkpoints, the best weights, the bundle, the list."""
    run = data / "runs" / f"{number:06d}"
    run.mkdir(parents=True, exist_ok=True)
    network = torch.nn.Linear(250, 250)
    for tensor in network.parameters():
        torch.nn.init.constant_(tensor, float(number))
    items = {"model": network, "optimizer": torch.optim.Adam(network.parameters())}
    trainer, validator = Engine(lambda *_: None), Engine(lambda *_: {})
    trainer.logger = validator.logger = logging.getLogger("silent")
    best, each = SaveBest(network, "dice", run, History()), SaveEachEpoch(items, run)
    for trainer.state.epoch in range(1, EPOCHS + 1):
        validator.state.metrics = {"dice": 0.5}
        best(validator)
        each(trainer)
    name = f"{shipped.version}+{number}"
    made = copy_with_weights(shipped, run / "model.pt", run / shipped.name, name, "a test", "none")
    return Versions(data, shipped).add(made, 0.9, 0.5, cases=1).version


def train_for_ever(data: Path, shipped: BundleInfo, acknowledged: int, start: int) -> None:
    with Versions(data, shipped).being_trained() as free:  # what the killed one left goes here
        assert free
        for number in count(start):
            os.write(acknowledged, f"{train(data, shipped, number)}\n".encode())


def choose_for_ever(data: Path, shipped: BundleInfo, seed: int) -> None:
    """Take one version after the other into use, as an annotator may do while a training ends."""
    chance, versions = random.Random(seed), Versions(data, shipped)
    while True:
        versions.use(chance.choice(versions.all()).version)
        time.sleep(0.01)


_seen: set[str] = set()  # versions whose files were looked at: nobody writes to them again


def check(data: Path, shipped: BundleInfo, accepted: list[str]) -> int:
    """Look at what a crash left; how many unfinished files and folders there are. AssertionError when it is wrong."""
    versions = Versions(data, shipped)
    if (data / "versions.json").exists():
        json.loads((data / "versions.json").read_text())  # whole, before anything is mended
    listed = [one.version for one in versions.all()]
    assert len(listed) == len(set(listed)) and set(accepted) <= set(listed), "a version that was entered is lost"
    current = versions.current()
    assert current.version in listed
    is_whole(verify_weights(current), current.version)
    for one in versions.all():
        if one.version not in _seen:
            bundle = get_bundle(data / one.folder) if one.folder else shipped
            assert bundle.version == one.version
            is_whole(verify_weights(bundle), one.version)
    for run in sorted((data / "runs").iterdir())[-2:]:  # the one that was killed is among them
        newest = newest_checkpoint(run)
        if newest is not None:  # a resumed training would go on from it
            checkpoint = torch.load(newest, weights_only=True)
            assert newest == run / f"checkpoint_epoch={_epoch(newest)}.pt" and 1 <= _epoch(newest) <= EPOCHS
            assert all(bool((t == float(run.name)).all()) for t in checkpoint["model"].values())
        if (run / "model.pt").exists():
            is_whole(run / "model.pt", f"+{int(run.name)}")
    _seen.update(listed)
    return len(unfinished(data))


def _epoch(file: Path) -> int:
    return int(file.stem.partition("=")[2])


def is_whole(weights: Path | None, version: str) -> None:
    """The weights are those of this version, every number of them; the shipped ones have no number."""
    assert weights is not None
    wanted = float(version.partition("+")[2] or 0)
    assert all(bool((tensor == wanted).all()) for tensor in read_weights(weights).values()), weights


def unfinished(data: Path) -> list[Path]:
    return [path for path in data.rglob(".*")]


def kill_rounds(data: Path, bundle: Path, rounds: int, seed: int) -> dict[str, int]:
    """Kill a training and one who chooses versions at a random moment, again and again."""
    chance, shipped, accepted = random.Random(seed), get_bundle(bundle), list[str]()
    told = {"kills": 0, "unfinished": 0, "mended": 0}
    for number in range(rounds):
        reader, writer = os.pipe()
        victims = [
            forked(partial(train_for_ever, data, shipped, writer, 1 + number * 1000), reader),
            forked(partial(choose_for_ever, data, shipped, seed + number), reader, writer),
        ]
        os.close(writer)
        lines = os.read(reader, 1 << 16)
        time.sleep(chance.uniform(0, 0.15))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            os.waitpid(pid, 0)
        while block := os.read(reader, 1 << 16):
            lines += block
        os.close(reader)
        assert lines, "nothing was trained"
        accepted += lines.decode().split()
        told["kills"] += len(victims)
        told["unfinished"] += check(data, shipped, accepted)
        if number % 2:  # a server starts; else the next training mends what it finds
            Versions(data, shipped).tidy()
            assert not unfinished(data)
            assert check(data, shipped, accepted) == 0
            told["mended"] += 1
    return {**told, "accepted": len(accepted)}


def forked(work: Any, *close: int) -> int:
    pid = os.fork()
    if pid == 0:
        for handle in close:
            os.close(handle)
        try:
            work()
        finally:
            os._exit(1)
    return pid


def full_disk(data: Path, bundle: Path, steps: int) -> dict[str, int]:
    """Let the n-th writing call of a training find the disk full, for every n."""
    shipped = get_bundle(bundle)
    accepted, refusals = [train(data, shipped, 1)], 0
    for step in range(steps):
        before = Versions(data, shipped).current().version
        with FullDisk(step, (torch, "save"), (Path, "rename"), (Path, "write_text")):
            try:
                accepted.append(train(data, shipped, step + 2))
            except OutputError as error:
                assert "space" in str(error).lower(), error
                assert Versions(data, shipped).current().version == before, "a network that was not saved is in use"
                refusals += 1
        assert check(data, shipped, accepted) == 0, "something unfinished is left"
    return {"refusals": refusals, "accepted": len(accepted)}


def small_disk(data: Path, bundle: Path) -> dict[str, int]:
    """Train until the disk is full, then a few times more; torch's own writer meets the full disk here."""
    shipped, accepted, refusals = get_bundle(bundle), list[str](), 0
    for number in range(1, 1000):
        before = Versions(data, shipped).current().version
        try:
            accepted.append(train(data, shipped, number))
        except OutputError as error:
            assert "room" in str(error) or "space" in str(error), error
            assert Versions(data, shipped).current().version == before
            refusals += 1
            if refusals == 3:
                break
        assert check(data, shipped, accepted) == 0
    return {"refusals": refusals, "accepted": len(accepted)}


def main() -> None:
    how, data, bundle = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    data.mkdir(parents=True, exist_ok=True)
    numbers = [int(text) for text in sys.argv[4:]]
    told = {"kill": kill_rounds, "small": small_disk}[how](data, bundle, *numbers)  # type: ignore[operator]
    print("FOUND " + json.dumps(told), flush=True)
    os._exit(0)  # without the seconds that torch's modules need to go


if __name__ == "__main__":
    main()
