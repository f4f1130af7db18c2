"""Trainings of heads for real, tiny: folds of a plane that never see who is held out, and a fusion that is learnt."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_folds import InProcess
from helpers_heads import head
from helpers_phantoms import write_nifti
from scipy.optimize import minimize
from test_aspects_bundle import tiny, weights_of

from ctseg.cli import main
from ctseg.datalist import cases_of
from ctseg.folds.dealing import folds_of, read_folds_file
from ctseg.ledger import Ledger
from ctseg.planes.fusion import fit
from ctseg.weights import read_weights

AFFINE = np.array([[-6.0, 0, 0, 110.0], [0, -6.0, 0, 105.0], [0, 0, 8.0, -70.0], [0, 0, 0, 1]])  # LPS order, mm
SHAPE = (37, 36, 23)
# Two heads of each of four patients, of whom t is the test.
PATIENTS = ("a", "b", "c", "t")


def heads(folder: Path) -> Path:
    """A data folder; the labels are balls of caudate_left and caudate_right. The test patient's files are no images."""
    folder.mkdir(parents=True)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3] - np.array((4.0, 3.0, 2.0))
    cases = []
    for number, patient in enumerate(sorted(PATIENTS * 2)):
        name = f"{patient}{number}"
        image = head(affine=AFFINE, shape=SHAPE, lesion=False, noise=1 + number)[0]
        left, right = (np.linalg.norm(world - (side * 30, 10, 10), axis=-1) < 20 for side in (-1, 1))
        write_nifti(folder / f"{name}.nii.gz", image, AFFINE)
        write_nifti(folder / f"{name}-seg.nii.gz", (left * 1 + right * 11).astype(np.uint8), AFFINE)
        if patient == "t":
            (folder / f"{name}.nii.gz").write_bytes(b"whoever reads this fails")
        cases.append({"case_id": name, "patient": patient, "image": f"{name}.nii.gz", "label": f"{name}-seg.nii.gz"})
    values = {"1": "caudate_left", "11": "caudate_right"}
    (folder / "datalist.json").write_text(json.dumps({"mask_values": values, "cases": cases}))
    given = dict.fromkeys("ab", "train") | {"c": "validation", "t": "test"}
    Ledger(folder / "split.csv").assign(given)
    return folder


class Hiding(InProcess):
    """Takes the held-out patients' files away while a fold trains; nothing is measured (tests/test_folds.py does)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: Path, out: Path) -> None:
        super().__init__(monkeypatch)
        self.data, self.out, self.hidden = data, out, 0

    def __call__(self, command: Sequence[str], folder: Path, log: Any, begin: int, say: Any) -> int:
        settings = json.loads(Path(json.loads(command[-1].partition("=")[2].replace("'", '"'))[-1]).read_text())
        fold = next(one for one in folds_of(read_folds_file(self.out)) if one.name == folder.name)
        if "split" in settings:
            (folder / "evaluation").mkdir()
            (folder / "evaluation" / "dice.json").write_text(json.dumps({"mean": 0.5, "patients": 1}))
            return 0
        files = [file for patient in fold.held_out for file in self.data.glob(f"{patient}*.nii.gz")]
        for file in files:
            file.rename(file.with_suffix(".away"))
        try:
            return super().__call__(command, folder, log, begin, say)
        finally:
            self.hidden += len(files)
            for file in files:
                file.with_suffix(".away").rename(file)


def test_no_slice_of_a_held_out_or_test_patient_is_trained_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave one patient out over slices: the files of the held-out patient are not even there while its fold trains."""
    data, out = heads(tmp_path / "data"), tmp_path / "runs"
    bundle = tiny(root, tmp_path, "aspects_plane_ct")
    processes = Hiding(monkeypatch, data, out)
    command = ["folds", str(bundle.path), "--data", str(data), "--leave-one-out", "--out", str(out), "--fold", "1"]
    command += ["--device", "cpu", "--epochs", "1", "--set", "num_workers=0", "--set", "plane=sagittal"]
    assert main([*command, "--set", "val_interval=1"]) == 0
    assert processes.hidden == 4, "two heads and their labels"
    folds = folds_of(read_folds_file(out))
    assert sorted(fold.held_out for fold in folds) == [("a",), ("b",), ("c",)]
    trained = cases_of("train", out / "data" / "fold_1")
    assert {case["patient"] for case in trained} == set(folds[0].training) and len(trained) == 2
    run = out / "aspects_plane_ct" / "fold_1"
    (row,) = csv.DictReader((run / "history.csv").read_text().splitlines())
    for name in ("cross_entropy", "dice", "tversky"):  # beside the loss that is trained on
        assert float(row[f"train_{name}_loss"]) > 0 and float(row[f"val_{name}_loss"]) > 0


def test_a_fusion_is_learnt_from_trained_planes_in_one_command(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = heads(tmp_path / "data")
    plane, volume = (tiny(root, tmp_path, task) for task in ("aspects_plane_ct", "aspects_ct"))
    files = [weights_of(plane, tmp_path / name / "model.pt", n) for n, name in enumerate(("axial", "coronal", "sag"))]
    command = ["join-planes", *map(str, files), "-o", str(tmp_path / "joined"), "--device", "cpu", "--data", str(data)]
    command += ["--plane-task", str(plane.path), "--task", str(volume.path)]
    assert main(command) == 2 and "learns nothing" in capsys.readouterr().err
    assert main([*command, "--fusion", "learned"]) == 0
    assert "case 2 of 2: c5" in capsys.readouterr().err, "the validation patient, and nobody else"
    stored = read_weights(tmp_path / "joined" / "models" / "model.pt")
    assert stored["weights"].shape == (3, 21) and stored["weights"].abs().max() > 0.01
    assert stored["weights"].isfinite().all()
    for name, file in zip(("axial", "coronal", "sagittal"), files, strict=True):
        for key, tensor in read_weights(file).items():
            assert torch.equal(stored[f"planes.{name}.{key}"], tensor)
    train = json.loads((tmp_path / "joined" / "configs" / "train.json").read_text())
    assert train["pretrained"] == "$@bundle_root + '/models/model.pt'" and train["network_def"]["freeze_planes"]


def test_the_fit_is_the_best_by_another_optimiser() -> None:
    """Two planes, two classes, made-up shares; SciPy's simplex on the formula finds the same weights."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    certain = np.clip(np.where(truth == 1, 0.65, 0.3) + rng.normal(0, 0.2, 400), 0.02, 0.98)
    doubtful = np.clip(np.where(truth == 1, 0.55, 0.5) + rng.normal(0, 0.2, 400), 0.02, 0.98)
    shares = np.stack([np.stack([1 - one, one]) for one in (certain, doubtful)])

    def loss(flat: np.ndarray) -> float:
        weights = np.exp(flat.reshape(2, 2)) / np.exp(flat.reshape(2, 2)).sum(axis=0)
        mixed = (shares * weights[..., None]).sum(axis=0)
        return float(-np.log((mixed / mixed.sum(axis=0))[truth, np.arange(400)]).mean() + 1e-4 * (flat**2).sum())

    by_hand = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9})
    found = fit(torch.tensor(shares, dtype=torch.float32), torch.tensor(truth)).numpy()
    assert loss(found.ravel()) == pytest.approx(by_hand.fun, abs=1e-5)
    assert found[0].min() > found[1].max(), "the certain plane counts more"
