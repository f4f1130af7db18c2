"""The exported networks of a folder: listed with their checksums, opened once, kept warm."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import BundleError, ConfigError, InputError
from ctseg.light.described import SUFFIXES, Exported, check_usable, read_exported
from ctseg.light.sessions import FORMATS, Session

if TYPE_CHECKING:
    from ctseg.light.predicting import LightPredictor


class Models:
    """What a folder holds, for one runtime. A network is opened when first asked for, and again when its file changes.

    Args:
        folder: of `NAME.onnx` (or `NAME.xml`) and `NAME.onnx.json` beside it, as `ctseg export` writes them.
        runtime: "onnx" or "openvino".
        threads: for one run of a network; None takes the processor's cores.

    Raises:
        ConfigError: an unknown runtime.
        InputError: the folder is not there.
    """

    def __init__(self, folder: str | Path, runtime: str = "onnx", threads: int | None = None) -> None:
        if runtime not in FORMATS:
            raise ConfigError(f"there is no runtime {runtime!r}: expected one of {', '.join(FORMATS)}")
        self.folder = Path(folder)
        self.runtime = runtime
        self.threads = threads
        if not self.folder.is_dir():
            raise InputError(f"there is no folder {self.folder}; make it with ctseg export BUNDLE --output {folder}")
        self._lock = threading.Lock()
        self._read: dict[Path, tuple[object, Exported]] = {}
        self._opened: dict[Path, tuple[str, LightPredictor]] = {}

    def all(self) -> dict[str, Exported]:
        """Return every network of the folder by its name, in order, the broken ones with their problem."""
        files = sorted(self.folder.glob(f"*{SUFFIXES[FORMATS[self.runtime]]}"))
        return {file.stem: self._exported(file) for file in files if not file.name.startswith(".")}

    def bundles(self) -> dict[str, Any]:
        """Return the usable networks as `BundleInfo`, by name; what could run only with PyTorch is left out."""
        return {
            name: one.info for name, one in self.all().items() if not one.problem and not one.told.get("needs_torch")
        }

    def get(self, name: str) -> LightPredictor:
        """Return a network, opened.

        Raises:
            BundleError: there is none of that name, or it cannot be used.
        """
        from ctseg.light.predicting import LightPredictor

        known = self.all()
        if name not in known:
            listed = ", ".join(known) or "none"
            raise BundleError(
                f"there is no exported model {name!r}: the folder has {listed}; export it with ctseg export {name}"
            )
        model = known[name]
        check_usable(model)
        with self._lock:
            kept = self._opened.get(model.file)
            if kept is None or kept[0] != model.sha256 + str(model.told):
                self._opened.pop(model.file, None)  # the old one is freed before the new one is opened
                opened = LightPredictor(model, Session(model.file, self.runtime, self.threads), self)
                kept = self._opened[model.file] = (model.sha256 + str(model.told), opened)
            return kept[1]

    def listed(self) -> list[dict[str, Any]]:
        """Return what `/models` answers: plain JSON types."""
        return [_listed(one, self.runtime) for one in self.all().values()]

    def _exported(self, file: Path) -> Exported:
        """Read a description and checksum again only when a file has changed: a checksum costs a read of it all."""
        state = tuple(
            (one.name, stat.st_mtime_ns, stat.st_size)
            for one in sorted(self.folder.glob(f"{file.stem}.*"))
            for stat in [one.stat()]
        )
        with self._lock:
            kept = self._read.get(file)
            if kept is None or kept[0] != state:
                kept = self._read[file] = (state, read_exported(file))
            return kept[1]


def _listed(model: Exported, runtime: str) -> dict[str, Any]:
    info = model.info
    needs = str(model.told.get("needs_torch") or "")
    entry: dict[str, Any] = {
        "name": model.name,
        "file": model.file.name,
        "sha256": model.sha256,
        "runtime": runtime,
        "usable": not (model.problem or needs),
        "problem": model.problem or needs,
    }
    if not model.problem:
        answer: Mapping[str, Any] = {
            "answer": model.answer,
            "version": info.version,
            "description": info.description,
            "modality": info.modality,
            "kind": info.kind,
            "labels": info.labels,
            "evidence": info.evidence,
            "licence": info.licence,
            "weights_sha256": model.told.get("weights_sha256"),
            "agreement": model.told.get("agreement"),
        }
        entry.update(answer)
    return entry
