"""The model of several organs inside the app: what it lists, what it takes, and which bundles make it."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers_app import sibling
from helpers_organs import COMPOSITE, expected_mask, phantom_hu, write_organ_bundles, write_phantom
from helpers_server import add_weights, write_fake_bundle

from ctseg.errors import BundleError, ConfigError
from ctseg.registry import find_bundles

pytest.importorskip("monailabel", reason="the server's extra is not installed")


def add_part_of(bundle: Path, name: str) -> None:
    """Make a fake bundle a member of a model of several organs."""
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["ctseg"]["part_of"] = [name]
    file.write_text(json.dumps(metadata))


def task_on(root: Path, name: str = COMPOSITE) -> Any:
    """The model of several organs over a folder of bundles."""
    module, networks = sibling("app_organs"), sibling("app_networks").Networks(find_bundles(root), threading.Lock())
    results = root.parent / "results"
    results.mkdir(exist_ok=True)
    return module.OrgansTask(name, networks, results)


def test_only_what_can_run_is_usual_and_it_changes_without_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    for name, trained in (("a", True), ("b", False)):
        add_part_of(write_fake_bundle(root, f"{name}_ct_segmentation", {name: 1}, trained), "both_segmentation")
    task = task_on(root, "both_segmentation")
    assert task.info()["labels"] == {"a": 1} and task.config()["organs"] == ["a"] and task.is_valid()
    add_weights(root / "b_ct_segmentation")
    assert task.info()["labels"] == {"a": 1, "b": 2} and task.config()["organs"] == ["a,b", "a", "b"]
    assert list(task.selection(["b", "a"]).labels.items()) == [("b", 1), ("a", 2)]
    for name in ("a", "b"):
        (root / f"{name}_ct_segmentation" / "models" / "model.pt").unlink()
    told = task.info()
    assert told["trained"] is False and "Not usable yet" in told["description"] and task.is_valid()
    with pytest.raises(BundleError, match="none of the bundles of both_segmentation is trained"):
        task.selection(None)


def test_an_organ_that_two_bundles_claim_needs_a_task(tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    for name in ("a", "b"):
        add_part_of(write_fake_bundle(root, f"{name}_ct_segmentation", {"same": 1}), "both_segmentation")
    task = task_on(root, "both_segmentation")
    told = task.info()
    assert told["status"] == "broken" and "a_ct_segmentation, b_ct_segmentation" in told["description"]
    with pytest.raises(ConfigError, match="nothing decides between them"):
        task.selection(["same"])
    chosen = task.selection(["same"], "b_ct_segmentation")
    assert [info.name for info in chosen.bundles] == ["b_ct_segmentation"]
    with pytest.raises(ConfigError, match="there is no task 'c'"):
        task.selection(["same"], "c")


@pytest.mark.parametrize("asked", [7, {"core": 1}, [["core"]], ["core", None]])
def test_organs_that_are_no_list_of_names(asked: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a list of names"):
        task_on(write_organ_bundles(tmp_path / "bundles")).selection(asked)


def test_bundles_name_the_model_and_conf_chooses_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_organ_bundles(tmp_path / "bundles")
    bundles, choice = find_bundles(root), sibling("app_choice")
    assert sibling("app_organs").composites_of(bundles) == [COMPOSITE]
    chosen = choice.choose_bundles({"bundles": str(root), "models": COMPOSITE})
    assert sorted(chosen) == ["core_ct_segmentation", "shell_ct_segmentation"]
    for models, offered in ((COMPOSITE, True), ("all", True), ("", True), ("core_ct_segmentation", False)):
        assert choice.offers({"models": models}, COMPOSITE) is offered
    with pytest.raises(BundleError, match="there is no model 'nothing'"):
        choice.choose_bundles({"bundles": str(root), "models": f"{COMPOSITE},nothing"})
    add_part_of(root / "many_ct_segmentation", "core_ct_segmentation")
    with caplog.at_level(logging.WARNING):
        assert sibling("app_organs").composites_of(find_bundles(root)) == [COMPOSITE]
    assert "a bundle has this name" in caplog.text


def test_answers_are_called_segmentation_and_their_folders_go(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    task = task_on(write_organ_bundles(tmp_path / "bundles"))
    request = {"image": str(write_phantom(tmp_path / "ct.nii.gz")), "device": "cpu", "organs": ["shell", "core"]}
    for _ in range(2):
        file, told = task(request)
        assert Path(file).name == "segmentation.nii.gz" and told["organs"] == ["shell", "core"]
        expected = expected_mask(phantom_hu(), ("shell", 3), ("core", 7))
        np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), expected)
        assert len(list((tmp_path / "results").iterdir())) == 1
        Path(file).unlink()  # as MONAI Label does once it is sent
    nrrd, _ = task({**request, "result_extension": ".nrrd"})
    assert Path(nrrd).name == "segmentation.nrrd"
