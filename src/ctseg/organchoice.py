"""Which bundle serves which organ of a request, and with which code in the mask: read from metadata, without torch.

An organ's name is a label of a bundle. Where several bundles segment it, the bundle named as task decides; else one
that can run now comes before one that cannot, then the one with the fewest labels, the most specialised; what is
still open is refused with the names to choose from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.dependencies import Find, check_dependencies, dependencies_of, sibling
from ctseg.errors import BundleError, ConfigError
from ctseg.registry import BundleInfo, bundles_root, find_bundles, get_bundle, verify_weights


@dataclass(frozen=True)
class OrganChoice:
    """One organ of a request.

    Attributes:
        name: the label's name.
        bundle: the bundle that segments it.
        own_code: the label's value in the bundle's own mask.
        code: its value in the answer, 1..255.
    """

    name: str
    bundle: BundleInfo
    own_code: int
    code: int


@dataclass(frozen=True)
class Selection:
    """What is to be segmented.

    Attributes:
        bundle: what the answer's labels are: a bundle, or the combination of several.
        choices: the organs in order of priority; empty: all that `bundle` segments.
    """

    bundle: BundleInfo
    choices: tuple[OrganChoice, ...] = ()

    @property
    def bundles(self) -> tuple[BundleInfo, ...]:
        """The bundles to run, each once."""
        chosen = {choice.bundle.path: choice.bundle for choice in self.choices}
        return tuple(chosen.values()) or (self.bundle,)

    @property
    def labels(self) -> dict[str, int]:
        """The organs and their codes in the answer, in order of priority."""
        return {choice.name: choice.code for choice in self.choices} or self.bundle.labels

    def check_ready(self, find: Find = sibling) -> None:
        """Refuse before the long work what cannot run. The weights' content is checked when they are loaded.

        Args:
            find: how the bundles that others need are looked up.

        Raises:
            BundleError: a bundle is untrained or broken, its weights are missing, or what it needs cannot run.
        """
        for info in self.bundles:
            if not info.ready:
                verify_weights(info)
            check_dependencies(info, find)


def select(organs: Sequence[str] | None = None, task: str | Path | None = None, root: Path | None = None) -> Selection:
    """Find out what to run for organs, a task, both or neither.

    Args:
        organs: names in order of priority; None takes all organs of one bundle.
        task: a bundle's name or folder: the one to run, or with organs the one to take wherever it has the organ.
        root: folder of the bundles; None takes the shipped ones.

    Raises:
        BundleError: no such bundle, one that makes no mask, or nothing says which to run.
        ConfigError: organs that cannot be asked for, see `choose_organs`.
    """
    named = None if task is None else get_bundle(task, root)
    if named is not None and not named.segments:
        raise BundleError(f"bundle {named.name} makes no mask; ctseg tasks lists the ones that segment")
    if named is not None and named.flat:
        raise BundleError(
            f"bundle {named.name} looks at flat images, not at volumes: run it alone, as in "
            f"ctseg segment IMAGE -o OUT --task {named.name}"
        )
    bundles = find_bundles(root)
    if organs is not None:
        choices = choose_organs(organs, bundles, task=named)
        return Selection(combined_bundle(choices), choices)
    if named is None:
        default = default_task(bundles)
        if default is None:
            trained = [info.name for info in bundles.values() if info.trained and info.segments and not info.flat]
            listed = ", ".join(trained or bundles) or f"none in {bundles_root() if root is None else root}"
            raise BundleError(f"it is not clear which bundle to run; name one with --task: {listed}")
        named = bundles[default]
    return Selection(named)


def default_task(bundles: Mapping[str, BundleInfo]) -> str | None:
    """The segmentation bundle to take when none is named: the only trained one, or the only one; else None.

    A bundle with a caution is not taken unasked where there is a trained one without.
    """
    segmenting = [info for info in bundles.values() if info.segments and not info.flat]
    trained = [info for info in segmenting if info.trained]
    choice = [info for info in trained if info.trained_without_caution] or trained or segmenting
    return choice[0].name if len(choice) == 1 else None


def segmented_organs(bundles: Mapping[str, BundleInfo], modality: str | None = None) -> dict[str, list[BundleInfo]]:
    """Return every organ that a bundle segments in volumes, by name, with the bundles that do, in their order.

    Args:
        bundles: name -> bundle, as `ctseg.registry.find_bundles` returns them.
        modality: only bundles for this one, e.g. "CT"; None takes all.
    """
    organs: dict[str, list[BundleInfo]] = {}
    for info in bundles.values():
        if info.segments and not info.flat and modality in (None, info.modality):
            for label in info.labels:
                organs.setdefault(label, []).append(info)
    return dict(sorted(organs.items()))


def choose_organs(
    organs: Sequence[str],
    bundles: Mapping[str, BundleInfo],
    *,
    task: BundleInfo | None = None,
    modality: str | None = None,
) -> tuple[OrganChoice, ...]:
    """Find for each organ the bundle that segments it, and its code in the answer.

    Args:
        organs: names in order of priority: a voxel that two organs claim belongs to the one named first.
        bundles: the bundles to choose from.
        task: the bundle to take wherever it has the organ.
        modality: choose only among bundles for this one.

    Returns:
        One entry for each organ, in the order of the request. Each keeps its bundle's own code if all are distinct;
        else they are numbered from 1 in the order of the request (`ctseg.labelcodes` has other codes).

    Raises:
        ConfigError: no organ, an unknown one, one named twice, a bundle's name or a classifier in an organ's place,
            organs of different kinds of image, or two bundles between which nothing decides.
    """
    _check_names(organs, bundles)
    known = segmented_organs(bundles, modality)
    serving = {name: _bundle_for(name, known, bundles, task) for name in organs}
    kinds = dict.fromkeys(info.modality for info in serving.values())
    if len(kinds) > 1:
        raise ConfigError(
            f"the organs {', '.join(organs)} are segmented on {' and '.join(kinds)}: ask for those of one kind of image"
        )
    own = {name: info.labels[name] for name, info in serving.items()}
    distinct = len(set(own.values())) == len(own)
    codes = own if distinct else {name: number for number, name in enumerate(organs, start=1)}
    return tuple(OrganChoice(name, serving[name], own[name], codes[name]) for name in organs)


def ordered_members(bundles: Mapping[str, BundleInfo], composite: str) -> list[str]:
    """Return the organs of a composite, first the one that wins a shared voxel.

    A bundle is a member when its metadata names the composite in `part_of`. One that depends on another
    (whose mask it takes as an input) comes before it, for it was made knowing the other; else the order is that of the
    names.
    """
    members = {name: info for name, info in bundles.items() if info.segments and composite in info.part_of}
    ordered: list[str] = []
    waiting = sorted(members)
    while waiting:
        needed = {other for name in waiting for other in _names_needed(members[name])}
        first = next((name for name in waiting if name not in needed), waiting[0])
        waiting.remove(first)
        ordered.append(first)
    return list(dict.fromkeys(label for name in ordered for label in members[name].labels))


def combined_bundle(choices: Sequence[OrganChoice]) -> BundleInfo:
    """Return what the report, the colours and DICOM SEG need to know about a mask of several bundles.

    Its labels are the chosen organs with their codes in the answer; it lies nowhere and cannot run.
    """
    infos = list({choice.bundle.path: choice.bundle for choice in choices}.values())
    block = {
        "task": "+".join(info.task for info in infos),
        "kind": "organs",
        "modality": infos[0].modality,
        "labels": [_entry(choice) for choice in choices],
        "evidence": " ".join(f"{info.name}: {info.evidence}" for info in infos),
        "licence": {
            part: " AND ".join(dict.fromkeys(info.licence.get(part, "-") for info in infos))
            for part in ("code", "weights")
        },
        "weights": None,
        "needs_weights": False,
    }
    names = " + ".join(info.name for info in infos)
    metadata = {
        "version": " + ".join(info.version for info in infos),
        "description": f"{', '.join(choice.name for choice in choices)} by {names}",
        "ctseg": block,
    }
    return BundleInfo(infos[0].path.with_name(names), metadata)


def _entry(choice: OrganChoice) -> dict[str, Any]:
    entry = next(entry for entry in choice.bundle.label_entries if entry["name"] == choice.name)
    return {**entry, "code": choice.code}


def _names_needed(info: BundleInfo) -> set[str]:
    return {dependency.bundle for dependency in dependencies_of(info)} - {info.name}


def _check_names(organs: Sequence[str], bundles: Mapping[str, BundleInfo]) -> None:
    if isinstance(organs, str) or not all(isinstance(name, str) for name in organs):
        raise ConfigError(f"the organs are {organs!r}: expected a list of names such as those of {_listed(bundles)}")
    if not organs:
        raise ConfigError(f"no organ is named: name one or more of {_listed(bundles)}, in order of priority")
    twice = next((name for name in organs if list(organs).count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the organ {twice!r} is named twice: name each once, in order of priority")


def _listed(bundles: Mapping[str, BundleInfo], modality: str | None = None) -> str:
    return ", ".join(segmented_organs(bundles, modality)) or "none (no bundle segments anything)"


def _bundle_for(
    name: str, known: Mapping[str, list[BundleInfo]], bundles: Mapping[str, BundleInfo], task: BundleInfo | None
) -> BundleInfo:
    if task is not None and task.segments and name in task.labels:
        return task
    serving = known.get(name, [])
    if not serving:
        raise ConfigError(f"{_why_not(name, bundles)}; the organs that can be asked for are: {', '.join(known)}")
    serving = [info for info in serving if info.ready] or serving
    fewest = min(len(info.labels) for info in serving)
    best = [info for info in serving if len(info.labels) == fewest]
    if len(best) > 1:
        listed = ", ".join(info.name for info in best)
        raise ConfigError(
            f"the organ {name!r} is segmented by {len(best)} bundles ({listed}) and nothing decides between them: "
            "name one of them as the task"
        )
    return best[0]


def _why_not(name: str, bundles: Mapping[str, BundleInfo]) -> str:
    info = bundles.get(name)
    if info is not None and info.segments:
        return f"{name!r} is a bundle, not an organ: its organs are {', '.join(info.labels)}"
    if info is not None and not info.problem:
        return f"{name!r} is a classifier: it says on which slices an organ is, and makes no mask of it"
    flat = [other.name for other in bundles.values() if other.flat and other.segments and name in other.labels]
    if flat:
        return f"{name!r} is segmented on flat images only: use --task {flat[0]}"
    saying = [other.name for other in bundles.values() if not other.problem and name in other.labels]
    if saying:
        return f"no bundle segments {name!r}: {', '.join(saying)} only says on which slices it is"
    return f"there is no organ {name[:100]!r}"
