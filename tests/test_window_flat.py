"""Flat images in the window: pictures, measures, what can be looked for, and the files, without a page."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_flat import dark_bundle, write_dicom, write_picture
from helpers_phantoms import write_nifti
from PIL import Image

from ctseg.errors import GeometryError, InputError
from ctseg.flat.images import GREY, HU, RGB, FlatImage
from ctseg.registry import find_bundles
from ctseg.study import Predictors
from ctseg.window.case import Case
from ctseg.window.choices import check_fits, choices_for, coloured_share, organs_of
from ctseg.window.flatcase import Answer, FlatCase
from ctseg.window.overlays import letters_svg, line_svg
from ctseg.window.work import find, read_case

SIZE = (30, 40)
INSIDE = np.zeros(SIZE, bool)
INSIDE[4:10, 25:35] = True  # 6 rows by 10 columns, up and to the right
SKIN, LESION = (225, 190, 170), (120, 60, 50)


def photo(spacing: tuple[float, float] | None = None, found: bool = True) -> FlatCase:
    """A lesion on skin, found as it is."""
    pixels = np.where(INSIDE[..., None], LESION, SKIN).astype(np.float32).transpose(2, 0, 1)
    image = FlatImage(pixels, spacing, RGB, 255.0, Path("image.png"))
    mask = np.where(INSIDE, 7, 0).astype(np.uint8)[:, :, None]
    bundle = SimpleNamespace(colors={"lesion": (70, 200, 130)})
    prediction = SimpleNamespace(label_map=mask, labels={"lesion": 7, "hair": 9}, bundle=bundle)
    return FlatCase(image, prediction if found else None)  # type: ignore[arg-type]


def pixels_of(case: FlatCase, **options: Any) -> np.ndarray:
    return np.asarray(case.picture("Image", **options)).astype(int)


def test_a_photograph_is_shown_in_its_own_colours_with_the_lesion_on_its_place() -> None:
    case = photo()
    assert (case.planes, case.count("Image"), case.windows, case.turns) == (("Image",), 1, {}, False)
    plain, half = pixels_of(case, opacity=0), pixels_of(case, opacity=0.5)
    assert plain.shape == (*SIZE, 3) and tuple(plain[0, 0]) == SKIN and tuple(plain[5, 30]) == LESION
    assert ((plain != half).any(axis=2) == INSIDE).all()
    assert np.abs(half[5, 30] - (np.array(LESION) + case.colors["lesion"]) / 2).max() <= 1
    assert (pixels_of(case, opacity=1, shown=["hair"]) == plain).all()


def test_pixels_that_are_no_squares_are_drawn_true_to_their_millimetres() -> None:
    case = photo((0.5, 0.25))  # twice as high as wide
    assert case.picture_size("Image") == (40, 60)
    changed = np.argwhere((pixels_of(case, opacity=0) != pixels_of(case, opacity=1)).any(axis=2))
    assert changed.min(axis=0).tolist() == [8, 25] and changed.max(axis=0).tolist() == [19, 34]
    assert case.distance("Image", (0, 0), (12, 16)) == "5.0 mm"  # 20 squares of 0.25 mm
    assert "A pixel is 0.25 mm wide and 0.5 mm high." in case.about


def test_measures_in_millimetres_and_without() -> None:
    lesion, hair = photo((0.5, 0.25)).rows("Image", 0)
    # 60 pixels of 0.125 mm2; corner to corner 3 mm by 2.5 mm.
    assert (lesion["area"], lesion["area_cm2"], lesion["diameter"]) == ("7.5", "0.07", f"{np.hypot(3, 2.5):.1f}")
    assert (lesion["share"], lesion["note"]) == ("5.0", "")
    assert (hair["area"], hair["note"]) == ("-", "not found")
    case = photo()
    assert [column.label for column in case.columns][1:3] == ["Area, pixels", "Longest diameter, pixels"]
    assert case.rows("Image", 0)[0]["area"] == "60"
    assert case.rows("Image", 0)[0]["diameter"] == f"{np.hypot(6, 10):.1f}"
    assert case.distance("Image", (0, 0), (3, 4)) == "5.0 pixels"
    assert case.about.startswith("40 x 30 pixels, in colours. The file does not say how large a pixel is, so lengths")
    for shown in (case, photo((0.5, 0.25))):
        assert {column.name for column in shown.columns} <= set(shown.rows("Image", 0)[0])


def test_pieces_and_the_edge_are_remarked() -> None:
    case = photo()
    assert case.prediction is not None
    case.prediction.label_map[0, 0, 0] = 7
    assert case.rows("Image", 0)[0]["note"] == "2 pieces; reaches the edge of the image: a lower bound"


def test_before_anything_is_found() -> None:
    case = photo(found=False)
    assert case.rows("Image", 0) == [] and case.colors == {} and case.best_slice("Image") == 0
    assert (pixels_of(case) == pixels_of(photo(), opacity=0)).all()


def test_a_large_photograph_is_shown_smaller_and_measured_in_its_own_pixels() -> None:
    image = FlatImage(np.zeros((1, 100, 4096), np.float32), None, GREY, 255.0, Path("x.png"))
    case = FlatCase(image)
    assert case.picture_size("Image") == (1024, 25)
    assert case.distance("Image", (0, 0), (10, 0)) == "40.0 pixels"


def test_a_ct_slice_keeps_its_windows() -> None:
    image = FlatImage(np.array([[[0.0, 40.0], [80.0, -1000.0]]], np.float32), (1.0, 1.0), HU, None, Path("x.dcm"))
    case = FlatCase(image)
    assert next(iter(case.windows)) == "Brain" and "Bone" in case.windows
    assert pixels_of(case)[..., 0].tolist() == [[0, 127], [255, 0]]  # 0 to 80 HU
    assert pixels_of(case, window=case.windows["Soft tissue"])[1, 0, 1] == 153  # -160 to 240 HU


def test_a_classifier_answers_in_a_table() -> None:
    case = FlatCase(photo(found=False).image, answers=(Answer("a_b", 0.734, True),))
    assert case.rows("Image", 0) == [{"organ": "a b", "answer": "present", "probability": "73.4"}]
    assert [column.name for column in case.columns] == ["organ", "answer", "probability"]


def test_a_mask_of_another_size_is_refused() -> None:
    case = photo()
    wrong: Any = SimpleNamespace(label_map=np.zeros((40, 30, 1), np.uint8))
    with pytest.raises(GeometryError, match="expected the image's rows and columns"):
        FlatCase(case.image, wrong)


def test_nothing_is_written_at_edges_that_are_not_known() -> None:
    assert letters_svg(photo().letters("Image"), (40, 30)) == ""
    assert letters_svg(("R", "L", "", ""), (40, 30)).count("<text") == 2
    assert [line_svg(ends, (40, 30)).count("<line") for ends in ([], [(1, 2)], [(1, 2), (3, 4)])] == [0, 0, 2]


def test_what_is_dropped_is_read_as_what_it_is(tmp_path: Path) -> None:
    turned = Image.fromarray(np.where(INSIDE[..., None], LESION, SKIN).astype(np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned: a quarter to the right shows it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    case = read_case(tmp_path / "turned.png")
    assert isinstance(case, FlatCase) and case.image.size == (40, 30)
    assert tuple(pixels_of(case)[30, 30 - 1 - 5]) == LESION  # what was up and right is down and right
    assert "Its EXIF orientation was applied." in case.about
    ct = np.full((9, 8, 7), -1000, np.int16)
    ct[2:7] = 40
    assert isinstance(read_case(write_nifti(tmp_path / "ct.nii.gz", ct, np.eye(4))), Case)
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "film.mp4").write_text("")
    write_dicom(tmp_path / "film.dcm", np.zeros((3, 8, 9, 3), np.uint8), Modality="US")
    for name, said in (
        ("text.txt", "of no format that the window knows; give a CT .* or a flat image"),
        ("broken.jpg", "is no image, whatever its name says"),
        ("film.dcm", "is 3 pictures in one file, and the window takes one picture; save one as a PNG"),
        ("film.mp4", "is a film, and the window takes one picture"),
    ):
        with pytest.raises(InputError, match=said):
            read_case(tmp_path / name)


@pytest.fixture(scope="module")
def own(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles: a segmenter of photographs and one of CT slices, a classifier, and one without weights."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("skin_lesion_segmentation", "stroke_ct_segmentation", "stroke_ct_classification"):
        dark_bundle(root / "bundles", name, folder / name, SIZE)
    (folder / "prostate_tumor_us_segmentation").symlink_to(root / "bundles" / "prostate_tumor_us_segmentation")
    return folder


def test_what_can_be_looked_for(own: Path, tmp_path: Path) -> None:
    case = photo(found=False)
    shipped = choices_for(case)
    assert shipped.options == () and not shipped.several
    for said in (
        "skin lesion and stroke",
        "no weights come with it",
        "bundles/NAME/models/model.pt",
        "ctseg app --bundles FOLDER",
    ):
        assert said in shipped.word
    choices = choices_for(case, own)
    assert {(one.text, one.proposed) for one in choices.options} == {
        ("Skin lesion (photograph)", True),
        ("Stroke (CT slice)", False),
        ("Stroke: present or not (CT slice)", False),
    }
    assert choices.word == "Malignant tumor of prostate cannot be looked for yet: no weights come with it."
    hu = FlatCase(FlatImage(np.zeros((1, *SIZE), np.float32), None, HU, None, Path("x.dcm")))
    assert [one.text.startswith("Stroke") for one in choices_for(hu, own).options if one.proposed] == [True]
    volume: Any = object.__new__(Case)
    assert {one.name for one in choices_for(volume).options} >= {"liver", "bone"}
    many = next(one for one in choices_for(volume).options if "structures)" in one.text)
    assert not many.proposed and f"{many.text}: " in choices_for(volume).word  # with its caution
    expected = list(find_bundles()[many.name].labels)
    assert organs_of(["liver", many.name, "unknown"]) == ["liver", *expected, "unknown"]
    none = choices_for(volume, own)
    assert none.options == () and "No bundle in" in none.word
    assert "is found on flat images: skin lesion and stroke." in none.word
    assert "looks at flat images" in choices_for(case, tmp_path).word


def test_an_image_of_another_kind_is_refused(own: Path) -> None:
    def fits(image: FlatImage, name: str) -> None:
        check_fits(image, Predictors("cpu", own).bundle(name))

    colours = photo().image
    grey = FlatImage(np.repeat(np.full((1, *SIZE), 99, np.float32), 3, axis=0), None, RGB, 255.0, Path("x.jpg"))
    hu = FlatImage(np.zeros((1, *SIZE), np.float32), None, HU, None, Path("x.dcm"))
    assert (coloured_share(colours), coloured_share(grey), coloured_share(hu)) == (1.0, 0.0, 0.0)
    for image, name in ((colours, "skin_lesion"), (grey, "skin_lesion"), (grey, "stroke_ct"), (hu, "stroke_ct")):
        fits(image, f"{name}_segmentation")
    with pytest.raises(InputError, match="are coloured, and stroke is looked for on a CT slice"):
        fits(colours, "stroke_ct_segmentation")
    with pytest.raises(InputError, match="in Hounsfield units, and skin lesion is looked for on a photograph"):
        fits(hu, "skin_lesion_segmentation")


def test_a_ct_slice_goes_where_a_bundle_looks_at_it(own: Path, tmp_path: Path) -> None:
    from helpers_viewer import ct_series

    head = np.full((12, 10, 1), -1000, np.int16)
    head[3:9, 2:7] = 40
    (one,) = ct_series(head, np.diag([-1.0, -1.0, 2.0, 1.0]), "x")
    one.save_as(tmp_path / "slice.dcm", write_like_original=False)
    assert isinstance(read_case(tmp_path / "slice.dcm", own), FlatCase)
    assert isinstance(read_case(tmp_path / "slice.dcm"), Case)  # no shipped bundle for single slices can run


def test_from_a_photograph_to_the_files(own: Path, tmp_path: Path) -> None:
    predictors = Predictors("cpu", own)
    case = read_case(write_picture(tmp_path / "image.png", INSIDE), own)
    stages: list[str] = []
    results = find(case, ["skin_lesion_segmentation"], predictors, tmp_path / "out", stages.append)
    assert stages == ["read", "preprocess", "network", "postprocess", "write"]
    assert list(results.files) == ["mask.png", "preview.png", "report.json", "everything.zip"]
    with Image.open(results.files["mask.png"]) as mask:
        assert (np.asarray(mask) == 255 * INSIDE).all()
    assert results.case.rows("Image", 0)[0]["area"] == "60"
    assert results.report["structures"][0]["pixels"] == 60
    with zipfile.ZipFile(results.files["everything.zip"]) as bundle:
        assert bundle.namelist() == ["mask.png", "preview.png", "report.json"]
    with pytest.raises(InputError, match="coloured"):
        find(case, ["stroke_ct_segmentation"], predictors, tmp_path / "none")


def test_from_a_slice_to_an_answer(own: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full(SIZE, 51, np.uint8)).save(tmp_path / "image.png")  # 0.2: 10 * (0.6 - 0.2) is the logit
    case, predictors = read_case(tmp_path / "image.png", own), Predictors("cpu", own)
    results = find(case, ["stroke_ct_classification"], predictors, tmp_path / "out")
    assert isinstance(results.case, FlatCase)
    (answer,) = results.case.answers
    assert answer.present and answer.probability == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-3)
    assert list(results.files) == ["report.json", "everything.zip"]
    assert json.loads(results.files["report.json"].read_text())["presence"]["organs"][0]["found"]
