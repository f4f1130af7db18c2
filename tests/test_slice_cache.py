"""Prepared cases on disk: the same items as without them, read only where needed, made anew when anything changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_phantoms import f_phantom, oblique_affine, write_nifti
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    ConcatItemsd,
    Lambdad,
    RandCropByPosNegLabeld,
    RandSpatialCropd,
    ScaleIntensityRanged,
    ToNumpyd,
)
from PIL import Image

from ctseg import preparedcases
from ctseg.building import build_bundle
from ctseg.errors import ConfigError, GeometryError, OutputError
from ctseg.fingerprints import describe
from ctseg.preparedcases import HALF_ERROR
from ctseg.slicecache import SliceCacheDataset, cached_dataset
from ctseg.transforms import LoadLabeld, LoadVolumed, WholeHounsfieldd, WindowHeadd

TASKS = {"slicewise": "configs/tasks/liver_ct.yaml", "volume": "tests/tasks/phantom_volume.yaml"}


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, Any]]:
    """Two oblique CTs with two labels, and two PNG slices of one patient."""
    found: list[dict[str, Any]] = []
    for number in range(2):
        image = np.where(f_phantom((30, 36, 12)) > 0, 90 + 40 * number, -900).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[4:12, 6:20, 2:9], label[14:20, 20:26, 4:7] = 1, 2
        names = {"image": image, "label": label}
        paths = {
            key: str(write_nifti(tmp_path / f"{key}{number}.nii.gz", array, oblique_affine()))
            for key, array in names.items()
        }
        found.append({"case_id": f"ct{number}", "patient": f"p{number}", **paths})
    rng = np.random.default_rng(0)
    for number in range(2):
        picture = rng.integers(0, 255, (40, 44)).astype(np.uint8)
        picture[5:10, 6:30] = 250
        Image.fromarray(picture).save(tmp_path / f"i{number}.png")
        Image.fromarray(((picture == 250) * 255).astype(np.uint8)).save(tmp_path / f"l{number}.png")
        paths = {key: str(tmp_path / f"{key[0]}{number}.png") for key in ("image", "label")}
        first = "liver"
        found.append({"case_id": f"s{number}", "patient": "q", "slice_spacing": [1.5, 1.5, 5.0], **paths})
        found[-1]["mask_values"] = {"255": first}
    return found


def with_fractions(cases: list[dict[str, Any]]) -> None:
    """Let the first CT's HU rise along it, so that resampled ones are no whole numbers."""
    values = np.where(f_phantom((30, 36, 12)) > 0, 90 + np.arange(30)[:, None, None], -900).astype(np.int16)
    write_nifti(Path(cases[0]["image"]), values, oblique_affine())


def parts(root: Path, kind: str) -> dict[str, Compose]:
    """The preprocessing of training and validation of a bundle of this kind, on a small view."""
    text = build_bundle(root / TASKS[kind], root / "configs" / "base")["configs/train.json"]
    parser = ConfigParser({**json.loads(text), "device": "cpu", "bundle_root": "."})
    parser["patch"] = [32, 32] if kind == "slicewise" else [24, 24, 8]
    parser["spacing"] = [1.5, 1.5, 3.0]
    return {name: parser.get_parsed_content(f"{name}::preprocessing") for name in ("train", "validate")}


def drawn(dataset: Dataset, seed: int) -> list[Any]:
    dataset.transform.set_random_state(seed=seed)
    return [item for n in range(len(dataset)) for item in (lambda x: x if isinstance(x, list) else [x])(dataset[n])]


