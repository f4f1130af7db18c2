"""Which bundles there are, what each segments, and whether it is trained: read from metadata, without torch.

The command line, the MONAI Label app, the docs and the tests all ask here. Only the standard library is imported, so
that a list of tasks is there at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ctseg.bundlechecks import problem_with
from ctseg.errors import BundleError
from ctseg.files import file_sha256

_PACKAGE = Path(__file__).resolve().parent
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's `configs/metadata.json` says about it.

    Attributes:
        path: the bundle's folder, absolute.
        metadata: the parsed `configs/metadata.json`; empty when `problem` is set.
        problem: one sentence when the bundle cannot be used as it lies there (broken metadata), else "".
    """

    path: Path
    metadata: Mapping[str, Any] = field(repr=False, compare=False)
    problem: str = ""

    @property
    def _block(self) -> Mapping[str, Any]:
        block: Mapping[str, Any] = self.metadata.get("ctseg", _EMPTY)
        return block

    @property
    def name(self) -> str:
        """The folder's name, e.g. `liver_ct_segmentation`; what `--task` takes."""
        return self.path.name

    @property
    def version(self) -> str:
        """Version of the bundle (not of ctseg), e.g. "0.1.0"."""
        return str(self.metadata.get("version", ""))

    @property
    def description(self) -> str:
        """One sentence on what the bundle does."""
        return str(self.metadata.get("description", ""))

    @property
    def task(self) -> str:
        """Name of the task's file in `configs/tasks`, without `.yaml`."""
        return str(self._block.get("task", ""))

    @property
    def kind(self) -> str:
        """How a volume is looked at: a kind of `configs/base`, such as "slicewise", "volume" or "threshold"."""
        return str(self._block.get("kind", ""))

    @property
    def flat(self) -> bool:
        """Whether it looks at flat images, such as photographs and ultrasound (`ctseg.flat`), not at volumes."""
        return bool(self._block.get("flat", False))

    @property
    def patient_pattern(self) -> str | None:
        """Finds the patient in an image's name, where the task says how its collections name them (`ctseg prepare`)."""
        pattern = self._block.get("patient_pattern")
        return None if pattern is None else str(pattern)

    @property
    def modality(self) -> str:
        """DICOM code of the images it was made for, e.g. "CT"."""
        return str(self._block.get("modality", ""))

    @property
    def label_entries(self) -> tuple[dict[str, Any], ...]:
        """One dict for each label: `name`, `code`, `color` [r, g, b] 0..255 and `snomed` {value, meaning}."""
        return tuple(dict(entry) for entry in self._block.get("labels", ()))

    @property
    def labels(self) -> dict[str, int]:
        """Label names and their values in the mask, in order of value; 0 is background and not listed."""
        pairs = ((str(entry["name"]), int(entry["code"])) for entry in self.label_entries)
        return dict(sorted(pairs, key=lambda pair: pair[1]))

    @property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """The colour of each label as (r, g, b), 0..255; a label without one is not listed."""
        colored = (entry for entry in self.label_entries if "color" in entry)
        return {str(entry["name"]): (entry["color"][0], entry["color"][1], entry["color"][2]) for entry in colored}

    @property
    def caution(self) -> str:
        """What must be said with every result of this bundle; empty where there is nothing."""
        return str(self._block.get("caution", ""))

    @property
    def trained_without_caution(self) -> bool:
        """Whether its results may be given to those who did not ask for this bundle."""
        return self.trained and not self.caution

    @property
    def said_caution(self) -> tuple[str, ...]:
        """The caution as a note for a report that names several bundles; nothing where there is none."""
        return (f"{self.name}: {self.caution}",) if self.caution else ()

    @property
    def shown_window(self) -> tuple[float, float] | None:
        """The values that pictures show in black and in white, in HU; None where the task has no wish."""
        window = self._block.get("shown_window")
        return None if window is None else (float(window[0]), float(window[1]))

    @property
    def segments(self) -> bool:
        """Whether the bundle answers with a mask (and not, say, with a class)."""
        return self._answers_with("segmentation")

    @property
    def classifies(self) -> bool:
        """Whether the bundle says of each slice if its organs are on it (`ctseg.presence.slices`)."""
        return self._answers_with("classification")

    def _answers_with(self, kind: str) -> bool:
        outputs = self.metadata.get("network_data_format", _EMPTY).get("outputs", _EMPTY)
        return not self.problem and str(outputs.get("pred", _EMPTY).get("format", "segmentation")) == kind

    @property
    def part_of(self) -> tuple[str, ...]:
        """Names of the server's models that answer with several bundles' organs, of which this bundle is one."""
        return tuple(str(name) for name in self._block.get("part_of", ()))

    @property
    def depends_on(self) -> tuple[dict[str, Any], ...]:
        """One dict for each bundle that this one needs: `bundle`, `as`, `organ` (see `ctseg.dependencies`)."""
        return tuple(dict(entry) for entry in self._block.get("depends_on", ()))

    @property
    def input_organs(self) -> tuple[str, ...]:
        """The organs whose masks the network takes as further input channels, in order."""
        return tuple(str(entry["organ"]) for entry in self.depends_on if entry["as"] == "input_organ")

    @property
    def quality(self) -> dict[str, Any]:
        """How the network's expected Dice becomes a Dice, by organ (`ctseg.quality`); empty when not calibrated."""
        return dict(self._block.get("quality") or {})

    @property
    def needs_weights(self) -> bool:
        """Whether there is something to train; not so for a bundle that works by a rule, such as a threshold."""
        return bool(self._block.get("needs_weights", True))

    @property
    def ready(self) -> bool:
        """Whether the bundle can run now: it is not broken, and its weights are there or it needs none."""
        return not self.problem and (self.trained or not self.needs_weights)

    @property
    def weights(self) -> Path | None:
        """The weights' file as named by the metadata, whether it is there or not, else a `models/model.pt` that a user
        trained and put there; None for a bundle without weights.
        """
        named = self._block.get("weights")
        if not self.needs_weights:
            return None
        if named:
            return self.path / str(named["file"])
        own = self.path / "models" / "model.pt"
        return own if own.is_file() and not self.problem else None

    @property
    def weights_sha256(self) -> str | None:
        """The sha256 that the weights' file must have; None where the metadata names no weights."""
        named = self._block.get("weights")
        return str(named["sha256"]).lower() if named else None

    @property
    def trained(self) -> bool:
        """Whether weights are there, shipped or a user's own. `verify_weights` checks the content of shipped ones."""
        return self.weights is not None and self.weights.is_file()

    @property
    def evidence(self) -> str:
        """One plain sentence on what the bundle was measured on; a user's own weights were not."""
        if self.trained and self.weights_sha256 is None:
            return "none: weights of your own, not measured"
        return str(self._block.get("evidence", ""))

    @property
    def licence(self) -> dict[str, str]:
        """Licences of `code` and `weights`, as SPDX names."""
        return {str(key): str(value) for key, value in self._block.get("licence", _EMPTY).items()}

    @property
    def status(self) -> str:
        """`trained`, `own weights`, `no weights needed`, `untrained`, `weights missing` (named, but the file is not
        there) or `broken`.
        """
        if self.problem:
            return "broken"
        if not self.needs_weights:
            return "no weights needed"
        if self.trained:
            return "trained" if self.weights_sha256 else "own weights"
        return "untrained" if self.weights is None else "weights missing"


