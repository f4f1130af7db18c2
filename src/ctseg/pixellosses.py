"""Losses that MONAI and torch do not have as named here: most are sums over single pixels, for flat images.

All take logits (B, C, ...) and targets of the same shape in 0..1, and stay finite at any finite logit: logarithms are
taken of logits, never of probabilities. `ctseg.losses` makes them by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ctseg.errors import ConfigError
from ctseg.sentences import options_of
from ctseg.structural import BCEAndStructural, StructuralLoss


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the probability of each class: sigmoid of one channel, softmax over several."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


class PixelDice(nn.Module):
    """Dice per pixel: 1 - mean over pixels of (2 p y + s) / (p + y + s).

    Unlike the soft Dice, whose sums run over the image before they are divided, every pixel has a Dice of its own, so
    that background counts as much as organ and an image without organ needs no rule.

    Args:
        smooth: s, above 0.
    """

    def __init__(self, smooth: float = 1e-2) -> None:
        super().__init__()
        if not smooth > 0:
            raise ConfigError(f"The loss dice_pixel got smooth {smooth}: expected a number above 0.")
        self.smooth = smooth

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over all pixels and channels."""
        likely = probabilities(prediction)
        return 1 - ((2 * likely * target + self.smooth) / (likely + target + self.smooth)).mean()


class OneSidedFocal(nn.Module):
    """Focal loss with its factor on the organ only: mean of -[(1-p)^gamma y log p + (1-y) log(1-p)].

    The standard one (`focal`) has a factor p^gamma on the background too.

    Args:
        gamma: 0 or more; 0 is the cross-entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ConfigError(f"The loss focal_one_sided got gamma {gamma}: expected 0 or more.")
        self.gamma = gamma

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over all pixels and channels, each channel by itself."""
        # -log p = softplus(-x) and -log(1-p) = softplus(x); (1-p)^gamma as exp(-gamma softplus(x)) has a derivative
        # also where 1-p is 0 in floating point.
        positive = torch.exp(-self.gamma * functional.softplus(prediction)) * functional.softplus(-prediction)
        return (target * positive + (1 - target) * functional.softplus(prediction)).mean()


class InverseFrequencyBCE(nn.Module):
    """Cross-entropy with each pixel weighted by how rare its class is in the batch.

    A pixel of the organ weighs N / (2 N_organ) and one of the background N / (2 N_background), so that in a batch that
    has both, both have half of the loss whatever their sizes. In a batch without the organ it is half of the
    background's mean. Channels are weighted apart.

    Args:
        largest: no pixel weighs more; null for no bound.
    """

    def __init__(self, largest: float | None = None) -> None:
        super().__init__()
        if largest is not None and not largest > 0:
            raise ConfigError(
                f"The loss bce_inverse_frequency got largest {largest}: expected a weight above 0, or null."
            )
        self.largest = largest

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over all pixels and channels of the weighted cross-entropy."""
        others = [axis for axis in range(target.ndim) if axis != 1]
        organ = target.mean(dim=others, keepdim=True)
        # A class that is absent has no pixel to weigh; the clamp only keeps 0 x infinity away.
        tiny = torch.finfo(target.dtype).eps
        weights = target * 0.5 / organ.clamp_min(tiny) + (1 - target) * 0.5 / (1 - organ).clamp_min(tiny)
        if self.largest is not None:
            weights = weights.clamp_max(self.largest)
        return functional.binary_cross_entropy_with_logits(prediction, target, weight=weights)


class Lovasz(nn.Module):
    """segmentation-models-pytorch's Lovasz loss: hinge for one channel, softmax over several (Berman et al. 2018).

    Args:
        per_image: the mean over images instead of one set of pixels for the batch.
    """

    def __init__(self, several: bool, per_image: bool = False) -> None:
        super().__init__()
        from segmentation_models_pytorch.losses import BINARY_MODE, MULTICLASS_MODE, LovaszLoss

        self.several = several
        self.loss = LovaszLoss(MULTICLASS_MODE if several else BINARY_MODE, per_image=per_image)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss; the targets are whole classes."""
        pixels = prediction.flatten(2)[..., None]  # (B, C, N, 1): it knows 2D only
        classes = target.argmax(dim=1, keepdim=True) if self.several else target
        return self.loss(pixels, classes.flatten(1)[..., None])


class MCC(nn.Module):
    """1 - Matthews' correlation coefficient of the batch's pixels, by segmentation-models-pytorch; mean over channels.

    Args:
        eps: added to each count of the confusion matrix.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        from segmentation_models_pytorch.losses import MCCLoss

        if not eps > 0:
            raise ConfigError(f"The loss mcc got eps {eps}: expected a number above 0.")
        self.loss = MCCLoss(eps)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss; each channel against all others."""
        likely = probabilities(prediction)
        each = [self.loss(likely[:, one], target[:, one]) for one in range(prediction.shape[1])]
        return torch.stack(each).mean()


class _Distance(nn.Module):
    """The mean distance between probabilities and targets: absolute (L1) or squared (MSE)."""

    def __init__(self, squared: bool) -> None:
        super().__init__()
        self.distance = functional.mse_loss if squared else functional.l1_loss

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.distance(probabilities(prediction), target)


def _soft_bce(smooth_factor: float | None = None) -> nn.Module:
    from segmentation_models_pytorch.losses import SoftBCEWithLogitsLoss

    return SoftBCEWithLogitsLoss(ignore_index=None, smooth_factor=smooth_factor)


def _maker(kind: Any) -> Any:
    def make(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
        return kind(**options)

    make.options = options_of(kind, ("options",))  # type: ignore[attr-defined]
    return make


def _lovasz(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    if soft:
        raise ConfigError("The loss lovasz sorts pixels by whole labels: expected label_smoothing 0.")
    return Lovasz(channels > 1, **options)


def _soft_cross_entropy(channels: int, soft: bool, options: dict[str, Any]) -> nn.Module:
    if channels == 1:
        raise ConfigError(
            "The loss soft_cross_entropy got one channel: expected two or more; for one organ use soft_bce."
        )
    return nn.CrossEntropyLoss(label_smoothing=options.get("smooth_factor", 0.0))


_lovasz.options = ["per_image"]  # type: ignore[attr-defined]
_soft_cross_entropy.options = ["smooth_factor"]  # type: ignore[attr-defined]
_bce_structural = _maker(BCEAndStructural)
_bce_structural.options = ["weight", *options_of(StructuralLoss)]

# name -> what `ctseg.losses` calls with (channels, whether the targets are smoothed, options)
PIXEL_LOSSES: dict[str, Any] = {
    "dice_pixel": _maker(PixelDice),
    "focal_one_sided": _maker(OneSidedFocal),
    "structural": _maker(StructuralLoss),
    "bce_structural": _bce_structural,
    "bce_inverse_frequency": _maker(InverseFrequencyBCE),
    "soft_bce": _maker(_soft_bce),
    "soft_cross_entropy": _soft_cross_entropy,
    "lovasz": _lovasz,
    "mcc": _maker(MCC),
    "l1": _maker(lambda: _Distance(squared=False)),
    "mse": _maker(lambda: _Distance(squared=True)),
}
