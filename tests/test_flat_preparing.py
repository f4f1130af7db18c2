"""Collections of flat images become data folders: pairs by name, PH2, ISIC, COCO, LabelMe, YOLO; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_flat import write_picture
from PIL import Image

from ctseg.cli import main
from ctseg.datalist import read_cases
from ctseg.flat.masks import read_mask
from ctseg.ledger import SPLITS, Ledger
from ctseg.prepare.plan import runs_of_numbers

INSIDE = np.zeros((24, 32), bool)
INSIDE[4:16, 6:26] = True
SKIN, STROKE = "skin_lesion_segmentation", "stroke_ct_segmentation"


def picture(path: Path, seed: int = 0, inside: np.ndarray = INSIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_picture(path, inside, seed)


def mask(path: Path, inside: np.ndarray = INSIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((inside * 255).astype(np.uint8)).save(path)
    return path


def prepared(source: Path, kind: str, *options: str, task: str = SKIN) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run `ctseg prepare`; return the cases by name and the report."""
    out = source.parent / "data"
    code = main(["prepare", str(source), "-o", str(out), "--task", task, "--kind", kind, "--samples", "2", *options])
    report = json.loads((out / "prepare-report.json").read_text())
    return (read_cases(out) if code == 0 else []), report


def refusals(report: dict[str, Any]) -> dict[str, str]:
    return {one["case_id"]: one["reason"] for one in report["refused"]}


def labels_of(case: dict[str, Any]) -> np.ndarray:
    values = {int(value): name for value, name in case["mask_values"].items()}
    return read_mask(case["label"], values, case.get("mask_colors"))[0] > 0


