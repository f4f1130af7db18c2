"""Losses by name against values worked by hand: probabilities .8 on the organ and .3 beside it, unless said."""

from __future__ import annotations

import math

import pytest
import torch

from ctseg.errors import ConfigError
from ctseg.losses import LOSSES, Loss, make_loss


def logits(*probabilities: float) -> torch.Tensor:
    """An image (1, 1, 1, n) of logits with these probabilities."""
    return torch.tensor(probabilities).logit().reshape(1, 1, 1, -1)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 1, -1)


BCE = -(math.log(0.8) + math.log(0.7)) / 2
FOCAL = -(0.2**2 * math.log(0.8) + 0.3**2 * math.log(0.7)) / 2
DICE = 1 - (2 * 0.8 + 1) / (1.1 + 1 + 1)  # 1 above and below


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"name": "bce"}, BCE),
        ({"name": "bce", "b": 0.67}, -(0.67 * math.log(0.8) + 0.33 * math.log(0.7)) / 2),
        ({"name": "focal"}, FOCAL),
        ({"name": "focal", "gamma": 0.0}, BCE),
        ({"name": "focal", "weight": 0.8}, 0.8 * FOCAL),
        ({"name": "focal", "alpha": 0.8}, -(0.8 * 0.2**2 * math.log(0.8) + 0.2 * 0.3**2 * math.log(0.7)) / 2),
        ({"name": "focal_smp"}, FOCAL),
        ({"name": "dice"}, DICE),
        ({"name": "Dice", "smooth_nr": 0.0, "smooth_dr": 0.0}, 1 - 1.6 / 2.1),
        ({"name": "jaccard"}, 1 - (2 * 0.8 + 1) / (2 * 1.3 + 1)),
        ({"name": "tversky", "alpha": 0.7, "beta": 0.3}, 1 - 0.8 / (0.8 + 0.7 * 0.3 + 0.3 * 0.2)),
        ({"name": "dice_ce"}, DICE + BCE),
        ({"name": "dice-ce", "lambda_ce": 0.5}, DICE + 0.5 * BCE),
        ({"name": "dice_focal", "lambda_focal": 0.8}, DICE + 0.8 * FOCAL),
        ({"name": "weighted_sum", "terms": [{"name": "dice", "factor": 0.5}, {"name": "focal", "factor": 0.8}]},
         0.5 * DICE + 0.8 * FOCAL),
        ({"name": "weighted_sum", "terms": [{"name": "bce", "b": 0.67, "factor": 3}, {"name": "jaccard"}]},
         -3 * (0.67 * math.log(0.8) + 0.33 * math.log(0.7)) / 2 + 1 - 2.6 / 3.6),
    ],
    ids=str,
)  # fmt: skip
def test_value(recipe: dict, expected: float) -> None:
    assert make_loss(**recipe)(logits(0.8, 0.3), labels(1, 0)).item() == pytest.approx(expected, abs=2e-5)


def test_balanced_cross_entropy_is_pos_weight_2_03_up_to_its_scale() -> None:
    prediction, target = logits(0.8, 0.3, 0.6), labels(1, 0, 1)
    ours = make_loss("bce", b=0.67)(prediction, target)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0303030))(prediction, target.float())
    assert (ours / theirs).item() == pytest.approx(0.33, abs=1e-6)


def test_generalised_dice_weighs_organ_and_background_by_one_over_their_size_squared() -> None:
    # organ: 1 pixel, overlap .8, sum 1.4 + 1; background: 2 pixels so 1/4, overlap 1.4, sum 1.6 + 2
    expected = 1 - 2 * (0.8 + 1.4 / 4) / (2.4 + 3.6 / 4)
    value = make_loss("generalised_dice")(logits(0.8, 0.3, 0.3), labels(1, 0, 0))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_generalised_dice_learns_from_an_empty_slice() -> None:
    prediction = torch.zeros(1, 1, 64, 64, requires_grad=True)
    make_loss("generalised_dice")(prediction, torch.zeros(1, 1, 64, 64)).backward()
    assert (prediction.grad > 0).all()


def test_smoothing_of_one_organ_has_two_classes() -> None:
    smooth = make_loss("bce", label_smoothing=0.2).smoothed(labels(1, 0))
    torch.testing.assert_close(smooth, torch.tensor([0.9, 0.1]).reshape(1, 1, 1, 2))


def test_smoothing_of_three_classes() -> None:
    smooth = make_loss("cross_entropy", channels=3, label_smoothing=0.3).smoothed(labels(2))
    torch.testing.assert_close(smooth.flatten(), torch.tensor([0.1, 0.1, 0.8]))