@pytest.mark.parametrize("kind", ["slicewise", "volume"])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_training_items_are_those_without_a_cache(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], kind: str, stored: str
) -> None:
    if kind == "volume":  # its labels have other names
        cases = [{**case, "mask_values": {"1": "block", "2": "bar", "255": "block"}} for case in cases]
    plain = Dataset(cases, parts(root, kind)["train"])
    cached = SliceCacheDataset(cases, parts(root, kind)["train"], tmp_path / "cache", stored)
    for seed in (0, 1):
        for one, other in zip(drawn(plain, seed), drawn(cached, seed), strict=True):
            assert sorted(one) == sorted(other)
            for key in ("image", "label"):
                assert one[key].dtype == other[key].dtype == torch.float32
                assert type(one[key]) is type(other[key])
            if stored == "float32":
                assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])
            # The augmentation may stretch a contrast by some half; before it the bound is exact (next test).
            assert (one["image"] - other["image"]).abs().max() <= 4 * HALF_ERROR


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_validation_items_keep_values_place_and_meta(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], stored: str
) -> None:
    with_fractions(cases)
    plain = Dataset(cases, parts(root, "slicewise")["validate"])
    cached = SliceCacheDataset(cases, parts(root, "slicewise")["validate"], tmp_path / "cache", stored)
    worst = 0.0
    for one, other in zip(drawn(plain, 0), drawn(cached, 0), strict=True):
        assert {k: v for k, v in one.items() if k not in ("image", "label")} == {
            k: v for k, v in other.items() if k not in ("image", "label")
        }
        for key in ("image", "label"):
            a, b = one[key], other[key]
            assert isinstance(b, MetaTensor) and a.dtype == b.dtype and a.shape == b.shape and b.is_contiguous()
            assert torch.equal(a.affine, b.affine) and a.affine.dtype == b.affine.dtype
            assert set(a.meta) == set(b.meta)
            for name, value in a.meta.items():
                assert type(b.meta[name]) is type(value) or isinstance(value, str)
                assert np.array_equal(np.asarray(b.meta[name]), np.asarray(value))
        assert torch.equal(one["label"], other["label"])
        worst = max(worst, float((one["image"] - other["image"]).abs().max()))
    assert worst == 0 if stored == "float32" else 0 < worst <= HALF_ERROR


