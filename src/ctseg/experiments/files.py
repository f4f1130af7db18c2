"""Experiments: small YAML files of differences, each laid over the train.json of the bundle of its task."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctseg.errors import BundleError, ConfigError
from ctseg.registry import BundleInfo, find_bundles

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Experiment:
    """One experiment's file.

    Attributes:
        path: of the file, absolute.
        content: what it says.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The task that it is about, a name of `configs/tasks`."""
        return str(self.content["experiment"]["task"])

    @property
    def name(self) -> str:
        """Task and file name: "liver_ct/unet_resnet18_bce_sgd"."""
        return f"{self.task}/{self.path.stem}"

    @property
    def theirs(self) -> dict[str, float]:
        """The figures that others reported for it: `iou`, `f1`, `recall`; empty when there are none."""
        return {str(key): float(value) for key, value in (self.content["experiment"].get("theirs") or {}).items()}

    @property
    def grid(self) -> dict[str, str]:
        """Where it stands in a grid of experiments, for example its network and its loss; empty outside of one."""
        return {str(key): str(value) for key, value in (self.content["experiment"].get("grid") or {}).items()}


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file.

    Raises:
        ConfigError: when it is missing, no YAML, or does not name its task.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        task = content["experiment"]["task"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the experiment {path} cannot be read ({error}); expected a YAML file") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no experiment: it has no entry `experiment: {{task: NAME}}`; name the task that it is about"
        ) from error
    if not isinstance(task, str) or not task or "/" in task or task.startswith("."):
        raise ConfigError(f"the experiment {path} names the task {task!r}; expected a name of configs/tasks")
    return Experiment(path.resolve(), content)


def find_experiments(paths: Sequence[Path], only: Sequence[str] = ()) -> list[Experiment]:
    """Return the experiments of files and folders, in order of name.

    Args:
        paths: YAML files, or folders that are looked through with their subfolders.
        only: patterns of names, "liver_ct/*" or "*resnet18*"; one without a wildcard or slash is a part of the name.

    Raises:
        ConfigError: when a path is not there, a file is no experiment, two have one name, or none is left.
    """
    found: dict[str, Experiment] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"there is no experiment {path}; name YAML files, or folders of them")
        files = sorted(f for f in path.rglob("*") if f.suffix in ENDINGS) if path.is_dir() else [path]
        for experiment in map(read_experiment, files):
            known = found.setdefault(experiment.name, experiment)
            if known.path != experiment.path:
                raise ConfigError(
                    f"two experiments have the name {experiment.name}: {known.path} and {experiment.path}; rename one"
                )
    chosen = [found[name] for name in sorted(found) if not only or any(_fits(name, pattern) for pattern in only)]
    if not chosen:
        known_names = ", ".join(sorted(found)) or "none"
        raise ConfigError(f"no experiment is left to run; those found are: {known_names}; correct --only or the paths")
    return chosen


def _fits(name: str, pattern: str) -> bool:
    if not any(character in pattern for character in "*?[/"):
        pattern = f"*{pattern}*"
    return fnmatch.fnmatchcase(name, pattern)


def bundle_of(experiment: Experiment, root: Path | None = None) -> BundleInfo:
    """Return the bundle of an experiment's task.

    Args:
        experiment: whose bundle.
        root: the folder of the bundles; None takes the shipped ones.

    Raises:
        BundleError: when there is none, it is broken, or it cannot be trained.
    """
    bundles = find_bundles(root)
    for info in bundles.values():
        if info.task == experiment.task:
            if info.problem:
                raise BundleError(info.problem)
            if not (info.path / "configs" / "train.json").is_file():
                raise BundleError(f"bundle {info.name} of the task {info.task} has nothing to train")
            return info
    known = ", ".join(sorted(info.task for info in bundles.values() if info.task)) or "none"
    raise BundleError(f"there is no bundle for the task {experiment.task}; the known tasks are: {known}")


def scaled_stages(stages: Sequence[Mapping[str, Any]], epochs: int) -> list[dict[str, Any]]:
    """Return stages of the same proportions that add up to so many epochs, each at least one.

    Raises:
        ConfigError: when there are fewer epochs than stages.
    """
    if epochs < len(stages):
        raise ConfigError(f"the experiment has {len(stages)} stages of image size; give it at least so many --epochs")
    total = sum(int(stage["epochs"]) for stage in stages)
    exact = [int(stage["epochs"]) * epochs / total for stage in stages]
    counts = [max(1, math.floor(value)) for value in exact]
    while sum(counts) < epochs:
        number = max(range(len(counts)), key=lambda i: exact[i] - counts[i])
        counts[number] += 1
    while sum(counts) > epochs:
        number = max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - exact[i])
        counts[number] -= 1
    return [{**stage, "epochs": count} for stage, count in zip(stages, counts, strict=True)]
