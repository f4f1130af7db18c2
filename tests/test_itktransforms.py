"""ITK transform files: what they say, what is refused, and that turning and mapping back agree with SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_phantoms import oblique_affine, reoriented
from helpers_turned import (
    LEFT,
    LPS,
    RIGHT,
    SHAPE,
    SPACING,
    centred,
    euler,
    labels_at,
    places,
    ras_matrix,
    scanner_image,
    sitk_image,
)

from ctseg.errors import ConfigError, InputError
from ctseg.turning.itktransforms import PointTransform, read_transform
from ctseg.turning.resampling import check_modes, map_back, turn_labels, turn_volume
from ctseg.volume import Volume

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is the independent reader")

POINTS = [(0.0, 0.0, 0.0), (12.0, -34.0, 56.0), (-7.0, 3.0, 1.0)]


def volume(array: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(array, affine, affine, Path("head.nii.gz"), "nifti")


def same_points(read: PointTransform, written) -> None:  # type: ignore[no-untyped-def]
    for point in POINTS:
        assert read.matrix @ [*point, 1] == pytest.approx([*written.TransformPoint(point), 1], abs=1e-9)


def kinds() -> dict[str, object]:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((1.1, 0.1, 0, -0.05, 0.9, 0.02, 0, 0.2, 1.05))
    affine.SetCenter((5.0, 6.0, 7.0))
    affine.SetTranslation((1.0, -2.0, 3.0))
    return {
        "euler": euler(),
        "affine": affine,
        "similarity": sitk.Similarity3DTransform(1.1, (0.0, 0.0, 1.0), 0.2, (1.0, 2.0, 3.0), (3.0, 4.0, 5.0)),
        "translation": sitk.TranslationTransform(3, (1.0, 2.0, 3.0)),
        "identity": sitk.Transform(3, sitk.sitkIdentity),
    }


@pytest.mark.parametrize("ending", ["txt", "tfm", "mat", "h5"])
@pytest.mark.parametrize("kind", list(kinds()))
def test_every_kind_and_format_sends_points_where_simpleitk_does(tmp_path: Path, kind: str, ending: str) -> None:
    written = kinds()[kind]
    sitk.WriteTransform(written, str(tmp_path / f"t.{ending}"))
    read = read_transform(tmp_path / f"t.{ending}")
    same_points(read, written)
    assert read.rigid == (kind not in ("affine", "similarity"))


@pytest.mark.parametrize("ending", ["txt", "mat", "h5"])
def test_the_kind_that_itk_snap_writes(tmp_path: Path, ending: str) -> None:
    """ITK's Python package cannot read it: the three formats hold the name as text of the same length."""
    written = kinds()["affine"]
    path = tmp_path / f"7.{ending}"
    sitk.WriteTransform(written, str(path))
    old, new = b"AffineTransform_double_3_3", b"MatrixOffsetTransformBase_double_3_3"
    if ending == "txt":
        path.write_bytes(path.read_bytes().replace(old, new))
    elif ending == "mat":  # the length of the name, with its zero, stands in the matrix's header
        content = path.read_bytes()
        at = content.index(old)
        length = (len(new) + 1).to_bytes(4, "little")
        path.write_bytes(content[: at - 4] + length + new + content[at + len(old) :])
    else:  # SimpleITK reads that kind from text, and writes it within a composite of one
        text = tmp_path / "text.txt"
        sitk.WriteTransform(written, str(text))
        text.write_bytes(text.read_bytes().replace(old, new))
        sitk.WriteTransform(sitk.ReadTransform(str(text)), str(path))
    assert new in path.read_bytes()
    read = read_transform(path)
    assert read.kind == new.decode()
    assert read.centre == (5.0, 6.0, 7.0)
    same_points(read, written)


