"""Which case comes next: choices that can be told beforehand, and shares counted over many draws."""

from __future__ import annotations

import numpy as np
import pytest

from ctseg.annotation.strategies import FOREGROUND_SHARE, STRATEGIES, CaseScore, Pool, choose, noise_scale
from ctseg.errors import ConfigError


def pool_of(*cases: CaseScore, labelled: int = 0, organs: tuple[str, ...] = ("liver", "spleen")) -> Pool:
    return Pool(cases, [CaseScore(f"done{n}") for n in range(labelled)], organs)


def draws(strategy: str, pool: Pool, count: int = 1, times: int = 2000) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [choose(strategy, pool, count, rng) for _ in range(times)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_each_case_once_and_the_same_for_a_seed(strategy: str) -> None:
    rng = np.random.default_rng(1)
    cases = [
        CaseScore(f"c{n}", {"liver": n / 10}, {"liver": n}, {"liver": 0.1 * n}, tuple(rng.normal(size=4)))
        for n in range(7)
    ]
    for count in (0, 1, 3, 7, 9):
        chosen = choose(strategy, Pool(cases, (), ["liver"]), count, np.random.default_rng(3))
        assert len(chosen) == len(set(chosen)) == min(count, 7)
        assert chosen == choose(strategy, Pool(cases[::-1], (), ["liver"]), count, np.random.default_rng(3))
    assert choose(strategy, Pool([]), 2, rng) == []


def test_an_unknown_strategy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="random, first, foreground, uncertainty, diversity, disagreement"):
        choose("best", pool_of(CaseScore("a")), 1, np.random.default_rng(0))


def test_first_is_by_name() -> None:
    assert choose("first", pool_of(CaseScore("b"), CaseScore("a")), 1, np.random.default_rng(0)) == ["a"]


def test_foreground_is_preferred_by_its_share() -> None:
    pool = pool_of(*(CaseScore(f"c{n}", voxels={"liver": 5 if n == 0 else 0}) for n in range(4)))
    share = np.mean([names == ["c0"] for names in draws("foreground", pool)])
    assert share == pytest.approx(FOREGROUND_SHARE + (1 - FOREGROUND_SHARE) / 4, abs=0.03)


def test_each_organ_has_its_turn() -> None:
    """One case is uncertain for the liver only, the other for the spleen only: two picks take both, whoever starts."""
    sure = [CaseScore(f"sure{n}", {"liver": 0.0, "spleen": 0.0}) for n in range(5)]
    pool = pool_of(CaseScore("liver", {"liver": 0.9}), CaseScore("spleen", {"spleen": 0.9}), *sure)
    assert np.mean([set(names) == {"liver", "spleen"} for names in draws("uncertainty", pool, 2, 500)]) > 0.99


@pytest.mark.parametrize("strategy", ["uncertainty", "disagreement"])
def test_the_noise_is_that_of_a_softmax_over_scores(strategy: str) -> None:
    """Gumbel noise of scale s on log scores picks case i with the probability score_i^(1/s) / sum (Kirsch et al.)."""
    scores = [0.1, 0.2, 0.5]
    cases = [CaseScore(f"c{n}", {"liver": score}, disagreement={"liver": score}) for n, score in enumerate(scores)]
    for labelled in (0, 5):
        picked = [names[0] for names in draws(strategy, pool_of(*cases, labelled=labelled, organs=("liver",)), 1, 4000)]
        powers = np.asarray(scores) ** (1 / noise_scale(labelled))
        shares = [picked.count(f"c{n}") / len(picked) for n in range(3)]
        assert shares == pytest.approx(powers / powers.sum(), abs=0.03)
    assert noise_scale(0) == 1 and noise_scale(5) == pytest.approx(0.5)


def test_diversity_takes_one_of_each_group_and_leaves_the_group_that_has_a_label() -> None:
    rng = np.random.default_rng(0)
    groups = {"a": (0, 0), "b": (10, 0), "c": (0, 10)}
    cases = [
        CaseScore(f"{name}{n}", features=tuple(np.asarray(centre) + rng.normal(0, 0.1, 2)))
        for name, centre in groups.items()
        for n in range(5)
    ]
    three = choose("diversity", Pool(cases), 3, np.random.default_rng(0))
    assert sorted(name[0] for name in three) == ["a", "b", "c"]
    labelled = [CaseScore("done", features=(0.0, 0.05))]
    two = choose("diversity", Pool(cases, labelled), 2, np.random.default_rng(0))
    assert sorted(name[0] for name in two) == ["b", "c"]


def test_cases_without_features_are_not_lost_to_diversity() -> None:
    pool = Pool([CaseScore("known", features=(1.0, 2.0)), CaseScore("unknown")])
    assert sorted(choose("diversity", pool, 2, np.random.default_rng(0))) == ["known", "unknown"]
