"""The replay of annotation: its plan, a real replay on phantoms that goes on after a stop, and what is told of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ctseg.annotation.simulating import Plan, Round, check_plan, simulate
from ctseg.annotation.simulation_report import curves_of, rows_of, write_simulation
from ctseg.commands.simulate import overrides_of
from ctseg.errors import ConfigError, InputError
from ctseg.ledger import Ledger
from ctseg.registry import BundleInfo

PLAN = Plan(("random", "uncertainty"), seeds=1, start=1, step=1, rounds=2, epochs=1)


def rounds(strategy: str, seed: int, *dices: float) -> list[Round]:
    return [
        Round(strategy, seed, number, tuple(f"p{n}" for n in range(2 + number)), dice, (), 1.0)
        for number, dice in enumerate(dices)
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategies": ("random", "best")}, "no strategy 'best'"),
        ({"strategies": ("uncertainty",)}, "lack random"),
        ({"rounds": 0}, "rounds is 0"),
        ({"start": 3, "step": 3}, "labels 6 patients, but 5 train"),
    ],
)
def test_a_plan_that_cannot_be_carried_out(changes: dict[str, object], said: str) -> None:
    with pytest.raises((ConfigError, InputError), match=said):
        check_plan(Plan(**{**vars(PLAN), **changes}), 5)  # type: ignore[arg-type]


def test_curves_and_the_difference_to_random_by_hand() -> None:
    known = [*rounds("random", 0, 0.5, 0.7), *rounds("random", 1, 0.6, 0.6), *rounds("random", 2, 0.4, 0.8)]
    known += [
        *rounds("uncertainty", 0, 0.5, 0.9),
        *rounds("uncertainty", 1, 0.6, 0.82),
        *rounds("uncertainty", 2, 0.4, 1.0),
    ]
    known += rounds("diversity", 0, 0.5)  # not complete: left out
    curves = curves_of(known)
    assert [curve.strategy for curve in curves] == ["random", "uncertainty"]
    assert curves[0].labelled == (2, 3) and curves[0].mean == pytest.approx((0.5, 0.7))
    interval = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem([0.5, 0.6, 0.4]))
    assert curves[0].half[0] == pytest.approx((interval[1] - interval[0]) / 2)
    row = rows_of(curves)[1]
    assert float(row["against_random"]) == pytest.approx(np.mean([0.1, 0.11, 0.1]), abs=1e-4)
    assert row["verdict"] == "better than random"
    assert "verdict" not in rows_of(curves)[0]


def test_no_difference_is_said_to_be_none() -> None:
    known = [*rounds("random", 0, 0.5), *rounds("random", 1, 0.9), *rounds("first", 0, 0.9), *rounds("first", 1, 0.5)]
    assert rows_of(curves_of(known))[1]["verdict"] == "no difference shown"
    assert (
        rows_of(curves_of([*rounds("random", 0, 0.5), *rounds("first", 0, 0.9)]))[1]["verdict"] == "no difference shown"
    )


def test_values_are_read_as_yaml() -> None:
    assert overrides_of(["spacing=[3.0, 3.0]", "network_def#depth=3", "a=b=c"]) == {
        "spacing": [3.0, 3.0],
        "network_def#depth": 3,
        "a": "b=c",
    }
    for wrong in ("epochs", "=3", "a=[1"):
        with pytest.raises(ConfigError, match="--set got"):
            overrides_of([wrong])


def test_a_replay_trains_chooses_and_goes_on_after_a_stop(
    phantom_bundle: BundleInfo, tiny_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data", ignore=shutil.ignore_patterns("split.csv"))
    told: list[str] = []
    plan = Plan(("random", "disagreement"), seeds=1, start=1, step=1, rounds=2, epochs=1, runs=1)

    def replay(wanted: Plan = plan) -> list[Round]:
        return simulate(phantom_bundle, tmp_path / "data", wanted, tmp_path / "out", say=told.append)

    found = replay()
    assert [(one.strategy, one.round, len(one.labelled)) for one in found] == [
        ("random", 0, 1),
        ("disagreement", 0, 1),
        ("random", 1, 2),
        ("disagreement", 1, 2),
    ]
    assert found[0].labelled == found[1].labelled and found[0].dice == found[1].dice, "one training for the start"
    assert len(told) == 3 and told[0].startswith("random, disagreement, seed 0: 1 patients")
    assert found[2].labelled == (*found[0].labelled, *found[0].chosen) and not found[2].chosen
    ledger = Ledger(tmp_path / "data" / "split.csv")
    assert all(ledger.split_of(patient) == "train" for one in found for patient in one.labelled)
    stored = tmp_path / "out" / "simulation.json"
    content = json.loads(stored.read_text())
    last = content["rounds"].pop()
    stored.write_text(json.dumps(content))
    again = replay()
    assert len(told) == 4 and list(again[3].labelled) == last["labelled"] and again[3].dice == last["dice"]
    assert [row["strategy"] for row in write_simulation(again, tmp_path / "out", "title")] == ["random", "disagreement"]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="another plan"):
        replay(Plan(**{**vars(plan), "epochs": 2}))
