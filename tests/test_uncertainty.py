"""What a network does not know: entropy and disagreement by hand, runs that are taken back, features of any network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ctseg.annotation.uncertainty import (
    deepest_features,
    disagreement,
    foreground_entropy,
    foreground_voxels,
    mean_logits,
    several_runs,
)
from ctseg.errors import ConfigError


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_entropy_is_taken_where_the_organ_is_possible() -> None:
    logits = torch.tensor([logit(p) for p in (0.5, 0.9, 0.05, 0.001)]).view(1, 4, 1, 1)
    by_hand = [stats.entropy([p, 1 - p], base=2) for p in (0.5, 0.9)]
    assert foreground_entropy(logits) == pytest.approx([np.mean(by_hand)], rel=1e-6)
    assert foreground_voxels(logits) == [1]


def test_entropy_of_each_organ_and_of_none() -> None:
    probabilities = torch.tensor([[0.3, 0.7, 0.0], [0.8, 0.2, 0.0]])
    logits = probabilities.clamp_min(1e-12).log().T.reshape(3, 2, 1, 1)
    by_hand = np.mean([stats.entropy([p, 1 - p], base=2) for p in (0.7, 0.2)])
    assert foreground_entropy(logits) == pytest.approx([by_hand, 0.0], abs=1e-5)


def test_certainty_has_no_entropy() -> None:
    logits = torch.full((1, 3, 3, 20), 60.0)
    assert foreground_entropy(logits) == pytest.approx([0.0], abs=1e-9)


def test_the_mean_is_that_of_probabilities() -> None:
    runs = [torch.tensor([logit(p)]).view(1, 1, 1) for p in (0.2, 0.6)]
    assert float(mean_logits(runs).sigmoid()) == pytest.approx(0.4)
    several = [torch.tensor(p).log().view(3, 1, 1) for p in ([0.2, 0.3, 0.5], [0.4, 0.5, 0.1])]
    assert mean_logits(several).softmax(0).flatten().tolist() == pytest.approx([0.3, 0.4, 0.3])


def test_disagreement_by_hand() -> None:
    # masks of 2, 2 and 1 voxels: Dice of the pairs 1/2, 2/3 (common 1 of 2+1), 0
    runs = [
        torch.tensor(row, dtype=torch.float32).view(1, 4, 1)
        for row in ([1, 1, -1, -1], [-1, 1, 1, -1], [1, -1, -1, -1])
    ]
    assert disagreement(runs) == pytest.approx([1 - (1 / 2 + 2 / 3 + 0) / 3])
    empty = [torch.full((1, 4, 1), -1.0)] * 2
    assert disagreement(empty) == [0.0]
    with pytest.raises(ConfigError, match="two runs"):
        disagreement(runs[:1])


def test_shifts_are_taken_back_and_sides_kept() -> None:
    """A network that answers its own input: every run has the bright block where it is, though its grey differs."""
    image = torch.zeros(1, 2, 24, 20, 3)
    image[:, :, 8:12, 3:9] = 0.9
    runs = list(several_runs(lambda seen: seen[:, :1] - 0.5, nn.Identity(), image, "augment", 6))
    for logits in runs:
        assert torch.equal(logits[0, 0] > 0, image[0, 0] > 0.5)
    assert len({float(logits.max()) for logits in runs}) == 6
    again = list(several_runs(lambda seen: seen[:, :1] - 0.5, nn.Identity(), image, "augment", 6))
    assert all(torch.equal(a, b) for a, b in zip(runs, again, strict=True))


def test_other_channels_are_only_shifted() -> None:
    image = torch.zeros(1, 2, 16, 16, 1)
    image[:, 1, 4:6] = 1.0
    for logits in several_runs(lambda seen: seen[:, 1:], nn.Identity(), image, "augment", 3):
        assert torch.equal(logits[:, 0], image[:, 1])


def test_dropout_runs_differ_and_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(8, 1, 1)).eval()
    image = torch.rand(1, 1, 8, 8)
    with torch.inference_mode():
        runs = list(several_runs(network, network, image, "dropout", 4, seed=1))
        assert len({float(logits.sum()) for logits in runs}) > 1
        assert torch.equal(network(image), network(image)) and not any(m.training for m in network.modules())
    with pytest.raises(ConfigError, match="no dropout layer"):
        list(several_runs(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), image, "dropout", 2))
    with pytest.raises(ConfigError, match="augment, dropout"):
        list(several_runs(network, network, image, "ensemble", 2))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_features_are_those_of_the_coarsest_level(dimensions: int) -> None:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(dimensions, 1, 1, channels=(4, 8, 12), strides=(2, 2)).eval()
    images = torch.rand(3, 1, *[16] * dimensions)
    with torch.inference_mode(), deepest_features(network) as found:
        network(images)
        network(images[:1])
    assert [part.shape for part in found] == [(3, 12), (1, 12)]
    np.testing.assert_allclose(found[0][:1], found[1], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        network(images)
    assert len(found) == 2, "the hooks are gone"
