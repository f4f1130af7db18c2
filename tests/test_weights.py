"""Weights are tensors, loaded strictly: everything else is refused with a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ctseg.errors import BundleError
from ctseg.weights import load_weights, read_weights


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


class Harmful:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1 / 0",))


def test_half_precision_and_checkpoints_are_taken(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in network().state_dict().items()}
    torch.save({"model": state, "optimizer": {}}, tmp_path / "w.pt")
    fresh = torch.nn.Linear(3, 2)
    load_weights(fresh, tmp_path / "w.pt")
    assert fresh.weight.dtype == torch.float32
    assert torch.equal(fresh.weight, network().weight.half().float())


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"weight": torch.zeros(2, 3)}, "Missing key"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "Unexpected key"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "size mismatch"),
    ],
)
def test_names_and_shapes_must_fit(tmp_path: Path, state: dict[str, torch.Tensor], found: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BundleError, match=found):
        load_weights(network(), tmp_path / "w.pt")


def test_an_empty_checkpoint_never_passes(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(BundleError, match="Missing key"):
        load_weights(network(), tmp_path / "w.pt")


def test_code_is_never_run(tmp_path: Path) -> None:
    torch.save(Harmful(), tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful()))
    torch.save(network(), tmp_path / "whole.pt")
    for name in ("model.pt", "plain.pt", "whole.pt"):
        with pytest.raises(BundleError, match="cannot be read as tensors"):
            read_weights(tmp_path / name)


def test_missing_and_garbage(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There are no weights"):
        read_weights(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(BundleError, match="cannot be read as tensors"):
        read_weights(tmp_path / "w.pt")
    torch.save({"a": 1}, tmp_path / "w.pt")
    with pytest.raises(BundleError, match="expected names and tensors"):
        read_weights(tmp_path / "w.pt")
