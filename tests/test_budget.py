"""A limit of memory: what is reckoned, by hand; the same masks slab by slab as at once; the peak, by the system."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_cascade import ORGAN, SECOND, bright, give_weights, phantom_ct, write_cascade, write_task
from helpers_phantoms import oblique_affine, reoriented, straight_affine, write_dicom, write_itk, write_nifti
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd

import ctseg
from ctseg.api import segment_volume
from ctseg.budget import reckoning as budget
from ctseg.budget.grid import network_grid, onto_grid
from ctseg.budget.network import activation_bytes
from ctseg.budget.planes import planes_of
from ctseg.budget.reckoning import SLABS, WHOLE, Work, memory_size, plan, share_of
from ctseg.budget.study import FrugalStudy
from ctseg.cli import main
from ctseg.errors import InputError, ResourceError
from ctseg.grids import slabs as gridslabs
from ctseg.grids.labels import resample_labels
from ctseg.organs import measure_organs
from ctseg.reading import read_volume
from ctseg.registry import get_bundle
from ctseg.study import Predictors, Study
from ctseg.transforms import ToGridd
from ctseg.views import views_through

GIB, MIB = 1 << 30, 1 << 20
STEPS = Compose([ToGridd(keys="image", spacing=(2.2, 1.7, 3.1), shared=True)])


@pytest.fixture
def thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SLAB", 1)  # two planes


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Predictors:
    """An organ by a random network, and a second one that takes its mask on another grid, found by brightness."""
    root = write_cascade(tmp_path_factory.mktemp("cascade"), gate=None, network=bright())
    return Predictors("cpu", root)


def _work(**changes: Any) -> Work:
    given = {"what": "ct.nii", "shape": (1024, 1024, 512), "base": GIB, "grid": 0, "classes": 1, "streams": True}
    return Work(**{**given, "activations": (100 * MIB, 200 * MIB), **changes})


def test_sizes_are_read_and_refused() -> None:
    assert memory_size("4G") == memory_size("4 GiB") == memory_size("4") == 4 * GIB
    assert memory_size("1.5g") == 1536 * MIB and memory_size("800M") == 800 * MIB
    for wrong in ("", "0G", "four", "-4G", "4X", "4GB extra"):
        with pytest.raises(argparse.ArgumentTypeError, match="no size of memory"):
            memory_size(wrong)
    assert share_of(2 * GIB + 100 * MIB, 2) == GIB


def test_what_is_needed_by_hand() -> None:
    # 2^29 voxels: the image 6 bytes of each, 3 GiB, or nothing; the mask one, 0.5 GiB; 1 GiB before; 128 MiB for slabs
    # and 256 MiB for the mask's way back; the network's 100 MiB for each slice of a batch
    work = _work()
    assert work.need(WHOLE) == 4 * GIB + 512 * MIB + (128 + 256 + 100) * MIB
    assert work.need(SLABS, batch=2) == GIB + 512 * MIB + (128 + 256 + 200) * MIB
    assert _work(held=True).need(WHOLE) == work.need(SLABS) == _work(resamples=False).need(WHOLE) - 6 * GIB
    assert _work(masks=3).need(SLABS) - work.need(SLABS) == GIB
    assert _work(grid=10**6, classes=2).need(SLABS) - work.need(SLABS) == 56 * 10**6


def test_the_fastest_way_that_fits_is_taken_and_else_one_sentence_says_what_is_needed() -> None:
    assert plan(_work(), 8 * GIB).way == WHOLE
    assert (plan(_work(), 3 * GIB).way, plan(_work(), 3 * GIB).batch) == (SLABS, 2)
    assert plan(_work(), GIB + 1050 * MIB).batch == 1
    needs = r"1024 x 1024 x 512 voxels, which need about 2 GiB .* is 1 GiB: raise it to 2G, or crop the image$"
    with pytest.raises(ResourceError, match=needs):
        plan(_work(), GIB)
    with pytest.raises(ResourceError, match=r"about 8 GiB"):
        plan(_work(resamples=False, streams=False), 2 * GIB)
    with pytest.raises(ResourceError, match="give it as NIfTI"):
        plan(_work(streams=False, held=True), GIB)


def test_live_bytes_of_a_forward_pass_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 1))
    # of a 10 x 10 image: 4 channels of 100 floats; while the pool runs also 4 of 25 and as many indices of 8 bytes
    peak, channels = activation_bytes(network, (1, 1, 10, 10))
    assert channels == 2 and 4 * 400 + 4 * 100 <= peak <= 4 * 400 + 4 * 100 + 8 * 100
    assert activation_bytes(network, (3, 1, 10, 10))[0] == 3 * peak
    assert next(network.parameters()).device.type == "cpu"


@pytest.mark.parametrize("code", ["RAS", "LPS", "SLA", "AIR"])
@pytest.mark.parametrize("affine", [straight_affine(), oblique_affine()], ids=["straight", "oblique"])
def test_planes_onto_the_grid_are_what_the_transform_makes(code: str, affine: np.ndarray) -> None:
    array, place = reoriented(phantom_ct((21, 18, 15)), affine, code)
    whole = STEPS({"image": MetaTensor(torch.from_numpy(array.copy())[None], affine=torch.as_tensor(place))})["image"]
    grid = network_grid(STEPS, array.shape, place)
    assert grid is not None and grid.shape == tuple(whole.shape[1:])
    assert np.allclose(grid.affine, np.asarray(whole.affine), atol=1e-9)
    made = onto_grid(np.moveaxis(array, 2, 0), array.shape, place, grid)
    if code in ("RAS", "LPS"):  # slices along the body, as they are stored nearly always
        assert np.array_equal(made, whole[0].numpy())
    assert np.abs(made - whole[0].numpy()).max() < 1e-3  # of 1000 HU


def test_another_first_step_is_no_resampling() -> None:
    for first in (
        Flipd(keys="image", spatial_axis=0),
        ToGridd("image", (2, 2, 2), crop_air={}),
        ToGridd("image", (2, 2, 2)),
    ):
        assert network_grid(Compose([first, *STEPS.transforms]), (9, 9, 9), np.eye(4)) is None or first.crop_air == {}


@pytest.mark.parametrize("sure", [False, True])
def test_slabs_of_a_mask_are_the_whole_mask(thin_slabs: None, monkeypatch: pytest.MonkeyPatch, sure: bool) -> None:
    monkeypatch.setattr(gridslabs, "LARGE", 1)
    labels = np.zeros((12, 11, 9), np.uint8)
    labels[2:9, 3:8, 1:6], labels[5:7, 5:10, 4:9] = 1, 7
    certainty = np.random.default_rng(5).integers(1, 255, labels.shape).astype(np.uint8) if sure else None
    small, large = oblique_affine((2.9, 3.1, 4.0)), oblique_affine((1.3, 1.1, 1.7))
    whole = resample_labels(labels, small, large, (28, 30, 21), certainty=certainty)
    made = gridslabs.resample_labels_lean(labels, small, large, (28, 30, 21), certainty)
    assert np.array_equal(made, whole) and whole.any()


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha", "dicom"])
def test_masks_are_those_of_the_ordinary_way(
    tmp_path: Path, warm: Predictors, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, array = tmp_path / name, phantom_ct()
    affine = oblique_affine((3.0, 3.2, 4.1))
    if name == "dicom":
        write_dicom(path, array, affine)
    elif name == "ct.mha":
        write_itk(path, array, affine)
    else:
        write_nifti(path, array, affine)
    monkeypatch.setattr("ctseg.budget.study.plan", lambda work, limit: budget.Plan(SLABS, 1, 0))
    frugal = FrugalStudy(path, [get_bundle(SECOND, warm.root)], warm, "CT", 100 * GIB)
    monkeypatch.setattr(budget, "SLAB", 1)
    whole = Study(path, warm)
    for bundle in (SECOND, ORGAN):
        found, expected = frugal.prediction(bundle), whole.prediction(bundle)
        assert found.label_map.shape == expected.label_map.shape and expected.label_map.any()
        assert np.array_equal(found.label_map, expected.label_map)
        assert found.volume.format == expected.volume.format and np.allclose(found.volume.affine, whole.volume.affine)
    assert warm.segmenter(ORGAN).parts[1].batch_size == 8  # put back
    for ours, theirs in zip(
        views_through(found.volume.array, expected.label_map, expected.volume.source_affine, [3]),
        views_through(whole.volume.array, expected.label_map, expected.volume.source_affine, [3]),
        strict=True,
    ):
        assert np.array_equal(ours.image, theirs.image)


_UNET_3D = {
    "_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1,
    "channels": [4, 8], "strides": [2], "norm": "instance",
}  # fmt: skip


def test_a_3d_bundle_gets_its_image_plane_by_plane_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_task(
        tmp_path, "organ_ct", base="volume", bundle="organ_ct_3d_segmentation", network=_UNET_3D, patch=[16, 16, 8]
    )
    give_weights(folder)
    warm, info = Predictors("cpu", folder.parent), get_bundle(folder)
    path = write_nifti(tmp_path / "ct.nii.gz", *reoriented(phantom_ct(), oblique_affine((3.0, 3.2, 4.1)), "LPS"))
    expected = Study(path, warm).prediction(info).label_map
    works: list[Work] = []
    monkeypatch.setattr(
        "ctseg.budget.study.plan", lambda work, limit: [works.append(work), budget.Plan(SLABS, 1, 0)][1]
    )
    frugal = FrugalStudy(path, [info], warm, "CT", 100 * GIB)
    assert works[0].streams and works[0].resamples and works[0].activations[0] < 40 * 16 * 16 * 8 * 4
    found = frugal.prediction(info)
    assert np.array_equal(found.label_map, expected) and expected.any()
    assert not np.asarray(frugal.volume.array).any()  # the image was never held


def test_a_limit_chooses_the_way_and_refuses_before_reading(tmp_path: Path, warm: Predictors) -> None:
    path = write_nifti(tmp_path / "ct.nii.gz", phantom_ct(), straight_affine((3.0, 3.2, 4.1)))
    bundle = get_bundle(ORGAN, warm.root)
    assert FrugalStudy(path, [bundle], warm, "CT", 100 * GIB).plan.way == WHOLE
    found = segment_volume(path, task=bundle.path, predictors=warm, max_ram=100 * GIB)
    assert np.array_equal(found.mask, segment_volume(path, task=bundle.path, predictors=warm).mask)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # never read so far
    with pytest.raises(ResourceError, match=r"30 x 26 x 14 voxels, which need about .* raise it to"):
        segment_volume(path, task=bundle.path, predictors=warm, max_ram=200 * MIB)
    with pytest.raises(ResourceError, match="give it as NIfTI"):
        planes_of(write_itk(tmp_path / "ct.mha", phantom_ct(), straight_affine()), "CT", 200 * MIB)


def test_streamed_voxels_are_judged_like_any(tmp_path: Path) -> None:
    array = phantom_ct().astype(np.float32)
    array[3, 4, 5] = np.nan
    path = write_nifti(tmp_path / "ct.nii.gz", array, straight_affine())
    planes = planes_of(path, "CT", GIB)
    voxels = np.stack(list(planes), axis=-1)
    expected = read_volume(path)
    assert np.array_equal(voxels, expected.array) and planes.told.notes == expected.notes
    assert np.array_equal(np.asarray(planes_of(path, "CT", GIB).volume.array), array, equal_nan=True)
    grey = write_nifti(tmp_path / "grey.nii.gz", (phantom_ct() + 1200).clip(0, 255).astype(np.uint8), straight_affine())
    with pytest.raises(InputError, match="no CT in Hounsfield units"):
        list(planes_of(grey, "CT", GIB))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        list(planes_of(path, "CT", GIB))


def test_an_organ_is_measured_without_a_copy_of_the_label_map() -> None:
    labels = np.zeros((9, 8, 7), np.uint8, order="F")
    labels[2:5, 0:3, 4:7] = 3
    for stored in (labels, np.ascontiguousarray(labels), labels[::-1, :, ::-1][::-1, :, ::-1]):
        organ = measure_organs(stored, {"organ": 3, "other": 1}, np.diag([1.0, 2.0, 5.0, 1.0]))
        assert (organ[0].voxels, organ[0].box, organ[0].edges) == (27, ((2, 4), (0, 2), (4, 6)), ((1, -1), (2, 1)))
        assert organ[0].volume_ml == pytest.approx(0.27) and organ[1].box is None


def test_the_command_refuses_a_limit_for_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_nifti(tmp_path / "ct.nii.gz", phantom_ct(), straight_affine())
    task = "liver_ct_classification"
    assert main(["segment", str(path), "-o", str(tmp_path / "out"), "--task", task, "--max-ram", "4G"]) == 2
    assert "--max-ram is for tasks that make a mask" in capsys.readouterr().err


def test_the_workers_share_a_limit() -> None:
    from ctseg.commands import cohort as cohortcommand

    given = {"task": None, "organs": None, "codes": "bundle", "faces": 100, "overwrite": False, "device": "cpu"}
    arguments = SimpleNamespace(**given, workers=2, runtime="torch", max_ram=4 * GIB + 100 * MIB)
    assert cohortcommand._settings(arguments, ("nifti",)).max_ram == 2 * GIB  # type: ignore[arg-type]


# A bundle that needs no other, on a grid so coarse that its network is nothing beside the image.
_ALONE = {"spacing": [8.0, 8.0, 8.0], "thick_slices": 7.0, "input_organs": [], "organ_bundles": {}, "gate": None}

_CHILD = """
import sys
from ctseg.cli import main
sys.argv = ["ctseg", "segment", *sys.argv[1:]]
main()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc, which is Linux's")
def test_the_promise_is_kept_as_the_system_counts(tmp_path: Path) -> None:
    """110 MB of int16, reckoned as 330 MB while they are read: within a limit that leaves no room for these.

    The peak is the child's VmHWM; getrusage counts for a child also what its parent had when it was started.
    """
    planes = np.full((512, 512, 208), -1000, np.int16)
    planes[100:400, 120:380, 20:180] = np.arange(260, dtype=np.int16)[:, None] - 40
    path = write_nifti(tmp_path / "ct.nii", planes, straight_affine((0.8, 0.8, 1.0)))
    del planes
    root = write_cascade(tmp_path / "cascade", **_ALONE)  # random networks: what they find does not matter here
    command = [sys.executable, "-c", _CHILD, str(path), "-o", str(tmp_path / "out"), "--task", str(root / SECOND)]
    command += ["--max-ram", "1400M", "--output", "nifti,json", "--device", "cpu"]
    source = str(Path(ctseg.__file__).parents[1])
    given = {**os.environ, "PYTHONPATH": source, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1])  # type: ignore[index]
    assert peak * 1024 <= 1400 * MIB, done.stderr
    assert "the most memory that was taken" in done.stderr and (tmp_path / "out" / "mask.nii.gz").is_file()
