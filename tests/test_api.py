"""The Python interface: every form of image and slice in, the mask on exactly its grid out, refusals as sentences.

The mask of the bundle `moved` lies one pixel further to the patient's left than what it marks: it comes out right only
when left and right, front and back are taken as the image states them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import (
    expected_core,
    expected_mask,
    lps_affine,
    phantom_hu,
    write_guided_bundle,
    write_moved_bundle,
    write_organ_bundles,
    write_phantom,
)
from helpers_phantoms import oblique_affine, reoriented
from numpy.typing import NDArray

import ctseg
from ctseg.api import Predictors, segment_slice, segment_volume
from ctseg.errors import BundleError, ConfigError, CtsegError, GeometryError, InputError

MOVED = "moved_ct_segmentation"
CODES = ["RAS", "LPS", "PSR", "SAL", "ILP", "RPI"]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Predictors:
    root = write_organ_bundles(tmp_path_factory.mktemp("organs"))
    write_moved_bundle(root)
    write_guided_bundle(root)
    return Predictors("cpu", root)


def moved_mask() -> NDArray[np.uint8]:
    """What the bundle `moved` marks, in the phantom's own LPS order: one step up the axis that grows to the left."""
    mask = np.zeros(phantom_hu().shape, np.uint8)
    mask[1:] = expected_core(phantom_hu())[:-1] * np.uint8(9)
    return mask


@pytest.mark.parametrize("code", CODES)
def test_an_array_of_any_order_with_its_affine(code: str, warm: Predictors) -> None:
    array, affine = reoriented(phantom_hu(), lps_affine(), code)
    expected, _ = reoriented(moved_mask(), lps_affine(), code)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for place in (
        {"affine": affine},
        {"affine": affine.tolist(), "spacing": spacing},
        {"affine": lps, "space": "LPS"},
        {"spacing": spacing, "orientation": code},
    ):
        found = segment_volume(array, task=MOVED, predictors=warm, **place)
        assert found.mask.dtype == np.uint8 and found.labels == {"moved": 9}
        np.testing.assert_array_equal(found.mask, expected)


def test_the_callers_array_is_not_changed_and_channels_and_torch_are_kept(warm: Predictors) -> None:
    torch = pytest.importorskip("torch")
    array = phantom_hu().astype(np.float64)
    array[0, 0, 0] = np.nan
    before = array.copy()
    expected = moved_mask()
    found = segment_volume(array[None], affine=lps_affine(), task=MOVED, predictors=warm, output="torch")
    assert isinstance(found.mask, torch.Tensor) and found.mask.dtype == torch.uint8
    assert tuple(found.mask.shape) == (1, *array.shape)
    np.testing.assert_array_equal(found.mask[0].numpy(), expected)
    np.testing.assert_array_equal(array, before)
    assert found.prediction.volume.notes == ("1 voxels were NaN or infinite and were replaced by -1024",)
    tensor = torch.from_numpy(phantom_hu()).requires_grad_(False)
    again = segment_volume(tensor, affine=torch.from_numpy(lps_affine()), task=MOVED, predictors=warm)
    np.testing.assert_array_equal(again.mask, expected)
    assert torch.equal(tensor, torch.from_numpy(phantom_hu()))


@pytest.mark.parametrize("code", CODES)
def test_simpleitk_image_as_simpleitk_turns_it(code: str, warm: Predictors) -> None:
    sitk = pytest.importorskip("SimpleITK")

    def as_itk(array: NDArray[Any]) -> Any:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing((1.5, 1.5, 3.0))
        image.SetOrigin((-21.5, -30.25, -140.0))
        opposite = str.maketrans("RLAPSI", "LRPAIS")
        # DICOMOrient names where an axis comes from until 2.4 and where it goes to later: ask what LPS is called here.
        lps = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        return sitk.DICOMOrient(image, code if lps == "LPS" else code.translate(opposite))

    image, expected = as_itk(phantom_hu()), as_itk(moved_mask())
    found = segment_volume(image, task=MOVED, predictors=warm)
    np.testing.assert_array_equal(found.mask, sitk.GetArrayFromImage(expected))
    volume = found.prediction.volume
    assert volume.shape == image.GetSize()
    for index in ((0, 0, 0), (3, 7, 5), (9, 1, 11)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.source_affine @ [*index, 1], [-x, -y, z, 1], atol=1e-9)


