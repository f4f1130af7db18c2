"""Optimisers by name, over the parameters of a network that learn, the encoder's at a rate of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from monai.optimizers import Novograd
from torch import nn

from ctseg.errors import ConfigError
from ctseg.networks import encoder_of
from ctseg.sentences import look_up, options_of, said_plainly


def _of_torch() -> Iterator[tuple[str, type[torch.optim.Optimizer]]]:
    for name, value in vars(torch.optim).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer:
            yield name.lower(), value


OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {**dict(_of_torch()), "novograd": Novograd}


@said_plainly
def make_optimiser(
    name: str, network: nn.Module, lr: float | None = None, encoder_lr: float | None = None, **options: Any
) -> torch.optim.Optimizer:
    """Return an optimiser of torch (or MONAI's Novograd) by its name, in any spelling of capitals.

    The parameter groups are named "network", or "encoder" and "rest" when the encoder has a rate of its own.

    Args:
        name: one of `OPTIMISERS`.
        network: what learns; parameters that are frozen are left out.
        lr: learning rate; None takes the optimiser's own.
        encoder_lr: learning rate of the encoder; None for that of the rest.
        options: further ones of the optimiser, for example weight_decay or momentum.

    Raises:
        ConfigError: for an unknown name or option, a frozen encoder with a rate, or an optimiser that cannot work with
            this network, with the reason.
    """
    kind = look_up("optimiser", name, OPTIMISERS)
    _check_works(kind, network)
    unknown = [option for option in options if option not in options_of(kind, ("params", "lr"))]
    if unknown:
        raise ConfigError(
            f"The optimiser {name} has no option {', '.join(unknown)}: expected lr, encoder_lr, "
            f"{', '.join(options_of(kind, ('params', 'lr')))}."
        )
    rate: dict[str, Any] = {} if lr is None else {"lr": lr}
    try:
        return kind(_groups(network, encoder_lr), **rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The optimiser {name} cannot work with this network and these options: {error}") from error


def _groups(network: nn.Module, encoder_lr: float | None) -> list[dict[str, Any]]:
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if encoder_lr is None:
        return [{"name": "network", "params": learning}]
    in_encoder = {id(parameter) for parameter in encoder_of(network).parameters() if parameter.requires_grad}
    if not in_encoder:
        raise ConfigError("The encoder is frozen and has a learning rate (encoder_lr): take one of the two away.")
    return [
        {"name": "encoder", "params": [p for p in learning if id(p) in in_encoder], "lr": encoder_lr},
        {"name": "rest", "params": [p for p in learning if id(p) not in in_encoder]},
    ]


def _check_works(kind: type[torch.optim.Optimizer], network: nn.Module) -> None:
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not learning:
        raise ConfigError("The network has no parameter that learns: unfreeze a part of it.")
    if kind is torch.optim.LBFGS:
        raise ConfigError(
            "The optimiser LBFGS needs a closure that computes the loss again several times a step, and the trainer "
            "takes one step a batch without one: use another, for example AdamW."
        )
    if kind is torch.optim.SparseAdam and len(_sparse(network)) < len(learning):
        raise ConfigError(
            "The optimiser SparseAdam needs sparse gradients, and this network's are dense (only an embedding with "
            "sparse=True has sparse ones): use Adam or AdamW."
        )
    muon = getattr(torch.optim, "Muon", None)
    other = [name for name, parameter in learning.items() if parameter.ndim != 2]
    if muon is not None and kind is muon and other:
        raise ConfigError(
            f"The optimiser Muon takes matrices only, and this network has {len(other)} parameters of another shape "
            f"(the first is {other[0]}): use another, for example AdamW."
        )


def _sparse(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.sparse]
