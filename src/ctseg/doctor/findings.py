"""One line of what `ctseg doctor` says, and how checks become lines.

Every check is a function that yields findings; one that fails in an unforeseen way is itself a finding, so that a
broken machine, the only kind on which the command matters, still gets its list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ctseg.errors import CtsegError

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the list.

    Attributes:
        name: what was looked at, a word or two.
        status: "ok", "note" (works, but limits something) or "problem".
        found: what was found.
        advice: what to do; empty when there is nothing.
    """

    name: str
    status: str
    found: str
    advice: str = ""


def examine(checks: Iterable[tuple[str, Callable[[], Iterable[Finding]]]]) -> Iterator[Finding]:
    """Run checks one after the other; what a check raises becomes a finding of its name."""
    for name, check in checks:
        try:
            yield from check()
        except CtsegError as error:
            yield Finding(name, PROBLEM, " ".join(str(error).split()))
        except Exception as error:  # a broken package can raise anything at its import
            said = " ".join(str(error).split())
            yield Finding(name, PROBLEM, f"{type(error).__name__}: {said}", "report this line with your versions")