def test_itk_image_that_lies_oblique(warm: Predictors) -> None:
    itk = pytest.importorskip("itk")
    spacing, affine = (1.5, 1.5, 3.0), oblique_affine((1.5, 1.5, 3.0))
    image = itk.image_from_array(np.ascontiguousarray(phantom_hu().T))
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3] / spacing
    image.SetSpacing(spacing)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps)))
    image.SetOrigin([31.5, -12.25, -140.0])
    found = segment_volume(image, organs=["core", "shell"], predictors=warm)
    expected = expected_mask(phantom_hu(), ("core", 7), ("shell", 3))
    np.testing.assert_array_equal(found.mask, expected.T)
    point = image.TransformIndexToPhysicalPoint([3, 7, 5])
    place = found.prediction.volume.source_affine @ [3, 7, 5, 1]
    np.testing.assert_allclose(place[:3], [-point[0], -point[1], point[2]], atol=1e-9)
    np.testing.assert_allclose(place, affine @ [3, 7, 5, 1], atol=1e-9)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI's, without a GPU's codec
@pytest.mark.parametrize("code", ["RAS", "PSR"])
def test_nibabel_and_monai_images_and_files(code: str, warm: Predictors, tmp_path: Path) -> None:
    monai = pytest.importorskip("monai")
    from monai.data import MetaTensor

    array, affine = reoriented(phantom_hu(), lps_affine(), code)
    expected, _ = reoriented(moved_mask(), lps_affine(), code)
    file = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), file)
    loaded = monai.transforms.LoadImage(ensure_channel_first=True)(file)
    lps = MetaTensor(array.copy(), affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, meta={"space": "LPS"})
    for image in (nib.load(file), nib.Nifti1Image(array, affine), loaded, lps, file, str(file)):
        found = segment_volume(image, task=MOVED, predictors=warm)
        np.testing.assert_array_equal(found.mask.reshape(array.shape), expected)
        assert found.mask.shape == tuple(getattr(image, "shape", array.shape))
        np.testing.assert_allclose(found.prediction.volume.source_affine, affine, atol=1e-5)


def test_organs_priority_codes_and_volumes(warm: Predictors) -> None:
    ct, voxel_ml = phantom_hu(), 1.5 * 1.5 * 3.0 / 1000
    for order in (["core", "shell"], ["shell", "core"]):
        found = segment_volume(ct, affine=lps_affine(), organs=order, predictors=warm, codes={"core": 34, "shell": 36})
        codes = {"core": 34, "shell": 36}
        expected = expected_mask(ct, *((name, codes[name]) for name in order))
        np.testing.assert_array_equal(found.mask, expected)
        assert list(found.labels.items()) == [(name, codes[name]) for name in order]
        for name, code in codes.items():
            assert found.volumes_ml[name] == pytest.approx((expected == code).sum() * voxel_ml)
        assert next(iter(found.prediction.seconds)) == "load"


def test_what_one_organ_needs_of_another_is_computed_once(warm: Predictors, monkeypatch: pytest.MonkeyPatch) -> None:
    core, ran = warm.segmenter("core_ct_segmentation"), []
    inside = core._inferer
    monkeypatch.setattr(core, "_inferer", lambda *given: ran.append("core") or inside(*given))
    for organs in (["guided", "core", "shell"], ["core", "guided"], ["guided"]):
        ran.clear()
        found = segment_volume(phantom_hu(), affine=lps_affine(), organs=organs, predictors=warm)
        assert ran == ["core"]
        core_voxels = expected_core(phantom_hu())
        np.testing.assert_array_equal(found.mask == found.labels[organs[0]], core_voxels)
        if "shell" in organs:
            np.testing.assert_array_equal(
                found.mask == 3, (expected_mask(phantom_hu(), ("shell", 3)) == 3) & ~core_voxels
            )
        assert ("core_ct_segmentation" in found.prediction.seconds) == ("core" not in organs)