def test_a_suffix_pairs_and_a_pattern_names_the_study(tmp_path: Path) -> None:
    source = tmp_path / "slices"
    for number, name in enumerate(("0be1_1", "0be1_2", "a7_1", "a7_2", "c_9")):
        picture(source / f"{name}.png", number)
    for name in ("c_9", "a7_2", "0be1_2", "0be1_1"):  # a7_1 has none
        mask(source / f"{name}_MASK.png")
    mask(source / "d_1_mask.png")
    cases, report = prepared(source, "flat", task=STROKE)
    assert {case["case_id"]: case["patient"] for case in cases} == {
        "0be1_1": "0be1", "0be1_2": "0be1", "a7_2": "a7", "c_9": "c",
    }  # fmt: skip
    for case in cases:
        assert Path(case["label"]).name == f"{case['case_id']}_MASK.png"
        assert case["flat"] is True
    assert "a7_1.png has no mask" in refusals(report)["a7_1"]
    assert "d_1_mask.png has no image" in refusals(report)["d_1"]
    assert report["unit"] == "pixels"
    page = (tmp_path / "data" / "samples.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "31.2%" in page  # 12 x 20 of 24 x 32


def test_two_folders_pair_by_name_and_never_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "set"
    moved = np.roll(INSIDE, 5, axis=1)
    picture(source / "images" / "p1" / "b.jpg", 1)
    picture(source / "images" / "p2" / "a.jpg", 2, moved)
    mask(source / "masks" / "p2" / "a.png", moved)
    mask(source / "masks" / "p1" / "b.png")
    mask(source / "masks_old" / "p1" / "b.png")
    assert main(["prepare", str(source), "-o", str(tmp_path / "x"), "--task", SKIN, "--kind", "flat"]) != 0
    assert "several folders of images or masks" in capsys.readouterr().err
    cases, _ = prepared(source, "flat", "--masks", "masks", "--patient", r"^(p\d)_")
    assert [(case["case_id"], case["patient"]) for case in cases] == [("p1_b", "p1"), ("p2_a", "p2")]
    np.testing.assert_array_equal(labels_of(cases[1]), moved)


def test_sizes_and_empty_masks_are_refused_or_kept_as_asked(tmp_path: Path) -> None:
    source = tmp_path / "set"
    for number, name in enumerate("abc"):
        picture(source / f"{name}.png", number)
    mask(source / "a_mask.png")
    mask(source / "b_mask.png", INSIDE.repeat(2, 0).repeat(2, 1))
    mask(source / "c_mask.png", np.zeros_like(INSIDE))
    cases, report = prepared(source, "flat")
    assert [case["case_id"] for case in cases] == ["a", "c"]
    assert "its mask b_mask.png has 48 rows and 64 columns, the image 24 rows and 32 columns" in refusals(report)["b"]
    assert next(case for case in report["cases"] if case["case_id"] == "c")["notes"] == ["its label is empty"]
    cases, report = prepared(source, "flat", "--sizes", "resize", "--empty", "refuse", "--replace")
    assert [case["case_id"] for case in cases] == ["a", "b"]
    assert Path(cases[1]["label"]).parent.name == "labels"
    np.testing.assert_array_equal(labels_of(cases[1]), INSIDE)
    assert "its mask is empty" in refusals(report)["c"]


def test_a_colour_table_reads_colour_coded_masks(tmp_path: Path) -> None:
    source = tmp_path / "set"
    for number, name in enumerate("ab"):
        picture(source / f"{name}.png", number)
        pixels = np.zeros((*INSIDE.shape, 3), np.uint8)
        pixels[INSIDE], pixels[20:, :8] = (255, 0, 0), (0, 0, 255)
        Image.fromarray(pixels).save(source / f"{name}_mask.png")
    cases, report = prepared(source, "flat", "--color", "lesion=255,0,0", "--color", "ruler=0,0,255")
    assert cases[0]["mask_values"] == {"1": "lesion", "2": "ruler"}
    assert report["cases"][0]["voxels"] == {"lesion": 240, "ruler": 32}
    assert main(["prepare", str(source), "-o", "x", "--task", SKIN, "--kind", "flat", "--color", "lesion=red"]) != 0


def test_ph2_and_isic(tmp_path: Path) -> None:
    ph2 = tmp_path / "one" / "PH2Dataset"
    for name in ("IMD002", "IMD003"):
        folder = ph2 / "PH2 Dataset images" / name
        picture(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp", int(name[-1]))
        mask(folder / f"{name}_lesion" / f"{name}_lesion.bmp")
        mask(folder / f"{name}_roi" / f"{name}_R1_Label1.bmp", ~INSIDE)
    cases, report = prepared(ph2, "ph2")
    assert [case["case_id"] for case in cases] == ["IMD002", "IMD003"]
    assert refusals(report) == {}
    np.testing.assert_array_equal(labels_of(cases[0]), INSIDE)
    isic = tmp_path / "two" / "isic"
    picture(isic / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg")
    mask(isic / "ISIC-2017_Training_Data" / "ISIC_0000001_superpixels.png", ~INSIDE)
    mask(isic / "ISIC-2017_Training_Part1_GroundTruth" / "ISIC_0000001_segmentation.png")
    picture(isic / "ISIC-2017_Training_Data" / "ISIC_0000002.jpg", 2)
    cases, report = prepared(isic, "isic")
    assert [case["case_id"] for case in cases] == ["ISIC_0000001"]
    assert list(refusals(report)) == ["ISIC_0000002"]


def test_exports_of_annotation_services_are_drawn(tmp_path: Path) -> None:
    square = [6, 4, 26, 4, 26, 16, 6, 16]  # x, y by turns: INSIDE
    runs: list[int] = [0]
    for inside in INSIDE.T.ravel():
        runs = [*runs[:-1], runs[-1] + 1] if inside == (len(runs) % 2 == 0) else [*runs, 1]
    coco = tmp_path / "coco" / "export"
    for number, name in enumerate("abc"):
        picture(coco / "train" / f"{name}.jpg", number)
    drawn = [
        {"image_id": 1, "category_id": 7, "segmentation": [square]},
        {"image_id": 2, "category_id": 7, "segmentation": {"size": [24, 32], "counts": runs}},
        {"image_id": 3, "category_id": 7, "segmentation": [], "bbox": [0, 0, 3, 3]},
    ]
    images = [{"id": i + 1, "file_name": f"{n}.jpg", "height": 24, "width": 32} for i, n in enumerate("abc")]
    content = {"images": images, "annotations": drawn, "categories": [{"id": 7, "name": "Lesion"}]}
    (coco / "train" / "_annotations.coco.json").write_text(json.dumps(content))

    labelme = tmp_path / "labelme" / "export"
    picture(labelme / "a.png")
    points = [[6, 4], [26, 16]]
    shapes = [{"label": "lesion", "points": points, "shape_type": "rectangle"}]
    entry = {"shapes": shapes, "imagePath": "a.png", "imageHeight": 24, "imageWidth": 32}
    (labelme / "a.json").write_text(json.dumps(entry))
    picture(labelme / "lonely.png", 3)

    yolo = tmp_path / "yolo" / "export"
    for number, name in enumerate("ab"):
        picture(yolo / "images" / f"{name}.jpg", number)
    (yolo / "labels").mkdir()
    shares = " ".join(str(value / (32, 24)[index % 2]) for index, value in enumerate(square))
    (yolo / "labels" / "a.txt").write_text(f"0 {shares}\n")
    (yolo / "labels" / "b.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (yolo / "data.yaml").write_text("names: [lesion, hair]\n")

    for source, kind, taken, refused in (
        (coco, "coco", ["a", "b"], {"c": "perhaps only a box"}),
        (labelme, "labelme", ["a"], {"lonely": "has no LabelMe file"}),
        (yolo, "yolo", ["a"], {"b": "holds a box"}),
    ):
        cases, report = prepared(source, kind)
        assert [case["case_id"] for case in cases] == taken, kind
        for case in cases:
            np.testing.assert_array_equal(labels_of(case), INSIDE, err_msg=kind)
        found = refusals(report)
        assert set(found) == set(refused)
        for name, said in refused.items():
            assert said in found[name], kind


def square_of(*names: str, folder: Path) -> dict[str, Any]:
    """COCO's file for images of 24 x 32 with INSIDE outlined."""
    square = [6, 4, 26, 4, 26, 16, 6, 16]
    images = [{"id": i, "file_name": name, "height": 24, "width": 32} for i, name in enumerate(names)]
    drawn = [{"image_id": i, "category_id": 1, "segmentation": [square]} for i in range(len(names))]
    content = {"images": images, "annotations": drawn, "categories": [{"id": 1, "name": "lesion"}]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return content


def sides_of(source: Path) -> dict[str, str]:
    ledger = Ledger(source.parent / "data" / "split.csv")
    return {patient: side for side in SPLITS for patient in ledger.patients(side)}


def test_the_split_of_a_services_folders_is_kept_where_no_patient_stands_on_two_sides(tmp_path: Path) -> None:
    source = tmp_path / "one" / "export"
    parts = {"train": ("a_1", "a_2", "b_1"), "valid": ("b_2", "c_1"), "test": ("d_1",)}
    for side, names in parts.items():
        renamed = [f"{name}_png.rf.0{index}e1f2.jpg" for index, name in enumerate(names)]
        for index, name in enumerate(renamed):
            picture(source / side / name, 10 * ord(side[1]) + index)
        square_of(*renamed, folder=source / side)
    cases, report = prepared(source, "coco", "--patient", r"^(\w)_\d$")
    assert {case["case_id"]: case["patient"] for case in cases} == {
        name: name[0] for names in parts.values() for name in names
    }  # called as before the service
    assert sides_of(source) == {"a": "train", "b": "train", "c": "validation", "d": "test"}, "b is on both: trained on"
    assert "1 patients have images on several sides and are trained on: b" in report["notes"]
    np.testing.assert_array_equal(labels_of(cases[0]), INSIDE)

    again = tmp_path / "two" / "export"  # with another draw of the service: the ledger stays
    for side, name in (("train", "d_2"), ("test", "e_1")):
        picture(again / side / f"{name}.jpg", ord(name[0]))
        square_of(f"{name}.jpg", folder=again / side)
    (tmp_path / "two" / "data").mkdir()
    (tmp_path / "two" / "data" / "split.csv").write_text((tmp_path / "one" / "data" / "split.csv").read_text())
    prepared(again, "coco", "--patient", r"^(\w)_\d$")
    assert sides_of(again) | {"d": "test", "e": "test"} == sides_of(again)


def test_folders_of_a_split_in_every_layout_and_a_draw_instead(tmp_path: Path) -> None:
    flat, isic, yolo = (tmp_path / name / "set" for name in ("flat", "isic", "yolo"))
    for number, (side, part) in enumerate((("train", "Training"), ("test", "Test"))):
        picture(flat / side / f"p{number}_1.png", number)
        mask(flat / side / f"p{number}_1_mask.png")
        picture(isic / f"ISIC-2017_{part}_Data" / f"ISIC_000000{number}.jpg", number)
        mask(isic / f"ISIC-2017_{part}_Part1_GroundTruth" / f"ISIC_000000{number}_segmentation.png")
        picture(yolo / "images" / side / f"y{number}.jpg", number)
        (yolo / "labels" / side).mkdir(parents=True)
        (yolo / "labels" / side / f"y{number}.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    for source, kind, names in (
        (flat, "flat", ("p0_1", "p1_1")),
        (isic, "isic", ("ISIC_0000000", "ISIC_0000001")),
        (yolo, "yolo", ("y0", "y1")),
    ):
        cases, _ = prepared(source, kind)
        assert [case["case_id"] for case in cases] == list(names), kind
        assert sides_of(source) == {names[0]: "train", names[1]: "test"}, kind
    (flat.parent / "data" / "split.csv").unlink()
    prepared(flat, "flat", "--draw", "--replace")
    assert sorted(sides_of(flat).values()) == ["train", "validation"]  # drawn: two patients fill the first two sides


def test_a_labelled_export_is_read_back_onto_the_pictures_that_were_sent(tmp_path: Path) -> None:
    captures = tmp_path / "captures"
    for name in "abc":
        path = picture(captures / f"{name}.png", ord(name))
    assert main(["export-images", str(captures), "-o", str(tmp_path / "sent"), "--no-sector"]) in (0, None)
    listed = json.loads((tmp_path / "sent" / "export.json").read_text())
    listed["images"][0]["spacing"] = [0.3, 0.2]
    (tmp_path / "sent" / "export.json").write_text(json.dumps(listed))
    source = tmp_path / "export"
    copies = ["a_png.rf.111.jpg", "b_png.rf.222.jpg", "b_png.rf.333.jpg", "x_png.rf.444.jpg"]
    for number, name in enumerate(copies):  # the service made its copies half as large
        path = picture(source / "train" / name, number, INSIDE[::2, ::2])
    drawn = square_of(*copies, folder=source / "train")
    for one in drawn["images"]:
        one["height"], one["width"] = 12, 16
    for one in drawn["annotations"]:
        one["segmentation"] = [[value / 2 for value in one["segmentation"][0]]]
    (source / "train" / "_annotations.coco.json").write_text(json.dumps(drawn))
    sent = ["--pictures", str(tmp_path / "sent" / "images"), "--sizes", "resize"]
    cases, report = prepared(source, "coco", *sent)
    assert [(case["case_id"], Path(case["image"]).name) for case in cases] == [("a", "a.png")]
    assert cases[0]["spacing"] == [0.3, 0.2] and Path(cases[0]["image"]).parent == tmp_path / "sent" / "images"
    np.testing.assert_array_equal(labels_of(cases[0]), INSIDE)
    found = refusals(report)
    assert "the service made 2 changed copies of b" in found["b_222"] and "has 0 pictures called x" in found["x"]
    assert path.is_file()
    cases, _ = prepared(source, "coco", "--replace")  # without the pictures: its copies, all of one patient
    assert {case["case_id"]: case["patient"] for case in cases} == {"a": "a", "b_222": "b", "b_333": "b", "x": "x"}


def test_class_tables_that_come_with_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roboflow, cvat = tmp_path / "roboflow" / "set", tmp_path / "cvat" / "set"
    two = np.where(INSIDE, 2, 0).astype(np.uint8)
    two[20:, :8] = 1
    coloured = np.zeros((*INSIDE.shape, 3), np.uint8)
    coloured[two == 2], coloured[two == 1] = (250, 50, 83), (0, 0, 255)
    for number, name in enumerate("ab"):
        picture(roboflow / "train" / f"{name}.jpg", number)
        Image.fromarray(two).save(roboflow / "train" / f"{name}_mask.png")
        picture(cvat / "JPEGImages" / f"{name}.jpg", number)
        for folder in ("SegmentationClass", "SegmentationObject"):
            (cvat / folder).mkdir(exist_ok=True)
            Image.fromarray(coloured).save(cvat / folder / f"{name}.png")
    (roboflow / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, hair\n2, Lesion\n")
    (cvat / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nhair:0,0,255::\nlesion:250,50,83::\n"
    )
    for source in (roboflow, cvat):
        cases, report = prepared(source, "flat")
        assert [case["case_id"] for case in cases] == ["a", "b"]
        assert sorted(cases[0]["mask_values"].values()) == ["hair", "lesion"]
        assert report["cases"][0]["voxels"] == {"lesion": 240, "hair": 32}
    (roboflow / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, hair\n2, mole\n")
    assert main(["prepare", str(roboflow), "-o", str(tmp_path / "x"), "--task", SKIN, "--kind", "flat"]) != 0
    assert "nothing says which class is lesion" in capsys.readouterr().err


def test_runs_of_numbers_are_one_patient() -> None:
    names = ["10216", "10217", "10219", "a_9", "a_10", "b_11", "plain"]
    assert runs_of_numbers(names) == {
        "10216": "10216", "10217": "10216", "10219": "10219", "a_9": "a_9", "a_10": "a_9", "b_11": "b_11",
        "plain": "plain",
    }  # fmt: skip


def test_flat_images_are_not_for_bundles_of_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s" / "a.png")
    mask(tmp_path / "s" / "a_mask.png")
    task = ["--task", "liver_ct_segmentation", "--kind", "flat"]
    assert main(["prepare", str(tmp_path / "s"), "-o", str(tmp_path / "d"), *task]) != 0
    assert "looks at volumes, but pairs of flat images" in capsys.readouterr().err
