"""Exported networks without PyTorch: each step as MONAI's, masks as `ctseg segment`'s, broken descriptions refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import f_phantom, oblique_affine, straight_affine, write_nifti
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    DivisiblePad,
    NormalizeIntensityd,
    Orientation,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    Spacing,
    SpatialPad,
)

from ctseg import inferers
from ctseg.dicom.tilt import is_tilted
from ctseg.errors import BundleError, ConfigError, InputError
from ctseg.flat.items import flat_affine
from ctseg.inferers import SlicewiseInferer
from ctseg.items import volume_of
from ctseg.light import inferring
from ctseg.light.finishing import STEPS as STEPS_AFTER
from ctseg.light.finishing import Labelled, finished
from ctseg.light.models import Models
from ctseg.light.preparing import Placed, loaded, prepare
from ctseg.prediction import Predictor
from ctseg.presence.slices import PresencePredictor
from ctseg.registry import BundleInfo
from ctseg.transforms import (
    CleanUpd,
    CropSectord,
    Diffused,
    LoadFlatd,
    PixelSpacingd,
    ResizeSlicesd,
    ToGridd,
    ToLabelMapd,
)
from ctseg.volume import Volume

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason="the extra 'export' is not installed")

_NAN = float("nan")
# Of the window of 600 HU: MONAI places voxels in float32.
_CLOSE = {"rtol": 0, "atol": 0.3}


def lefthanded() -> np.ndarray:
    """An oblique affine whose axes run to P, I and L: turned, exchanged and mirrored."""
    turned: np.ndarray = oblique_affine()[:, [1, 2, 0, 3]] @ np.diag([-1.0, -1.0, 1.0, 1.0])
    return turned


STEPS = [
    (
        {"step": "to_grid", "mm": [1.7, 2.3, 1.9], "thick_slices": 2.2},
        lambda image: ToGridd("image", [1.7, 2.3, 1.9], 2.2)({"image": image})["image"],
    ),
    (
        {"step": "to_grid", "mm": [1.5, 1.5, 3.0], "crop_air": {"above_hu": -500, "margin_mm": 2}},
        lambda image: ToGridd("image", [1.5, 1.5, 3.0], crop_air={"above_hu": -500, "margin_mm": 2})({"image": image})[
            "image"
        ],
    ),
    ({"step": "orientation", "axcodes": "LPS"}, Orientation(axcodes="LPS", labels=None)),
    ({"step": "spacing", "mm": [1.7, 2.3, 1.9]}, Spacing([1.7, 2.3, 1.9], mode="bilinear", dtype=torch.float32)),
    (
        {"step": "spacing", "mm": [1.5, 1.5, 3.0], "keep_from_mm": [None, None, 2.2], "keep_to_mm": [None, None, 9.0]},
        Spacing(
            [1.5, 1.5, 3.0], min_pixdim=[_NAN, _NAN, 2.2], max_pixdim=[_NAN, _NAN, 9.0], dtype=torch.float32
        ),
    ),
    (
        {"step": "intensity", "lowest": -200, "highest": 400, "to": [-1.0, 2.0], "clip": True},
        ScaleIntensityRange(-200, 400, -1.0, 2.0, clip=True),
    ),
    ({"step": "pad_to_multiple", "of": [16, 7, 1]}, DivisiblePad([16, 7, 1])),
    ({"step": "pad_to", "size": [21, 31, 8]}, SpatialPad([21, 31, 8])),
    ({"step": "fit", "size": [13, 30, -1]}, ResizeWithPadOrCrop([13, 30, -1])),
]  # fmt: skip


@pytest.mark.parametrize(("step", "transform"), STEPS, ids=[f"{n}-{one[0]['step']}" for n, one in enumerate(STEPS)])
@pytest.mark.parametrize("affine", [straight_affine(), oblique_affine(), lefthanded()], ids=["ras", "oblique", "pil"])
def test_each_step_is_monais(step: dict[str, Any], transform: Any, affine: np.ndarray) -> None:
    array = f_phantom().astype(np.float32)[None]
    wanted = transform(MetaTensor(torch.from_numpy(array), affine=torch.as_tensor(affine)))
    found = prepare(Placed(array, affine), step)
    assert found.array.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found.array, wanted.numpy(), **_CLOSE)
    np.testing.assert_allclose(found.affine, wanted.affine.numpy(), atol=1e-6)


def test_pixels_are_smoothed_as_torch_does() -> None:
    array, affine = f_phantom().astype(np.float32)[None], oblique_affine()
    for mm in ([3.7, 2.9], [0.6, 0.8]):
        wanted = PixelSpacingd("image", mm)({"image": MetaTensor(torch.from_numpy(array), affine=torch.tensor(affine))})
        found = prepare(Placed(array, affine), {"step": "pixel_spacing", "mm": mm})
        np.testing.assert_allclose(found.array, wanted["image"].numpy(), rtol=0, atol=0.01)
        np.testing.assert_allclose(found.affine, wanted["image"].affine.numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("step", "transform"),
    [
        *(
            ({"step": "resize", "size": size, "mode": mode}, ResizeSlicesd("image", size, mode))
            for mode in ("bilinear", "bicubic", "area", "nearest")
            for size in ([31, 80], [90, 17])
        ),
        ({"step": "crop_sector", "margin": 2, "blank": True}, CropSectord("image", "image", margin=2, blank="image")),
        ({"step": "diffuse", "time": 0.6}, Diffused("image", "isotropic", iterations=4, time_step=0.15)),
        ({"step": "standardise", "channel_wise": True}, NormalizeIntensityd("image", channel_wise=True)),
        (
            {"step": "standardise", "subtrahend": 0.4, "divisor": 0.2, "channel_wise": False},
            NormalizeIntensityd("image", subtrahend=0.4, divisor=0.2),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_each_step_of_flat_images_is_ours(step: dict[str, Any], transform: Any) -> None:
    """A sector in black, with a letter burnt in beside it."""
    rng = np.random.default_rng(5)
    picture = np.zeros((2, 53, 47, 1), np.float32)
    picture[:, 12:50, 9:33] = rng.random((2, 38, 24, 1), dtype=np.float32) * 0.8 + 0.2
    picture[:, 2:4, 40:44] = 1.0
    affine = flat_affine((0.5, 0.8))
    wanted = transform({"image": MetaTensor(torch.from_numpy(picture), affine=torch.tensor(affine))})["image"]
    found = prepare(Placed(picture, affine), step)
    np.testing.assert_allclose(found.array, wanted.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.affine, np.asarray(wanted.affine), atol=1e-9)


@pytest.mark.parametrize("colours", ["rgb", "grey"])
def test_brightness_of_a_picture_is_ours(colours: str, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(6).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = volume_of(tmp_path / "a.png", {"flat": True}, "XC")
    wanted = LoadFlatd("image", colours, [0, 80])({"image": volume})["image"]
    found, left = loaded(volume, [{"step": "load_flat", "colours": colours, "window": [0, 80]}, {"step": "fit"}])
    np.testing.assert_array_equal(found.array, wanted.numpy())
    assert found.affine.tobytes() == wanted.affine.numpy().tobytes() and left == [{"step": "fit"}]
    with pytest.raises(InputError, match=r"ct is a volume, but this network looks at flat images"):
        loaded(Volume(pixels, np.eye(4), np.eye(4), tmp_path / "ct", "nifti"), [{"step": "load_flat"}])


def blurred(image: Any) -> Any:
    """A "network" of two channels that looks beyond its voxel, on arrays and tensors alike."""
    return torch.cat([0.5 - image, image + image.roll(1, 2) - 0.9], 1)


def arrays(image: np.ndarray) -> np.ndarray:
    return np.asarray(blurred(torch.from_numpy(image)))


def test_windows_and_slices_as_on_the_long_way() -> None:
    image = np.random.default_rng(2).random((1, 19, 26, 11), dtype=np.float32)
    for mode in ("gaussian", "constant"):
        wanted = SlidingWindowInferer([8, 12, 16], 2, 0.4, mode)(torch.from_numpy(image)[None], blurred)[0]
        found, run = inferring.infer(image, arrays, "windows", size=[8, 12, 16], overlap=0.4, mode=mode, batch=2)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
        assert run is None
    image[..., :4], image[..., 7:] = 0, 0  # something in the middle only
    image[0, :, :4], image[0, 12:], image[0, :, 20:] = 0, 0, 0
    regions: list[dict[str, Any] | None] = [None, {"share": 0.3}, {"share": 0.1, "margin_px": 1, "divisor": 4}]
    for opened, region in itertools.product((None, np.arange(11) % 3 == 0, np.zeros(11, bool)), regions):
        whole = MetaTensor(torch.from_numpy(image)[None])
        if opened is not None:
            whole.meta["run_slices"] = torch.from_numpy(opened)
        wanted = SlicewiseInferer(2, 3, 1, region)(whole, blurred)
        found, run = inferring.infer(image, arrays, "slices", opened, batch=2, probe=3, margin=1, region=region)
        np.testing.assert_array_equal(found, wanted[0].numpy())
        assert run == wanted.meta["slices_run"]


@pytest.mark.parametrize(
    ("activation", "thresholds"),
    [("softmax", [None, None]), ("softmax", [0.4, None]), ("sigmoid", [None, 0.3]), ("none", [0.2, 0.7])],
)
def test_label_maps_and_clean_up_as_on_the_long_way(activation: str, thresholds: list[float | None]) -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(4)
    channels = 3 if activation == "softmax" else 2
    values = np.stack([gaussian_filter(rng.normal(size=(24, 20, 16)), 1.2) for _ in range(channels)])
    logits = (
        (values * 8).astype(np.float32) if activation != "none" else np.clip(values * 3 + 0.3, 0, 1).astype(np.float32)
    )
    rules: dict[str, Any] = {
        "a": {"keep": "core", "radius_mm": 2.5, "reach_mm": 6.0, "fill_holes": "3d"},
        "b": {"keep": "largest", "fill_holes": "axial", "min_ml": 0.02},
    }
    affine, codes = oblique_affine(), {"a": 2, "b": 7}
    item: Any = {"pred": MetaTensor(torch.from_numpy(logits), affine=torch.tensor(affine))}
    item = ToLabelMapd("pred", [2, 7], activation, thresholds, "certainty")(item)
    given = {"codes": [2, 7], "activation": activation, "thresholds": thresholds, "certainty": True}
    votes = STEPS_AFTER["label_map"](Labelled(logits, affine), **given).certainty
    assert votes is not None and np.abs(votes.astype(int) - item["certainty"][0].numpy()).max() <= 1
    steps = [{"step": "label_map", "codes": [2, 7], "activation": activation, "thresholds": thresholds}]
    found = finished(Labelled(logits, affine), steps, affine, logits.shape[1:])
    np.testing.assert_array_equal(found, item["pred"][0].numpy())
    assert set(np.unique(found)) == {0, 2, 7}
    item = CleanUpd("pred", codes, rules)(item)
    steps.append({"step": "clean_up", "codes": codes, "rules": rules})
    cleaned = finished(Labelled(logits, affine), steps, affine, logits.shape[1:])
    np.testing.assert_array_equal(cleaned, item["pred"][0].numpy())
    assert (cleaned != found).any()


@pytest.fixture(scope="module")
def bundles(exported_bundles: tuple[dict[str, BundleInfo], Path]) -> dict[str, BundleInfo]:
    return exported_bundles[0]


@pytest.fixture(scope="module")
def models(exported_bundles: tuple[dict[str, BundleInfo], Path]) -> Models:
    return Models(exported_bundles[1], threads=1)


def studies() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Asymmetric CTs: straight, oblique with axes turned and exchanged, thin slices, and a tilted gantry."""
    ct = f_phantom((44, 50, 14))
    ct[20:30, 6:14, 3:8] = 120
    thin = np.repeat(ct[:40, :44, 2:11], 3, axis=2)
    tilted = np.diag([1.2, 1.2, 3.0, 1.0])
    tilted[1, 2] = 0.6
    tilted[:3, 3] = (-20.0, 31.0, -95.0)
    flipped = np.ascontiguousarray(ct.transpose(1, 2, 0)[::-1, ::-1])
    moved = oblique_affine((1.4, 1.3, 2.8))[:, [1, 2, 0, 3]] @ np.diag([-1.0, -1.0, 1.0, 1.0])
    moved[:3, 3] = (33.0, -12.5, 101.0)
    return {
        "straight": (ct, straight_affine((1.1, 1.3, 3.2))),
        "pil": (flipped, moved),
        "thin": (thin, oblique_affine((1.6, 1.5, 0.9))),
        "tilted": (ct, tilted),
    }


