"""What a bundle needs of others is checked by name, without torch, before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_bundles import METADATA, make_bundle

from ctseg.cli import main
from ctseg.dependencies import check_dependencies, dependencies_of, dependency_problem, sibling
from ctseg.errors import BundleError
from ctseg.registry import find_bundles, get_bundle


def organ(bundle: str, name: str = "liver") -> dict[str, str]:
    return {"bundle": bundle, "as": "input_organ", "organ": name}


def gate(bundle: str) -> dict[str, str]:
    return {"bundle": bundle, "as": "gate"}


def classifier(root: Path, name: str, **block: Any) -> None:
    file = make_bundle(root, name, **block) / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "classification"
    file.write_text(json.dumps(metadata))


def refusal(root: Path, name: str) -> str:
    with pytest.raises(BundleError) as refused:
        check_dependencies(get_bundle(name, root))
    assert dependency_problem(get_bundle(name, root)) == str(refused.value)
    return str(refused.value)


def test_what_is_there_and_fits_passes(tmp_path: Path) -> None:
    make_bundle(tmp_path, "liver_ct_segmentation")
    classifier(tmp_path, "liver_ct_classification")
    make_bundle(
        tmp_path, "b_ct_segmentation", depends_on=[organ("liver_ct_segmentation"), gate("liver_ct_classification")]
    )
    info = get_bundle("b_ct_segmentation", tmp_path)
    check_dependencies(info)
    assert dependency_problem(info) == ""
    assert info.input_organs == ("liver",)
    assert [(d.bundle, d.role, d.organs) for d in dependencies_of(info)] == [
        ("liver_ct_segmentation", "input_organ", ("liver",)),
        ("liver_ct_classification", "gate", ("liver", "spleen")),  # a gate must know all that the bundle segments
    ]


def test_missing_untrained_and_broken_ones_are_named(tmp_path: Path) -> None:
    make_bundle(tmp_path, "a_ct_segmentation", depends_on=[organ("nothing_ct_segmentation")])
    make_bundle(tmp_path, "new_ct_segmentation", weights=None)
    make_bundle(tmp_path, "b_ct_segmentation", depends_on=[organ("new_ct_segmentation")])
    make_bundle(tmp_path, "odd_ct_segmentation", labels=[])
    make_bundle(tmp_path, "c_ct_segmentation", depends_on=[organ("odd_ct_segmentation")])
    make_bundle(tmp_path, "d_ct_segmentation", depends_on=[organ("b_ct_segmentation")])
    assert "a_ct_segmentation needs nothing_ct_segmentation, but there is no bundle" in refusal(
        tmp_path, "a_ct_segmentation"
    )
    assert "b_ct_segmentation needs new_ct_segmentation, but bundle new_ct_segmentation is untrained" in refusal(
        tmp_path, "b_ct_segmentation"
    )
    assert "c_ct_segmentation needs odd_ct_segmentation, but bundle odd_ct_segmentation is broken" in refusal(
        tmp_path, "c_ct_segmentation"
    )
    assert "b_ct_segmentation needs new_ct_segmentation" in refusal(tmp_path, "d_ct_segmentation")


def test_the_wrong_type_is_named(tmp_path: Path) -> None:
    classifier(tmp_path, "liver_ct_classification")
    make_bundle(tmp_path, "liver_ct_segmentation")
    make_bundle(tmp_path, "a_ct_segmentation", depends_on=[gate("liver_ct_segmentation")])
    make_bundle(tmp_path, "b_ct_segmentation", depends_on=[organ("liver_ct_classification")])
    make_bundle(tmp_path, "c_ct_segmentation", depends_on=[organ("liver_ct_segmentation", "kidney")])
    assert refusal(tmp_path, "a_ct_segmentation").startswith(
        "bundle a_ct_segmentation needs liver_ct_segmentation as gate and that is a segmenter, expected a classifier;"
    )
    assert refusal(tmp_path, "b_ct_segmentation").startswith(
        "bundle b_ct_segmentation needs liver_ct_classification as input_organ and that is a classifier, expected a seg"
    )
    assert "needs kidney of liver_ct_segmentation, which knows liver, spleen;" in refusal(tmp_path, "c_ct_segmentation")


def test_a_circle_is_named(tmp_path: Path) -> None:
    names = ["a_ct_segmentation", "b_ct_segmentation", "c_ct_segmentation"]
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        make_bundle(tmp_path, name, weights=None, depends_on=[organ(other)])
    assert "in a circle (b_ct_segmentation -> c_ct_segmentation -> a_ct_segmentation -> b_ct_segmentation)" in refusal(
        tmp_path, "b_ct_segmentation"
    )
    make_bundle(tmp_path, "self_ct_segmentation", depends_on=[organ("self_ct_segmentation")])
    assert "in a circle (self_ct_segmentation -> self_ct_segmentation)" in refusal(tmp_path, "self_ct_segmentation")


def test_the_bundle_beside_comes_before_the_shipped_one(tmp_path: Path) -> None:
    make_bundle(tmp_path, "a_ct_segmentation")
    shipped = find_bundles()["liver_ct_segmentation"]
    assert sibling("liver_ct_segmentation", tmp_path / "a_ct_segmentation").path == shipped.path
    own = make_bundle(tmp_path, "liver_ct_segmentation")
    assert sibling("liver_ct_segmentation", tmp_path / "a_ct_segmentation").path == own.resolve()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("liver", "depends_on 'liver', expected a list"),
        ([{"bundle": "a"}], "expected an object with bundle and as"),
        ([{"bundle": "a", "as": "organ"}], r"expected an object with bundle and as \(input_organ or gate\)"),
        ([{"bundle": "a", "as": "input_organ"}], "expected the organ too"),
    ],
)
def test_odd_metadata_is_a_problem_not_a_crash(tmp_path: Path, entries: Any, said: str) -> None:
    make_bundle(tmp_path, depends_on=entries)
    with pytest.raises(BundleError, match=said):
        get_bundle("liver_ct_segmentation", tmp_path)


def test_the_command_line_refuses_with_one_sentence_and_lists_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path, "new_ct_segmentation", weights=None)
    make_bundle(tmp_path, "b_ct_segmentation", depends_on=[organ("new_ct_segmentation")])
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: tmp_path)
    (tmp_path / "ct.nii.gz").write_bytes(b"never read")
    command = ["segment", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out"), "--task", "b_ct_segmentation"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "b_ct_segmentation needs new_ct_segmentation, but" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    assert "    needs: new_ct_segmentation\n    problem: bundle b_ct_segmentation needs new_ct_segmentation" in listed


def test_checking_brings_no_torch(clean_environment: dict[str, str]) -> None:
    code = "import sys, ctseg.dependencies; sys.exit(bool({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment).returncode == 0


def test_the_shipped_bundles_need_only_what_is_shipped() -> None:
    assert METADATA["ctseg"].get("depends_on") is None
    for name, info in find_bundles().items():
        assert dependency_problem(info) == "", name
