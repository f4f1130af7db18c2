"""A tiny bundle folder for tests: real metadata keys, made-up values, no network in it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

WEIGHTS = b"not a network, only bytes to hash"

METADATA: dict[str, Any] = {
    "version": "0.3.0",
    "description": "A made-up bundle.",
    "network_data_format": {"outputs": {"pred": {"format": "segmentation"}}},
    "ctseg": {
        "task": "liver_ct",
        "kind": "slicewise",
        "modality": "CT",
        "labels": [
            {"name": "spleen", "code": 3, "color": [157, 108, 162], "snomed": {"value": "78961009"}},
            {"name": "liver", "code": 1, "color": [221, 130, 101], "snomed": {"value": "10200004"}},
        ],
        "evidence": "none: untrained",
        "licence": {"code": "Apache-2.0", "weights": "CC-BY-SA-4.0"},
        "weights": None,
    },
}


def make_bundle(root: Path, name: str = "liver_ct_segmentation", weights: bytes | None = WEIGHTS, **block: Any) -> Path:
    """Write `root/name` and return it; `weights` None leaves it untrained, `block` replaces keys of the ctseg block."""
    metadata = copy.deepcopy(METADATA)
    folder = root / name
    (folder / "configs").mkdir(parents=True)
    if weights is not None:
        (folder / "models").mkdir()
        (folder / "models" / "model.pt").write_bytes(weights)
        metadata["ctseg"]["weights"] = {"file": "models/model.pt", "sha256": hashlib.sha256(weights).hexdigest()}
        metadata["ctseg"]["evidence"] = "Dice 0.5 on 2 made-up patients"
    metadata["ctseg"].update(block)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder
