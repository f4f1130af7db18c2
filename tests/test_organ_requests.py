"""Which bundle serves an organ, who wins a shared voxel, which codes the mask has; on the command line too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import COMPOSITE, expected_mask, phantom_hu, write_organ_bundles, write_phantom
from helpers_server import add_weights, write_fake_bundle

from ctseg.cli import main
from ctseg.errors import BundleError, ConfigError
from ctseg.organchoice import (
    Selection,
    choose_organs,
    combined_bundle,
    default_task,
    ordered_members,
    segmented_organs,
    select,
)
from ctseg.organmerging import predict_organs
from ctseg.prediction import Prediction
from ctseg.registry import BundleInfo, find_bundles, get_bundle
from ctseg.volume import Volume


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_organ_bundles(tmp_path_factory.mktemp("organs"))


@pytest.fixture
def bundles(root: Path) -> dict[str, BundleInfo]:
    return find_bundles(root)


def changed(info: BundleInfo, **block: Any) -> BundleInfo:
    """The bundle with other values in its block."""
    return replace(info, metadata={**info.metadata, "ctseg": {**info.metadata["ctseg"], **block}})


def test_each_organ_has_the_ready_bundle_that_segments_it(bundles: dict[str, BundleInfo]) -> None:
    assert list(segmented_organs(bundles)) == ["core", "later", "shell"]
    choices = choose_organs(["core", "shell"], bundles)
    assert [(one.name, one.bundle.name, one.own_code, one.code) for one in choices] == [
        ("core", "core_ct_segmentation", 7, 7),
        ("shell", "shell_ct_segmentation", 3, 3),
    ]


def test_codes_that_are_not_distinct_become_numbers_in_the_order_of_the_request(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_fake_bundle(tmp_path, f"{name}_ct_segmentation", {name: 1})
    for order, expected in ((["a", "b"], {"a": 1, "b": 2}), (["b", "a"], {"b": 1, "a": 2}), (["b"], {"b": 1})):
        choices = choose_organs(order, find_bundles(tmp_path))
        assert {one.name: one.code for one in choices} == expected
        assert all(one.own_code == 1 for one in choices)


def test_which_of_several_bundles_serves_an_organ(tmp_path: Path) -> None:
    for name, labels, trained in (
        ("two", {"a": 1, "b": 2}, True),
        ("one", {"a": 1}, False),
        ("three", {"a": 1, "b": 2, "c": 3}, True),
    ):
        write_fake_bundle(tmp_path, f"{name}_ct_segmentation", labels, trained)

    def serving(**named: Any) -> str:
        return choose_organs(["a"], find_bundles(tmp_path), **named)[0].bundle.name

    assert serving() == "two_ct_segmentation", "ready before untrained, then the fewest labels"
    assert serving(task=get_bundle("three_ct_segmentation", tmp_path)) == "three_ct_segmentation"
    add_weights(tmp_path / "one_ct_segmentation")
    assert serving() == "one_ct_segmentation"
    write_fake_bundle(tmp_path, "other_ct_segmentation", {"a": 1})
    with pytest.raises(ConfigError, match=r"by 2 bundles .one_ct_segmentation, other_ct_segmentation.*as the task"):
        serving()
    assert serving(task=get_bundle("other_ct_segmentation", tmp_path)) == "other_ct_segmentation"
    other = get_bundle("two_ct_segmentation", tmp_path)
    choices = choose_organs(["a", "b"], find_bundles(tmp_path), task=get_bundle("one_ct_segmentation", tmp_path))
    assert [one.bundle.name for one in choices] == ["one_ct_segmentation", other.name], "a task has what it has"


@pytest.mark.parametrize(
    ("organs", "said"),
    [
        ([], "no organ is named: name one or more of core, later, shell"),
        (["nothing"], "there is no organ 'nothing'; the organs that can be asked for are: core, later, shell"),
        (["core", "shell", "core"], "'core' is named twice"),
        (["core_ct_classification"], "'core_ct_classification' is a classifier"),
        (["core_ct_segmentation"], "'core_ct_segmentation' is a bundle, not an organ: its organs are core"),
        (["spare"], "no bundle segments 'spare': core_ct_classification only says on which slices it is"),
        ([7], "expected a list of names"),
        ("core", "expected a list of names"),
    ],
)
def test_what_cannot_be_asked_for_is_a_sentence(organs: Any, said: str, bundles: dict[str, BundleInfo]) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        choose_organs(organs, bundles)


def test_organs_of_two_kinds_of_image_are_refused(bundles: dict[str, BundleInfo]) -> None:
    mixed = {**bundles, "shell_ct_segmentation": changed(bundles["shell_ct_segmentation"], modality="MR")}
    with pytest.raises(ConfigError, match="on CT and MR"):
        choose_organs(["core", "shell"], mixed)


def test_selection_without_organs_is_the_task_or_the_only_trained_one(root: Path, tmp_path: Path) -> None:
    assert select(task="shell_ct_segmentation", root=root).labels == {"shell": 3}
    assert select(root=root).bundle.name == "core_ct_segmentation" == default_task(find_bundles(root))
    with pytest.raises(BundleError, match="makes no mask"):
        select(["core"], task="core_ct_classification", root=root)
    with pytest.raises(BundleError, match="not clear which bundle"):
        select(root=tmp_path)
    untrained = select(["later", "shell"], root=root)
    assert [info.name for info in untrained.bundles] == ["many_ct_segmentation", "shell_ct_segmentation"]
    with pytest.raises(BundleError, match="many_ct_segmentation is untrained"):
        untrained.check_ready()


def test_members_of_a_composite_are_ordered_by_what_they_need_then_by_name(bundles: dict[str, BundleInfo]) -> None:
    assert ordered_members(bundles, COMPOSITE) == ["core", "shell"]
    needs_core = changed(
        bundles["shell_ct_segmentation"],
        depends_on=[{"bundle": "core_ct_segmentation", "as": "input_organ", "organ": "core"}],
    )
    assert ordered_members({**bundles, "shell_ct_segmentation": needs_core}, COMPOSITE) == ["shell", "core"]
    assert ordered_members(bundles, "another") == []


def test_combined_bundle_says_all_that_the_outputs_need(bundles: dict[str, BundleInfo]) -> None:
    info = combined_bundle(choose_organs(["shell", "core"], bundles))
    assert info.labels == {"shell": 3, "core": 7} and info.colors == {"shell": (200, 40, 40), "core": (40, 40, 200)}
    assert {entry["name"]: entry["snomed"]["value"] for entry in info.label_entries}["core"] == "28231008"
    assert info.licence["weights"] == "Apache-2.0" and info.modality == "CT" and not info.problem


def test_each_bundle_runs_once_and_the_first_named_wins(tmp_path: Path) -> None:
    pair = get_bundle(write_fake_bundle(tmp_path, "pair_ct_segmentation", {"left": 1, "right": 2}))
    third = get_bundle(write_fake_bundle(tmp_path, "third_ct_segmentation", {"third": 1}))
    maps = {
        pair.path: np.array([[[1, 1, 2, 0]]], np.uint8),
        third.path: np.array([[[0, 1, 1, 1]]], np.uint8),
    }
    grid = Volume(np.zeros((1, 1, 4), np.int16), np.eye(4), np.eye(4), Path("x"), "array")
    ran: list[str] = []

    def predict(info: BundleInfo) -> Prediction:
        ran.append(info.name)
        waited = {"third_ct_segmentation": 9.0, "another": 1.0} if info.name == "pair_ct_segmentation" else {}
        return Prediction(grid, maps[info.path], info.labels, {"read": 0.5, **waited, "network": 2.0}, "cpu", info)

    bundles = find_bundles(tmp_path)
    found = predict_organs(choose_organs(["right", "third", "left"], bundles), predict)
    assert ran == ["pair_ct_segmentation", "third_ct_segmentation"]
    assert found.labels == {"right": 1, "third": 2, "left": 3}, "1, 2, 1 are not distinct: numbered"
    np.testing.assert_array_equal(found.label_map, [[[3, 2, 1, 2]]])
    assert found.seconds == {"read": 1.0, "another": 1.0, "network": 4.0}, "a wait for a part is that part's time"
    assert [part.bundle.name for part in found.parts] == ran
    assert Selection(found.bundle, ()).labels == found.bundle.labels


@pytest.fixture
def at(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a CT, and our bundles as the shipped ones."""
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: root)
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "ct.nii.gz")
    return tmp_path


