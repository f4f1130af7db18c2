"""What a network does not know about an image: entropy within each organ, disagreement of several runs, features.

One pass over the probabilities (`organ_sums`) gives what the strategies choose by and what the estimate of a mask's
quality is made of (`ctseg.quality`). Every number is of one organ and of the region where the network takes the organ
to be possible: the mean over a whole volume says nothing of a small organ, since most of it is certain background.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ctseg.errors import ConfigError
from ctseg.grids.boxes import box_of

POSSIBLE = 0.1  # from this probability on a voxel may belong to the organ
_CHUNK = 16  # slices of the last axis at once
_NOT_RUN = -1e30  # logits below it stand for voxels that were not run; their probability is 0 in any float
WAYS = ("augment", "dropout")
_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class OrganSums:
    """Sums over the voxels of an image, of one organ: p is its probability, m the network's own mask.

    Attributes:
        bits: of the entropy of "organ or not", over the voxels where the organ is possible.
        possible: how many voxels these are.
        common: sum(p m).
        probable: sum(p).
        voxels: sum(m).
    """

    bits: float
    possible: int
    common: float
    probable: float
    voxels: int

    @property
    def entropy(self) -> float:
        """Mean entropy in bits where the organ is possible; 0 where it is nowhere."""
        return self.bits / self.possible if self.possible else 0.0

    @property
    def overlap(self) -> tuple[float, float, float]:
        """(sum(p m), sum(p), sum(m)), of which `ctseg.quality.expected_dice` is made."""
        return self.common, self.probable, float(self.voxels)


def organ_sums(logits: torch.Tensor, possible: float = POSSIBLE, entropy: bool = True) -> list[OrganSums]:
    """Return the sums of each organ, in one pass over the probabilities.

    Args:
        logits: (C, ...): one organ's logit, or background and organs. Voxels with the lowest float were not run and
            count as certain background.
        possible: least probability of a voxel whose entropy counts.
        entropy: False leaves it out, where nobody asks for it.
    """
    totals = np.zeros((max(1, logits.shape[0] - 1), 5))
    for part in _that_was_run(_plain(logits)).split(_CHUNK, dim=-1):
        for total, p, mask in zip(totals, _probabilities(part), organ_masks(part), strict=True):
            if entropy:
                q = p[p >= possible].double()
                bits = -(torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)) / math.log(2)
                total[:2] += float(bits.sum()), q.numel()
            total[2:] += float(p[mask].sum(dtype=torch.float64)), float(p.sum(dtype=torch.float64)), int(mask.sum())
    return [OrganSums(a, int(b), c, d, int(e)) for a, b, c, d, e in totals.tolist()]


def foreground_entropy(logits: torch.Tensor, possible: float = POSSIBLE) -> list[float]:
    """Return for each organ the mean entropy, in bits, of "organ or not" where the organ is possible; 0 where nowhere.

    Args:
        logits: as for `organ_sums`.
        possible: least probability of a voxel that counts.
    """
    return [sums.entropy for sums in organ_sums(logits, possible)]


def foreground_voxels(logits: torch.Tensor) -> list[int]:
    """Return for each organ how many voxels the network gives it."""
    return [int(mask.sum()) for mask in organ_masks(logits)]


def organ_masks(logits: torch.Tensor) -> list[torch.Tensor]:
    """Return the mask of each organ, bool, of logits (C, ...)."""
    plain = _plain(logits)
    if plain.shape[0] == 1:
        return [plain[0] > 0]
    chosen = plain.argmax(dim=0)
    return [chosen == index for index in range(1, plain.shape[0])]


def mean_logits(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of the mean probability of several runs of one image, each (C, ...)."""
    if runs[0].shape[0] == 1:
        return torch.logit(torch.stack([_plain(one).float().sigmoid() for one in runs]).mean(dim=0))
    mean = torch.stack([_plain(one).float().softmax(dim=0) for one in runs]).mean(dim=0)
    return mean.clamp_min(torch.finfo(torch.float32).tiny).log()