def test_channels_of_other_organs_and_plain_arrays_are_kept(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    """An image of two channels, the second a mask, as a network with an input organ takes it; and a NumPy array."""
    steps = [
        LoadVolumed("image"), LoadLabeld("label", labels=["liver", "gallbladder"]),
        Lambdad("image", lambda image: ((image + 1000) / 2000).clip(0, 1)),
        ConcatItemsd(["image", "label"], "image"), ToNumpyd("label"),
    ]  # fmt: skip
    crop = [RandSpatialCropd(["image", "label"], [16, 16, 2], random_size=False)]
    plain = Dataset(cases[:2], Compose([*steps, *crop]))
    cached = SliceCacheDataset(cases[:2], Compose([*steps, *crop]), tmp_path / "cache", "float32")
    for one, other in zip(drawn(plain, 3), drawn(cached, 3), strict=True):
        assert one["image"].shape == (2, 16, 16, 2)
        assert torch.equal(one["image"], other["image"])
        assert type(one["label"]) is type(other["label"]) and one["label"].dtype == other["label"].dtype
        assert np.array_equal(one["label"], other["label"])


@pytest.mark.parametrize("kind", ["slicewise", "volume"])
def test_only_the_crop_is_read(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the crop an image is a view into the mapped file; a slice of it is one piece of the file."""
    if kind == "volume":
        cases = [{**case, "mask_values": {"1": "block", "2": "bar"}} for case in cases]
    else:
        with_fractions(cases)
    cached = SliceCacheDataset(cases[:1], parts(root, kind)["train"], tmp_path / "cache")
    seen = []

    def watched(item: dict[Any, Any], dtypes: Any) -> dict[Any, Any]:
        if "image" in dtypes:
            seen.append(item["image"])
        return preparedcases.restored(item, dtypes)

    monkeypatch.setattr("ctseg.slicecache.restored", watched)
    _ = cached[0]
    (file,) = (tmp_path / "cache").glob("*/0.npy")
    whole = int(np.prod(np.load(file, mmap_mode="r").shape))
    for image in seen:
        assert image.dtype == (torch.float16 if kind == "slicewise" else torch.uint8)  # the volume's HU are whole
        assert image.untyped_storage().nbytes() == image.element_size() * whole  # a view of the whole file, not a copy
        assert image.numel() < whole
        if kind == "slicewise":
            assert image[0].is_contiguous()  # one slice


def heads(tmp_path: Path, scale: float = 1.0) -> list[dict[str, Any]]:
    """Two heads of whole HU with bone, air and labels; `scale` 0.5 makes halves of HU of them."""
    found = []
    for number in range(2):
        rng = np.random.default_rng(number)
        image = rng.integers(-200, 300, (24, 20, 12)).astype(np.int16)
        image[:3], image[-3:] = -1024, 3071
        label = np.zeros(image.shape, np.uint8)
        label[5:12, 4:12, 3:9] = 1
        stored = image if scale == 1 else (image * scale).astype(np.float32)
        paths = {"image": write_nifti(tmp_path / f"h{number}_{scale}.nii.gz", stored, oblique_affine())}
        paths["label"] = write_nifti(tmp_path / f"l{number}.nii.gz", label, oblique_affine())
        found.append({"case_id": str(number), "patient": str(number), **{k: str(v) for k, v in paths.items()}})
    return found


def head_steps(window: tuple[int, int], *, scaled: bool = True, whole: bool = False) -> Compose:
    low, high = window
    scale = ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True)
    rounded = [WholeHounsfieldd("image")] if whole else []
    steps = [LoadVolumed("image"), LoadLabeld("label", labels=["a"]), *rounded, WindowHeadd("image", window)]
    crop = RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 6), num_samples=2, image_key="image")
    return Compose([*steps, *([scale] if scaled else []), crop])


@pytest.mark.parametrize(
    ("window", "scaled", "kept"),
    [((-124, 130), True, np.uint8), ((-1024, 2000), True, np.int16), ((-124, 130), False, np.int16)],
)
def test_whole_hu_are_kept_as_whole_numbers_and_come_back_bit_by_bit(
    tmp_path: Path, window: tuple[int, int], scaled: bool, kept: type
) -> None:
    """A quarter or a half of float32; bone, air and fill are one background, which is 0 in the file and in the item."""
    cases, steps = heads(tmp_path), head_steps(window, scaled=scaled)
    plain = Dataset(cases, steps)
    for stored in ("float16", "float32"):
        cached = SliceCacheDataset(cases, steps, tmp_path / stored, stored)
        for seed in (0, 1):
            for one, other in zip(drawn(plain, seed), drawn(cached, seed), strict=True):
                assert one["image"].dtype == other["image"].dtype
                assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])
                assert other["image"].is_contiguous() and other["label"].is_contiguous()
    for case in (tmp_path / "float32").glob("*/case.json"):
        array = np.load(case.parent / "0.npy")  # last axis first
        assert array.dtype == kept and array.nbytes == 24 * 20 * 12 * np.dtype(kept).itemsize
        background = array[:, :, :3], array[:, :, -3:]  # air, and bone above the window
        assert all(len(np.unique(part)) == 1 and part.min() == array.min() for part in background)
        assert array.min() == (0 if scaled else -124)


def test_halves_of_hu_are_no_whole_numbers_unless_rounded(tmp_path: Path) -> None:
    cases, window = heads(tmp_path, 0.5), (-124, 130)
    for name, whole, kept in (("a", False, np.float16), ("b", True, np.uint8)):
        steps = head_steps(window, whole=whole)
        cached, plain = SliceCacheDataset(cases[:1], steps, tmp_path / name), Dataset(cases[:1], steps)
        (file,) = (tmp_path / name).glob("*/0.npy")
        assert np.load(file).dtype == kept
        pairs = list(zip(drawn(plain, 3), drawn(cached, 3), strict=True))
        assert len(pairs) == 2
        for one, other in pairs:
            assert (one["image"] - other["image"]).abs().max() <= (HALF_ERROR if not whole else 0)
    rounded = WholeHounsfieldd("image")({"image": torch.tensor([[[[-0.5, 0.49, 0.51, 1e6]]]])})["image"]
    assert rounded.dtype == torch.int16 and rounded.flatten().tolist() == [0, 0, 1, 32767]


def test_the_augmentation_never_writes_into_the_cache(root: Path, tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    def spoil(image: torch.Tensor) -> torch.Tensor:
        image += 5
        return image

    crop = [RandSpatialCropd("image", [4, 4, 1], random_size=False), Lambdad("image", spoil)]
    cached = SliceCacheDataset(cases[:1], Compose([LoadVolumed("image"), *crop]), tmp_path / "cache")
    assert {float(cached[0]["image"].as_tensor().max()) for _ in range(3)} <= {-895.0, 95.0}


@pytest.mark.parametrize("kind", ["slicewise", "volume"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_and_volumes_share_a_batch(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], kind: str, in_memory: bool
) -> None:
    """Slices say their spacing and other mask_values than volumes: one batch holds both all the same."""
    names = {"slicewise": ("liver", "liver"), "volume": ("block", "bar")}[kind]
    cases[0]["mask_values"], cases[2]["mask_values"] = {"1": names[0], "2": names[1]}, {"255": names[0]}
    cases[1]["mask_values"], cases[3]["mask_values"] = {"2": names[0]}, {"255": names[0]}
    cases[3]["presence"] = {names[0]: 1}
    dataset = cached_dataset(cases, parts(root, kind)["train"], None if in_memory else str(tmp_path / "cache"))
    (batch,) = DataLoader(dataset, batch_size=4, num_workers=0)
    assert set(batch) == {"image", "label", "annotated"}
    assert batch["image"].shape == batch["label"].shape
    assert tuple(batch["image"].shape) == ((4, 1, 32, 32) if kind == "slicewise" else (8, 1, 24, 24, 8))


def made(folder: Path) -> dict[str, int]:
    """Each prepared case and when it was made."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/case.json")}


