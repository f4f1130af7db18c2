"""Weights from elsewhere: tensors whose names and shapes fit are taken, everything else is refused with a way out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from helpers_bundles import make_bundle

from ctseg.cli import main
from ctseg.errors import BundleError, InputError
from ctseg.foreignweights import fit_weights, read_foreign
from ctseg.registry import get_bundle, verify_weights
from ctseg.weights import read_weights

NETWORK = {"_target_": "torch.nn.BatchNorm1d", "num_features": 3}


class Whole(torch.nn.Linear):
    """A network of one's own, which a pickle names by its class."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = make_bundle(tmp_path / "bundles", weights=None, task="tiny")
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": NETWORK}))
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata["changelog"] = {"0.3.0": "made up"}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def state(prefix: str = "") -> dict[str, torch.Tensor]:
    network = torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return {prefix + name: value for name, value in network.state_dict().items()}


def test_lightning_checkpoint_into_a_copy(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, copy = tmp_path / "theirs.ckpt", tmp_path / "copy"
    content = {**state("model.module."), "loss.weight": torch.ones(2)}
    torch.save({"state_dict": content, "pytorch-lightning_version": "2.1.0", "epoch": 7, "optimizer_states": []}, file)
    command = ["import-weights", str(file), "--task", str(bundle), "-o", str(copy), "--note", "from a friend"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "the prefix 'model.module.' was taken off 5 names" in said and "1 tensors outside" in said
    info = get_bundle(copy)
    assert torch.equal(read_weights(verify_weights(info))["weight"], torch.tensor([1.0, 2.0, 3.0]))
    assert info.version == "0.3.0+own.1" and info.trained and info.evidence.startswith("none: weights from elsewhere")
    line = info.metadata["changelog"]["0.3.0+own.1"]
    assert "theirs.ckpt" in line and "pytorch-lightning_version 2.1.0" in line and "from a friend" in line
    assert info.licence["weights"] == "unknown"
    assert not (bundle / "models").exists()  # the bundle itself is untouched
    assert main(command) == 2 and "--replace" in capsys.readouterr().err
    assert main([*command, "--replace", "--licence", "MIT"]) == 0
    assert get_bundle(copy).version == "0.3.0+own.2" and get_bundle(copy).licence["weights"] == "MIT"


def test_shipped_bundles_are_not_written_to(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ctseg.importing.bundles_root", lambda: bundle.parent)
    torch.save(state(), tmp_path / "w.pt")
    command = ["import-weights", str(tmp_path / "w.pt"), "--task", str(bundle)]
    assert main(command) == 2 and "ships with ctseg" in capsys.readouterr().err
    assert not (bundle / "models").exists()
    assert main([*command, "--replace"]) == 0 and (bundle / "models" / "model.pt").is_file()


def test_plain_and_safetensors_and_older_norms(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    expected = state()
    torch.save(expected, tmp_path / "w.pt")
    save_file(expected, tmp_path / "w.safetensors", metadata={"version": "1.4"})
    for name in ("w.pt", "w.safetensors"):
        fitted = fit_weights(read_foreign(tmp_path / name), expected, name)
        assert all(torch.equal(fitted.weights[key], value) for key, value in expected.items())
    assert fitted.words == ("version 1.4",)
    old = {name: value.double() for name, value in expected.items() if name != "num_batches_tracked"}
    torch.save({"model_state_dict": old}, tmp_path / "w.pt")
    fitted = fit_weights(read_foreign(tmp_path / "w.pt"), expected, "w")
    assert fitted.weights["weight"].dtype == torch.float32 and "counters" in fitted.words[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(4)}, "1 shapes differ (weight: found 4, expected 3)"),
        ({"more": torch.zeros(1)}, "1 names are not known (module.more)"),
        ({"weight": None}, "1 names are missing (weight)"),
        ({"weight": torch.tensor([1.0, float("nan"), 1.0])}, "not finite"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: dict[str, torch.Tensor | None], words: str) -> None:
    content = {name: value for name, value in {**state("module."), **_prefixed(change)}.items() if value is not None}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BundleError) as caught:
        fit_weights(read_foreign(tmp_path / "w.pt"), state(), "w")
    assert words in str(caught.value)


def _prefixed(change: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    return {f"module.{name}": value for name, value in change.items()}


def test_a_whole_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(Whole(2, 2), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"whole pickled model.*Whole.*\.state_dict\(\), 'weights\.pt'\)"):
        read_foreign(tmp_path / "w.pt")
    torch.save({"state_dict": state(), "hyper_parameters": {"net": Whole(1, 1)}}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r'\["state_dict"\], \'weights\.pt\'\)'):
        read_foreign(tmp_path / "w.ckpt")
    (tmp_path / "w.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(InputError):
        read_foreign(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02"])
def test_what_is_no_weights_file(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_foreign(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list that is no state_dict"):
        read_foreign(tmp_path / "list.pt")
    with pytest.raises(InputError, match="there is no file"):
        read_foreign(tmp_path / "none.pt")
