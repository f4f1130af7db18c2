"""The golden set: masks of phantoms made the slow, plain way, which every fast way has to give again.

`python tests/helpers_golden.py --write` makes tests/golden/masks.npz anew, after a change that is meant to change
masks.
Only phantoms, no patient; bits only, no pickle.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden" / "masks.npz"
# Nothing skipped, nothing cut, nothing shared: every slice, whole, each by itself.
PLAIN: dict[str, Any] = {"gate": None, "region": None, "inferer#probe": 1, "inferer#batch_size": 1}
CASES = ("straight", "oblique_psr", "thick", "left_out")


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """HU and affine of a phantom: a body in air, an asymmetric organ, and one bright spot far from it."""
    from helpers_phantoms import oblique_affine, reoriented, straight_affine

    i, j, k = np.meshgrid(np.linspace(-1, 1, 44), np.linspace(-1, 1, 38), np.linspace(-1, 1, 60), indexing="ij")
    hu = np.full(i.shape, -1000.0)
    hu[i**2 / 0.8 + j**2 / 0.7 < 1] = 40
    organ = 260 - 400 * ((i + 0.35) ** 2 + (j - 0.15) ** 2 + 0.4 * (k - 0.3) ** 2 + 0.2 * i * k)
    hu = np.where((organ > 60) & (hu > 0), organ, hu)  # its border is soft: where it lies is a matter of interpolation
    if name != "left_out":
        hu[30:32, 20:22, 6] = 300
    spacing = {"thick": (4.0, 4.2, 5.0)}.get(name, (2.1, 2.3, 1.3))
    array = np.round(hu).astype(np.int16)
    if name == "oblique_psr":
        return reoriented(array, oblique_affine(spacing), "PSR")
    return array, straight_affine(spacing)


def bundles(folder: Path) -> Path:
    """Write two bundles that find what is bright, one of them gated by the other's classifier; return their folder."""
    import helpers_cascade as cascade
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        presence = {**cascade.TASKS["second_ct_presence"], "network": cascade.bright(True)}
        patch.setitem(cascade.TASKS, "second_ct_presence", presence)
        patch.setitem(cascade.TASKS, "organ_ct", {**cascade.TASKS["organ_ct"], "network": cascade.bright()})
        return cascade.write_cascade(
            folder, network=cascade.bright(), gate=cascade.PRESENCE, input_organs=[], organ_bundles={}
        )


def plain_masks(folder: Path) -> dict[str, np.ndarray]:
    """Return the mask (I, J, K) of each case, made the plain way in float32."""
    from helpers_cascade import SECOND
    from helpers_phantoms import write_nifti

    from ctseg.prediction import Predictor
    from ctseg.registry import get_bundle

    predictor = Predictor(get_bundle(SECOND, bundles(folder)), "cpu", PLAIN)
    return {name: predictor.predict(write_nifti(folder / f"{name}.nii.gz", *case(name))).label_map for name in CASES}


def read_golden() -> dict[str, np.ndarray]:
    """Return the golden masks, 0 and 1."""
    with np.load(GOLDEN, allow_pickle=False) as stored:
        return {
            name: np.unpackbits(stored[name])[: int(np.prod(stored[f"{name}_shape"]))].reshape(stored[f"{name}_shape"])
            for name in CASES
        }


def write_golden(masks: dict[str, np.ndarray]) -> None:
    """Replace the golden masks."""
    content: dict[str, Any] = {}
    for name, mask in masks.items():
        content[name], content[f"{name}_shape"] = np.packbits(mask > 0), np.array(mask.shape)
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **content)


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        write_golden(plain_masks(Path(scratch)))
    print(f"written: {GOLDEN}, {GOLDEN.stat().st_size} bytes; say in the changelog why the masks changed")
