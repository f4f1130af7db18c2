"""A head scanned with a tilted gantry, in DICOM: straightened on the way in, the mask back on the tilted slices."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_heads import head
from helpers_phantoms import write_dicom
from monai.data import MetaTensor

from ctseg.cli import main
from ctseg.dicom.reading import read_dicom_grid
from ctseg.dicom.tilt import is_tilted, tilt_degrees
from ctseg.outputs.writing import write_mask
from ctseg.reading import read_volume
from ctseg.transforms import LoadVolumed, RestoreGridd

TILT = 18.0
SHAPE = (72, 84, 20)
STEP = 7.0  # mm along the table


def tilted_affine(degrees: float = TILT) -> np.ndarray:
    """RAS: rows to the left, columns to the back and tilted about x, slices stacked along the table alone."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, 0] = [-3.0, 0, 0]
    affine[:3, 1] = np.array([0, -np.cos(angle), np.sin(angle)]) * 2.8
    affine[:3, 2] = [0, 0, STEP]
    affine[:3, 3] = np.array([4.0, 3.0, 2.0]) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tilted") / "series"

    def stated(image: object, k: int) -> None:
        image.GantryDetectorTilt = TILT  # type: ignore[attr-defined]

    write_dicom(folder, head(affine=tilted_affine(), shape=SHAPE, noise=0)[0], tilted_affine(), edit=stated)
    return folder


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def bleed(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    array, brain = head(affine=affine, shape=shape, noise=0)
    return (array == 70) & brain


def test_the_series_is_read_as_it_lies_and_the_tilt_is_said(series: Path) -> None:
    volume = read_volume(series)
    assert volume.affine == pytest.approx(tilted_affine(), abs=1e-4)
    assert volume.source_affine == pytest.approx(tilted_affine(), abs=1e-4)
    assert any("gantry was tilted (18.0 degrees" in note for note in volume.notes)
    assert np.array_equal(volume.array, head(affine=tilted_affine(), shape=SHAPE, noise=0)[0])
    assert read_dicom_grid(series).affine == pytest.approx(tilted_affine(), abs=1e-4)
    assert is_tilted(volume.affine) and tilt_degrees(volume.affine) == pytest.approx(TILT, abs=0.01)


def test_the_network_sees_a_straight_head(series: Path) -> None:
    image = LoadVolumed("image")({"image": series})["image"]
    affine = np.asarray(image.affine)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert directions.T @ directions == pytest.approx(np.eye(3), abs=1e-6)
    assert affine[:3, 2] @ [0, 0, 1] == pytest.approx(STEP * np.cos(np.radians(TILT)) ** 2, abs=1e-3)
    truth, brain = head(affine=affine, shape=tuple(image.shape[1:]), noise=0)
    from scipy import ndimage

    inner = ndimage.binary_erosion(brain, iterations=2) & (truth == 32)
    flat = inner & (ndimage.maximum_filter(truth, 5) == 32) & (ndimage.minimum_filter(truth, 5) == 32)
    values = np.asarray(image[0])
    assert flat.sum() > 5000 and np.abs(values[flat].astype(int) - 32).max() <= 3
    skewed = values[:, : SHAPE[1], :][: SHAPE[0]]
    assert (np.abs(read_volume(series).array.astype(int) - skewed) > 20).mean() > 0.05  # it was not straight before


def test_a_mask_goes_back_onto_the_tilted_slices_and_into_files(series: Path, tmp_path: Path) -> None:
    item = LoadVolumed("image")({"image": series})
    image = item["image"]
    made = bleed(np.asarray(image.affine), tuple(image.shape[1:]))
    item["pred"] = MetaTensor(torch.from_numpy(made.astype(np.uint8))[None], meta=image.meta)
    back = np.asarray(RestoreGridd("pred")(item)["pred"][0])
    truth = bleed(tilted_affine(), SHAPE)
    assert back.shape == SHAPE and dice(back > 0, truth) > 0.95
    volume = read_volume(series)
    write_mask(back, volume, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.affine == pytest.approx(tilted_affine(), abs=1e-3) and int(written.header["qform_code"]) == 0
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    from ctseg.dicom.seg import read_seg, write_seg

    entry = {"name": "bleed", "code": 1, "color": [1, 2, 3], "snomed": {"value": "50960005", "meaning": "Hemorrhage"}}
    write_seg(back, volume, None, [entry], tmp_path / "seg.dcm")
    import pydicom

    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(STEP * np.cos(np.radians(TILT)), abs=1e-3)
    again, _ = read_seg(tmp_path / "seg.dcm", volume, [entry])
    assert np.array_equal(again, back)


def test_segment_takes_a_tilted_series(series: Path, tmp_path: Path, root: Path) -> None:
    task = root / "bundles" / "bone_ct_segmentation"
    if not task.is_dir():
        pytest.skip("there is no bundle that needs no weights")
    kinds = "nifti,stl,png,json"
    assert main(["segment", str(series), "-o", str(tmp_path), "--task", str(task), "--output", kinds]) == 0
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    skull = head(affine=tilted_affine(), shape=SHAPE, noise=0)[0] == 900
    assert mask.shape == SHAPE and dice(mask > 0, skull) > 0.9
    assert "gantry was tilted" in (tmp_path / "report.json").read_text()