def _shipped(folder: str) -> Path:
    clone = _PACKAGE.parents[1]
    is_clone = _PACKAGE.parent.name == "src" and (clone / "setup.cfg").is_file()
    return (clone if is_clone else _PACKAGE / "share") / folder


def bundles_root() -> Path:
    """The folder of the bundles: the clone's `bundles/`, or the copy inside an installed wheel."""
    return _shipped("bundles")


def app_root() -> Path:
    """The MONAI Label app: the clone's `apps/ctseg`, or the copy inside an installed wheel."""
    return _shipped("apps/ctseg")


def codes_root() -> Path:
    """The folder of the sets of organ codes: the clone's `configs/codes`, or the copy inside an installed wheel."""
    return _shipped("configs/codes")


def _read_bundle(folder: Path) -> BundleInfo:
    """Read a bundle's metadata; what is wrong with it goes into `problem`, nothing is raised."""
    folder = folder.resolve()
    file = folder / "configs" / "metadata.json"
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        problem = problem_with(metadata)
    except OSError as error:
        metadata, problem = None, f"no readable file ({error.strerror})"
    except ValueError as error:  # broken JSON and broken UTF-8 alike
        metadata, problem = None, f"no valid JSON ({error})"
    if problem:
        sentence = (
            f"bundle {folder.name} is broken: {file} has {problem}; make it again with scripts/build_bundles "
            f"or take the folder out"
        )
        return BundleInfo(folder, _EMPTY, sentence)
    return BundleInfo(folder, metadata)


