"""Runs the processes of the experiments' runner within the test's own process: no import of MONAI for each of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ctseg.experiments.runs as runs
from ctseg.ledger import Ledger

EXPERIMENT = """
experiment: {task: liver_ct, theirs: {iou: 0.9}}
window: [0, 255]
patch: [32, 32]
network_def: {_target_: monai.networks.nets.BasicUNet, spatial_dims: 2, out_channels: 1, features: [4, 4, 4, 4, 8, 4]}
loss: {_target_: ctseg.losses.make_loss, name: dice}
optimizer: {_target_: ctseg.optimisers.make_optimiser, name: adam, network: "@network", lr: 0.02}
epochs: 2
batch_size: 2
val_interval: 1
"""


class InProcess:
    """Stands in for `ctseg.experiments.runs._followed`; notes what was run, and can be told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.fail_at = 0
        monkeypatch.setattr(runs, "_followed", self)

    def __call__(self, command: Sequence[str], folder: Path, log: Any, begin: int, say: Any) -> int:
        import monai.bundle

        files = json.loads(command[-1].partition("=")[2].replace("'", '"'))
        self.told.append((Path(files[-1]).stem, json.loads(Path(files[-1]).read_text())))
        if self.fail_at == len(self.told):
            return -9
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                monai.bundle.run(config_file=files)
            except SystemExit as error:
                print(error, file=log, flush=True)
                return 1
        return 0

    @property
    def steps(self) -> list[str]:
        told, self.told = [f"{Path(s['ckpt_dir']).name} {what}" for what, s in self.told], []
        return told


def block_slices(folder: Path, patients: int, test: Sequence[str] = (), per_patient: int = 2) -> Path:
    """Write a data folder: patients p0, p1 ... of PNG slices of 32x32 with a bright block whose size grows."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    cases = []
    for number in range(patients * per_patient):
        label = np.zeros((32, 32), np.uint8)
        label[6 : 14 + number, 6:20] = 255
        image = np.where(label > 0, 200, 40) + rng.integers(0, 20, label.shape)
        names = {"image": f"image_{number}.png", "label": f"label_{number}.png"}
        Image.fromarray(image.astype(np.uint8)).save(folder / names["image"])
        Image.fromarray(label).save(folder / names["label"])
        cases.append({"case_id": f"c{number}", "patient": f"p{number // per_patient}", **names})
    content = {"mask_values": {"255": "liver"}, "slice_spacing": [1.5, 1.5, 5.0], "cases": cases}
    (folder / "datalist.json").write_text(json.dumps(content))
    given = {f"p{number}": "train" for number in range(patients)} | dict.fromkeys(test, "test")
    Ledger(folder / "split.csv").assign(given)
    return folder
