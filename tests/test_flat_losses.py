"""The losses of flat images against values worked by hand and formulas written again; gradients; large logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ctseg.errors import ConfigError
from ctseg.losses import make_loss
from ctseg.pixellosses import PIXEL_LOSSES


def logits(*probabilities: float) -> torch.Tensor:
    """An image (1, 1, 1, n) of logits with these probabilities."""
    return torch.tensor(probabilities).logit().reshape(1, 1, 1, -1)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 1, -1)


def entropy(*likely: float) -> float:
    """The mean cross-entropy of the probabilities of what is true."""
    return -sum(map(math.log, likely)) / len(likely)


# probabilities .8 on the organ, .3 and .1 beside it
COUNTS = (0.8, 1.6, 0.4, 0.2)  # soft true and false positives and negatives: tp, tn, fp, fn
TP, TN, FP, FN = COUNTS


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"name": "dice_pixel"}, 1 - (1.61 / 1.81 + 0.01 / 0.31 + 0.01 / 0.11) / 3),
        ({"name": "dice_pixel", "smooth": 1.0}, 1 - (2.6 / 2.8 + 1 / 1.3 + 1 / 1.1) / 3),
        ({"name": "focal_one_sided"}, (0.2**2 * entropy(0.8) + entropy(0.7) + entropy(0.9)) / 3),
        ({"name": "focal_one_sided", "gamma": 0.0}, entropy(0.8, 0.7, 0.9)),
        ({"name": "bce_inverse_frequency"}, (entropy(0.8) + entropy(0.7, 0.9)) / 2),
        ({"name": "bce_inverse_frequency", "largest": 1.0}, (entropy(0.8) + 0.75 * 2 * entropy(0.7, 0.9)) / 3),
        ({"name": "soft_bce"}, entropy(0.8, 0.7, 0.9)),
        ({"name": "soft_bce", "smooth_factor": 0.1},
         0.9 * entropy(0.8, 0.7, 0.9) + 0.1 * entropy(0.2, 0.3, 0.1)),
        ({"name": "mcc"}, 1 - (TP * TN - FP * FN) / math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))),
        ({"name": "l1"}, (0.2 + 0.3 + 0.1) / 3),
        ({"name": "mse"}, (0.04 + 0.09 + 0.01) / 3),
    ],
    ids=str,
)  # fmt: skip
def test_value(recipe: dict, expected: float) -> None:
    assert make_loss(**recipe)(logits(0.8, 0.3, 0.1), labels(1, 0, 0)).item() == pytest.approx(expected, abs=2e-5)


def test_dice_per_pixel_is_not_the_soft_dice() -> None:
    """An image without organ that is predicted so: each pixel is right, whatever the soft Dice's smoothing says."""
    image, empty = torch.full((1, 1, 8, 8), -20.0), torch.zeros(1, 1, 8, 8)
    assert make_loss("dice_pixel")(image, empty).item() == pytest.approx(0, abs=1e-5)
    half = torch.zeros(1, 1, 8, 8)  # p = .5 on background: .01 / .51 a pixel
    assert make_loss("dice_pixel")(half, empty).item() == pytest.approx(1 - 0.01 / 0.51, abs=1e-6)


def test_lovasz_hinge() -> None:
    """Errors 1 - logit * sign: 2 at the organ (logit -1), 1.5 beside it; Jaccard loss of the first 1, of both 1."""
    value = make_loss("lovasz")(torch.tensor([-1.0, 0.5]).reshape(1, 1, 1, 2), labels(1, 0))
    assert value.item() == pytest.approx(2.0)  # 2 * 1 + 1.5 * 0
    value = make_loss("lovasz")(torch.tensor([0.5, 0.5]).reshape(1, 1, 1, 2), labels(1, 0))
    assert value.item() == pytest.approx(1.5 * 0.5 + 0.5 * 0.5)  # background first: union 2, so 1/2; then the organ


