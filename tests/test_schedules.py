"""Learning rates worked by hand: per parameter group, over stages, after a resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctseg.errors import ConfigError
from ctseg.schedules import SCHEDULES, make_schedule


def optimiser(**groups: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"name": name, "params": [torch.zeros(1)], "lr": lr} for name, lr in groups.items()], lr=1)


def rates(schedule: Any, iterations: int) -> list[list[float]]:
    """The learning rates of each group in each iteration."""
    found = []
    for _ in range(iterations):
        found.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        schedule.step()
    return found


def first(schedule: Any, iterations: int) -> list[float]:
    return [row[0] for row in rates(schedule, iterations)]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "step", "step_size": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "multi_step", "milestones": [1, 4], "gamma": 0.1}, [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "exponential", "gamma": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ({"name": "polynomial", "power": 1.0}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)]),
        ({"name": "linear", "start_factor": 0.5, "total_iters": 2}, [0.5, 0.75, 1, 1, 1, 1]),
        ({"name": "cosine_restarts", "T_0": 2}, [1, 0.5, 1, 0.5, 1, 0.5]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_by_epochs(recipe: dict, expected: list[float]) -> None:
    schedule = make_schedule(**recipe, optimizer=optimiser(network=1.0), epochs=6, steps_per_epoch=3)
    assert first(schedule, 18) == pytest.approx([rate for rate in expected for _ in range(3)])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"name": "step", "step_size": 2, "gamma": 0.5, "per": "iteration"}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "warmup_cosine", "warmup_steps": 2}, [0, 0.5, 1, (1 + math.cos(math.pi / 4)) / 2, 0.5]),
        ({"name": "cyclic", "base_lr": 0.5, "max_lr": 1.0, "step_size_up": 2}, [0.5, 0.75, 1, 0.75, 0.5, 0.75]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_by_iterations(recipe: dict, expected: list[float]) -> None:
    schedule = make_schedule(**recipe, optimizer=optimiser(network=1.0), epochs=3, steps_per_epoch=2)
    assert first(schedule, 6)[: len(expected)] == pytest.approx(expected)


def test_one_cycle_is_torchs_own() -> None:
    ours = make_schedule("one_cycle", optimiser(network=0.1), epochs=4, steps_per_epoch=5, pct_start=0.25)
    other = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(other, 0.1, total_steps=20, pct_start=0.25, cycle_momentum=False)
    for rate in first(ours, 20):
        assert rate == pytest.approx(other.param_groups[0]["lr"])
        other.step()
        theirs.step()


def test_each_group_has_its_own() -> None:
    schedule = make_schedule(
        "step", optimiser(encoder=1e-5, rest=1e-3), 15, 1, groups={"encoder": {"name": "constant"}},
        step_size=10, gamma=0.1,
    )  # fmt: skip
    found = rates(schedule, 15)
    assert found[9] == pytest.approx([1e-5, 1e-3])
    assert found[10] == pytest.approx([1e-5, 1e-4])


STAGES = [{"epochs": 36, "lr": 1e-3}, {"epochs": 6, "lr": 1e-4}, {"epochs": 6, "lr": 1e-4}]


def test_starts_anew_at_each_stage() -> None:
    """Halved every 5 epochs within each size: 36 epochs from 1e-3, then twice 6 from 1e-4."""
    schedule = make_schedule("step", optimiser(network=1e-3), 48, 2, stages=STAGES, step_size=5, gamma=0.5)
    by_epoch = first(schedule, 96)[::2]
    expected = [1e-3 * 0.5 ** (n // 5) for n in range(36)] + 2 * [*[1e-4] * 5, 5e-5]
    assert by_epoch == pytest.approx(expected)


def test_a_length_is_that_of_the_stage_and_a_rate_may_be_a_groups() -> None:
    stages = [{"epochs": 2}, {"epochs": 4, "lr": {"rest": 0.1}}]
    schedule = make_schedule("cosine", optimiser(encoder=0.01, rest=1.0), 6, 1, stages=stages)
    found = rates(schedule, 6)
    assert [row[1] for row in found] == pytest.approx([1, 0.5, 0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - 0.5**0.5)])
    assert found[2][0] == pytest.approx(0.01)


def test_plateau_follows_what_is_measured() -> None:
    schedule = make_schedule("plateau", optimiser(network=1.0), 10, 1, patience=1, factor=0.5)
    found = []
    for metric in (0.5, 0.6, 0.6, 0.6, 0.6):  # the second one without a better value halves
        schedule.step()
        schedule.measure(metric)
        found.append(schedule.get_last_lr()[0])
    assert found == pytest.approx([1, 1, 1, 0.5, 0.5])


def test_plateau_with_a_cooldown() -> None:
    """Halved at the second validation without a better one; in the five of the cooldown none is counted as bad."""
    schedule = make_schedule("plateau", optimiser(network=1.0), 20, 1, factor=0.5, patience=1, cooldown=5)
    found = []
    for metric in (0.5, *[0.4] * 12):
        schedule.step()
        schedule.measure(metric)
        found.append(schedule.get_last_lr()[0])
    assert found == [1, 1, 0.5, *[0.5] * 6, 0.25, *[0.25] * 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.7, 1.0, 0.55, 0.1, 0.4, 0.7, 1.0, 0.55]),
        ({"mode": "triangular2"}, [0.1, 0.4, 0.7, 1.0, 0.55, 0.1, 0.25, 0.4, 0.55, 0.325]),
    ],
    ids=["triangular", "halved each time"],
)
def test_cyclic_is_triangular(options: dict, expected: list[float]) -> None:
    """Three steps up, two down; with epochs as its unit too."""
    recipe = {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "step_size_down": 2, **options}
    each = make_schedule("cyclic", optimiser(network=0.5), 10, 1, **recipe)
    assert first(each, 10) == pytest.approx(expected)
    by_epoch = make_schedule("cyclic", optimiser(network=0.5), 10, 2, per="epoch", **recipe)
    assert first(by_epoch, 20)[::2] == pytest.approx(expected)


@pytest.mark.parametrize("at", [3, 72, 80, 95])
def test_resumes_where_it_was(at: int) -> None:
    def make() -> Any:
        return make_schedule("step", optimiser(network=1e-3), 48, 2, stages=STAGES, step_size=5, gamma=0.5)

    whole, before, after = make(), make(), make()
    expected = first(whole, 96)[at:]
    first(before, at)
    after.load_state_dict(before.state_dict())
    assert first(after, 96 - at) == pytest.approx(expected)


def test_a_resumed_plateau_remembers_its_metrics() -> None:
    before = make_schedule("plateau", optimiser(network=1.0), 10, 1, patience=0, factor=0.5)
    for metric in (0.5, 0.4):
        before.step()
        before.measure(metric)
    after = make_schedule("plateau", optimiser(network=1.0), 10, 1, patience=0, factor=0.5)
    after.load_state_dict(before.state_dict())
    assert after.get_last_lr() == [0.5]
    after.measure(0.4)
    assert after.get_last_lr() == [0.25]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "stepp"}, "'stepp' is not known.*cosine.*step"),
        ({"name": "step", "step_size": 2, "gama": 2}, "no option gama: expected step_size, gamma"),
        ({"name": "step"}, "does not take the options"),
        ({"name": "constant", "groups": {"encoder": {"name": "constant"}}}, "no parameter group encoder"),
        ({"name": "constant", "stages": [{"epochs": 3}, {"epochs": 3}]}, "3 \\+ 3 = 6 epochs and the training has 5"),
        ({"name": "constant", "stages": [{"epoch": 5}]}, "entries other than epochs, size and lr"),
        ({"name": "constant", "per": "hour"}, "expected epoch or iteration"),
    ],
)
def test_refusals(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_schedule(**options, optimizer=optimiser(network=1.0), epochs=5, steps_per_epoch=1)


def test_every_known_schedule_is_tested_here() -> None:
    assert set(SCHEDULES) == {
        "constant", "step", "multi_step", "exponential", "linear", "polynomial", "cosine", "cosine_restarts",
        "warmup_cosine", "one_cycle", "cyclic", "plateau",
    }  # fmt: skip
