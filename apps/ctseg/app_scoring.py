"""How the cases are scored: one plain run of the network, test-time augmentation, or Monte Carlo dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctseg.errors import ConfigError

PLAIN, AUGMENT, DROPOUT = "plain", "augment", "dropout"
WAYS = (PLAIN, AUGMENT, DROPOUT)
RUNS = 3
MOST_RUNS = 20


@dataclass(frozen=True)
class Scoring:
    """How a network is asked.

    Attributes:
        way: one of `WAYS`.
        runs: of the network beside the plain one; 0 for "plain".
    """

    way: str = PLAIN
    runs: int = 0

    @property
    def file(self) -> str:
        """Name of the file that keeps these scores; those of different ways cannot be compared."""
        return f"scores_{self.way}{self.runs}.json" if self.runs else "scores.json"

    def with_runs(self) -> Scoring:
        """Return it, or where it has one run only, several augmented ones: for what compares runs."""
        return self if self.runs else Scoring(AUGMENT, RUNS)


def read_scoring(way: Any, runs: Any, usual: Scoring) -> Scoring:
    """Return what was asked for; what was left out is as usual.

    Args:
        way: one of `WAYS`, or a list of which the first counts, as some clients send back all options.
        runs: a whole number, or its digits.
        usual: of this server.

    Raises:
        ConfigError: another way, or a number out of its bounds.
    """
    first = way[0] if isinstance(way, list) and way else way
    chosen = first or usual.way
    if chosen not in WAYS:
        raise ConfigError(f"the way {str(chosen)[:50]!r} of scoring is not known: expected one of {', '.join(WAYS)}")
    if chosen == PLAIN:
        return Scoring()
    number = runs if runs not in (None, "") else (usual.runs or RUNS)
    number = int(number) if isinstance(number, str) and number.isdecimal() else number
    if type(number) is not int or not 1 <= number <= MOST_RUNS:
        raise ConfigError(f"runs is {str(number)[:50]!r}: expected a whole number from 1 to {MOST_RUNS}")
    return Scoring(str(chosen), number)


def scoring_of(conf: Mapping[str, str]) -> Scoring:
    """Return the server's usual scoring: `--conf uncertainty WAY` and `--conf uncertainty_runs N`.

    Raises:
        ConfigError: as `read_scoring`.
    """
    return read_scoring(conf.get("uncertainty"), conf.get("uncertainty_runs"), Scoring())


def shown_scoring(usual: Scoring, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
    """Return the options that a viewer shows and sends; of a list the first counts."""
    return {"way": sorted(ways, key=lambda way: way != usual.way), "runs": usual.runs or RUNS}
