"""A flat bundle in use: one image, a folder, frames; the bundle's own run; evaluation; pictures beside checkpoints."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_flat import write_dicom, write_picture
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from ctseg.cli import main
from ctseg.flat.outputs import measure_flat
from ctseg.flat.sheets import PREDICTIONS, SAMPLES
from ctseg.registry import get_bundle

INSIDE = np.zeros((45, 70), bool)
INSIDE[5:25, 40:65] = True


def _own(root: Path, name: str, folder: Path) -> Path:
    """A copy of a shipped bundle with the weights that its network starts with, on small pictures."""
    shutil.copytree(root / "bundles" / name, folder)
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["patch"] = [64, 64]
    config.write_text(json.dumps(content))
    torch.manual_seed(1)
    parser = ConfigParser()
    parser.read_config(config)
    (folder / "models").mkdir(exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    return folder


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.fixture(scope="module")
def skin(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _own(root, "skin_lesion_segmentation", tmp_path_factory.mktemp("bundles") / "skin")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_picture(folder / "a.jpg", INSIDE)
    write_picture(folder / "b.png", INSIDE.T, 1)
    pixels = pixels_of(folder / "b.png")
    write_dicom(folder / "c.dcm", np.stack([pixels, pixels[::-1]]), Modality="US", PixelSpacing=[0.5, 0.25])
    (folder / "broken.png").write_text("no picture")
    return folder


def test_one_image_gives_a_mask_of_its_size_a_preview_and_a_report(skin: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["segment", str(pictures / "a.jpg"), "-o", str(out), "--task", str(skin), "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["mask.png", "preview.png", "report.json"]
    with Image.open(out / "mask.png") as mask:
        assert (mask.size, mask.mode) == ((70, 45), "L")
        pixels = int((np.asarray(mask) == 255).sum())
    report = json.loads((out / "report.json").read_text())
    (lesion,) = report["structures"]
    assert (lesion["name"], lesion["pixels"], lesion["area_mm2"]) == ("lesion", pixels, None)
    assert report["source"] == {"file": "a.jpg", "rows": 45, "columns": 70, "kind": "rgb", "spacing_mm": None}
    assert set(report["outputs"]) == {"mask.png", "preview.png"}
    # The bundle's own run gives the same mask.
    config = str(skin / "configs" / "inference.json")
    flow = ConfigWorkflow(
        config_file=config, workflow_type="infer", logging_file=False, image=str(pictures / "a.jpg"),
        output_dir=str(tmp_path / "run"), device="cpu",
    )  # fmt: skip
    flow.run()
    assert (tmp_path / "run" / "a" / "mask.png").read_bytes() == (out / "mask.png").read_bytes()


def test_a_folder_goes_image_by_image_and_frame_by_frame(
    skin: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(pictures), "-o", str(tmp_path / "out"), "--task", str(skin), "--output", "mask"]) == 0
    masks = {path.parent.name: pixels_of(path).shape for path in (tmp_path / "out").glob("*/mask.png")}
    assert masks == {"a": (45, 70), "b": (70, 45), "c_frame0001": (70, 45), "c_frame0002": (70, 45)}
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").read_text().splitlines()))
    assert [(row["image"], row["frame"]) for row in rows] == [
        ("a.jpg", "0"),
        ("b.png", "0"),
        ("c.dcm", "0"),
        ("c.dcm", "1"),
    ]
    assert rows[0]["area_mm2"] == ""
    assert float(rows[2]["area_mm2"]) == pytest.approx(int(rows[2]["pixels"]) * 0.125)
    said = capsys.readouterr().out
    assert "4 of 5 images done, 1 refused" in said and "broken.png: " in said
    # Masks of a run are compared with references by name.
    reference = tmp_path / "reference"
    reference.mkdir()
    for name, inside in (("a", INSIDE), ("b", INSIDE.T)):
        Image.fromarray(inside.astype(np.uint8)).save(reference / f"{name}.png")  # 0 and 1
    arguments = ["evaluate", "--prediction", str(tmp_path / "out"), "--reference", str(reference)]
    assert main([*arguments, "--labels", "lesion=255", "-o", str(tmp_path / "ev")]) == 0
    result = json.loads((tmp_path / "ev" / "evaluation.json").read_text())
    found = pixels_of(tmp_path / "out" / "a" / "mask.png") > 0
    dice = 2 * (found & INSIDE).sum() / (found.sum() + INSIDE.sum())
    assert result["cases"][0]["labels"]["lesion"]["dice"] == pytest.approx(dice)
    assert any("in pixels" in note for note in result["notes"])


def test_what_a_flat_bundle_does_not_do_is_said(
    skin: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["-o", str(tmp_path / "out"), "--task", str(skin)]
    for arguments, said in (
        ([str(pictures / "broken.png"), *task], "is no image, whatever its name says"),
        ([str(tmp_path / "none.png"), *task], "there is no file or folder"),
        ([str(pictures / "a.jpg"), *task, "--output", "stl"], "writes no stl: expected one or more of mask,png,json"),
        ([str(pictures), *task, "--workers", "2"], "leave out --workers"),
        (
            [str(pictures / "a.jpg"), "-o", str(tmp_path), "--organs", "lesion"],
            "'lesion' is segmented on flat images only",
        ),
    ):
        assert main(["segment", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
    from ctseg.errors import BundleError
    from ctseg.organchoice import select

    with pytest.raises(BundleError, match="looks at flat images, not at volumes"):
        select(None, skin)


def test_a_flat_classifier_says_whether_it_is_there(
    root: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _own(root, "stroke_ct_classification", tmp_path / "stroke")
    assert get_bundle(folder).classifies and get_bundle(folder).flat
    assert main(["segment", str(pictures / "a.jpg"), "-o", str(tmp_path / "out"), "--task", str(folder)]) == 0
    (row,) = csv.DictReader((tmp_path / "out" / "images.csv").read_text().splitlines())
    assert (row["image"], row["structure"]) == ("a.jpg", "stroke")
    assert f"stroke: probability {row['probability']}" in capsys.readouterr().out


def test_areas_are_measured_by_hand() -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[2:5, 3:7], labels[8:, 15] = 1, 1
    (one, none) = measure_flat(labels, {"a": 1, "b": 2}, (0.5, 0.2))
    assert (one["pixels"], one["share"], one["area_mm2"], one["pieces"]) == (14, 0.07, 1.4, 2)
    assert one["rows_columns"] == [[2, 9], [3, 15]] and one["touches_edge"]
    assert (none["found"], none["rows_columns"], none["touches_edge"]) == (False, None, False)


def test_pictures_stand_beside_the_checkpoints_unless_switched_off(
    root: Path, tiny_flat_dataset: Path, tmp_path: Path
) -> None:
    content = json.loads((tiny_flat_dataset / "datalist.json").read_text())
    (tiny_flat_dataset / "named.json").write_text(json.dumps({**content, "mask_values": {"1": "lesion"}}))
    for number, folder in ((2, tmp_path / "with"), (0, tmp_path / "without")):
        flow = ConfigWorkflow(
            config_file=str(root / "bundles" / "skin_lesion_segmentation" / "configs" / "train.json"),
            workflow_type="train", logging_file=False, dataset_dir=str(tiny_flat_dataset), datalist="named.json",
            device="cpu", batch_size=2, num_workers=0, epochs=1, patch=[32, 32], ckpt_dir=str(folder),
            sample_pictures=number, prediction_pictures=number, cache_dir=None,
        )  # fmt: skip
        flow.initialize()
        flow.run()
        drawn = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
        expected = [f"{PREDICTIONS}/epoch_0001.png", SAMPLES] if number else []
        assert [name for name in drawn if name != "curves.png"] == expected
    with Image.open(tmp_path / "with" / SAMPLES) as sheet:
        assert sheet.size == (2 * 224 + 4, 2 * 224 + 4)  # two images, each above its outline
    # Drawing them did not change what was learnt.
    both = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("with", "without")]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])


def test_augmentation_is_switched_by_name(root: Path, tiny_flat_dataset: Path) -> None:
    """Flips, turns and colours are plain values of a training: an experiment or `--set` changes one line."""
    parser = ConfigParser()
    parser.read_config(str(root / "bundles" / "skin_lesion_segmentation" / "configs" / "train.json"))
    off = {"flip_vertical": 0.0, "flip_horizontal": 0.0, "rotate": 0.0, "colour": 0.0}
    item = {
        "image": str(tiny_flat_dataset / "p1_1.png"),
        "label": str(tiny_flat_dataset / "p1_1_mask.png"),
        "flat": True,
        "mask_values": {"1": "lesion", "4": "lesion"},
    }

    def seen(place: str, **changed: float) -> tuple[np.ndarray, np.ndarray]:
        parser.update({"patch": [32, 32], **off, **changed})
        made = parser.get_parsed_content(f"{place}#preprocessing")(dict(item))
        return np.asarray(made["image"]).squeeze(), np.asarray(made["label"]).squeeze()

    image, label = seen("validate")
    for found, expected in zip(seen("train"), (image, label), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for name, axis in (("flip_vertical", 0), ("flip_horizontal", 1)):
        flipped, turned = seen("train", **{name: 1.0})
        np.testing.assert_allclose(flipped, np.flip(image, axis + 1), atol=1e-6)
        np.testing.assert_array_equal(turned, np.flip(label, axis))
    coloured, kept = seen("train", colour=1.0)
    assert np.abs(coloured - image).max() > 0.01
    np.testing.assert_array_equal(kept, label)
    rotated, moved = seen("train", rotate=1.0)
    assert np.abs(rotated - image).max() > 0.01 and (moved != label).any()
