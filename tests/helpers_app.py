"""The MONAI Label app in this process, on tiny bundles and studies, with a predictor that builds no network."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_server import write_fake_bundle, write_phantom_ct

from ctseg.errors import InputError
from ctseg.registry import app_root
from ctseg.volume import Volume


@dataclass
class StubPredictor:
    """Marks a block of 2 x 3 x 4 voxels as label 1; counts how often it is made and whether calls overlap."""

    bundle: Any
    device: str
    runtime: str = "torch"
    find: Any = None
    busy: bool = field(default=False)
    made = []  # noqa: RUF012 - shared on purpose
    overlaps = []  # noqa: RUF012
    alive = []  # noqa: RUF012

    def __post_init__(self) -> None:
        self.made.append((self.bundle.name, self.device))
        self.alive.append(self)

    def predict(self, study: Any, progress: Any = None) -> Any:
        """Answer as `ctseg.prediction.Predictor` does, in 20 ms."""
        source = study.source
        if not str(source).endswith((".nii", ".nii.gz")):
            raise InputError(f"{source} is no image; expected a NIfTI")
        self.overlaps.append(any(one.busy for one in self.alive))
        self.busy = True
        time.sleep(0.02)
        image = nib.load(source)
        array = np.asarray(image.dataobj)
        volume = Volume(array, image.affine, image.affine, source, "nifti", image.header)
        label_map = np.zeros(array.shape, np.uint8)
        label_map[2:4, 3:6, 1:5] = 1
        self.busy = False
        seconds = {"read": 0.1, "preprocess": 0.2, "network": 0.4, "postprocess": 0.8}
        return SimpleNamespace(
            volume=volume,
            label_map=label_map,
            labels=self.bundle.labels,
            seconds=seconds,
            device="cpu",
            bundle=self.bundle,
            slices=None,
            quality={},
        )


@dataclass
class AppUnderTest:
    """The app and the folders that it works on."""

    app: Any
    bundles: Path
    studies: Path


def load_app_class() -> Any:
    """Return the app's class as MONAI Label finds it."""
    from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

    return get_class_of_subclass_from_file("main", str(app_root() / "main.py"), "MONAILabelApp")


def sibling(name: str) -> ModuleType:
    """Return a module beside the app's `main.py`."""
    load_app_class()
    return sys.modules[name]


def write_three_bundles(root: Path) -> Path:
    """Write two bundles with weights (one of two organs) and one without."""
    write_fake_bundle(root, "aaa_ct_segmentation", {"aaa": 1})
    write_fake_bundle(root, "pair_ct_segmentation", {"left thing": 1, "right thing": 2})
    write_fake_bundle(root, "new_ct_segmentation", {"new": 1}, trained=False)
    return root


def build_app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppUnderTest:
    """Make the app on three bundles and two CTs, with a secret CT beside the studies."""
    from monailabel.config import settings

    bundles = write_three_bundles(folder / "bundles")
    studies = folder / "studies"
    studies.mkdir()
    for number in (1, 2):
        write_phantom_ct(studies / f"case{number}.nii.gz", (12, 10, 6), seed=number)
    write_phantom_ct(folder / "secret.nii.gz", (12, 10, 6))
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
    app = load_app_class()(str(app_root()), str(studies), {"bundles": str(bundles)})
    monkeypatch.setattr("ctseg.prediction.Predictor", StubPredictor)
    StubPredictor.made.clear()
    StubPredictor.overlaps.clear()
    return AppUnderTest(app, bundles, studies)


@pytest.fixture(name="under_test")
def fixture_under_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppUnderTest:
    """The app with stub predictors, and its folders."""
    return build_app(tmp_path, monkeypatch)


@pytest.fixture(name="app")
def fixture_app(under_test: AppUnderTest) -> Any:
    """The app alone."""
    return under_test.app


@pytest.fixture(name="bundles")
def fixture_bundles(under_test: AppUnderTest) -> Path:
    """The folder of three bundles."""
    return under_test.bundles


@pytest.fixture(name="studies")
def fixture_studies(under_test: AppUnderTest) -> Path:
    """The folder of two CTs."""
    return under_test.studies
