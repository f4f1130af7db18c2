"""A running server with phantoms, a gate that holds its segmentations, a secret beside its studies and evil weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers_server import RunningServer, add_random_weights, add_weights, started_server, write_phantom_ct

from ctseg.building import build_bundle
from ctseg.files import write_beside
from ctseg.registry import BundleInfo, get_bundle
from ctseg.serving.users import ROLES, add_user

ROOT = Path(__file__).resolve().parents[1]
MODEL = "phantom_ct_segmentation"
PICKLED = "pickled_ct_segmentation"
SHAPE = (36, 40, 10)


@dataclass(frozen=True)
class Site:
    """A running server with everything around it.

    Attributes:
        server: the process.
        work: the folder around the studies: nothing but `studies` may change.
        tokens: role -> token; empty where none is asked for.
        gate: the folder of `helpers_gate.Gate`.
        plain: the served bundle without the gate, for what a mask should be.
    """

    server: RunningServer
    work: Path
    tokens: dict[str, str]
    gate: Path
    plain: BundleInfo

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def studies(self) -> Path:
        return self.work / "studies"

    def address(self, role: str = "admin") -> str:
        """What a user enters in 3D Slicer."""
        return f"{self.server.url}/t/{self.tokens[role]}" if self.tokens else self.server.url


def write_phantom_bundle(folder: Path, gate: Path | None = None) -> BundleInfo:
    """Write the phantom bundle with random weights; with a gate, each segmentation waits there first."""
    for name, text in build_bundle(ROOT / "tests" / "tasks" / "phantom_volume.yaml", ROOT / "configs" / "base").items():
        write_beside(folder / name, text.encode())
    add_random_weights(folder)
    if gate is not None:
        config = folder / "configs" / "inference.json"
        told = json.loads(config.read_text())
        told["preprocessing"]["transforms"].insert(0, {"_target_": "helpers_gate.Gate", "folder": str(gate)})
        config.write_text(json.dumps(told))
    return get_bundle(folder)


def write_pickled_bundle(folder: Path, mark: Path) -> None:
    """Write the phantom bundle with weights that make a file when they are unpickled; their sha256 is right."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(mark),))

    write_phantom_bundle(folder)
    add_weights(folder, pickle.dumps({"model": Evil()}))


@contextmanager
def running_site(work: Path, host: str | None, tokens: bool) -> Iterator[Site]:
    """Start a server on six phantoms.

    Args:
        work: an empty folder for everything.
        host: where it listens; None leaves it to the app.
        tokens: give it a users file with one user of each role.
    """
    studies, gate = work / "studies", work / "gate"
    studies.mkdir()
    gate.mkdir()
    for number in range(1, 7):
        write_phantom_ct(studies / f"case{number}.nii.gz", SHAPE, seed=number)
    write_phantom_ct(work / "secret.nii.gz", SHAPE, seed=99)
    (studies / "link.nii.gz").symlink_to(work / "secret.nii.gz")
    write_phantom_bundle(work / "bundles" / MODEL, gate)
    write_pickled_bundle(work / "bundles" / PICKLED, work / "unpickled")
    plain = write_phantom_bundle(work / "plain" / MODEL)
    users = work / "users.txt"
    made = {role: add_user(users, f"{role}-1", role) for role in ROLES} if tokens else {}
    conf = [("bundles", str(work / "bundles")), ("max_upload_mb", "2"), ("origins", "http://viewer.example:3000")]
    conf += [("users", str(users))] if tokens else []
    private = work / "tmp"
    private.mkdir()
    with started_server(studies, work, *conf, host=host, TMPDIR=str(private)) as server:
        yield Site(server, work, made, gate, plain)
