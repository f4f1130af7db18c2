"""A study is read once, each bundle runs on it once, and a loaded network is kept until its bundle changes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_prediction import make_volume

from ctseg import prediction, study
from ctseg.errors import BundleError, InputError
from ctseg.study import Predictors, Study
from ctseg.transforms import OpenStudyd


class Counting:
    """Stands in for a `Predictor`: counts how often it is made and asked."""

    made: list[str] = []  # noqa: RUF012 - shared on purpose
    asked: list[str] = []  # noqa: RUF012

    def __init__(self, bundle: Any, device: str) -> None:
        self.bundle = bundle
        time.sleep(0.02)
        Counting.made.append(bundle.name)

    def predict(self, source: Study, progress: Any = None) -> Any:
        """Answer with what was asked."""
        time.sleep(0.02)
        Counting.asked.append(self.bundle.name)
        return SimpleNamespace(volume=source.volume, bundle=self.bundle)


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a_ct_segmentation", "b_ct_segmentation"):
        make_bundle(tmp_path, name)
    monkeypatch.setattr(prediction, "Predictor", Counting)
    Counting.made.clear()
    Counting.asked.clear()
    return tmp_path


def test_each_bundle_is_loaded_once_and_run_once_whoever_asks(bundles: Path) -> None:
    predictors = Predictors("cpu", bundles)
    one, other = Study(make_volume(), predictors), Study(make_volume(), predictors)
    found: list[Any] = []

    def ask(number: int) -> None:
        chosen = one if number % 2 else other
        found.append((number % 2, chosen.prediction(f"{'ab'[number // 2 % 2]}_ct_segmentation")))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Counting.made) == ["a_ct_segmentation", "b_ct_segmentation"]
    assert sorted(Counting.asked) == ["a_ct_segmentation"] * 2 + ["b_ct_segmentation"] * 2
    assert len(found) == 8 and len({id(result) for _, result in found}) == 4
    assert all(result.volume is (one if own else other).volume for own, result in found)


def test_the_image_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(study, "read_volume", lambda path, modality: read.append((path, modality)) or make_volume())
    one = Study("ct.nii.gz", Predictors("cpu"))
    assert one.volume is one.volume
    assert read == [("ct.nii.gz", "CT")]


def test_a_network_is_loaded_again_when_its_bundle_changed(bundles: Path) -> None:
    predictors = Predictors("cpu", bundles)
    first = predictors.segmenter("a_ct_segmentation")
    assert predictors.segmenter(bundles / "a_ct_segmentation") is first
    weights = bundles / "a_ct_segmentation" / "models" / "model.pt"
    os.utime(weights, ns=(1, 1))
    assert predictors.segmenter("a_ct_segmentation") is not first


def test_the_wrong_kind_of_bundle_and_image_is_refused(bundles: Path) -> None:
    predictors = Predictors("cpu", bundles)
    with pytest.raises(BundleError, match=r"a_ct_segmentation says nothing about slices, but a classifier is needed"):
        Study(make_volume(), predictors).presence("a_ct_segmentation")
    with pytest.raises(InputError, match=r"a_ct_segmentation is made for CT, but the study was read as US"):
        Study(make_volume(), predictors, modality="US").prediction("a_ct_segmentation")
    with pytest.raises(BundleError, match=r"no bundle 'c_ct_segmentation'; the known ones are: a_ct_segmentation"):
        predictors.segmenter("c_ct_segmentation")
    assert Counting.made == []


def test_opening_takes_the_callers_study_or_makes_one() -> None:
    volume = make_volume()
    given = Study(volume, Predictors("cpu"))
    assert OpenStudyd()({"image": "not read", "study": given}) == {"image": volume, "study": given}
    item = OpenStudyd(device="cpu")({"image": volume, "case_id": "x"})
    assert item["study"].volume is volume and item["image"] is volume and item["case_id"] == "x"
    assert isinstance(item["image"].array, np.ndarray)


def test_another_runtime_runs_the_network_in_its_place(tmp_path: Path) -> None:
    import torch
    from helpers_cascade import ORGAN, give_weights, phantom_ct, write_task
    from helpers_phantoms import oblique_affine, write_nifti

    give_weights(write_task(tmp_path, "organ_ct"))
    ct = write_nifti(tmp_path / "ct.nii.gz", phantom_ct(), oblique_affine((4.0, 4.2, 5.0)))
    asked: list[tuple[str, str]] = []

    def runtime(bundle: Any, network: torch.nn.Module, device: str) -> Any:
        asked.append((bundle.name, device))
        return lambda images: -network(images)

    plain = Study(ct, Predictors("cpu", tmp_path / "bundles")).prediction(ORGAN)
    other = Study(ct, Predictors("cpu", tmp_path / "bundles", runtime=runtime)).prediction(ORGAN)
    assert asked == [(ORGAN, "cpu")]
    assert not np.array_equal(plain.label_map, other.label_map)


def test_threads_are_set_and_cores_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ctseg.devices import use_threads
    from ctseg.errors import DeviceError

    now = torch.get_num_threads()
    try:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
        for wanted, threads in ((1, 1), (2, 2), (-1, 3), (-9, 1)):
            use_threads(wanted)
            assert torch.get_num_threads() == threads
        use_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(now)
    with pytest.raises(DeviceError, match="0 threads were asked for"):
        use_threads(0)
