"""Every fast way gives the masks of the golden set, which were made the slow, plain way (`helpers_golden.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_cascade import ORGAN, SECOND, give_weights, write_task
from helpers_golden import CASES, GOLDEN, PLAIN, bundles, case, plain_masks, read_golden
from helpers_phantoms import write_nifti

from ctseg.benchmarks.shared import dice
from ctseg.inferers import cpu_has_bfloat16
from ctseg.prediction import Predictor
from ctseg.registry import get_bundle
from ctseg.study import Predictors, Study

FAST = {
    "batches": {"gate": None, "region": None, "inferer#probe": 1, "inferer#batch_size": 7},
    "probes": {"gate": None, "region": None},
    "region": {"gate": None, "region#share": 0.1, "region#margin_px": 2},
    "gate of each slice": {"region": None, "preprocessing#transforms#6#every_mm": None},
    "gate at 3 mm and region": {},
    "body cut out of the air": {"gate": None, "crop_air": {"above_hu": -500.0, "margin_mm": 4.0}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    found = bundles(folder)
    for name in CASES:
        write_nifti(folder / f"{name}.nii.gz", *case(name))
    return found


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    assert GOLDEN.stat().st_size < 20_000
    return read_golden()


def check(found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Exact but for voxels whose border lies on their very centre, where processors round differently."""
    assert found.shape == wanted.shape
    wrong = int(((found > 0) != (wanted > 0)).sum())
    assert wrong <= 1e-4 * wanted.sum(), f"{what}: {wrong} of {int(wanted.sum())} voxels differ from the golden mask"


def test_the_plain_way_still_gives_the_golden_masks(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctseg.inferers.cpu_has_bfloat16", lambda: False)
        found = plain_masks(tmp_path)
    for name in CASES:
        assert 500 < golden[name].sum() < golden[name].size / 3
        check(found[name], golden[name], name)


@pytest.mark.parametrize("way", FAST)
def test_a_fast_way_gives_the_golden_masks(way: str, root: Path, golden: dict[str, np.ndarray]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctseg.inferers.cpu_has_bfloat16", lambda: False)
        predictor = Predictor(get_bundle(SECOND, root), "cpu", FAST[way])
        for name in CASES:
            found = predictor.predict(root.parent / f"{name}.nii.gz")
            check(found.label_map, golden[name], f"{way}, {name}")
            if way in ("probes", "region"):
                assert found.slices is not None and found.slices.run < found.slices.of


def test_the_way_of_a_gpu_gives_the_golden_masks(root: Path, golden: dict[str, np.ndarray]) -> None:
    """All that is done on a GPU, done by the same code on the CPU: bit for bit the mask of the CPU's own way."""
    from ctseg import devices
    from ctseg.grids import device as devicegrids

    calls: list[str] = []
    predictor = Predictor(get_bundle(SECOND, root), "cpu")
    usual = {name: predictor.predict(root.parent / f"{name}.nii.gz").label_map for name in CASES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "works_there", lambda device: True)
        for name in ("regridded_there", "resample_labels_there"):
            true = getattr(devicegrids, name)
            patch.setattr(devicegrids, name, lambda *a, n=name, f=true, **k: [calls.append(n), f(*a, **k)][1])
        there = Predictor(get_bundle(SECOND, root), "cpu", {"inferer#half": False})
        for name in CASES:
            found = there.predict(root.parent / f"{name}.nii.gz")
            assert np.array_equal(found.label_map, usual[name]), name
            check(found.label_map, golden[name], name)
    assert calls == ["regridded_there", "resample_labels_there"] * len(CASES)


def test_a_study_shared_by_two_bundles_gives_the_golden_masks(root: Path, golden: dict[str, np.ndarray]) -> None:
    study = Study(root.parent / "oblique_psr.nii.gz", Predictors("cpu", root))
    other = study.prediction(ORGAN)
    check(study.prediction(SECOND).label_map, golden["oblique_psr"], "shared")
    assert study.prediction(ORGAN) is other


def test_half_precision_agrees_with_full_precision(tmp_path: Path) -> None:
    """The golden network multiplies nothing; a convolutional one does."""
    if not cpu_has_bfloat16():
        pytest.skip("this processor computes in no bfloat16")
    folder = write_task(tmp_path, "organ_ct")
    give_weights(folder)
    ct = write_nifti(tmp_path / "ct.nii.gz", *case("straight"))
    half = Predictor(get_bundle(folder), "cpu", PLAIN).predict(ct).label_map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctseg.inferers.cpu_has_bfloat16", lambda: False)
        full = Predictor(get_bundle(folder), "cpu", PLAIN).predict(ct).label_map
    assert full.any() and dice(half > 0, full > 0) > 0.98


def test_the_shipped_ways_agree_on_a_real_ct(shared_data: Path) -> None:
    """Probes and region against every slice whole, on the upper part of a CT that was never trained on."""
    import dataclasses

    from ctseg.reading import read_volume

    volume = read_volume(shared_data / "abdomen_ct" / "ct.nii.gz")
    part = slice(60, 112, 2)
    volume = dataclasses.replace(volume, array=volume.array[..., part], affine=volume.affine @ np.diag([1, 1, 2, 1]))
    info = get_bundle("liver_ct_segmentation")
    fast = Predictor(info, "cpu").predict(volume)
    plain = Predictor(info, "cpu", {"region": None, "inferer#probe": 1}).predict(volume)
    assert dice(fast.label_map > 0, plain.label_map > 0) > 0.99
