"""How an error reaches a user whose configuration is being run: as one sentence, without a traceback."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ctseg.errors import ConfigError, CtsegError

Made = TypeVar("Made")


def said_plainly(make: Callable[..., Made]) -> Callable[..., Made]:
    """Wrap what a configuration names as `_target_`, so that its errors leave `monai.bundle run` as a sentence.

    MONAI wraps every exception of a `_target_` in a RuntimeError with a traceback; only SystemExit passes. So within a
    run of a bundle a CtsegError becomes a SystemExit; everywhere else it stays what it is.
    """

    @functools.wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Made:
        try:
            return make(*args, **kwargs)
        except CtsegError as error:
            if not _in_a_run():
                raise
            raise SystemExit(f"ctseg: {error}") from error

    return wrapped


def _in_a_run() -> bool:
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            return True
        frame = frame.f_back
    return False


def look_up(what: str, name: str, known: Mapping[str, Made]) -> Made:
    """Return `known[name]`; capitals, hyphens and spaces in the name do not matter.

    Raises:
        ConfigError: naming the known ones, when the name is not among them.
    """
    key = str(name).lower().replace("-", "_").replace(" ", "_")
    if key not in known:
        raise ConfigError(f"The {what} {name!r} is not known: expected one of {', '.join(sorted(known))}.")
    return known[key]


def options_of(make: Callable[..., Any], but: Iterable[str] = ()) -> list[str]:
    """Return the names of the options that `make` takes, without those in `but`."""
    left_out = {"self", "args", "kwargs", *but}
    return [name for name in inspect.signature(make).parameters if name not in left_out]