def find_bundles(root: Path | None = None) -> dict[str, BundleInfo]:
    """Find every bundle below a folder, in order of name.

    A folder counts as a bundle when it has a `configs` folder. Broken ones are listed too, with their `problem`: a
    caller that runs bundles takes those without one.

    Args:
        root: the folder whose children are bundles; None takes `bundles_root()`.

    Returns:
        Bundle names and what each says about itself; empty when the folder is not there.
    """
    root = bundles_root() if root is None else Path(root)
    if not root.is_dir():
        return {}
    folders = sorted(folder for folder in root.iterdir() if (folder / "configs").is_dir())
    return {folder.name: _read_bundle(folder) for folder in folders if not folder.name.startswith(".")}


def get_bundle(name: str | Path, root: Path | None = None) -> BundleInfo:
    """Return one bundle, by its name or by the path of a user's own bundle folder.

    Args:
        name: a name that `find_bundles` lists, or the path of a folder with `configs/metadata.json`.
        root: as for `find_bundles`.

    Raises:
        BundleError: there is no such bundle (the message lists the known ones), or its metadata is broken.
    """
    below = bundles_root() if root is None else Path(root)
    plain = str(name) == Path(name).name and not str(name).startswith(".")
    # Only this one's files are read: a server asks for several bundles in each request.
    folders = [below / name] * plain + [Path(name)]
    info = next((_read_bundle(folder) for folder in folders if (folder / "configs").is_dir()), None)
    if info is None:
        listed = ", ".join(find_bundles(root)) or f"none in {below}"
        raise BundleError(
            f"there is no bundle {str(name)!r}; the known ones are: {listed}; name one of them, "
            f"or the path of a bundle folder that has configs/metadata.json"
        )
    if info.problem:
        raise BundleError(info.problem)
    return info


def fingerprint(info: BundleInfo) -> tuple[object, ...]:
    """Return what stays the same as long as a loaded network is still the bundle's."""
    files = [info.path / "configs" / "inference.json", *([info.weights] if info.weights else [])]
    stats = [file.stat() for file in files if file.is_file()]
    return (info.version, info.weights_sha256, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats))


def verify_weights(info: BundleInfo) -> Path | None:
    """Check that a bundle's weights are there and are the ones its metadata names.

    Returns:
        The weights' file; None for a bundle that needs none.

    Raises:
        BundleError: the bundle is broken or untrained, the file is missing or unreadable, or its sha256 differs.
    """
    if info.problem:
        raise BundleError(info.problem)
    if not info.needs_weights:
        return None
    if info.weights is None:
        raise BundleError(
            f"bundle {info.name} is untrained: it ships no weights, so it cannot be used yet; train it first "
            f"(python -m monai.bundle run --config_file {info.path / 'configs' / 'train.json'}) "
            f"or choose a trained one with --task (ctseg tasks lists them)"
        )
    if not info.weights.is_file():
        raise BundleError(
            f"the weights of bundle {info.name} are missing: expected {info.weights}; "
            f"get the file back (git checkout -- bundles, or install ctseg again)"
        )
    try:
        found = file_sha256(info.weights)
    except OSError as error:
        raise BundleError(f"the weights {info.weights} cannot be read: {error.strerror}; check its rights") from error
    if info.weights_sha256 is not None and found != info.weights_sha256:
        raise BundleError(
            f"the weights {info.weights} are not the ones bundle {info.name} names: found sha256 {found}, expected "
            f"{info.weights_sha256}; get the file back (git checkout -- bundles), or after a training of your own "
            f"write the new sha256 with scripts/build_bundles"
        )
    return info.weights