def test_a_second_use_prepares_nothing(root: Path, tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    folder = tmp_path / "cache"
    SliceCacheDataset(cases, parts(root, "slicewise")["train"], folder)
    before = made(folder)
    assert len(before) == 4
    SliceCacheDataset(cases, parts(root, "slicewise")["train"], folder)
    assert made(folder) == before
    assert {path.name for path in folder.iterdir()} == {*before, ".locks"}
    # Names of cases may be those of patients.
    assert not [path for path in folder.rglob("*") if "ct0" in path.name]


def test_a_changed_source_is_prepared_anew_and_no_other(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]]
) -> None:
    folder, steps = tmp_path / "cache", parts(root, "slicewise")["validate"]
    old = SliceCacheDataset(cases, steps, folder)[0]["label"]
    before = made(folder)
    label = np.zeros((30, 36, 12), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    write_nifti(Path(cases[0]["label"]), label, oblique_affine())
    new = SliceCacheDataset(cases, steps, folder)[0]["label"]
    assert int(new.sum()) != int(old.sum())
    after = made(folder)
    assert set(after) == set(before)  # in place: what nobody can use again takes no room
    assert sum(after[name] != before[name] for name in before) == 1


def test_another_configuration_is_another_case(root: Path, tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    folder = tmp_path / "cache"
    steps = parts(root, "slicewise")["validate"]
    wide = parts(root, "slicewise")["validate"]
    (window,) = (step for step in wide.transforms if isinstance(step, ScaleIntensityRanged))
    window.scaler.a_max = 400
    one = SliceCacheDataset(cases[:1], steps, folder)[0]["image"]
    other = SliceCacheDataset(cases[:1], wide, folder)[0]["image"]
    assert not torch.equal(one, other)
    assert len(made(folder)) == 2
    SliceCacheDataset([{**cases[0], "mask_values": {"2": "liver"}}], steps, folder)
    assert len(made(folder)) == 3


def test_another_version_of_the_program_prepares_anew(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, steps = tmp_path / "cache", parts(root, "slicewise")["validate"]
    SliceCacheDataset(cases[:1], steps, folder)
    before = made(folder)
    monkeypatch.setattr("ctseg.slicecache.program", lambda: ["another"])
    SliceCacheDataset(cases[:1], steps, folder)
    after = made(folder)
    assert set(after) == set(before) and after != before


@pytest.mark.parametrize("damage", ["cut short", "no array", "no sidecar", "bad sidecar", "all gone"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_damaged_case_is_made_anew(
    root: Path, tmp_path: Path, cases: list[dict[str, Any]], damage: str, when: str
) -> None:
    folder, steps = tmp_path / "cache", parts(root, "slicewise")["validate"]
    cached = SliceCacheDataset(cases[:1], steps, folder)
    whole = cached[0]["image"].clone()
    (case,) = (path.parent for path in folder.glob("*/case.json"))
    if damage == "cut short":
        os.truncate(case / "0.npy", 1000)
    elif damage == "no array":
        (case / "0.npy").unlink()
    elif damage == "no sidecar":
        (case / "case.json").unlink()
    elif damage == "bad sidecar":
        (case / "case.json").write_text('{"format": 1')
    else:
        shutil.rmtree(case)
    if when == "before":
        cached = SliceCacheDataset(cases[:1], steps, folder)
    assert torch.equal(cached[0]["image"], whole)
    assert (case / "case.json").is_file()


_TRAINING = """
import sys, json
from pathlib import Path
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandSpatialCropd
from ctseg.slicecache import SliceCacheDataset
from ctseg.transforms import LoadVolumed
cases, folder, log = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
class Noted(LoadVolumed):
    def __call__(self, data):
        with open("LOG", "a") as file: file.write(data["case_id"] + chr(10))
        return super().__call__(data)
steps = [Noted("image"), RandSpatialCropd("image", [4, 4, 1], random_size=False)]
dataset = SliceCacheDataset(cases, Compose(steps), folder)
print(sum(bool((b["image"] != 0).any()) for b in DataLoader(dataset, batch_size=1, num_workers=2)))
"""


def test_two_processes_with_workers_share_the_work(
    tmp_path: Path, cases: list[dict[str, Any]], clean_environment: dict[str, str]
) -> None:
    many = [{**cases[0], "case_id": f"c{n}"} for n in range(6)]
    script = tmp_path / "training.py"
    script.write_text(_TRAINING.replace("LOG", str(tmp_path / "log")))
    command = [sys.executable, str(script), json.dumps(many), str(tmp_path / "cache"), ""]
    both = [
        subprocess.Popen(command, env=clean_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip() == "6"
    # Each case was prepared once, by whichever came first.
    assert sorted((tmp_path / "log").read_text().split()) == [f"c{n}" for n in range(6)]
    assert len(made(tmp_path / "cache")) == 6


def test_without_a_folder_cases_stay_in_memory(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    for nothing in (None, "null", "None", ""):
        dataset = cached_dataset(cases[:1], Compose([LoadVolumed("image")]), nothing)
        assert isinstance(dataset, CacheDataset)
    assert isinstance(
        cached_dataset(cases[:1], Compose([LoadVolumed("image")]), str(tmp_path / "c")), SliceCacheDataset
    )


def test_what_cannot_work_is_said_in_a_sentence(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    steps = Compose([LoadVolumed("image"), LoadLabeld("label", labels=["liver"])])
    with pytest.raises(ConfigError, match="cache_type 'int8' is not known: expected one of float16, float32"):
        SliceCacheDataset(cases, steps, tmp_path / "cache", "int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Prepared cases cannot be written into .* --cache_dir null"):
        SliceCacheDataset(cases, steps, tmp_path / "file")
    with pytest.raises(GeometryError, match="expected the same grid"):
        SliceCacheDataset([{**cases[0], "label": cases[2]["label"], "slice_spacing": [1, 1, 1]}], steps, tmp_path / "c")


def test_descriptions_tell_settings_apart_and_the_same_ones_not() -> None:
    assert describe(LoadVolumed("image")) == describe(LoadVolumed("image"))
    assert describe(LoadVolumed("image")) != describe(LoadVolumed("image", modality="MR"))
    assert describe(lambda x: x + 1) != describe(lambda x: x + 2)
    assert describe(float("nan")) == describe(float("nan"))
    assert describe(np.arange(3)) != describe(np.arange(3.0))
    with pytest.raises(ConfigError, match="cannot be seen"):
        describe(object())


def test_a_transform_may_say_what_it_depends_on() -> None:
    class Weighed:
        def __init__(self, sha256: str) -> None:
            self.sha256, self.seen = sha256, object()

        def fingerprint(self) -> str:
            return self.sha256

    assert describe(Weighed("a")) == describe(Weighed("a")) != describe(Weighed("b"))


def test_what_cannot_be_prepared_is_said_and_still_gives_items(
    tmp_path: Path, cases: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = SliceCacheDataset(cases[:1], Compose([lambda item: item, LoadVolumed("image")]), tmp_path / "cache")
    assert "No case can be prepared: the first step, function, is random" in caplog.text
    assert dataset[0]["image"].shape == (1, 30, 36, 12)


def test_a_study_that_was_opened_says_the_same_of_its_settings(tmp_path: Path) -> None:
    """The step loads networks when it is first used; that must neither hide its settings nor change them."""
    from ctseg.fingerprints import describe
    from ctseg.transforms import OpenStudyd

    step = OpenStudyd(device="cpu")
    before = describe(step)
    array = np.linspace(-900, 200, 48).reshape(4, 4, 3).astype(np.int16)
    step({"image": str(write_nifti(tmp_path / "ct.nii.gz", array, np.diag([1.0, 1.0, 2.0, 1.0])))})
    assert describe(step) == before != describe(OpenStudyd(modality="MR"))
