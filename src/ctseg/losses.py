"""Losses by name, for one organ (one logit) and for several (a logit for the background and one an organ).

The losses are those of MONAI, segmentation-models-pytorch and torch. What is ours: the name, a prediction and a label
brought into the shape and type that all of them take, the balanced cross-entropy, and label smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai import losses as monai_losses
from monai.networks import one_hot
from torch import nn

from ctseg.errors import ConfigError
from ctseg.pixellosses import PIXEL_LOSSES
from ctseg.sentences import look_up, options_of, said_plainly


class BalancedBCE(nn.Module):
    """Balanced cross-entropy of logits: the mean of -[b y log p + (1-b) (1-y) log(1-p)], p = sigmoid(logit).

    Up to the factor 1-b it is the cross-entropy with `pos_weight` b/(1-b): b = .67 is `pos_weight` 2.03.

    Args:
        b: weight of the organ, between 0 and 1; None for the plain cross-entropy (the formula without b and 1-b).

    Raises:
        ConfigError: for another `b`.
    """

    pos_weight: torch.Tensor

    def __init__(self, b: float | None = None) -> None:
        super().__init__()
        if b is not None and not 0 < b < 1:
            raise ConfigError(f"The loss bce got b = {b}: expected the organ's weight, above 0 and below 1 (or null).")
        self.scale = 1.0 if b is None else 1.0 - b
        self.register_buffer("pos_weight", torch.tensor(1.0 if b is None else b / (1.0 - b)), persistent=False)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over all elements of two tensors of one shape."""
        weight = self.pos_weight.to(prediction)
        return self.scale * nn.functional.binary_cross_entropy_with_logits(prediction, target, pos_weight=weight)


class _TwoClasses(nn.Module):
    """A loss for several classes, applied to one logit: the background becomes a class with the logit 0."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([torch.zeros_like(prediction), prediction], dim=1)
        return self.loss(logits, torch.cat([1 - target, target], dim=1))


class _OfVectors(nn.Module):
    """A loss of vectors: the probabilities of each image and its label, each laid out as one vector."""

    def __init__(self, loss: nn.Module, channels: int) -> None:
        super().__init__()
        self.loss = loss
        self.channels = channels

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        probabilities = prediction.sigmoid() if self.channels == 1 else prediction.softmax(dim=1)
        return self.loss(probabilities.flatten(1), target.flatten(1))


class Loss(nn.Module):
    """A loss between logits and a label, both brought into what every loss takes: float32, one channel a class.

    Half-precision logits are widened, since the sum over a slice overflows float16.

    Args:
        loss: takes logits (B, C, ...) and targets of the same shape in 0..1.
        channels: C; 1 for one organ against background, else background and organs.
        label_smoothing: a of y(1-a) + a/K, K the number of classes (2 for one organ: it and background).
    """

    def __init__(self, loss: nn.Module, channels: int = 1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"The label smoothing is {label_smoothing}: expected at least 0 and below 1.")
        self.loss = loss
        self.channels = channels
        self.label_smoothing = label_smoothing

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss.

        Args:
            prediction: logits (B, C, ...).
            target: (B, 1, ...), class indices 0..C-1 (0 and 1 when C is 1), of any type; never changed.

        Raises:
            ConfigError: when the shapes or channels do not fit.
        """
        if prediction.shape[1] != self.channels or target.shape != (len(prediction), 1, *prediction.shape[2:]):
            raise ConfigError(
                f"The loss got logits {tuple(prediction.shape)} and a label {tuple(target.shape)}: expected "
                f"{self.channels} channel(s) of logits and a label of one channel and the same size; correct the "
                "loss's `channels` or the outputs of the network."
            )
        if prediction.ndim == 2:  # a classifier's; the overlap losses want a place beside channels
            prediction, target = prediction[..., None], target[..., None]
        return self.loss(prediction.float(), self.smoothed(target))

    def smoothed(self, target: torch.Tensor) -> torch.Tensor:
        """Return the target (B, C, ...), float32, smoothed; floats, since a cast to integers would turn it to 0."""
        several = self.channels > 1
        classes = one_hot(target, num_classes=self.channels, dtype=torch.float32) if several else target.float()
        return classes * (1 - self.label_smoothing) + self.label_smoothing / max(self.channels, 2)


