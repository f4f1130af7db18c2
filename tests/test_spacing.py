"""Images on a network's grid: against SimpleITK's resampling, by hand, and without cutting what is to be found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_phantoms import oblique_affine, reoriented
from monai.data import MetaTensor

from ctseg.errors import ConfigError
from ctseg.grids.spacing import body_box, new_shape, oriented, regridded
from ctseg.study import Study
from ctseg.transforms import ToGridd

RNG = np.random.default_rng(5)


def _by_simpleitk(array: np.ndarray, affine: np.ndarray, to: np.ndarray, shape: tuple[int, ...], order: str):
    import SimpleITK as sitk

    def image(values: np.ndarray, place: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        size = np.linalg.norm(place[:3, :3], axis=0)
        made.SetSpacing(size.tolist())
        made.SetDirection((place[:3, :3] / size).ravel().tolist())
        made.SetOrigin(place[:3, 3].tolist())
        return made

    kind = sitk.sitkLinear if order == "bilinear" else sitk.sitkNearestNeighbor
    grid = image(np.zeros(shape, dtype=np.float32), to)
    resampled = sitk.Resample(image(array.astype(np.float32), affine), grid, sitk.Transform(), kind, -7777.0)
    return sitk.GetArrayFromImage(resampled).T


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("code", "memory"), [("LPS", "C"), ("RAS", "F"), ("PSR", "F"), ("IRP", "C")])
def test_the_grid_is_resampled_as_simpleitk_does(mode: str, code: str, memory: str) -> None:
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    canonical = RNG.integers(-1000, 1000, (21, 17, 13)).astype(np.int16)
    array, affine = reoriented(canonical, oblique_affine((0.9, 1.1, 1.3)), code)
    view, place = oriented(np.asarray(array, order=memory), affine)  # type: ignore[call-overload]
    shape = new_shape(view.shape, place, (1.37, 0.61, 2.9))
    result, to = regridded(view, place, shape, mode, threads=3)  # type: ignore[arg-type]
    assert result.shape == shape and result.dtype == np.float32
    expected = _by_simpleitk(np.asarray(array), affine, to, shape, mode)
    inside = expected != -7777.0  # a last bit beyond the border
    assert inside.mean() > 0.99
    assert np.allclose(result[inside], expected[inside], atol=0.02)
    whole, whole_place = result, to
    part, part_place = regridded(view, place, shape, mode, ((2, 11), (5, 20), (1, 4)))  # type: ignore[arg-type]
    assert np.array_equal(part, whole[2:11, 5:20, 1:4])
    assert np.allclose(part_place @ [0, 0, 0, 1], whole_place @ [2, 5, 1, 1])


def test_the_field_of_view_stays_and_thick_slices_are_taken_as_they_are() -> None:
    affine = np.diag([0.703125, 0.703125, 1.1, 1.0])
    assert new_shape((512, 512, 300), affine, (1.5, 1.5, 3.0), 2.5) == (240, 240, 110)
    assert new_shape((512, 512, 300), np.diag([0.703125, 0.703125, 2.5, 1.0]), (1.5, 1.5, 3.0), 2.5)[2] == 300
    assert new_shape((512, 512, 1), affine, (1.5, 1.5, 3.0), 2.5) == (240, 240, 1)
    array = np.arange(8, dtype=np.int16).reshape(8, 1, 1)
    result, to = regridded(array, np.eye(4), (4, 1, 1))
    assert result.ravel().tolist() == [0.5, 2.5, 4.5, 6.5]  # two voxels become one: its middle lies between them
    assert to[0].tolist() == [2.0, 0.0, 0.0, 0.5]
    with pytest.raises(ConfigError, match="three lengths in mm above 0"):
        new_shape((5, 5, 5), affine, (1.5, 0.0, 3.0))


def test_slices_that_no_new_slice_lies_next_to_are_not_touched() -> None:
    array = np.zeros((4, 4, 9), dtype=np.float32)
    array[..., 4] = np.nan  # of nine slices in three, the centres are 1, 4 and 7
    result, _ = regridded(array, np.eye(4), (4, 4, 3))
    assert np.isnan(result[..., 1]).all() and not np.isnan(result[..., [0, 2]]).any()


def test_the_box_of_the_body_holds_all_that_is_no_air_and_the_margin() -> None:
    array = np.full((200, 160, 20), -1000, dtype=np.int16)
    array[57:131, 40:101, 3:9] = 30
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    box = body_box(array, affine, (100, 80, 20), margin_mm=10.0)
    for (first, last), (low, high) in zip(box[:2], ((57, 131), (40, 101)), strict=True):
        assert low - 2 * 5 - 10 <= 2 * first <= low - 10  # a margin of 10 mm and at most two looks more
        assert high + 10 <= 2 * last <= high + 2 * 5 + 10
    assert box[2] == (0, 20)
    assert body_box(array[:2], affine, (5, 6, 7)) == ((0, 5), (0, 6), (0, 7))  # nothing but air


def _item(array: np.ndarray, affine: np.ndarray) -> dict[str, MetaTensor]:
    return {"image": MetaTensor(torch.from_numpy(array)[None], affine=torch.as_tensor(affine))}


def test_the_air_is_cut_from_image_and_label_alike_and_only_from_a_ct() -> None:
    array = np.full((60, 50, 10), -1000, dtype=np.int16)
    array[20:40, 15:30] = 50
    label = (array > 0).astype(np.int16)
    item = _item(array, np.diag([2.0, 2.0, 3.0, 1.0])) | {
        "label": MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([2.0, 2, 3, 1])))
    }
    options = {"spacing": [2.0, 2.0, 3.0], "mode": ["bilinear", "nearest"], "crop_air": {"margin_mm": 4.0}}
    cut = ToGridd(["image", "label"], **options)(dict(item))
    assert cut["image"].shape == cut["label"].shape and cut["image"].shape[1] < 32
    assert int(cut["label"].sum()) == int(label.sum())
    assert torch.equal(cut["image"] > 0, cut["label"] > 0)
    assert ToGridd(["image", "label"], **options, modality="US")(dict(item))["image"].shape == (1, 60, 50, 10)
    with pytest.raises(ConfigError, match="expected bilinear or nearest, and above_hu and margin_mm"):
        ToGridd("image", spacing=[1, 1, 1], crop_air={"hu": 1})


def test_bundles_of_one_spacing_share_the_image_of_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctseg.transforms import spacing

    made: list[tuple[int, ...]] = []
    true = spacing.regridded

    def counting(array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], *rest: object) -> object:
        made.append(shape)
        return true(array, affine, shape, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(spacing, "regridded", counting)
    item = _item(RNG.random((12, 10, 8)).astype(np.float32), np.eye(4)) | {"study": Study("not read.nii.gz")}
    one, other = (ToGridd("image", [2.0, 2.0, 2.0], shared=True)(dict(item))["image"] for _ in range(2))
    one.meta["note"] = 1
    assert torch.equal(one, other) and "note" not in other.meta
    ToGridd("image", [2.0, 2.0, 4.0], shared=True)(dict(item))
    ToGridd("image", [2.0, 2.0, 2.0])(dict(item))
    assert made == [(6, 5, 4), (6, 5, 2), (6, 5, 4)]