def test_smoothed_labels_reach_the_loss_and_leave_the_label_alone() -> None:
    target = labels(1, 0)
    value = make_loss("bce", label_smoothing=0.2)(logits(0.8, 0.3), target)
    first = 0.9 * math.log(0.8) + 0.1 * math.log(0.2)
    second = 0.1 * math.log(0.3) + 0.9 * math.log(0.7)
    assert value.item() == pytest.approx(-(first + second) / 2, abs=1e-6)
    assert target.dtype == torch.uint8 and target.flatten().tolist() == [1, 0]


def test_the_two_focal_losses_differ_on_smoothed_labels() -> None:
    entropy = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2))
    distance = 1 / (1 + math.exp(math.log(4) * 0.8))  # MONAI: sigmoid(-x (2y - 1))
    pair = logits(0.8), labels(1)
    assert make_loss("focal", label_smoothing=0.2)(*pair).item() == pytest.approx(distance**2 * entropy, abs=1e-6)
    value = make_loss("focal_smp", label_smoothing=0.2)(*pair).item()
    assert value == pytest.approx((1 - math.exp(-entropy)) ** 2 * entropy, abs=1e-6)


@pytest.mark.parametrize("name", ["dice", "dice_ce", "dice_focal", "tversky", "generalised_dice", "jaccard"])
def test_the_best_prediction_of_smoothed_labels_is_the_smoothed_label(name: str) -> None:
    loss = make_loss(name, label_smoothing=0.2)
    target = labels(1, 1, 0, 0)
    best = loss(logits(0.9, 0.9, 0.1, 0.1), target)
    assert best < loss(logits(0.999, 0.999, 0.001, 0.001), target)


def test_several_classes() -> None:
    prediction, target = torch.zeros(2, 3, 4, 4), torch.randint(0, 3, (2, 1, 4, 4))
    third = math.log(3)
    assert make_loss("cross_entropy", channels=3)(prediction, target).item() == pytest.approx(third, abs=1e-6)
    # only the true class counts, and the mean is over three channels
    focal = make_loss("focal", channels=3)(prediction, target).item()
    assert focal == pytest.approx((2 / 3) ** 2 * third / 3, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 4), ()], ids=["2D", "3D", "classifier"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_gives_a_gradient(name: str, shape: tuple[int, ...], channels: int) -> None:
    if name in ("cross_entropy", "soft_cross_entropy") and channels == 1:
        with pytest.raises(ConfigError, match=r"use (soft_)?bce"):
            make_loss(name)
        return
    recipe = {"name": name, "channels": channels}
    if name == "contrastive":
        terms = [{"name": name, "factor": 0.1}, {"name": "dice"}]
        recipe = {"name": "weighted_sum", "terms": terms, "channels": channels}
    torch.manual_seed(0)
    prediction = torch.randn(4, channels, *shape, requires_grad=True)
    value = make_loss(**recipe)(prediction, torch.randint(0, max(channels, 2), (4, 1, *shape)))
    value.backward()
    assert value.isfinite() and prediction.grad.isfinite().all() and prediction.grad.abs().sum() > 0


def test_half_precision_does_not_overflow() -> None:
    prediction = torch.full((1, 1, 300, 300), 10.0, dtype=torch.float16)  # their sum is beyond float16
    assert make_loss("dice")(prediction, torch.ones(1, 1, 300, 300)).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"name": "dise"}, "'dise' is not known.*bce.*dice_focal.*weighted_sum"),
        ({"name": "focal", "gama": 2}, "no option gama: expected .*gamma"),
        ({"name": "bce", "b": 67}, "above 0 and below 1"),
        ({"name": "bce", "label_smoothing": 1.0}, "below 1"),
        ({"name": "contrastive"}, "cannot train a network alone"),
        ({"name": "weighted_sum", "terms": [{"name": "contrastive"}]}, "cannot train a network alone"),
        ({"name": "weighted_sum"}, "takes `terms`"),
        ({"name": "weighted_sum", "terms": [{"name": "dice", "factor": -1}]}, "none below 0"),
        ({"name": "weighted_sum", "terms": [{"name": "dise"}]}, "'dise' is not known"),
        ({"name": "dice_ce", "lambda_ce": -1}, "lambda_ce"),
    ],
    ids=str,
)
def test_refusals(recipe: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_loss(**recipe)


def test_shapes_that_do_not_fit() -> None:
    loss = make_loss("dice")
    assert isinstance(loss, Loss)
    with pytest.raises(ConfigError, match=r"\(1, 2, 4, 4\).*expected 1 channel"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ConfigError, match="the same size"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
