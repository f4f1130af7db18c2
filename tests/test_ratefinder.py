"""The learning rate range test on a parabola whose largest stable rate is known, and on a bundle's training."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch

from ctseg.cli import main
from ctseg.errors import InputError
from ctseg.ratefinder import RangeTest, draw, range_test
from ctseg.registry import BundleInfo


def parabola(start: float = 5.0) -> tuple[torch.nn.Module, torch.optim.Optimizer, itertools.repeat]:
    """Loss w^2: a step multiplies w by 1 - 2 lr, which grows without end beyond lr = 1."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, start)
    batches = itertools.repeat((torch.ones(1, 1), torch.zeros(1, 1)))
    return network, torch.optim.SGD(network.parameters(), lr=0.1), batches


def test_rates_of_a_parabola() -> None:
    network, optimizer, batches = parabola()
    found = range_test(network, optimizer, torch.nn.MSELoss(), batches, 1e-4, 100.0, 61)
    assert found.rates[0] == pytest.approx(1e-4) and found.rates[10] == pytest.approx(1e-3)  # a tenth of a decade each
    assert found.losses[0] == pytest.approx(25) and len(found.rates) == len(found.losses) < 61  # it diverged
    assert found.rates[-1] > 1
    assert 0.01 < found.steepest < 1 < found.lowest  # smoothed over some 20 steps, so the edge of 1 is seen late,
    assert found.lowest / 10 < 1  # for which the tenth is taken
    assert network.weight.item() == 5.0 and optimizer.param_groups[0]["lr"] == 0.1  # all as it was


def test_the_first_losses_are_those_of_gradient_descent() -> None:
    network, optimizer, batches = parabola(2.0)
    found = range_test(network, optimizer, torch.nn.MSELoss(), batches, 0.01, 0.1, 6)
    weight, smooth = 2.0, 4.0
    for number, loss in enumerate(found.losses):
        smooth = 0.05 * weight**2 + 0.95 * smooth if number else weight**2
        assert loss == pytest.approx(smooth)
        weight *= 1 - 2 * 0.01 * 10 ** (number / 5)


def test_steepest_and_lowest_by_hand() -> None:
    found = RangeTest((1e-4, 1e-3, 1e-2, 1e-1, 1.0), (10.0, 9.0, 4.0, 3.0, 8.0))
    assert found.steepest == 1e-3  # slopes -1, -3, -3, 2, 5: the first of the steepest
    assert found.lowest == 1e-1
    assert draw(found, "title").startswith(b"\x89PNG")


@pytest.mark.parametrize(("start", "end", "steps"), [(0, 1, 10), (1, 0.1, 10), (1e-3, float("inf"), 10), (1e-3, 1, 4)])
def test_rates_that_cannot_be(start: float, end: float, steps: int) -> None:
    with pytest.raises(InputError, match="expected a first rate above 0"):
        range_test(*parabola()[:2], torch.nn.MSELoss(), parabola()[2], start, end, steps)


def test_a_loss_that_is_no_number() -> None:
    network, optimizer, _ = parabola()
    broken = itertools.repeat((torch.full((1, 1), torch.nan), torch.zeros(1, 1)))
    with pytest.raises(InputError, match="no number, or five times its best, after 0 steps"):
        range_test(network, optimizer, torch.nn.MSELoss(), broken, 1e-3, 1.0, 10)


def test_command_over_a_bundle(
    phantom_bundle: BundleInfo, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = tmp_path / "dice.yaml"
    over.write_text("loss: {_target_: ctseg.losses.make_loss, name: dice_ce, channels: 3}\n")
    call = ["find-lr", str(phantom_bundle.path), "--data", str(tiny_dataset), "--device", "cpu", "--steps", "6"]
    assert main([*call, "--over", str(over), "-o", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "falls fastest at" in said and (tmp_path / "out" / "find_lr.png").stat().st_size > 1000
    rows = list(csv.DictReader((tmp_path / "out" / "find_lr.csv").read_text().splitlines()))
    assert rows[0]["lr"] == "1e-06" and 5 <= len(rows) <= 6
    assert not (phantom_bundle.path / "models" / "model.pt").exists()
    assert main([*call, "--over", str(tmp_path / "none.yaml"), "-o", str(tmp_path)]) == 2
    assert "there is no experiment file" in capsys.readouterr().err
