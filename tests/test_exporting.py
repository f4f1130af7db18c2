"""`ctseg export` and `--runtime`: files that agree with PyTorch, their description, and masks of each runtime."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import CORE, expected_mask, phantom_hu, write_phantom

from ctseg import inferers
from ctseg.api import segment_volume
from ctseg.cli import main
from ctseg.errors import BundleError, ConfigError
from ctseg.export import networks as exporting
from ctseg.export import runtimes
from ctseg.export.networks import export_bundle
from ctseg.light.described import read_exported
from ctseg.light.models import Models
from ctseg.light.sessions import Session
from ctseg.prediction import Predictor
from ctseg.registry import BundleInfo, get_bundle
from ctseg.study import Predictors

for _package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(_package, reason="the extra 'export' is not installed")


@pytest.fixture
def bundles(exported_bundles: tuple[dict[str, BundleInfo], Path]) -> dict[str, BundleInfo]:
    return exported_bundles[0]


@pytest.fixture
def folder(exported_bundles: tuple[dict[str, BundleInfo], Path]) -> Path:
    """Every bundle as ONNX."""
    return exported_bundles[1]


def told(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}.onnx.json").read_text()))


def test_the_description_holds_what_inference_needs(folder: Path, bundles: dict[str, BundleInfo]) -> None:
    pair = told(folder, "pair_ct_segmentation")
    assert pair["input"] == {"channels": 1, "dimensions": 2, "batch": "any", "size": "any", "divisor": 4}
    assert pair["preprocessing"] == [
        {
            "step": "to_grid",
            "mm": [2.0, 2.0, 3.0],
            "thick_slices": 2.6,
            "thickest": 1000.0,
            "plane": "axial",
            "crop_air": None,
        },
        {"step": "intensity", "lowest": -200.0, "highest": 400.0, "to": [0.0, 1.0], "clip": True},
        {"step": "pad_to_multiple", "of": [4, 4, 1]},
    ]
    region = {"share": 0.1, "margin_px": 48, "divisor": 4}
    assert pair["inferer"] == {"way": "slices", "batch": 8, "probe": 4, "margin": 1, "region": region}
    decided, cleaned = pair["postprocessing"]
    assert decided == {
        "step": "label_map", "codes": [2, 5], "activation": None, "thresholds": [None, None], "certainty": True,
    }  # fmt: skip
    assert cleaned["codes"] == {"block": 2, "bar": 5} and cleaned["rules"]["bar"]["fill_holes"] == "axial"
    assert pair["versions"]["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert pair["weights_sha256"] == bundles["pair"].weights_sha256
    assert told(folder, "cube_ct_segmentation")["inferer"] == {
        "way": "windows", "size": [24, 16, 12], "overlap": 0.5, "mode": "gaussian", "batch": 1,
    }  # fmt: skip
    assert told(folder, "says_ct_classification")["threshold"] == 0.5
    assert told(folder, "guided_ct_segmentation")["preprocessing"][-1] == {
        "step": "add_organs", "models": {"core": "core_ct_segmentation"},
    }  # fmt: skip
    for name in told(folder, "shell_ct_segmentation"), told(folder, "guided_ct_segmentation"):
        assert name["needs_torch"] is None
    assert b"site-packages" not in (folder / "pair_ct_segmentation.onnx").read_bytes(), "no folder of this machine"
    found = read_exported(folder / "pair_ct_segmentation.onnx")
    assert (found.problem, found.info.labels, found.sha256) == (
        "",
        {"block": 2, "bar": 5},
        pair["files"][found.file.name],
    )


def test_any_batch_and_any_multiple_of_the_size(folder: Path, bundles: dict[str, BundleInfo]) -> None:
    import torch

    session = Session(folder / "pair_ct_segmentation.onnx", "onnx")
    network = Predictor(bundles["pair"], "cpu").network
    for shape in ((1, 1, 8, 40), (5, 1, 52, 12)):
        image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(session(image), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["openvino", "torchscript"])
def test_the_other_formats_agree_too(kind: str, bundles: dict[str, BundleInfo], folder: Path, tmp_path: Path) -> None:
    done = export_bundle(bundles["pair"], kind, tmp_path)
    assert done.difference <= exporting.TOLERANCE and done.sizes == "any multiple of 4"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in done.files)
    found = read_exported(done.files[0])
    assert found.problem == "" and len(found.told["files"]) == (2 if kind == "openvino" else 1)
    if kind == "openvino":
        ct = write_phantom(tmp_path / "ct.nii.gz")
        here, there = (Models(one, runtime).get(found.name) for one, runtime in ((tmp_path, kind), (folder, "onnx")))
        assert (here.predict(ct).label_map == there.predict(ct).label_map).mean() >= 0.999
    done.files[-2].write_bytes(b"changed")
    assert "is not the file that" in read_exported(done.files[0]).problem


def test_a_file_that_does_not_agree_is_not_kept(
    bundles: dict[str, BundleInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = exporting._opened

    def off(file: Path, kind: str) -> Any:
        run = opened(file, kind)
        return lambda image: run(image) * np.float32(1.001)

    monkeypatch.setattr(exporting, "_opened", off)
    with pytest.raises(BundleError, match=r"does not agree with PyTorch: found a difference of 0\.00"):
        export_bundle(bundles["core"], "onnx", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_one_size_keeps_it(tmp_path: Path) -> None:
    import torch

    from ctseg.export.formats import write_onnx

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval()
    assert write_onnx(network, tmp_path / "fixed.onnx", 1, (8, 6), 1) is None


def test_refusals(bundles: dict[str, BundleInfo], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = get_bundle(bundles["core"].path.parent / "many_ct_segmentation")
    with pytest.raises(BundleError, match="is untrained"):
        export_bundle(later, "onnx", tmp_path)
    with pytest.raises(ConfigError, match="there is no format 'pickle'"):
        export_bundle(bundles["core"], "pickle", tmp_path)
    with pytest.raises(BundleError, match=r"has not been exported for openvino: run ctseg export core_ct_segmentation"):
        Predictor(bundles["core"], "cpu", runtime="openvino")
    with pytest.raises(ConfigError, match="there is no runtime 'abacus'"):
        runtimes.chosen_runtime(bundles["core"], "abacus", "cpu")
    with pytest.raises(ConfigError, match="runs on the processor, not on cuda:0"):
        runtimes.chosen_runtime(bundles["core"], "onnx", "cuda:0")
    with pytest.raises(ConfigError, match="the runtime 'onnx' is asked for"):
        segment_volume(tmp_path, task=bundles["core"].path, predictors=Predictors("cpu"), runtime="onnx")
    assert main(["export", "nothing_ct_segmentation"]) == 2
    assert "there is no bundle 'nothing_ct_segmentation'" in capsys.readouterr().err


def test_segment_in_each_runtime(
    bundles: dict[str, BundleInfo], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, ct = bundles["core"], write_phantom(tmp_path / "ct.nii.gz")
    for runtime in ("onnx", "openvino"):
        assert main(["export", str(core.path), "--format", runtime]) == 0
        assert "agrees with PyTorch" in capsys.readouterr().out
        out = tmp_path / runtime
        arguments = ["segment", str(ct), "-o", str(out), "--task", str(core.path), "--output", "nifti,json"]
        assert main([*arguments, "--device", "cpu", "--runtime", runtime]) == 0
        np.testing.assert_array_equal(
            np.asarray(nib.load(out / "mask.nii.gz").dataobj), expected_mask(phantom_hu(), ("core", CORE))
        )
        report = json.loads((out / "report.json").read_text())
        assert report["runtime"] == {runtime: runtimes.version_of(runtime)}
    measured = {
        "torch": {"seconds": 2.0, "dice": 1.0},
        "onnx": {"seconds": 1.5, "dice": 1.0},
        "openvino": {"seconds": 1.0, "dice": 0.99},
    }
    assert runtimes.chosen_runtime(core, "auto", "cpu") == "torch", "nothing was measured here yet"
    runtimes.write_record(core, measured)
    assert runtimes.chosen_runtime(core, "auto", "cpu") == "onnx", "OpenVINO's mask was another one"
    assert runtimes.chosen_runtime(core, "auto", "cuda:0") == "torch"
    monkeypatch.setattr(runtimes, "processor", lambda: "another")
    assert runtimes.chosen_runtime(core, "auto", "cpu") == "torch", "measured on another processor"
    monkeypatch.undo()
    (core.path / "models" / "core_ct_segmentation.onnx").unlink()
    assert runtimes.chosen_runtime(core, "auto", "cpu") == "torch", "the fallback where the export has gone"


def test_the_rule() -> None:
    def best(**seconds: float) -> str:
        return runtimes.best_runtime({name: {"seconds": one, "dice": 1.0} for name, one in seconds.items()})

    assert best(torch=1.0, onnx=0.95, openvino=1.2) == "torch", "a gain below a tenth"
    assert best(torch=1.0, onnx=0.8, openvino=0.7) == "openvino"


def test_an_export_of_other_weights_is_refused(
    bundles: dict[str, BundleInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = bundles["pair"]
    export_bundle(pair, "onnx")
    assert Predictor(pair, "cpu", runtime="onnx").runtime == "onnx"
    monkeypatch.setattr(runtimes, "weights_sha256", lambda bundle: "0" * 64)
    with pytest.raises(BundleError, match=r"made of another network than bundle pair_ct_segmentation has now"):
        Predictor(pair, "cpu", runtime="onnx")
    monkeypatch.undo()
    monkeypatch.setattr(inferers, "cpu_has_bfloat16", lambda: False)
    ct = write_phantom(tmp_path / "ct.nii.gz")
    ours, theirs = (Predictor(pair, "cpu", runtime=name).predict(ct).label_map for name in ("onnx", "torch"))
    assert set(np.unique(theirs)) == {0, 2, 5} and (ours != theirs).mean() < 1e-3
