"""The wheel works outside the clone: library, app and bundles travel with it, and nothing of a user's work does."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers_bundles import make_bundle

CLONE = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".cache", "build", "dist", "runs", "demo-output", "__pycache__", ".*cache*", "*.egg-info"
)

pytest.importorskip("setuptools", "77", reason="building a wheel without network needs setuptools in the environment")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone with a new bundle, large weights, and what a server and a training leave behind."""
    copy = tmp_path_factory.mktemp("packaging") / "a clone"
    shutil.copytree(CLONE, copy, ignore=NOT_COPIED)
    new = make_bundle(copy / "bundles", "new_ct_segmentation")
    (new / "models" / "large.pt").write_bytes(bytes(10 * 1024 * 1024 + 1))
    (new / "configs" / "monailabel_train.json").write_text("{}")
    (new / "eval").mkdir()
    (new / "eval" / "patients.csv").write_text("a list that must not travel")
    (copy / "apps" / "ctseg" / "logs").mkdir(parents=True, exist_ok=True)
    (copy / "apps" / "ctseg" / "logs" / "app.log").write_text("a log that must not travel")
    return copy


def _build(copy: Path, what: str, folder: Path) -> Path:
    """Run the build backend as pip does, without network; return the one file it made."""
    code = f"import setuptools.build_meta as backend; backend.build_{what}({str(folder)!r})"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True, timeout=120)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def unpacked(copy: Path) -> Path:
    """The wheel, unpacked as an installation would."""
    unpacked = copy.parent / "site"
    with zipfile.ZipFile(_build(copy, "wheel", copy.parent / "wheel")) as wheel:
        wheel.extractall(unpacked)
    return unpacked


def test_tasks_are_found_outside_the_clone(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys, ctseg.cli; print(ctseg.__file__, file=sys.stderr); ctseg.cli.main(['tasks', '--json'])"
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(done.stderr.strip()).is_relative_to(unpacked)
    tasks = {entry["task"]: entry for entry in json.loads(done.stdout)}
    assert tasks["new_ct_segmentation"]["trained"]
    shipped = {folder.parent.name for folder in (CLONE / "bundles").glob("*/configs")}
    assert set(tasks) == shipped | {"new_ct_segmentation"}


def test_bundles_and_app_travel_and_a_users_work_does_not(unpacked: Path) -> None:
    share = unpacked / "ctseg" / "share"
    new = {
        p.relative_to(share).as_posix() for p in (share / "bundles" / "new_ct_segmentation").rglob("*") if p.is_file()
    }
    inside = "bundles/new_ct_segmentation/"
    assert new == {inside + "configs/metadata.json", inside + "models/model.pt"}
    assert not (share / "apps" / "ctseg" / "logs").exists() and not list(share.rglob("__pycache__"))
    for source in ("bundles", "apps/ctseg"):
        for file in (CLONE / source).glob("**/*.py"):
            assert (share / file.relative_to(CLONE)).is_file() or "/lib/" in file.as_posix()
    for file in (*(CLONE / "bundles").glob("*/configs/*.json"), *(CLONE / "configs" / "codes").glob("*.json")):
        assert (share / file.relative_to(CLONE)).read_bytes() == file.read_bytes()


def test_the_wheel_names_its_command_and_carries_no_tests(unpacked: Path) -> None:
    (entry_points,) = unpacked.glob("ctseg-*.dist-info/entry_points.txt")
    assert "ctseg = ctseg.cli:main" in entry_points.read_text()
    assert {p.name for p in unpacked.iterdir() if not p.name.endswith(".dist-info")} == {"ctseg"}
    assert (unpacked / "ctseg" / "py.typed").is_file()


def test_the_source_package_holds_every_tracked_file(copy: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=CLONE, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout to compare with")
    with tarfile.open(_build(copy, "sdist", copy.parent / "sdist")) as package:
        inside = {name.split("/", 1)[1] for name in package.getnames() if "/" in name}
    tracked = {name for name in listed.stdout.splitlines() if (CLONE / name).is_file()}
    assert tracked - inside <= {".gitignore"}
    assert not [name for name in inside if name.startswith("apps/ctseg/logs/") or "patients" in name]


def test_the_pinned_set_is_complete_and_from_the_index_only() -> None:
    lines = (CLONE / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9-]+==[\w.]+( ; python_version [<>=]+ "3\.1[0-2]")?', pin) for pin in pins)
    pinned = {pin.split("==")[0] for pin in pins}
    settings = configparser.ConfigParser()
    settings.read(CLONE / "setup.cfg")
    required = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    names = {re.split(r"[<>=!]", line)[0].lower() for lines in required for line in lines.split()}
    assert names <= pinned
    assert {"torch", "monai", "monailabel", "uv", "numpy"} <= pinned


@pytest.mark.parametrize("script", ["demo", "lint", "pin", "setup", "test", "../.ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    file = CLONE / "scripts" / script
    assert os.access(file, os.X_OK)
    subprocess.run(["bash", "-n", str(file)], check=True)