def test_lovasz_softmax_and_soft_cross_entropy_of_several_classes() -> None:
    prediction = torch.tensor([0.7, 0.2, 0.1]).log().reshape(1, 3, 1, 1)
    assert make_loss("lovasz", channels=3)(prediction, labels(0)).item() == pytest.approx(0.3, abs=1e-6)
    soft = make_loss("soft_cross_entropy", channels=3, smooth_factor=0.3)(prediction, labels(0)).item()
    assert soft == pytest.approx(-(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1)), abs=1e-6)
    per_class = make_loss("mcc", channels=3)(prediction.expand(1, 3, 2, 1), torch.tensor([0, 1]).reshape(1, 1, 2, 1))
    assert per_class.item() == pytest.approx(1.0, abs=5e-3)  # the same everywhere is no correlation


def structural_by_loops(probability: np.ndarray, label: np.ndarray, cell: int = 3) -> tuple[np.ndarray, float]:
    """Error and loss of one image (H, W), written with loops over the cells."""

    def normalised(values: np.ndarray) -> np.ndarray:
        result = np.empty_like(values)
        for row in range(0, values.shape[0], cell):
            for column in range(0, values.shape[1], cell):
                one = values[row : row + cell, column : column + cell]
                result[row : row + cell, column : column + cell] = (one - one.mean() + 0.01) / (one.std() + 0.01)
        return result

    error = np.abs(normalised(label) - normalised(probability))
    hard = error > 0.1 * error.max()
    each = -(label * np.log(probability) + (1 - label) * np.log(1 - probability))
    return error, float(each[hard].mean())


@pytest.mark.parametrize("shape", [(6, 9), (7, 8), (2, 2)])
def test_structural_loss_is_that_of_loops(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    probability, label = random.uniform(0.05, 0.95, shape), (random.random(shape) > 0.6).astype(np.float64)
    error, expected = structural_by_loops(probability, label)
    loss = make_loss("structural")
    prediction = torch.from_numpy(probability).logit()[None, None]
    found = loss.loss.error(prediction, torch.from_numpy(label)[None, None])
    np.testing.assert_allclose(found[0, 0].numpy(), error, atol=1e-6)
    assert loss(prediction, torch.from_numpy(label)[None, None]).item() == pytest.approx(expected, abs=1e-5)


def test_structural_loss_worked_by_hand() -> None:
    """Two cells of 2 x 2: one where the label is flat and the prediction too, one where they differ."""
    prediction = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.2, 0.2, 0.8, 0.6]]).logit()[None, None]
    label = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]])[None, None]
    # first cell: both are .01/.01 = 1, error 0. Second: label (.25 and -.75, deviation sqrt(3)/4), probability (.05
    # and -.15, deviation sqrt(3)/20): errors (.26 or -.74)/.4430 - (.06 or -.14)/.0966
    up = abs(0.26 / (math.sqrt(3) / 4 + 0.01) - 0.06 / (math.sqrt(3) / 20 + 0.01))
    down = abs(-0.74 / (math.sqrt(3) / 4 + 0.01) + 0.14 / (math.sqrt(3) / 20 + 0.01))
    loss = make_loss("structural", cell=2)
    errors = loss.loss.error(prediction, label.float())[0, 0]
    torch.testing.assert_close(
        errors, torch.tensor([[0, 0, up, up], [0, 0, up, down]], dtype=torch.float32), atol=1e-4, rtol=1e-4
    )
    assert up > 0.1 * down  # so all four of the second cell are hard
    expected = (3 * -math.log(0.8) - math.log(0.4)) / 4
    assert loss(prediction, label).item() == pytest.approx(expected, abs=1e-5)
    weighed = make_loss("structural", cell=2, weigh_by_error=True)(prediction, label).item()
    assert weighed == pytest.approx((3 * -math.log(0.8) * up - math.log(0.4) * down) / 4, abs=1e-4)
    bce = (4 * -math.log(0.8) + 3 * -math.log(0.8) - math.log(0.4)) / 8
    mean = make_loss("bce_structural", cell=2, weight=0.3)(prediction, label).item()
    assert mean == pytest.approx(0.3 * bce + 0.7 * expected, abs=1e-5)


