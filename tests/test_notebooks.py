"""The notebooks, run cell by cell one after the other on phantoms, as somebody who changed their parameters would."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_folds import InProcess

from ctseg.registry import BundleInfo

NOTEBOOKS = ("1_data.py", "2_training.py", "3_folds.py", "4_prediction.py")


def cells(path: Path) -> Iterator[tuple[str, str]]:
    """The head and the code of each cell of a file in the percent format; text cells left out."""
    parts = re.split(r"^# %%(.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    assert not parts[0].strip(), "code before the first cell"
    for head, code in zip(parts[1::2], parts[2::2], strict=True):
        if "[markdown]" in head:
            assert all(not line or line.startswith("#") for line in code.splitlines()), f"{path}: code in a text cell"
        else:
            yield head, code


def run_notebook(path: Path, **parameters: Any) -> dict[str, Any]:
    """Run a notebook with other parameters, each of which it must have."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for head, code in cells(path):
        exec(compile(code, str(path), "exec"), names)
        if "parameters" in head:
            assert set(parameters) <= set(names)
            names |= parameters
    return names


@pytest.fixture
def source(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny data set as somebody has it: images beside labels."""
    for number in range(6):
        for kind in ("image", "label"):
            (tmp_path / "source" / f"{kind}s").mkdir(parents=True, exist_ok=True)
            target = tmp_path / "source" / f"{kind}s" / f"p{number}.nii.gz"
            shutil.copy(tiny_dataset / f"{kind}_{number}.nii.gz", target)
    return tmp_path / "source"


def test_every_notebook_is_tested(root: Path) -> None:
    assert tuple(sorted(path.name for path in (root / "notebooks").glob("*.py"))) == NOTEBOOKS


def test_from_data_to_a_prediction(
    root: Path, source: Path, tmp_path: Path, phantom_bundle: BundleInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    matplotlib.use("agg")
    InProcess(monkeypatch)  # the folds' trainings in this process: no import of MONAI for each of them
    folder, task = root / "notebooks", str(phantom_bundle.path)
    data, run, folds = tmp_path / "data", tmp_path / "run", tmp_path / "folds"
    labels = {name: value for name, value in zip(phantom_bundle.labels, (1, 4), strict=True)}
    quick = {"epochs": 1, "val_interval": 1, "num_workers": 0, "tracking": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = run_notebook(folder / "1_data.py", SOURCE=source, TASK=task, LABELS=labels, DATA=data)
        assert len(told["listed"]["cases"]) == 6 and (data / "split.csv").is_file()
        run_notebook(folder / "2_training.py", TASK=task, DATA=data, RUN=run, DEVICE="cpu", SETTINGS=quick)
        assert (run / "model.pt").is_file()
        more = ["--device", "cpu", "--epochs", "1", "--set", "val_interval=1", "--set", "num_workers=0"]
        told = run_notebook(folder / "3_folds.py", TASK=task, DATA=data, FOLDS=folds, K=2, MORE=more)
        assert told["summary"]
        ensemble = next((folds / "ensemble").iterdir())
        image = source / "images" / "p0.nii.gz"
        found = run_notebook(folder / "4_prediction.py", IMAGE=image, TASK=ensemble, OUT=tmp_path / "out")["found"]
    mask = nib.load(tmp_path / "out" / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), found.mask) and mask.shape == nib.load(image).shape
