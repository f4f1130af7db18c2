"""The stages of a prediction: what each took, and the one sentence of what went wrong in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ctseg.devices import wait_for
from ctseg.errors import CtsegError


def tell_apart(seconds: dict[str, float], waited: Mapping[str, float]) -> None:
    """Give the time that the preprocessing waited for other bundles an entry of its own, before it."""
    own = seconds.pop("preprocess") - sum(waited.values())
    seconds.update({**waited, "preprocess": max(0.0, own)})


@contextmanager
def sentences() -> Iterator[None]:
    """MONAI wraps what a transform raises; the sentence inside is the one for the user."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, CtsegError):
            raise error.__cause__ from error
        raise


@contextmanager
def stage(
    name: str, seconds: dict[str, float], progress: Callable[[str], None] | None, device: str = "cpu"
) -> Iterator[None]:
    """Note the seconds that a stage takes, and say its name when it begins.

    Args:
        name: of the stage.
        seconds: where they are noted.
        progress: called with the name; None for nobody.
        device: that does the work; it is waited for.
    """
    if progress is not None:
        progress(name)
    start = time.perf_counter()
    yield
    wait_for(device)
    seconds[name] = time.perf_counter() - start