def test_euler_angles_are_itks(tmp_path: Path) -> None:
    sitk.WriteTransform(euler((9.0, -6.0, 14.0)), str(tmp_path / "t.txt"))
    read = read_transform(tmp_path / "t.txt")
    assert read.euler_degrees == pytest.approx((9.0, -6.0, 14.0), abs=1e-9)
    about_z = PointTransform(np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert about_z.euler_degrees == pytest.approx((0, 0, 90)) and about_z.turn_degrees == pytest.approx(90)


def test_real_files_send_points_where_simpleitk_does(shared_data: Path) -> None:
    folder = shared_data / "itk_transforms"
    if not folder.is_dir():
        pytest.skip("../shared/data/itk_transforms is not here")
    single = [path for path in sorted(folder.glob("*.tfm")) if path.read_text().count("Transform: ") == 1]
    assert len(single) == 8
    for path in single:
        same_points(read_transform(path), sitk.ReadTransform(str(path)))
    for name, number in (("hmc-itk.tfm", 8), ("itktflist.tfm", 9)):
        with pytest.raises(InputError, match=f"holds {number} transforms, but one is needed"):
            read_transform(folder / name)


HEADER = "#Insight Transform File V1.0\n#Transform 0\n"
ROTATION = "1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("hello\n", "its first line does not say"),
        (HEADER, "names no transform"),
        (HEADER + "Transform: AffineTransform_double_3_3\nParameters: 1 2\n", "lacks its line 'FixedParameters"),
        (
            HEADER + f"Transform: AffineTransform_double_3_3\nParameters: {ROTATION} 0 nan 0\nFixedParameters: 0 0 0\n",
            "has 'nan' among its Parameters",
        ),
        (
            HEADER + "Transform: AffineTransform_double_3_3\nParameters: 1 2\nFixedParameters: 0 0 0\n",
            "cannot be read as an ITK transform",
        ),
        (
            HEADER + f"Transform: MatrixOffsetTransformBase_double_3_3\nParameters: {ROTATION} 0 0 0\n"
            "FixedParameters: 0 0\n",
            "without its 12 parameters and 3 fixed parameters",
        ),
        (
            HEADER + "Transform: MatrixOffsetTransformBase_double_3_3\nParameters: 1 0 0 0 1 0 1 1 0 0 0 0\n"
            "FixedParameters: 0 0 0\n",
            "singular matrix",
        ),
        (
            HEADER + "Transform: AffineTransform_double_3_3\nParameters: -1 0 0 0 1 0 0 0 1 0 0 0\n"
            "FixedParameters: 0 0 0\n",
            "mirrors",
        ),
        (
            HEADER + "Transform: AffineTransform_double_3_3\nParameters: 100 0 0 0 1 0 0 0 1 0 0 0\n"
            "FixedParameters: 0 0 0\n",
            "scales lengths by 1 to 100",
        ),
        (
            HEADER + "Transform: NoSuchTransform_double_3_3\nParameters: 1\nFixedParameters: 0\n",
            "holds a NoSuchTransform_double_3_3, but a rigid or affine",
        ),
        (
            HEADER + "Transform: MatrixOffsetTransformBase_double_2_2\nParameters: 1 0 0 1 0 0\nFixedParameters: 0 0\n",
            "2_2",
        ),
    ],
)
def test_a_bad_text_file_is_one_clear_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_transform(tmp_path / "t.txt")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(tmp_path / "b.h5"))
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.mat"))
    both = sitk.CompositeTransform([euler(), sitk.TranslationTransform(3, (1.0, 2.0, 3.0))])
    sitk.WriteTransform(both, str(tmp_path / "two.h5"))
    sitk.WriteTransform(sitk.CompositeTransform([euler()]), str(tmp_path / "one.h5"))
    (tmp_path / "broken.mat").write_bytes(b"\0" * 50)
    for name, words in (
        ("b.h5", "BSplineTransform"),
        ("flat.mat", "Euler2DTransform"),
        ("two.h5", "holds 2 transforms"),
        ("broken.mat", "cannot be read"),
        ("none.txt", "there is no transform file"),
    ):
        with pytest.raises(InputError, match=words):
            read_transform(tmp_path / name)
    same_points(read_transform(tmp_path / "one.h5"), euler())
    with pytest.raises(ConfigError, match="expected one of nearest, gaussian, linear"):
        check_modes(label="cubic")