def test_slices_of_every_shape_and_view(warm: Predictors) -> None:
    torch = pytest.importorskip("torch")
    ct, expected = phantom_hu(), moved_mask()
    k = 5
    for image, view, wanted in (
        (ct[:, :, k].T, "radiological", expected[:, :, k].T),  # rows to the back, columns to the left
        (ct[:, :, k], "array:LP", expected[:, :, k]),
        (ct[::-1, ::-1, k], "array", expected[::-1, ::-1, k]),  # to the right and the front, as in RAS
        (ct[::-1, :, k].T, "array:PR", expected[::-1, :, k].T),
    ):
        for shape in (image.shape, (1, *image.shape), (1, 1, *image.shape)):
            found = segment_slice(image.reshape(shape), spacing=(1.5, 1.5), view=view, task=MOVED, predictors=warm)
            np.testing.assert_array_equal(found.mask, wanted.reshape(shape))
    batch = np.stack([ct[:, :, 5].T, np.full((26, 30), -1000), ct[:, :, 2].T])[:, None]
    found = segment_slice(torch.from_numpy(batch), spacing=(1.5, 1.5), task=MOVED, predictors=warm, output="torch")
    assert tuple(found.mask.shape) == (3, 1, 26, 30) and len(found.predictions) == 3
    for number, k in ((0, 5), (2, 2)):
        np.testing.assert_array_equal(found.mask[number, 0].numpy(), expected[:, :, k].T)
    assert not found.mask[1].any()
    merged = segment_slice(ct[:, :, 5].T, spacing=(1.5, 1.5), organs=["shell", "core"], predictors=warm)
    np.testing.assert_array_equal(merged.mask, expected_mask(ct, ("shell", 3), ("core", 7))[:, :, 5].T)


def refusal(kind: type[CtsegError], call: Any, *arguments: Any, **named: Any) -> str:
    """The sentence that a call is refused with."""
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 400
    return sentence


def test_volumes_that_cannot_be_used(warm: Predictors) -> None:
    ct, affine = phantom_hu(), lps_affine()
    sheared = affine.copy()
    sheared[0, 1] = 0.3
    for kind, image, place, said in (
        (InputError, ct[:, :, 0], {"affine": affine}, "has the shape 30 x 26, but one volume of three axes"),
        (InputError, np.stack([ct, ct]), {"affine": affine}, "has the shape 2 x 30 x 26 x 12"),
        (InputError, ct[:0], {"affine": affine}, "has the shape 0 x 26 x 12"),
        (InputError, ct.astype(complex), {"affine": affine}, "of type complex128"),
        (InputError, (ct > 0).astype(np.float32), {"affine": affine}, "no CT in Hounsfield units"),
        (InputError, np.clip(ct, 0, 255).astype(np.uint8), {"affine": affine}, "no CT in Hounsfield units"),
        (InputError, ct.tolist(), {"affine": affine}, "a builtins.list is no image that can be read"),
        (GeometryError, ct, {}, "comes without a voxel size"),
        (GeometryError, ct, {"spacing": (1, 1, 3)}, "left and right are unknown"),
        (GeometryError, ct, {"spacing": (1, 1, 3), "orientation": "LRS"}, "three letters are expected"),
        (GeometryError, ct, {"spacing": (1, 1), "orientation": "LPS"}, "mm along each of three axes are needed"),
        (GeometryError, ct, {"spacing": (1, 0, 1), "orientation": "LPS"}, "each must be above zero"),
        (GeometryError, ct, {"affine": affine, "spacing": (1, 1, 3)}, "but its affine has 1.5 x 1.5 x 3 mm"),
        (GeometryError, ct, {"affine": affine, "orientation": "LPS"}, "leave the orientation out"),
        (GeometryError, ct, {"affine": affine, "space": "LAS"}, "expected RAS or LPS"),
        (GeometryError, ct, {"affine": np.eye(3)}, "affine that is not 4 x 4"),
        (GeometryError, ct, {"affine": affine * np.nan}, "affine"),
        (GeometryError, ct, {"affine": sheared}, "is sheared by"),
        (GeometryError, nib.Nifti1Image(ct, affine), {"affine": affine}, "has a place of its own: leave affine out"),
        (InputError, "nowhere.nii.gz", {}, "nowhere.nii.gz does not exist"),
        (ConfigError, "nowhere.nii.gz", {"affine": affine}, "a file has a place of its own"),
    ):
        assert said in refusal(kind, segment_volume, image, task=MOVED, predictors=warm, **place)


