"""Which other bundles a bundle needs, and whether they are there and of the right kind: without torch.

`metadata.json` names them in `ctseg.depends_on`, a list of `{"bundle": NAME, "as": "input_organ", "organ": LABEL}` (its
mask is an input channel) and `{"bundle": NAME, "as": "gate"}` (it says on which slices the network runs). A bundle of
that name is looked for beside the one that needs it, then among the shipped ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import BundleError
from ctseg.registry import BundleInfo, get_bundle, verify_weights

INPUT_ORGAN, GATE = "input_organ", "gate"
# Gives the bundle of a name that the bundle in a folder needs: `sibling`, or another rule such as the version in use.
Find = Callable[[str, Path], BundleInfo]
_KINDS = {INPUT_ORGAN: "a segmenter", GATE: "a classifier"}


@dataclass(frozen=True)
class Dependency:
    """A bundle that another one needs.

    Attributes:
        bundle: its name.
        role: `INPUT_ORGAN` or `GATE`.
        organs: the labels that it must know.
    """

    bundle: str
    role: str
    organs: tuple[str, ...]


def dependencies_of(info: BundleInfo) -> tuple[Dependency, ...]:
    """Return what a bundle's metadata says that it needs; a gate must know every label of the bundle."""
    found = []
    for entry in info.depends_on:
        role = str(entry["as"])
        organs = (str(entry["organ"]),) if role == INPUT_ORGAN else tuple(info.labels)
        found.append(Dependency(str(entry["bundle"]), role, organs))
    return tuple(found)


def sibling(name: str, bundle: Path, root: Path | None = None) -> BundleInfo:
    """Return the bundle of a name that lies beside another one, else in another folder, else the shipped one.

    Args:
        name: of the bundle that is looked for.
        bundle: folder of the bundle that needs it.
        root: the other folder of bundles; None for none.

    Raises:
        BundleError: there is none, or it is broken.
    """
    folders = (Path(bundle).resolve().parent, *([root] if root else []))
    try:
        return get_bundle(name, next((folder for folder in folders if (folder / name / "configs").is_dir()), None))
    except BundleError as error:
        raise BundleError(f"bundle {Path(bundle).name} needs {name}, but {error}") from error


def needed(dependency: Dependency, bundle: Path, find: Find = sibling) -> BundleInfo:
    """Return the bundle that fills a dependency, trained or not.

    Args:
        dependency: what is needed.
        bundle: folder of the bundle that needs it.
        find: how a name is looked up.

    Raises:
        BundleError: it is missing, broken, of the wrong kind, or does not know the organ.
    """
    name = Path(bundle).name
    info = find(dependency.bundle, bundle)
    fits = info.segments if dependency.role == INPUT_ORGAN else info.classifies
    if not fits:
        found = "a segmenter" if info.segments else "a classifier" if info.classifies else "neither"
        raise BundleError(
            f"bundle {name} needs {info.name} as {dependency.role} and that is {found}, expected "
            f"{_KINDS[dependency.role]}; name another bundle in its task"
        )
    unknown = [organ for organ in dependency.organs if organ not in info.labels]
    if unknown:
        raise BundleError(
            f"bundle {name} needs {', '.join(unknown)} of {info.name}, which knows {', '.join(info.labels)}; "
            "name another bundle in its task"
        )
    return info


def check_dependencies(info: BundleInfo, find: Find = sibling) -> None:
    """Check everything that a bundle needs, and what that needs in turn.

    Raises:
        BundleError: naming the bundle that is missing, broken, of the wrong kind, untrained, or needed in a circle.
    """
    _check(info, (), find)


def _check(info: BundleInfo, way: Sequence[BundleInfo], find: Find) -> None:
    here = [*way, info]
    if any(earlier.path == info.path for earlier in way):
        circle = " -> ".join(one.name for one in here)
        raise BundleError(f"the bundles need one another in a circle ({circle}); take one of them out of its task")
    for dependency in dependencies_of(info):
        # The circle first: its members may well be untrained too, and that is not what has to be mended.
        _check(find(dependency.bundle, info.path), here, find)
        other = needed(dependency, info.path, find)
        try:
            verify_weights(other)
        except BundleError as error:
            raise BundleError(f"bundle {info.name} needs {other.name}, but {error}") from error


def dependency_problem(info: BundleInfo, find: Find = sibling) -> str:
    """Return in one sentence what is wrong with what a bundle needs, or "" when nothing is."""
    try:
        check_dependencies(info, find)
    except BundleError as error:
        return str(error)
    return ""
