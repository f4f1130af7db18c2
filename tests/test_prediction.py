"""One path: the predictor of command line and server gives the voxels of `monai.bundle run`, and the same each time."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from ctseg.cli import main
from ctseg.devices import inference_device
from ctseg.errors import BundleError, DeviceError, InputError
from ctseg.files import file_sha256
from ctseg.prediction import Predictor
from ctseg.registry import BundleInfo, find_bundles

TRAINED = [name for name, info in find_bundles().items() if info.trained and info.segments]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    if not TRAINED:
        pytest.skip("no bundle is trained yet")
    return Predictor(find_bundles()[TRAINED[0]], device="cpu")


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small oblique CT with something like a body and an organ in it, so that a mask is not empty by chance."""
    from helpers_phantoms import oblique_affine, write_nifti

    x, y, _z = np.meshgrid(np.linspace(-1, 1, 72), np.linspace(-1, 1, 64), np.arange(7), indexing="ij")
    ct = np.full(x.shape, -1000.0)
    ct[x**2 + y**2 < 0.8] = -100
    ct[x**2 + y**2 < 0.7] = 40
    ct[(x + 0.3) ** 2 + (y - 0.1) ** 2 < 0.16] = 110
    ct += np.random.default_rng(0).normal(0, 12, ct.shape)
    affine = oblique_affine(spacing=(4.0, 4.2, 6.0))
    return write_nifti(tmp_path_factory.mktemp("body") / "body.nii.gz", ct.astype(np.int16), affine)


def test_same_voxels_as_the_bundle_run(predictor: Predictor, body: Path, tmp_path: Path) -> None:
    config = predictor.bundle.path / "configs" / "inference.json"
    ConfigWorkflow(
        config_file=str(config), workflow_type="infer", logging_file=False,
        image=str(body), output_dir=str(tmp_path), device="cpu",
    ).run()  # fmt: skip
    by_run = np.asarray(nibabel.load(tmp_path / "body" / "mask.nii.gz").dataobj)
    prediction = predictor.predict(body)
    assert prediction.label_map.shape == prediction.volume.shape
    assert np.array_equal(prediction.label_map, by_run)
    assert list(prediction.seconds) == ["read", "preprocess", "network", "postprocess"]


def test_the_command_line_gives_the_same_voxels_and_twice_the_same_bytes(
    predictor: Predictor, body: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert main(["segment", str(body), "-o", str(tmp_path / name), "--task", predictor.bundle.name]) == 0
    assert "volume" in capsys.readouterr().out
    mask = np.asarray(nibabel.load(tmp_path / "one" / "mask.nii.gz").dataobj)
    assert np.array_equal(mask, predictor.predict(body).label_map)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"mask.nii.gz", "preview.png", "report.json"} <= set(files)
    same = {name: file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "two" / name) for name in files}
    # Seconds differ from run to run, and only they do.
    assert same == {name: name != "report.json" for name in files}


def test_threads_do_not_mix(predictor: Predictor, body: Path, f_study: Path) -> None:
    alone = {path: predictor.predict(path).label_map for path in (body, f_study)}
    found: dict[int, bool] = {}

    def ask(number: int) -> None:
        path = (body, f_study)[number % 2]
        found[number] = np.array_equal(predictor.predict(path).label_map, alone[path])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_bad_input_is_a_sentence(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "no.nii.gz").write_bytes(b"")
    with pytest.raises(InputError):
        predictor.predict(tmp_path / "no.nii.gz")


def test_untrained_and_exchanged_weights_are_refused(phantom_bundle: BundleInfo, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is untrained"):
        Predictor(phantom_bundle, device="cpu")
    weights = tmp_path / "model.pt"
    torch.save({}, weights)
    block = {**phantom_bundle.metadata["ctseg"], "weights": {"file": "models/model.pt", "sha256": file_sha256(weights)}}
    named = dataclasses.replace(phantom_bundle, metadata={**phantom_bundle.metadata, "ctseg": block})
    (phantom_bundle.path / "models").mkdir()
    try:
        weights.rename(phantom_bundle.path / "models" / "model.pt")
        with pytest.raises(BundleError, match="do not fit the network"):
            Predictor(named, device="cpu")
        torch.save({"a": torch.zeros(1)}, phantom_bundle.path / "models" / "model.pt")
        with pytest.raises(BundleError, match="sha256"):
            Predictor(named, device="cpu")
    finally:
        (phantom_bundle.path / "models" / "model.pt").unlink()
        (phantom_bundle.path / "models").rmdir()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert inference_device("auto") == "cpu"
    with pytest.raises(DeviceError, match=r"'cuda:1' was asked for, but PyTorch sees 0 GPU"):
        inference_device("cuda:1")
    with pytest.raises(DeviceError, match="'gpu' is not known"):
        inference_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert inference_device("auto") == "cuda:0"
    assert inference_device("cuda:1") == "cuda:1"