def test_itk_images_that_are_no_grey_volume(warm: Predictors) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for image in (sitk.Image(8, 8, sitk.sitkInt16), sitk.Image([8, 8, 8], sitk.sitkVectorInt16, 2)):
        assert "one grey volume" in refusal(InputError, segment_volume, image, task=MOVED, predictors=warm)


def test_slices_and_options_that_cannot_be_used(warm: Predictors) -> None:
    ct, affine = phantom_hu(), lps_affine()
    for image, named, said in (
        (ct, {"spacing": (1, 1)}, "has the shape 30 x 26 x 12, but H x W"),
        (ct[:, :, 0], {}, "comes with the spacing None"),
        (ct[:, :, 0], {"spacing": (1, 1, 1)}, "but two numbers are needed"),
        (ct[:, :, 0] > 0, {"spacing": (1, 1)}, "of type bool"),
        ([[1]], {"spacing": (1, 1)}, "a list is no slice"),
    ):
        assert said in refusal(InputError, segment_slice, image, task=MOVED, predictors=warm, **named)
    wrong_view = {"spacing": (1, 1), "view": "from below", "task": MOVED, "predictors": warm}
    assert "is no orientation of a slice" in refusal(ConfigError, segment_slice, ct[:, :, 0], **wrong_view)
    for kind, named, said in (
        (ConfigError, {"organs": ["nothing"]}, "there is no organ 'nothing'"),
        (ConfigError, {"organs": []}, "no organ is named"),
        (ConfigError, {"organs": ["core"], "codes": {"shell": 1}}, "have none for core"),
        (ConfigError, {"organs": ["core", "shell"], "codes": {"shell": 1, "core": 1}}, "both have the code 1"),
        (ConfigError, {"organs": ["core"], "output": "list"}, "expected numpy or torch"),
        (ConfigError, {"organs": ["core"], "device": "cuda"}, "the loaded networks are on 'cpu'"),
        (BundleError, {"organs": ["later"]}, "many_ct_segmentation is untrained"),
        (BundleError, {"task": "no_such"}, "there is no bundle 'no_such'"),
    ):
        assert said in refusal(kind, segment_volume, ct, affine=affine, predictors=warm, **named)


def test_several_threads_share_networks_and_do_not_mix(warm: Predictors, tmp_path: Path) -> None:
    files = [write_phantom(tmp_path / f"{seed}.nii.gz", seed) for seed in (0, 2)]
    wrong: list[str] = []

    def work(number: int) -> None:
        order = ["core", "shell"] if number % 3 else ["shell", "core"]
        found = segment_volume(files[number % 2], organs=order, predictors=warm)
        expected = expected_mask(
            phantom_hu((number % 2) * 2), *((name, {"core": 7, "shell": 3}[name]) for name in order)
        )
        if not np.array_equal(found.mask, expected):
            wrong.append(f"request {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_importing_ctseg_is_light_and_gives_the_interface() -> None:
    code = (
        "import sys, ctseg\n"
        "heavy = sorted({'torch', 'monai', 'itk', 'numpy', 'nibabel'} & set(sys.modules))\n"
        "print(heavy, ctseg.segment_volume.__module__, ctseg.segment_slice.__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["[]", "ctseg.api", "segment_slice", "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ctseg.nothing  # type: ignore[attr-defined]