def grids() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The scanner's grid oblique, anisotropic, and stored in other orders and directions."""
    found = {}
    for code in ("RAS", "LPS", "PSR"):
        affine = centred(oblique_affine(SPACING))
        array = scanner_image(euler(), affine)
        if code != "RAS":
            array, affine = reoriented(array, affine, code)
        found[code] = (array, affine)
    return found


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR"])
def test_turning_agrees_with_simpleitk(code: str) -> None:
    array, affine = grids()[code]
    transform = PointTransform(LPS @ ras_matrix(euler()) @ LPS)
    target = centred(oblique_affine(SPACING, degrees=(0, 0, 0)))
    for mode, theirs in (("bspline", sitk.sitkBSpline), ("linear", sitk.sitkLinear)):
        ours = turn_volume(volume(array.astype(np.float32), affine), transform, target, SHAPE, mode, -1024)
        expected = sitk.GetArrayFromImage(
            sitk.Resample(
                sitk_image(array.astype(np.float32), affine),
                sitk_image(np.zeros(SHAPE, np.float32), target),
                euler(),
                theirs,
                -1024.0,
            )
        ).T
        expected = np.clip(expected, -1024, array.max())
        differs = np.abs(ours.array - expected) > 0.1
        assert differs.mean() < 1e-4, mode  # a voxel on the very border may be in for one and out for the other
        assert (ours.array == -1024).any()  # what the scanner did not see is air
    # the labels are where the turned head has its blocks, though the scanner saw them turned
    brain = turn_volume(volume(array, affine), transform, target, SHAPE)
    truth = labels_at(places(target))
    from scipy import ndimage

    for value, hu in ((LEFT, 45), (RIGHT, 60)):
        core = ndimage.binary_erosion(truth == value, iterations=2)
        assert np.abs(brain.array[core].astype(int) - hu).max() <= 2
        wrong = turn_volume(volume(array, affine), transform.inverse(), target, SHAPE).array[core]
        assert np.abs(wrong.astype(int) - hu).max() > 10  # the other direction does not fit
    assert brain.array.dtype == np.int16


@pytest.mark.parametrize("mode", ["nearest", "gaussian", "linear"])
@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR"])
def test_a_mask_of_the_turned_space_lands_on_the_scanners_image(code: str, mode: str) -> None:
    array, affine = grids()[code]
    transform = PointTransform(LPS @ ras_matrix(euler()) @ LPS)
    target = centred(oblique_affine(SPACING, degrees=(0, 0, 0)))
    back = map_back(labels_at(places(target)), target, transform, volume(array, affine), mode)
    assert back.shape == array.shape and back.dtype == np.uint8
    for value, hu in ((LEFT, 45), (RIGHT, 60)):
        found, truth = back == value, array == hu
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert dice > (0.8 if mode == "gaussian" else 0.88), (value, dice)  # which rounds the corners of small blocks
    if mode == "nearest":
        expected = sitk.GetArrayFromImage(
            sitk.Resample(
                sitk_image(labels_at(places(target)), target),
                sitk_image(np.zeros(array.shape, np.uint8), affine),
                euler().GetInverse(),
                sitk.sitkNearestNeighbor,
                0,
            )
        ).T
        assert (back != expected).mean() < 1e-4


def test_gaussian_labels_are_itks() -> None:
    affine = centred(oblique_affine((1.0, 1.0, 1.0), degrees=(0, 0, 0)))
    labels = labels_at(places(affine))
    transform = PointTransform(LPS @ ras_matrix(euler()) @ LPS)
    ours = turn_labels(labels, affine, transform, affine, SHAPE, "gaussian")
    image = sitk_image(labels, affine)
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, euler(), sitk.sitkLabelGaussian, 0)).T
    assert (ours != expected).mean() < 5e-3 and set(np.unique(ours)) == {0, LEFT, RIGHT}
