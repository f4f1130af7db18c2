"""The structural-similarity loss: cross-entropy over the pixels whose surroundings look least like the label's.

Zhao, Wu, Chu, Cai: "Correlation Maximized Structural Similarity Loss for Semantic Segmentation" (arXiv:1910.08711).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ctseg.errors import ConfigError

_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class StructuralLoss(nn.Module):
    """Structural-similarity loss of logits: the mean cross-entropy of the hard pixels.

    Label and probability are normalised within each cell: (x - mean + s) / (deviation + s). The error of a pixel is the
    distance between the two; hard are the pixels whose error is above `share` of the largest in the batch. The
    error only chooses: the probability that goes into it is detached. Where both have the same structure everywhere
    (an empty label and a constant prediction), every pixel counts, and the loss is the plain cross-entropy.

    Cells do not overlap and start at the first pixel; at the far edges of a size that the cell does not divide they are
    smaller, so that every pixel counts. The deviation is that of a population (divided by the number of pixels).

    Args:
        cell: pixels along each side of a cell.
        smoothing: s, added above and below.
        share: of the largest error, above which a pixel is hard; 0 up to below 1.
        weigh_by_error: multiply each hard pixel's cross-entropy by its error, as the paper has it; without it the
            error only chooses.

    Raises:
        ConfigError: for a value that cannot work.
    """

    def __init__(
        self, cell: int = 3, smoothing: float = 0.01, share: float = 0.1, weigh_by_error: bool = False
    ) -> None:
        super().__init__()
        if isinstance(cell, bool) or not isinstance(cell, int) or cell < 2:
            raise ConfigError(f"The structural loss got cell {cell!r}: expected whole pixels, 2 or more.")
        if not smoothing > 0 or not 0 <= share < 1:
            raise ConfigError(
                f"The structural loss got smoothing {smoothing} and share {share}: expected a smoothing above 0 and a "
                "share from 0 up to below 1."
            )
        self.cell, self.smoothing, self.share, self.weigh_by_error = cell, smoothing, share, weigh_by_error

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (B, C, ...) and targets of the same shape in 0..1; each channel by itself."""
        entropy = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        error = self.error(prediction, target)
        # ">=" differs from ">" only where the largest error is 0: then all pixels count instead of none.
        hard = (error >= self.share * error.max()).to(entropy.dtype)
        if self.weigh_by_error:
            entropy = entropy * error
        return (entropy * hard).sum() / hard.sum()

    @torch.no_grad()
    def error(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the structural error of each pixel, of the shape of the logits; it has no gradient."""
        return (self._normalised(target) - self._normalised(prediction.sigmoid())).abs()

    def _normalised(self, values: torch.Tensor) -> torch.Tensor:
        deviation = values - self._means(values)
        spread = self._means(deviation.square()).sqrt()
        return (deviation + self.smoothing) / (spread + self.smoothing)

    def _means(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of each pixel's cell, at the pixel."""
        dimensions = values.ndim - 2
        means = _POOLS[dimensions](values, self.cell, self.cell, ceil_mode=True, count_include_pad=False)
        for axis in range(2, values.ndim):
            means = means.repeat_interleave(self.cell, dim=axis).narrow(axis, 0, values.shape[axis])
        return means


class BCEAndStructural(nn.Module):
    """The weighted mean of two: weight * cross-entropy + (1 - weight) * structural-similarity loss.

    Args:
        weight: of the cross-entropy, 0..1.
        options: of `StructuralLoss`.

    Raises:
        ConfigError: for a value that cannot work.
    """

    def __init__(self, weight: float = 0.5, **options: float) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ConfigError(f"The loss bce_structural got weight {weight}: expected 0 to 1, that of the BCE.")
        self.weight = weight
        self.structural = StructuralLoss(**options)  # type: ignore[arg-type]

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean for logits (B, C, ...) and targets of the same shape."""
        entropy = functional.binary_cross_entropy_with_logits(prediction, target)
        return self.weight * entropy + (1 - self.weight) * self.structural(prediction, target)