def disagreement(runs: Sequence[torch.Tensor]) -> list[float]:
    """Return for each organ 1 - the mean Dice over all pairs of runs; two empty masks agree.

    Args:
        runs: logits (C, ...) of the same image, two at least.

    Raises:
        ConfigError: for fewer than two.
    """
    if len(runs) < 2:
        raise ConfigError(f"The disagreement of {len(runs)} runs was asked for: expected two runs at least.")
    masks = [organ_masks(logits) for logits in runs]
    found = []
    for organ in zip(*masks, strict=True):
        dices = [_dice(a, b) for a, b in itertools.combinations(organ, 2)]
        found.append(1.0 - sum(dices) / len(dices))
    return found


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def several_runs(
    run: Run, network: nn.Module, image: torch.Tensor, way: str, count: int, seed: int = 0
) -> Iterator[torch.Tensor]:
    """Yield the logits of several runs of one image, each seen a little differently.

    Args:
        run: runs the network on an image (1, C, ...) and returns logits (1, K, ...).
        network: what runs; its dropout layers are switched on for "dropout".
        image: (1, C, ...), first channel scaled to 0..1; further channels are left alone.
        way: "augment" (test-time augmentation: intensity, contrast and noise, and shifts of a few pixels that are taken
            back; never a flip, since organs have a side) or "dropout" (Gal and Ghahramani, "Dropout as a Bayesian
            approximation", ICML 2016).
        count: how many runs.
        seed: of what is drawn.

    Raises:
        ConfigError: an unknown way, or dropout asked of a network that has none.
    """
    if way not in WAYS:
        raise ConfigError(f"The way {way!r} of several runs is not known: expected one of {', '.join(WAYS)}.")
    if way == "dropout":
        yield from _with_dropout(run, network, image, count, seed)
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        gain, offset, gamma = (float(x) for x in torch.rand(3, generator=generator))
        shift = [int(x) for x in torch.randint(-6, 7, (2,), generator=generator)]
        changed = image.clone()
        first = changed[:, :1].clamp(0, 1) ** (0.8 + 0.45 * gamma)
        changed[:, :1] = (first * (0.9 + 0.2 * gain) + 0.1 * (offset - 0.5)).clamp(0, 1)
        logits = run(torch.roll(changed, shift, dims=(2, 3)))
        yield torch.roll(logits, [-step for step in shift], dims=(2, 3))


def _with_dropout(run: Run, network: nn.Module, image: torch.Tensor, count: int, seed: int) -> Iterator[torch.Tensor]:
    layers = [layer for layer in network.modules() if isinstance(layer, _DROPOUTS) and layer.p > 0]
    if not layers:
        raise ConfigError(
            f"Monte Carlo dropout was asked of {type(network).__name__}, which has no dropout layer: use augment, or "
            "give the task a network with dropout."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(count):
            for layer in layers:
                layer.train()
            try:
                logits = run(image)
            finally:
                for layer in layers:
                    layer.eval()
            yield logits


@contextmanager
def deepest_features(network: nn.Module) -> Iterator[list[NDArray[np.float32]]]:
    """Collect, while the block runs, a feature vector of each image that passes: the network's coarsest level, pooled.

    Works for any network: the layer whose output has the fewest pixels is where the encoder ends. The list gets an
    array (images, features) for each forward pass.
    """
    passed: list[NDArray[np.float32]] = []
    coarsest: list[tuple[int, torch.Tensor]] = []

    def look(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim >= 4:
            pixels = math.prod(output.shape[2:])
            if not coarsest or pixels <= coarsest[0][0]:
                coarsest[:] = [(pixels, output)]

    def end(_: nn.Module, __: object, ___: object) -> None:
        if coarsest:
            passed.append(coarsest[0][1].float().flatten(2).mean(-1).cpu().numpy())
            coarsest.clear()

    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_hook(look) for layer in convolutions]
    hooks.append(network.register_forward_hook(end))
    try:
        yield passed
    finally:
        for hook in hooks:
            hook.remove()


def _plain(logits: torch.Tensor) -> torch.Tensor:
    return logits.as_tensor() if hasattr(logits, "as_tensor") else logits


def _that_was_run(plain: torch.Tensor) -> torch.Tensor:
    """Return the part of logits (C, I, J, K) outside of which nothing was run: there every probability is exactly 0."""
    if plain.ndim != 4:
        return plain
    organs = plain[0] if plain.shape[0] == 1 else plain[1:].amax(dim=0)
    box = box_of(organs > _NOT_RUN)
    if box is None:
        return plain[..., :0]
    i, j, k = box
    return plain[:, i, j, k]


def _probabilities(logits: torch.Tensor) -> list[torch.Tensor]:
    if logits.shape[0] == 1:
        return [logits[0].float().sigmoid()]
    return list(logits.float().softmax(dim=0)[1:])
