"""The registry: what it reads from a bundle, what it says of a broken one, and that it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_bundles import make_bundle

from ctseg.errors import BundleError
from ctseg.registry import app_root, bundles_root, find_bundles, get_bundle, verify_weights


def test_every_property_of_a_trained_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    info = get_bundle("liver_ct_segmentation", tmp_path)
    assert info.path == folder.resolve()
    assert (info.name, info.version, info.task) == ("liver_ct_segmentation", "0.3.0", "liver_ct")
    assert (info.kind, info.modality, info.description) == ("slicewise", "CT", "A made-up bundle.")
    assert list(info.labels.items()) == [("liver", 1), ("spleen", 3)]  # by code, not as written
    assert {e["name"]: e["snomed"]["value"] for e in info.label_entries} == {"liver": "10200004", "spleen": "78961009"}
    assert info.licence == {"code": "Apache-2.0", "weights": "CC-BY-SA-4.0"}
    assert info.weights == folder.resolve() / "models" / "model.pt"
    assert info.trained and info.status == "trained" and info.segments
    assert info.evidence == "Dice 0.5 on 2 made-up patients"
    assert verify_weights(info) == info.weights


def test_pictures_show_what_the_task_wishes(tmp_path: Path) -> None:
    make_bundle(tmp_path, "body")
    make_bundle(tmp_path, "head", shown_window=[0, 80])
    assert {name: info.shown_window for name, info in find_bundles(tmp_path).items()} == {"body": None, "head": (0, 80)}


def test_untrained_and_missing_weights_are_told_apart(tmp_path: Path) -> None:
    make_bundle(tmp_path, "a", weights=None)
    (make_bundle(tmp_path, "b") / "models" / "model.pt").unlink()
    bundles = find_bundles(tmp_path)
    assert {name: info.status for name, info in bundles.items()} == {"a": "untrained", "b": "weights missing"}
    assert not bundles["a"].trained and not bundles["b"].trained
    with pytest.raises(BundleError, match=r"a is untrained.*train\.json.*--task"):
        verify_weights(bundles["a"])
    with pytest.raises(BundleError, match=r"weights of bundle b are missing: expected .*model\.pt; get"):
        verify_weights(bundles["b"])


def test_weights_that_a_user_put_there_are_taken_and_called_so(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, weights=None)
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"mine")
    info = get_bundle(folder)
    assert (info.trained, info.status, info.weights_sha256) == (True, "own weights", None)
    assert "not measured" in info.evidence
    assert verify_weights(info) == info.weights


def test_changed_weights_are_refused_with_both_sums(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, weights=b"abc")
    (folder / "models" / "model.pt").write_bytes(b"")
    # The sha256 of no bytes and of "abc" are test vectors of FIPS 180-2.
    with pytest.raises(BundleError, match=r"found sha256 e3b0c442\S*, expected ba7816bf\S*; get the file back"):
        verify_weights(get_bundle(folder.name, tmp_path))


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    make_bundle(tmp_path, "a")
    make_bundle(tmp_path, "b")
    with pytest.raises(BundleError, match=r"no bundle 'liver'; the known ones are: a, b; name one"):
        get_bundle("liver", tmp_path)
    with pytest.raises(BundleError, match="none in "):
        get_bundle("liver", tmp_path / "nowhere")


def test_a_folder_of_the_users_own_is_taken_by_its_path(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "mine", "my organ")
    assert get_bundle(str(folder), tmp_path / "root").name == "my organ"
    assert find_bundles(tmp_path / "root") == {}


def _write(folder: Path, change: Any) -> None:
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def _label(**changes: Any) -> Any:
    return lambda m: m["ctseg"]["labels"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("version"), "has no version;"),
        (lambda m: m.pop("ctseg"), "has no ctseg;"),
        (lambda m: m["ctseg"].pop("labels"), "without labels;"),
        (lambda m: m["ctseg"].update(labels=[]), "no list of labels"),
        (_label(code=0), "'spleen' with the code 0, expected a whole number 1 to 255"),
        (_label(code=True), "with the code True"),
        (_label(code=1), r"two labels of the same code \(1, 1\)"),
        (_label(name="liver"), "two labels of the same name"),
        (_label(color=[1, 2, 300]), r"the colour \[1, 2, 300\]"),
        (lambda m: m["ctseg"].update(weights="model.pt"), "expected null or an object with file and sha256"),
        (lambda m: m["ctseg"]["weights"].update(file="../../etc/passwd"), "lies outside the bundle"),
    ],
)
def test_broken_metadata_is_listed_and_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    folder = make_bundle(tmp_path)
    make_bundle(tmp_path, "sound")
    _write(folder, change)
    info = find_bundles(tmp_path)[folder.name]
    assert (info.status, info.trained, info.segments, info.labels) == ("broken", False, False, {})
    for refused in (lambda: get_bundle(folder.name, tmp_path), lambda: verify_weights(info)):
        with pytest.raises(BundleError, match=said):
            refused()
    assert get_bundle("sound", tmp_path).trained


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[]", None])
def test_unreadable_metadata_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    folder = make_bundle(tmp_path)
    file = folder / "configs" / "metadata.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BundleError, match=r"^bundle liver_ct_segmentation is broken: .*metadata\.json has no .*; make"):
        get_bundle(folder.name, tmp_path)


def test_the_clone_is_found_from_the_package() -> None:
    clone = Path(__file__).resolve().parents[1]
    assert bundles_root() == clone / "bundles"
    assert app_root() == clone / "apps" / "ctseg"


def test_the_registry_needs_the_standard_library_only() -> None:
    code = "import sys, ctseg.registry; print(sorted({'numpy', 'torch', 'monai', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
