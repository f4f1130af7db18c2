"""Optimisers by name: every one of torch either moves every parameter that learns or is refused with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctseg.errors import ConfigError
from ctseg.networks import Classifier, freeze
from ctseg.optimisers import OPTIMISERS, make_optimiser

REFUSED = {"lbfgs": "closure", "sparseadam": "sparse gradients", "muon": "matrices only"}


class Encoder(nn.Sequential):
    """One convolution with batch norm, pooled: 4 features an image."""

    head_hidden_size = 4

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Encoder(), 1)


def step(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, bool]:
    """Take one step on random images; return which parameters moved."""
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    images = torch.randn(8, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    network.train()
    network(images).square().mean().backward()
    optimiser.step()
    return {name: not torch.equal(before[name], parameter) for name, parameter in network.named_parameters()}


def test_all_of_torchs_are_known() -> None:
    of_system_a = "adadelta adagrad adam adamw sparseadam adamax asgd lbfgs rmsprop rprop sgd"
    assert set(of_system_a.split()) | {"nadam", "radam"} <= set(OPTIMISERS)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_works_or_is_refused_with_a_reason(name: str, network: Classifier) -> None:
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            make_optimiser(name, network, lr=0.01)
        return
    moved = step(network, make_optimiser(name, network, lr=0.01))
    # The bias before a batch norm has no effect, so nothing moves it but rounding.
    assert all(value for key, value in moved.items() if key != "encoder.0.bias"), moved


def test_sparse_adam_is_taken_where_all_gradients_are_sparse() -> None:
    make_optimiser("SparseAdam", nn.Sequential(nn.Embedding(5, 2, sparse=True)))


def test_one_step_of_sgd_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(3.0)
    network(torch.ones(1, 1)).square().sum().backward()  # gradient 6
    make_optimiser("SGD", network, lr=0.1, weight_decay=0.5).step()
    assert network.weight.item() == pytest.approx(3 - 0.1 * (6 + 0.5 * 3))


def test_the_encoder_has_its_own_rate(network: Classifier) -> None:
    optimiser = make_optimiser("adam", network, lr=1e-3, encoder_lr=1e-5)
    assert [(group["name"], group["lr"]) for group in optimiser.param_groups] == [("encoder", 1e-5), ("rest", 1e-3)]
    assert [len(group["params"]) for group in optimiser.param_groups] == [4, 2]
    assert {id(p) for group in optimiser.param_groups for p in group["params"]} == {id(p) for p in network.parameters()}


def test_a_frozen_encoder_stays_and_the_head_learns(network: Classifier) -> None:
    freeze(network.encoder)
    before = {name: tensor.clone() for name, tensor in network.encoder.state_dict().items()}
    moved = step(network, make_optimiser("adam", network, lr=0.01))
    assert {name for name, value in moved.items() if value} == {"head.weight", "head.bias"}
    after = network.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "batch norm's statistics are fixed too"
    assert before["1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "adamm"}, "'adamm' is not known.*adamw.*sgd"),
        ({"name": "adam", "momentum": 0.9}, "no option momentum: expected lr, encoder_lr, betas"),
        ({"name": "sgd", "lr": -1}, "cannot work"),
        ({"name": "sgd", "nesterov": True}, "Nesterov momentum requires a momentum"),
    ],
    ids=str,
)
def test_refusals(options: dict, said: str, network: Classifier) -> None:
    with pytest.raises(ConfigError, match=said):
        make_optimiser(network=network, **options)


def test_a_rate_of_an_encoder_that_is_frozen_or_not_there(network: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"Linear has no part `encoder`"):
        make_optimiser("adam", nn.Linear(1, 1), encoder_lr=0.1)
    freeze(network.encoder)
    with pytest.raises(ConfigError, match="frozen and has a learning rate"):
        make_optimiser("adam", network, encoder_lr=0.1)
    with pytest.raises(ConfigError, match="no parameter that learns"):
        make_optimiser("adam", network.requires_grad_(False))
