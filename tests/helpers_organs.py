"""Two organs that overlap, found exactly: `shell` by a rule, `core` by a network of one convolution set by hand.

`phantom_hu` has blocks of 80, 150 and 220 HU: the rule marks 50 to 180, the network everything from 120 on, so the
block of 150 HU belongs to both. `write_moved_bundle` adds one whose mask lies a pixel further to the patient's left.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import yaml
from helpers_phantoms import write_nifti
from helpers_server import add_weights, write_fake_bundle
from numpy.typing import NDArray

from ctseg.building import build_bundle
from ctseg.files import write_beside

ROOT = Path(__file__).resolve().parent.parent
COMPOSITE = "trunk_ct_segmentation"
SHELL, CORE = 3, 7  # the bundles' own codes
SPACING = (1.5, 1.5, 3.0)  # the network's own, so that nothing is resampled
TASK = {  # what every task file has to say
    "version": "0.1.0",
    "changelog": {"0.1.0": "for tests"},
    "authors": "the ctseg authors",
    "copyright": "Copyright (c) the ctseg authors",
    "intended_use": "Tests.",
    "modality": "CT",
    "data": {"source": "phantoms", "licence": "Apache-2.0"},
    "licence": {"code": "Apache-2.0", "weights": "Apache-2.0"},
    "evidence": "none: a test",
    "weights": None,
}
_RULE = {"base": "threshold", "threshold": [50, 180], "min_ml": 0.0}
_NETWORK = {
    "base": "slicewise",
    "window": [0, 240],
    "spacing": list(SPACING),
    "thick_slices": 2.5,
    "patch": [32, 32],
    "divisor": 1,
    "network": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
    "loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.001},
    "epochs": 1,
    "batch_size": 1,
}


def _build(root: Path, name: str, code: int, color: tuple[int, int, int], snomed: str, values: dict) -> Path:
    bundle = f"{name}_ct_segmentation"
    label = {"name": name, "code": code, "color": list(color), "snomed": {"value": snomed, "meaning": name}}
    task = {
        **TASK,
        "part_of": [COMPOSITE],
        **values,
        "bundle": bundle,
        "labels": [label],
        "description": f"Segments {name}.",
    }
    file = root / f"{name}_ct.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(task))
    for path, text in build_bundle(file, ROOT / "configs" / "base").items():
        write_beside(root / bundle / path, text.encode())
    file.unlink()
    return root / bundle


def _weights(kernel: int = 1, place: tuple[int, int] = (0, 0)) -> bytes:
    """A state_dict: the logit is 1000 (x - 0.5), x is HU / 240 at `place` of the kernel: 120 HU is the border."""
    import torch

    weight = torch.zeros((1, 1, kernel, kernel))
    weight[(0, 0, *place)] = 1000.0
    content = io.BytesIO()
    torch.save({"weight": weight, "bias": torch.tensor([-500.0 + 1e-3])}, content)
    return content.getvalue()


def write_moved_bundle(root: Path) -> Path:
    """Write a bundle whose mask is that of `core`, moved by one pixel (1.5 mm) to the patient's left.

    The network sees slices in LPS order, so its first axis grows to the left, and it looks at the pixel before.
    """
    network = {**_NETWORK["network"], "kernel_size": 3, "padding": 1}
    bundle = _build(root, "moved", 9, (40, 200, 40), "78961009", {**_NETWORK, "network": network})
    (bundle / "models").mkdir()
    add_weights(bundle, _weights(3, (0, 1)))
    return bundle


def write_guided_bundle(root: Path) -> Path:
    """Write a bundle that takes the mask of `core` as its second channel and marks just that."""
    import torch

    network = {**_NETWORK["network"], "in_channels": 2}
    needs = {"input_organs": ["core"], "organ_bundles": {"core": "core_ct_segmentation"}}
    bundle = _build(root, "guided", 5, (200, 200, 40), "78961009", {**_NETWORK, **needs, "network": network})
    content = io.BytesIO()
    weight = torch.tensor([0.0, 1000.0]).reshape(1, 2, 1, 1)
    torch.save({"weight": weight, "bias": torch.tensor([-500.0])}, content)
    (bundle / "models").mkdir()
    add_weights(bundle, content.getvalue())
    return bundle


def write_organ_bundles(root: Path) -> Path:
    """Write the two bundles, one of `core` and more that is untrained, and a classifier of `core` and `spare`."""
    _build(root, "shell", SHELL, (200, 40, 40), "10200004", _RULE)
    core = _build(root, "core", CORE, (40, 40, 200), "28231008", _NETWORK)
    (core / "models").mkdir()
    add_weights(core, _weights())
    write_fake_bundle(root, "many_ct_segmentation", {"core": 1, "later": 2}, trained=False)
    classifier = write_fake_bundle(root, "core_ct_classification", {"core": 1, "spare": 2})
    file = classifier / "configs" / "metadata.json"
    file.write_text(file.read_text().replace('{"format": "segmentation"}', '{"format": "classification"}'))
    return root


def phantom_hu(seed: int = 0) -> NDArray[np.int16]:
    """CT of (30, 26, 12) voxels: air, tissue of 20 HU, and three blocks in a row that no turn maps on itself."""
    ct = np.full((30, 26, 12), -1000, np.int16)
    ct[2:28, 2:24] = 20
    ct[5 : 13 + seed, 6:16, 2:10] = 80
    ct[13 + seed : 19, 6:14, 2:10] = 150
    ct[19:25, 8:14, 3:10] = 220
    return ct


def expected_shell(ct: NDArray[np.int16]) -> NDArray[np.bool_]:
    """What the rule marks."""
    return (ct >= 50) & (ct <= 180)


def expected_core(ct: NDArray[np.int16]) -> NDArray[np.bool_]:
    """What the network marks."""
    return ct >= 120


def expected_mask(ct: NDArray[np.int16], *organs: tuple[str, int]) -> NDArray[np.uint8]:
    """The merged mask: names and codes, the first wins."""
    marked = {"shell": expected_shell(ct), "core": expected_core(ct)}
    mask = np.zeros(ct.shape, np.uint8)
    for name, code in reversed(organs):
        mask[marked[name]] = code
    return mask


def lps_affine() -> NDArray[np.float64]:
    """RAS affine of an array stored in LPS order at the network's spacing."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (21.5, 30.25, -140.0)
    return affine


def write_phantom(path: Path, seed: int = 0) -> Path:
    """Write the phantom as NIfTI."""
    return write_nifti(path, phantom_hu(seed), lps_affine())