@pytest.mark.parametrize("study", studies())
@pytest.mark.parametrize("name", ["pair", "cube", "guided", "shell"])
def test_masks_are_those_of_the_long_way(
    study: str,
    name: str,
    bundles: dict[str, BundleInfo],
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most one voxel in a thousand differs: where two outputs are equal but for rounding."""
    monkeypatch.setattr(inferers, "cpu_has_bfloat16", lambda: False)
    array, affine = studies()[study]
    source: Path | Volume = write_nifti(tmp_path / "ct.nii.gz", array, affine)
    if study == "tilted":  # as from DICOM: a NIfTI with shear is refused
        source = Volume(array, affine, affine, tmp_path / "ct", "dicom")
    wanted = Predictor(bundles[name], "cpu").predict(source)
    found = models.get(bundles[name].name).predict(source)
    assert found.label_map.shape == array.shape and found.labels == wanted.labels and found.slices == wanted.slices
    assert (found.label_map != wanted.label_map).mean() <= 1e-3
    if name in ("pair", "shell"):
        assert found.label_map.any()


def test_presence_is_that_of_the_long_way(
    bundles: dict[str, BundleInfo], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inferers, "cpu_has_bfloat16", lambda: False)
    path = write_nifti(tmp_path / "ct.nii.gz", *studies()["pil"])
    wanted = PresencePredictor(bundles["says"], "cpu").predict(path)
    _, probability, positions, axis = models.get("says_ct_classification").presence(path)
    assert axis == wanted.axis == 1
    np.testing.assert_allclose(positions, wanted.positions, atol=1e-6)
    np.testing.assert_allclose(probability, wanted.probability, atol=1e-4)
    assert np.ptp(probability) > 0.005


def test_a_folder_tells_what_is_wrong(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(models.folder, folder)
    core = folder / "core_ct_segmentation.onnx"
    shutil.copy(core, folder / "mine.onnx")
    own = {
        "schema": "ctseg-export/1",
        "labels": [{"name": "mine", "code": 9}],
        "preprocessing": [
            {"step": "orientation", "axcodes": "LPS"},
            {"step": "intensity", "lowest": 0, "highest": 240},
        ],
        "inferer": {"way": "slices"},
        "postprocessing": [{"step": "label_map", "codes": [9]}],
    }
    (folder / "mine.onnx.json").write_text(json.dumps(own))
    shutil.copy(core, folder / "bare.onnx")
    (folder / "says_ct_classification.onnx.json").write_text("{")
    with (folder / "pair_ct_segmentation.onnx").open("ab") as file:
        file.write(b"x")
    said = {entry["name"]: entry for entry in Models(folder).listed()}
    assert said["mine"]["usable"] and said["mine"]["labels"] == {"mine": 9}
    assert said["mine"]["sha256"] == said["core_ct_segmentation"]["sha256"]
    assert "has no description: write bare.onnx.json" in said["bare"]["problem"]
    assert "no readable JSON" in said["says_ct_classification"]["problem"]
    assert "is not the file that" in said["pair_ct_segmentation"]["problem"]
    again = Models(folder)
    ct = write_nifti(tmp_path / "ct.nii.gz", *studies()["straight"])
    np.testing.assert_array_equal(
        again.get("mine").predict(ct).label_map > 0, again.get("mine").predict(ct).label_map == 9
    )
    with pytest.raises(BundleError, match="has no description"):
        again.get("bare")
    with pytest.raises(BundleError, match="there is no exported model 'nothing': the folder has bare,"):
        again.get("nothing")
    core.unlink()
    with pytest.raises(BundleError, match="there is no exported model 'core_ct_segmentation'"):
        again.get("guided_ct_segmentation").predict(ct)
    own["needs_torch"] = "a step has no counterpart"
    (folder / "mine.onnx.json").write_text(json.dumps(own))
    with pytest.raises(BundleError, match="cannot run without PyTorch: a step has no counterpart"):
        again.get("mine")
    own.update(needs_torch=None, preprocessing=[{"step": "sharpen"}])
    (folder / "mine.onnx.json").write_text(json.dumps(own))
    shutil.copy(folder / "bare.onnx", core)
    with pytest.raises(ConfigError, match="there is no step 'sharpen' of preprocessing"):
        again.get("mine").predict(ct)


def test_the_tilted_study_is_one() -> None:
    """The phantom of a tilted gantry is one: what is compared above is not a straight grid by mistake."""
    assert [name for name, (_, affine) in studies().items() if is_tilted(affine)] == ["tilted"]
