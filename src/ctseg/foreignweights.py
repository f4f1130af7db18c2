"""Weights as other programs save them: read without running any code, and brought to a network's own names."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, InputError

if TYPE_CHECKING:
    import torch

PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.")  # of DataParallel, Lightning, torch.compile ...
PARTS = ("state_dict", "model_state_dict", "model", "network", "weights")  # of checkpoints with several parts
_DEEPEST = 3  # prefixes one inside another
_SHOWN = 3
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Foreign:
    """Tensors as a file names them.

    Attributes:
        weights: name -> tensor.
        words: what the file says about itself, one short phrase each.
    """

    weights: dict[str, torch.Tensor]
    words: tuple[str, ...]


def read_foreign(path: Path) -> Foreign:
    """Read a state dict, a checkpoint that has one as a part (Lightning's, too), or a safetensors file.

    Raises:
        InputError: missing, broken, a whole pickled model, or no names with tensors.
    """
    import torch

    if not path.is_file():
        raise InputError(f"there is no file {path}; name a state_dict, a .safetensors or a .ckpt")
    content, words = _safetensors(path) if path.suffix.lower() == ".safetensors" else (_torch_file(path), [])
    if isinstance(content, Mapping):
        part = next((part for part in PARTS if isinstance(content.get(part), Mapping)), None)
        if part is not None:
            words += [f"{key} {content[key]}" for key in ("pytorch-lightning_version", "epoch") if key in content]
            words.append(f"its part {part!r}")
            content = content[part]
    names = list(content) if isinstance(content, Mapping) else []
    if not names or not all(isinstance(name, str) and isinstance(content[name], torch.Tensor) for name in names):
        raise InputError(
            f"{path} holds a {type(content).__name__} that is no state_dict, expected names with tensors; where the "
            "model was made, run torch.save(model.state_dict(), 'weights.pt') and give weights.pt"
        )
    return Foreign(dict(content), tuple(words))


def fit_weights(foreign: Foreign, expected: Mapping[str, torch.Tensor], what: str) -> Foreign:
    """Bring foreign names to the network's: a prefix that all of its names share in the file is taken off.

    Args:
        foreign: as read.
        expected: the network's own state dict.
        what: the file and the bundle, for the sentence.

    Returns:
        Exactly the names, shapes and types of `expected`, and the words with what was done.

    Raises:
        BundleError: names or shapes differ, or a value is not finite.
    """
    import torch

    prefix = max(_prefixes(), key=lambda prefix: sum(f"{prefix}{name}" in foreign.weights for name in expected))
    found = {name: foreign.weights[prefix + name] for name in expected if prefix + name in foreign.weights}
    words = list(foreign.words)
    if prefix:
        words.append(f"the prefix {prefix!r} was taken off {len(found)} names")
    other = [name for name in foreign.weights if not name.startswith(prefix)]
    if other:
        words.append(f"{len(other)} tensors outside the network were left out ({_some(other)})")
    counters = [name for name in expected if name not in found and name.endswith(_COUNTER)]
    missing = [name for name in expected if name not in found and name not in counters]
    more = [n for n in foreign.weights if n.startswith(prefix) and n[len(prefix) :] not in expected]
    shapes = [
        f"{name}: found {_shape(tensor)}, expected {_shape(expected[name])}"
        for name, tensor in found.items()
        if tensor.shape != expected[name].shape
    ]
    parts = ((missing, "names are missing"), (more, "names are not known"), (shapes, "shapes differ"))
    problems = [f"{len(names)} {said} ({_some(names)})" for names, said in parts if names]
    if problems:
        raise BundleError(
            f"{what} do not fit: {'; '.join(problems)}; take weights of the same network, or describe theirs in a task "
            "of your own"
        )
    if counters:
        words.append(f"{len(counters)} counters of batches, which inference does not need, were set to 0")
    fitted = {name: found.get(name, torch.zeros_like(value)).to(value.dtype) for name, value in expected.items()}
    broken = [name for name, value in fitted.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise BundleError(
            f"{what} cannot be used: {_some(broken)} hold values that are not finite; train or fetch anew"
        )
    return Foreign({name: value.detach().cpu().contiguous().clone() for name, value in fitted.items()}, tuple(words))


def _torch_file(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts the pickle protocol of what is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError) as error:
        script = "TorchScript" in str(error)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not script and not named:
            raise InputError(
                f"{path} cannot be read as weights ({type(error).__name__}): it is damaged or no file of PyTorch; "
                "copy it again, or name a state_dict, a .safetensors or a .ckpt"
            ) from error
        found = (
            "a TorchScript program"
            if script
            else f"a whole pickled model or other Python objects ({named and named[1]})"
        )
        how = "torch.jit.load(path)" if script else "torch.load(path, weights_only=False)"
        inner = '["state_dict"]' if path.suffix.lower() == ".ckpt" else ".state_dict()"
        raise InputError(
            f"{path} holds {found}, whose code would run when it is opened, so it is refused: where it was made, run "
            f"torch.save({how}{inner}, 'weights.pt') and give weights.pt"
        ) from error


def _safetensors(path: Path) -> tuple[Any, list[str]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(path), [f"{key} {metadata[key]}" for key in ("version", "format") if key in metadata]
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); copy it again") from error


def _prefixes() -> list[str]:
    """Every chain of known prefixes, the empty one first, so that it wins when nothing fits."""
    chains, longest = [""], [""]
    for _ in range(_DEEPEST):
        longest = [outer + inner for outer in longest for inner in PREFIXES]
        chains += longest
    return chains


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
