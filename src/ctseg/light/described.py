"""The JSON beside an exported network: all that running it needs, read and judged without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.bundlechecks import problem_with
from ctseg.errors import BundleError
from ctseg.files import file_sha256
from ctseg.registry import BundleInfo

SCHEMA = "ctseg-export/1"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".ts"}
_OWN: dict[str, Any] = {  # of a user's own description, where it says nothing
    "task": "",
    "kind": "own",
    "modality": "CT",
    "evidence": "none: a network of your own, not measured",
    "licence": {},
}


@dataclass(frozen=True)
class Exported:
    """A network in a file, and what its description says.

    Attributes:
        file: the network's file.
        told: the parsed description; empty when `problem` is set.
        sha256: of the network's file, as it is now.
        problem: one sentence when it cannot be used, else "".
    """

    file: Path
    told: Mapping[str, Any] = field(repr=False)
    sha256: str
    problem: str = ""

    @property
    def name(self) -> str:
        """The file's name without its ending, e.g. `liver_ct_segmentation`."""
        return self.file.stem

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The preprocessing, step by step (`ctseg.light.preparing`)."""
        return list(self.told.get("preprocessing", ()))

    @property
    def info(self) -> BundleInfo:
        """What lists and requests need to know, as if it were a bundle; it needs no weights beside its file."""
        metadata = dict(self.told.get("metadata", {}))
        block = {key: value for key, value in metadata.get("ctseg", {}).items() if key != "quality"}
        metadata["ctseg"] = {**block, "weights": None, "needs_weights": False}
        return BundleInfo(self.file.with_suffix(""), metadata, self.problem)

    @property
    def answer(self) -> str:
        """ "segmentation" or "classification"."""
        return "classification" if self.info.classifies else "segmentation"


def description_of(file: Path) -> Path:
    """Return the path of the description beside a network's file: the same name with `.json` added."""
    return file.with_name(file.name + ".json")


def read_exported(file: Path) -> Exported:
    """Read an exported network's description and take its file's checksum; what is wrong goes into `problem`."""
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        return Exported(file, {}, "", f"{file.name} cannot be read ({error.strerror}); check its rights")
    beside = description_of(file)
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Exported(file, {}, sha256, f"{file.name} has no description: write {beside.name} (docs/export.md)")
    except (OSError, ValueError) as error:
        return Exported(file, {}, sha256, f"{beside.name} is no readable JSON ({error}); write it again")
    problem = _problem(told, file, sha256)
    return Exported(file, {} if problem and not isinstance(told, dict) else _completed(told), sha256, problem)


def check_usable(model: Exported) -> None:
    """Refuse a network that cannot be run here.

    Raises:
        BundleError: with its problem, or with what of it needs PyTorch.
    """
    if model.problem:
        raise BundleError(model.problem)
    if reason := model.told.get("needs_torch"):
        raise BundleError(f"{model.file.name} cannot run without PyTorch: {reason}; use ctseg segment --runtime")


def _completed(told: Any) -> dict[str, Any]:
    """A user's own description may leave out what has a usual value."""
    told = dict(told)
    metadata = {"version": "0", "description": "A network of your own.", **told.get("metadata", {})}
    block = metadata.get("ctseg")
    metadata["ctseg"] = {**_OWN, "weights": None, **(block if isinstance(block, dict) else {})}
    if "labels" in told:
        metadata["ctseg"].setdefault("labels", told["labels"])
    if told.get("modality"):
        metadata["ctseg"]["modality"] = told["modality"]
    told["metadata"] = metadata
    return told


def _problem(told: Any, file: Path, sha256: str) -> str:
    name = description_of(file).name
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        return f"{name} does not say schema {SCHEMA}, so it describes no network for this version; see docs/export.md"
    for part in ("preprocessing", "postprocessing"):
        steps = told.get(part)
        if not isinstance(steps, list) or not all(isinstance(one, dict) and "step" in one for one in steps):
            return f"{name} has no list of steps under {part}; see docs/export.md"
    if not isinstance(told.get("inferer"), dict) or "way" not in told["inferer"]:
        return f"{name} has no inferer with a way; see docs/export.md"
    try:
        metadata = dict(_completed(told)["metadata"])
        metadata["ctseg"] = {**metadata["ctseg"], "weights": None}
    except (TypeError, ValueError):
        return f"{name} has metadata that is no object; see docs/export.md"
    if wrong := problem_with(metadata):
        return f"{name} has {wrong}; see docs/export.md"
    named = told.get("files", {})
    if not isinstance(named, dict):
        return f"{name} has files that are no object of names and sha256; see docs/export.md"
    for other, expected in named.items():
        found = sha256 if other == file.name else _sha256_beside(file, str(other))
        if found != expected:
            return (
                f"{other} is not the file that {name} names: found sha256 {found}, expected {expected}; make it again"
            )
    return ""


def _sha256_beside(file: Path, other: str) -> str:
    beside = file.parent / other
    if Path(other).name != other or not beside.is_file():
        return "of no file"
    return file_sha256(beside)