class WeightedSum(nn.Module):
    """The sum of losses, each times its factor."""

    def __init__(self, terms: Sequence[nn.Module], factors: Sequence[float]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.factors = [float(factor) for factor in factors]

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        values = [factor * term(prediction, target) for factor, term in zip(self.factors, self.terms, strict=True)]
        return torch.stack(values).sum()


# A loss is made from (channels, soft, options): `soft` says that the targets are smoothed, for which the plain forms of
# the overlap losses are wrong (their best prediction is not the target).
_Make = Callable[[int, bool, dict[str, Any]], nn.Module]


def _activation(channels: int) -> dict[str, bool]:
    return {"sigmoid": True} if channels == 1 else {"softmax": True}


def _overlap(kind: type[nn.Module], **ours: Any) -> _Make:
    def make(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
        return kind(**{**ours, **_activation(channels), "soft_label": soft, **options})

    make.options = options_of(kind, _OURS)  # type: ignore[attr-defined]
    return make


def _compound(kind: type[nn.Module], **ours: Any) -> _Make:
    def make(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
        loss = kind(**{**ours, **_activation(channels), **options})
        loss.dice.soft_label = soft  # type: ignore[union-attr]
        return loss

    make.options = options_of(kind, _OURS)  # type: ignore[attr-defined]
    return make


def _bce(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    return BalancedBCE(**options)


def _cross_entropy(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    if channels == 1:
        raise ConfigError("The loss cross_entropy got one channel: expected two or more; for one organ use bce.")
    return nn.CrossEntropyLoss(**options)


def _focal(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    return monai_losses.FocalLoss(**{"gamma": 2.0, "use_softmax": channels > 1, **options})


def _focal_smp(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    from segmentation_models_pytorch.losses import MULTILABEL_MODE, FocalLoss

    return FocalLoss(mode=MULTILABEL_MODE, **{"gamma": 2.0, **options})


def _generalised_dice(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    # The classes weigh 1/size^2 there, so sums are about 1e-6 on a slice of 512 x 512: the smoothing must be far below.
    ours = {"smooth_nr": 1e-9, "smooth_dr": 1e-9, "softmax": True, "soft_label": soft}
    loss = monai_losses.GeneralizedDiceLoss(**{**ours, **options})
    return _TwoClasses(loss) if channels == 1 else loss


def _contrastive(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    return _OfVectors(monai_losses.ContrastiveLoss(**options), channels)


_OURS = ("to_onehot_y", "sigmoid", "softmax", "other_act", "reduction", "label_smoothing", "soft_label", "use_softmax",
         "ignore_index", "mode", "from_logits", "batch_size", "size_average", "reduce", "pos_weight")  # fmt: skip
_ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
_bce.options = ["b"]  # type: ignore[attr-defined]
_cross_entropy.options = ["weight"]  # type: ignore[attr-defined]
_focal.options = options_of(monai_losses.FocalLoss, _OURS)  # type: ignore[attr-defined]
_focal_smp.options = ["alpha", "gamma", "normalized", "reduced_threshold", "class_weights"]  # type: ignore[attr-defined]
_generalised_dice.options = options_of(monai_losses.GeneralizedDiceLoss, _OURS)  # type: ignore[attr-defined]
_contrastive.options = ["temperature"]  # type: ignore[attr-defined]

LOSSES: Mapping[str, Any] = {
    "bce": _bce,
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "focal_smp": _focal_smp,
    "dice": _overlap(monai_losses.DiceLoss, **_ONE),
    "jaccard": _overlap(monai_losses.DiceLoss, jaccard=True, **_ONE),
    "generalised_dice": _generalised_dice,
    "tversky": _overlap(monai_losses.TverskyLoss),
    "dice_ce": _compound(monai_losses.DiceCELoss, **_ONE),
    "dice_focal": _compound(monai_losses.DiceFocalLoss, gamma=2.0, **_ONE),
    "contrastive": _contrastive,
    **PIXEL_LOSSES,
}


@said_plainly
def make_loss(name: str, channels: int = 1, label_smoothing: float = 0.0, **options: Any) -> nn.Module:
    """Return a loss by its name.

    Args:
        name: one of `LOSSES`, or "weighted_sum" with `terms`: a list of {name, factor, and the options of that loss}.
        channels: logits of the network: 1 for one organ, else one for the background and one an organ.
        label_smoothing: a of y(1-a) + a/K; 0 for none.
        options: of the loss itself, for example `b` of bce, `gamma` of focal, `lambda_focal` of dice_focal.

    Raises:
        ConfigError: for an unknown name or option, or a loss that cannot train a network alone.
    """
    if str(name).lower().replace("-", "_") == "weighted_sum":
        return _weighted_sum(channels, label_smoothing, **options)
    if look_up("loss", name, {**LOSSES, "weighted_sum": None}) is _contrastive:
        raise ConfigError(
            "The loss contrastive compares vectors and gives a mask no place: it cannot train a network alone; "
            "make it a term of a weighted_sum."
        )
    return _loss(name, channels, label_smoothing, options)


def _loss(name: str, channels: int, label_smoothing: float, options: Mapping[str, Any]) -> Loss:
    make = look_up("loss", name, {**LOSSES, "weighted_sum": None})
    unknown = [option for option in options if option not in make.options]
    if unknown:
        raise ConfigError(
            f"The loss {name} has no option {', '.join(unknown)}: expected {', '.join(make.options) or 'none'}."
        )
    try:
        return Loss(make(channels, label_smoothing > 0, dict(options)), channels, label_smoothing)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The loss {name} does not take its options {dict(options)}: {error}") from error


def _weighted_sum(
    channels: int, label_smoothing: float, terms: Sequence[Mapping[str, Any]] = (), **unknown: Any
) -> WeightedSum:
    if unknown or not terms or not all("name" in term for term in terms):
        raise ConfigError(
            "The loss weighted_sum takes `terms`, a list of entries with a name and a factor, for example "
            "{name: focal, factor: 0.8, gamma: 2}" + (f", and not {', '.join(unknown)}." if unknown else ".")
        )
    factors = [term.get("factor", 1.0) for term in terms]
    if any(not isinstance(factor, (int, float)) or factor < 0 for factor in factors) or not any(factors):
        raise ConfigError(f"The factors of the loss weighted_sum are {factors}: expected numbers, none below 0.")
    if all(look_up("loss", term["name"], LOSSES) is _contrastive for term in terms):
        raise ConfigError("The loss contrastive cannot train a network alone: add another term to the weighted_sum.")
    losses = [
        _loss(
            term["name"],
            channels,
            term.get("label_smoothing", label_smoothing),
            {key: value for key, value in term.items() if key not in ("name", "factor", "label_smoothing")},
        )
        for term in terms
    ]
    return WeightedSum(losses, factors)
