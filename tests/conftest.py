"""Fixtures that several test modules share: the clone, its bundles, and small studies of phantoms."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers_flat import flat_dataset, write_picture
from helpers_phantoms import f_phantom, oblique_affine, write_nifti

from ctseg.building import build_bundle
from ctseg.files import write_beside
from ctseg.registry import BundleInfo, find_bundles, get_bundle

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def _phantom_bundle(folder: Path) -> BundleInfo:
    for name, text in build_bundle(ROOT / "tests" / "tasks" / "phantom_volume.yaml", ROOT / "configs" / "base").items():
        write_beside(folder / name, text.encode())
    return get_bundle(folder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for `bundle` runs for every bundle of the clone, and for a phantom of the other kind.

    One that asks for `trainable` runs for those of them that have something to train; for `few_trainable` for one of
    two dimensions and one of three, where the check is of the shared wiring and starts processes.
    """
    shipped = find_bundles(ROOT / "bundles")
    if "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", [*shipped, "phantom_ct_segmentation"], indirect=True)
    if "trainable" in metafunc.fixturenames:
        trainable = [name for name, info in shipped.items() if info.needs_weights]
        metafunc.parametrize("trainable", [*trainable, "phantom_ct_segmentation"], indirect=True)
    if "few_trainable" in metafunc.fixturenames:
        sliced = next(name for name, info in shipped.items() if info.kind == "slicewise" and info.needs_weights)
        metafunc.parametrize("few_trainable", [sliced, "phantom_ct_segmentation"], indirect=True)


@pytest.fixture(scope="session")
def phantom_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return _phantom_bundle(tmp_path_factory.mktemp("bundles") / "phantom_ct_segmentation")


@pytest.fixture
def bundle(request: pytest.FixtureRequest, phantom_bundle: BundleInfo) -> BundleInfo:
    return phantom_bundle if request.param == "phantom_ct_segmentation" else get_bundle(request.param, ROOT / "bundles")


@pytest.fixture
def trainable(request: pytest.FixtureRequest, phantom_bundle: BundleInfo) -> BundleInfo:
    return phantom_bundle if request.param == "phantom_ct_segmentation" else get_bundle(request.param, ROOT / "bundles")


@pytest.fixture
def few_trainable(request: pytest.FixtureRequest, phantom_bundle: BundleInfo) -> BundleInfo:
    return phantom_bundle if request.param == "phantom_ct_segmentation" else get_bundle(request.param, ROOT / "bundles")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images of ../shared/data are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def f_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asymmetric CT in HU on an oblique, anisotropic grid."""
    array = np.where(f_phantom((40, 48, 12)) > 0, 90, -900).astype(np.int16)
    return write_nifti(tmp_path_factory.mktemp("studies") / "f.nii.gz", array, oblique_affine())


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, phantom_bundle: BundleInfo) -> Path:
    """Six patients with one tiny CT each: a bright block (label value 1) and a brighter bar (value 4) in air."""
    folder = tmp_path_factory.mktemp("dataset")
    cases = []
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.normal(-900, 20, (36, 40, 10)).astype(np.int16)
        label = np.zeros(image.shape, np.uint8)
        label[8 + number : 20 + number, 10:30, 2:8], label[26:32, 8:24, 3:7] = 1, 4
        image[label == 1], image[label == 4] = 60, 200
        affine = np.diag([-4.0, -4.0, 5.0, 1.0])
        names = {key: f"{key}_{number}.nii.gz" for key in ("image", "label")}
        write_nifti(folder / names["image"], image, affine)
        write_nifti(folder / names["label"], label, affine)
        cases.append({"case_id": f"case_{number}", "patient": f"p{number}", **names})
    (folder / "datalist.json").write_text(json.dumps({"cases": cases}))
    return folder


@pytest.fixture(scope="session")
def f_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asymmetric photograph of 40 rows and 56 columns."""
    return write_picture(tmp_path_factory.mktemp("pictures") / "f.png", f_phantom((40, 56, 1))[..., 0] > 0)


@pytest.fixture(scope="session")
def tiny_flat_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with one small photograph each, sizes odd and even."""
    return flat_dataset(tmp_path_factory.mktemp("flat"))


@pytest.fixture
def study_of(request: pytest.FixtureRequest) -> Callable[[BundleInfo], Path]:
    """What a bundle can be run on: a CT, or a picture for a flat one; called f.* both."""
    return lambda info: request.getfixturevalue("f_picture" if info.flat else "f_study")


@pytest.fixture
def dataset_of(request: pytest.FixtureRequest) -> Callable[[BundleInfo], Path]:
    """The tiny data folder that a bundle can be trained on."""
    return lambda info: request.getfixturevalue("tiny_flat_dataset" if info.flat else "tiny_dataset")


@pytest.fixture(scope="session")
def exported_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, BundleInfo], Path]:
    """Tiny bundles of every kind, by the first word of their names, and a folder of them all as ONNX."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra 'export' is not installed")
    from helpers_exports import write_all

    from ctseg.export.networks import export_bundle

    bundles, folder = write_all(tmp_path_factory.mktemp("to_export")), tmp_path_factory.mktemp("exported")
    for info in bundles.values():
        export_bundle(info, "onnx", folder)
    return bundles, folder


@pytest.fixture(scope="session")
def clean_environment(root: Path) -> dict[str, str]:
    """The environment of a child process that imports the library under test and shows no warning."""
    return {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONWARNINGS": "ignore", "PATH": _path()}


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