def test_the_command_line_merges_in_the_order_named(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["--output", "nifti,stl,json", "--device", "cpu"]
    for organs in (["core", "shell"], ["shell", "core"]):
        assert main(["segment", "ct.nii.gz", "-o", "out", "--organs", ",".join(organs), *kinds]) == 0
        mask = nib.load(at / "out" / "mask.nii.gz")
        codes = {"shell": 3, "core": 7}
        expected = expected_mask(phantom_hu(), *((name, codes[name]) for name in organs))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
        assert mask.affine.tobytes() == nib.load(at / "ct.nii.gz").affine.tobytes()
        report = json.loads((at / "out" / "report.json").read_text())
        assert [part["name"] for part in report["bundles"]] == [f"{name}_ct_segmentation" for name in organs]
        voxels = {organ["name"]: organ["voxels"] for organ in report["organs"]}
        assert voxels == {name: int((expected == codes[name]).sum()) for name in organs}
        assert (at / "out" / "core.stl").is_file() and (at / "out" / "shell.stl").is_file()
    said = capsys.readouterr()
    assert "loading core_ct_segmentation 0.1.0, shell_ct_segmentation 0.1.0" in said.err
    assert main(["segment", "ct.nii.gz", "-o", "coded", "--organs", "core,shell", "--codes", "codes.json"]) == 2
    (at / "codes.json").write_text('{"shell": 36, "core": 34}')
    assert main(["segment", "ct.nii.gz", "-o", "coded", "--organs", "core,shell", "--codes", "codes.json", *kinds]) == 0
    coded = np.asarray(nib.load(at / "coded" / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(coded, expected_mask(phantom_hu(), ("core", 34), ("shell", 36)))


@pytest.mark.usefixtures("at")
def test_the_command_line_refuses_before_any_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for organs, said in (
        ("core,nothing", "there is no organ 'nothing'"),
        ("core_ct_classification", "is a classifier"),
        ("shell,later", "many_ct_segmentation is untrained"),
    ):
        assert main(["segment", "ct.nii.gz", "-o", "out", "--organs", organs]) == 2
        sentence = capsys.readouterr().err.strip()
        assert said in sentence and "\n" not in sentence and sentence.startswith("ctseg: ")
    with pytest.raises(SystemExit, match="2"):
        main(["segment", "ct.nii.gz", "-o", "out", "--organs", ","])
    assert "no organ is named" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