def test_structural_loss_without_structure_is_the_cross_entropy() -> None:
    """An empty label and a constant prediction have no error anywhere: all pixels count, and there is a gradient."""
    prediction = torch.zeros(1, 1, 6, 6, requires_grad=True)
    value = make_loss("structural")(prediction, torch.zeros(1, 1, 6, 6))
    value.backward()
    assert value.item() == pytest.approx(math.log(2), abs=1e-6) and (prediction.grad > 0).all()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", sorted(PIXEL_LOSSES))
def test_gradient_is_that_of_differences(name: str, channels: int) -> None:
    if name == "soft_cross_entropy" and channels == 1:
        with pytest.raises(ConfigError, match="use soft_bce"):
            make_loss(name)
        return
    torch.manual_seed(3)
    loss = make_loss(name, channels=channels)
    target = loss.smoothed(torch.randint(0, 2, (2, 1, 4, 5))).double()
    prediction = torch.randn(2, channels, 4, 5, dtype=torch.float64, requires_grad=True)
    if name == "lovasz":  # computes in float32, so larger steps
        assert torch.autograd.gradcheck(
            lambda values: loss.loss(values.float(), target.float()).double(), (prediction,), eps=1e-3, atol=1e-3
        )
        return
    assert torch.autograd.gradcheck(lambda values: loss.loss(values, target), (prediction,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("name", sorted({*PIXEL_LOSSES, "bce", "dice", "focal", "jaccard"} - {"soft_cross_entropy"}))
def test_large_logits_stay_finite(name: str, size: float, dtype: torch.dtype) -> None:
    """Certain and right, certain and wrong, on images with and without organ."""
    for organ in (0, 5):
        label = torch.zeros(1, 1, 6, 6)
        label[..., :organ] = 1
        for sign in (1.0, -1.0):
            prediction = (sign * size * (2 * label - 1)).to(dtype).requires_grad_()
            value = make_loss(name)(prediction, label)
            value.backward()
            assert value.isfinite() and prediction.grad.isfinite().all(), (organ, sign)
            assert value >= -1e-5


def test_certain_and_wrong_still_learns() -> None:
    """Losses on logits keep their gradient where the probability is 0 in floating point."""
    for name in ("focal_one_sided", "structural", "bce_structural", "bce_inverse_frequency", "soft_bce", "lovasz"):
        prediction = torch.tensor([[200.0, 200.0, -200.0], [-200.0] * 3])[None, None].requires_grad_()
        label = torch.tensor([[0, 0, 1], [1, 1, 0]])[None, None]
        make_loss(name)(prediction, label).backward()
        assert (prediction.grad[0, 0, 0, :2] > 0).all() and prediction.grad[0, 0, 1, 0] < 0, name


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"name": "lovasz", "label_smoothing": 0.1}, "expected label_smoothing 0"),
        ({"name": "bce_structural", "weight": 2}, "expected 0 to 1"),
        ({"name": "bce_structural", "wieght": 1}, "no option wieght: expected weight, cell, smoothing"),
        ({"name": "structural", "cell": 1}, "whole pixels, 2 or more"),
        ({"name": "structural", "share": 1.0}, "below 1"),
        ({"name": "dice_pixel", "smooth": 0}, "above 0"),
        ({"name": "focal_one_sided", "gamma": -1}, "0 or more"),
        ({"name": "bce_inverse_frequency", "largest": 0}, "above 0"),
        ({"name": "mcc", "eps": 0}, "above 0"),
        ({"name": "l1", "eps": 0}, "no option eps: expected none"),
    ],
    ids=str,
)
def test_refusals(recipe: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_loss(**recipe)
