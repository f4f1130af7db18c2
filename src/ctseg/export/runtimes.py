"""What runs a bundle's network: PyTorch, or ONNX Runtime or OpenVINO on the file that `ctseg export` made.

"auto" follows a record that `scripts/benchmark_runtimes` wrote on this kind of processor, and is PyTorch without one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, ConfigError
from ctseg.files import file_sha256, write_beside
from ctseg.light.described import SUFFIXES, Exported, read_exported
from ctseg.light.sessions import FORMATS, PACKAGES, Session, is_installed, version_of
from ctseg.registry import BundleInfo

if TYPE_CHECKING:
    from torch import nn

RUNTIMES = ("torch", *FORMATS, "auto")
RECORD = "runtimes.json"
RECORD_SCHEMA = "ctseg-runtimes/1"
# Another runtime is worth its trouble from this gain on, and only where its masks are the same but for rounding.
WORTH = 1.1
SAME_DICE = 0.999


def export_folder(bundle: BundleInfo) -> Path:
    """The folder in which a bundle's exports are looked for: `models`, beside its weights."""
    return bundle.path / "models"


def exported_for(bundle: BundleInfo, runtime: str) -> Exported:
    """Return a bundle's export for a runtime, checked: made of these weights and this network, and not changed since.

    Raises:
        ConfigError: the runtime is not installed.
        BundleError: there is no such export, or it is another network's.
    """
    if not is_installed(runtime):
        raise ConfigError(
            f"the runtime {runtime} needs the package {PACKAGES[runtime]}, which is not installed: run scripts/setup "
            "export, or leave --runtime out"
        )
    command = f"ctseg export {bundle.name} --format {FORMATS[runtime]}"
    file = export_folder(bundle) / f"{bundle.name}{SUFFIXES[FORMATS[runtime]]}"
    if not file.is_file():
        raise BundleError(f"bundle {bundle.name} has not been exported for {runtime}: run {command} first")
    found = read_exported(file)
    if found.problem:
        raise BundleError(f"{found.problem}; make it again with {command}")
    for key, now in (("weights_sha256", weights_sha256(bundle)), ("network_sha256", network_sha256(bundle))):
        if found.told.get(key) != now:
            raise BundleError(
                f"{file.name} was made of another network than bundle {bundle.name} has now ({key} differs): "
                f"make it again with {command}"
            )
    return found


def weights_sha256(bundle: BundleInfo) -> str | None:
    """The sha256 of a bundle's weights as they are now; None for a bundle that needs none."""
    return file_sha256(bundle.weights) if bundle.weights is not None and bundle.weights.is_file() else None


def network_sha256(bundle: BundleInfo) -> str:
    """The sha256 of what a bundle's `inference.json` says of its network.

    Raises:
        BundleError: the file cannot be read.
    """
    file = bundle.path / "configs" / "inference.json"
    try:
        network = json.loads(file.read_text(encoding="utf-8")).get("network_def")
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}); make it again with scripts/build_bundles") from error
    return hashlib.sha256(json.dumps(network, sort_keys=True).encode()).hexdigest()


def chosen_runtime(bundle: BundleInfo, asked: str, device: str) -> str:
    """Return "torch", "onnx" or "openvino" for what was asked.

    Args:
        bundle: the bundle that is to run.
        asked: one of `RUNTIMES`; "auto" takes what the record beside the bundle's weights says, where it was measured
            on this processor and with this export, else "torch".
        device: where the network runs; other runtimes than torch know the processor only.

    Raises:
        ConfigError: an unknown runtime, one that is not installed, or one that cannot run on the device.
        BundleError: the bundle was not exported for it.
    """
    if asked not in RUNTIMES:
        raise ConfigError(f"there is no runtime {asked!r}: expected one of {', '.join(RUNTIMES)}")
    if asked == "torch":
        return "torch"
    if asked == "auto":
        return _recorded(bundle) if device == "cpu" else "torch"
    if device != "cpu":
        raise ConfigError(f"the runtime {asked} runs on the processor, not on {device}: add --device cpu")
    exported_for(bundle, asked)
    return asked


def runtime_network(bundle: BundleInfo, runtime: str) -> nn.Module:
    """Return a network that runs in another runtime than PyTorch, and is called as the bundle's own is.

    Raises:
        ConfigError, BundleError: as `exported_for`.
    """
    import torch

    from ctseg.export.runtimenetwork import RuntimeNetwork

    exported = exported_for(bundle, runtime)
    return RuntimeNetwork(Session(exported.file, runtime, torch.get_num_threads())).eval()


def processor() -> str:
    """The processor's name, for which a measurement holds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]}, {len(named)} cores" if named else platform.machine()


def best_runtime(measured: dict[str, dict[str, Any]]) -> str:
    """The rule: the fastest of those with masks as PyTorch's, if it is faster by a tenth; else PyTorch.

    Args:
        measured: runtime -> `seconds`, and `dice` with PyTorch's mask.
    """
    torch_seconds = float(measured["torch"]["seconds"])
    fit = {
        name: float(one["seconds"])
        for name, one in measured.items()
        if name != "torch" and float(one["dice"]) >= SAME_DICE and float(one["seconds"]) * WORTH <= torch_seconds
    }
    return min(fit, key=lambda name: fit[name]) if fit else "torch"


def write_record(bundle: BundleInfo, measured: dict[str, dict[str, Any]]) -> Path:
    """Write beside a bundle's weights what was measured, and which runtime "auto" takes here from now on.

    Raises:
        OutputError: the file cannot be written.
    """
    record = {
        "schema": RECORD_SCHEMA,
        "processor": processor(),
        "versions": {name: version_of(name) for name in measured},
        "weights_sha256": weights_sha256(bundle),
        "measured": measured,
        "chosen": best_runtime(measured),
    }
    path = export_folder(bundle) / RECORD
    write_beside(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


def _recorded(bundle: BundleInfo) -> str:
    try:
        record = json.loads((export_folder(bundle) / RECORD).read_text(encoding="utf-8"))
        chosen = str(record["chosen"])
        same = record["schema"] == RECORD_SCHEMA and record["processor"] == processor()
        same = same and record["weights_sha256"] == weights_sha256(bundle)
        same = same and all(version_of(name) == version for name, version in record["versions"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "torch"
    if not same or chosen not in FORMATS:
        return "torch"
    try:
        exported_for(bundle, chosen)
    except (BundleError, ConfigError):
        return "torch"
    return chosen
