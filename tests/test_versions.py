"""Which network is in use: by its Dice against the one before, by choice, and when files have gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers_bundles import make_bundle

from ctseg.annotation.versions import Versions, is_good_enough
from ctseg.errors import BundleError
from ctseg.registry import BundleInfo, get_bundle


@pytest.fixture
def shipped(tmp_path: Path) -> BundleInfo:
    """A bundle as it came, version 0.1.0."""
    return get_bundle(make_bundle(tmp_path / "bundles"))


def trained(shipped: BundleInfo, data: Path, number: int) -> BundleInfo:
    """A bundle made by a training: a copy with a version of its own."""
    folder = data / "runs" / str(number) / shipped.name
    shutil.copytree(shipped.path, folder)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata["version"] = f"{shipped.version}+{number}"
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return get_bundle(folder)


@pytest.mark.parametrize(
    ("dice", "previous", "good"),
    [
        (0.9, None, True),
        (None, None, True),
        (0.9, 0.9, True),
        (0.885, 0.9, False),
        (0.895, 0.9, True),
        (None, 0.9, False),
        (0.0, 0.0, True),
    ],
)
def test_good_enough(dice: float | None, previous: float | None, good: bool) -> None:
    assert is_good_enough(dice, previous, 0.01) is good


def test_the_shipped_one_is_used_until_a_better_one_is_made(shipped: BundleInfo, tmp_path: Path) -> None:
    data = tmp_path / "studies" / "ctseg" / shipped.name
    versions = Versions(data, shipped)
    assert versions.current() == shipped and [one.version for one in versions.all()] == [shipped.version]
    worse = versions.add(trained(shipped, data, 1), 0.5, 0.9, cases=3)
    assert not worse.accepted and versions.current() == shipped
    assert "worse by more than 0.01, so" in worse.verdict and "0.500 on 3 cases, 0.900" in worse.verdict
    better = versions.add(trained(shipped, data, 2), 0.91, 0.9, cases=1)
    assert better.accepted and versions.current().version == better.version == f"{shipped.version}+2"
    assert better.previous == shipped.version and "taken into use" in better.verdict and "1 case," in better.verdict
    assert [one.version for one in versions.all()] == [shipped.version, f"{shipped.version}+1", f"{shipped.version}+2"]
    again = versions.add(trained(shipped, data, 3), 0.2, 0.91, cases=1)
    assert versions.current().version == better.version and again.previous == better.version


def test_any_can_be_chosen_again(shipped: BundleInfo, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "data", shipped)
    versions.add(trained(shipped, tmp_path / "data", 1), 0.5, 0.9, cases=1)
    versions.use(f"{shipped.version}+1")
    assert versions.current().path == (tmp_path / "data" / "runs" / "1" / shipped.name).resolve()
    versions.use(shipped.version)
    assert versions.current() == shipped
    with pytest.raises(BundleError, match=rf"known ones are: {shipped.version}, "):
        versions.use("7")


def test_the_shipped_one_stands_in_for_what_has_gone(shipped: BundleInfo, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "data", shipped)
    made = trained(shipped, tmp_path / "data", 1)
    versions.add(made, 0.9, 0.9, cases=1)
    (made.path / "configs" / "metadata.json").write_text("{")
    assert versions.current() == shipped
    shutil.rmtree(made.path)
    assert versions.current() == shipped and len(versions.all()) == 1


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", ""])
def test_a_list_cannot_lead_outside(shipped: BundleInfo, tmp_path: Path, folder: str) -> None:
    trained(shipped, tmp_path / "elsewhere", 1)
    data = tmp_path / "data"
    data.mkdir()
    entry = {"version": "9", "folder": folder and f"{folder}/runs/1/{shipped.name}"}
    (data / "versions.json").write_text(json.dumps({"current": "9", "versions": [entry]}))
    assert Versions(data, shipped).current() == shipped
    with pytest.raises(BundleError, match="lies outside"):
        Versions(data, shipped).add(trained(shipped, tmp_path / "elsewhere", 2), 0.9, 0.9, cases=1)


def test_a_broken_list_is_said(shipped: BundleInfo, tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text('{"current"')
    with pytest.raises(BundleError, match="cannot be read"):
        Versions(tmp_path, shipped).current()


def test_a_version_is_entered_once(shipped: BundleInfo, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "data", shipped)
    made = trained(shipped, tmp_path / "data", 1)
    versions.add(made, 0.9, 0.9, cases=1)
    with pytest.raises(BundleError, match="entered already"):
        versions.add(made, 0.9, 0.9, cases=1)
