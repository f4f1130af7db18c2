"""Segmentation by a diffusion model: a mask grown out of noise under the condition of the image, several times over.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with x_0 the mask as -1 and 1; in training t and the noise are drawn. The
network is `ctseg.diffusion_networks`' D(E_I(I, t) + E_x(x_t, t), t). It answers with logits of the mask x_0 and not
with the noise: from x_t each follows from the other, and so every loss and metric of a bundle holds. Sampling goes back
over DDIM steps (MONAI's scheduler); the answer is the mean probability of an ensemble of samples, so that validation,
thresholds, clean-up and `ctseg segment` are those of any network.

Sources: Ho et al. (arXiv:2006.11239), Song et al., DDIM (arXiv:2010.02502); image and noisy mask through encoders whose
embeddings are summed: Amit et al., SegDiff (arXiv:2112.00390).
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler
from torch import nn

from ctseg.diffusion_networks import Concatenated, TwoEncoders
from ctseg.errors import ConfigError
from ctseg.folds.ensembles import mean_logits
from ctseg.training import PrepareBatch

CONDITIONS = {"sum": TwoEncoders, "concatenate": Concatenated}


class DiffusionSegmenter(nn.Module):
    """A diffusion model of one structure's mask.

    Args:
        in_channels: of the image.
        condition: "sum" (two encoders whose embeddings are summed, one decoder), or "concatenate" (image and noisy mask
            as channels of one U-Net).
        channels: of the levels; the image's size must be divisible by two for each level but the first.
        timesteps: of the noise schedule.
        schedule: MONAI's name of it: linear_beta, scaled_linear_beta, cosine.
        samples: of the ensemble.
        steps: of the way back for each.
        seed: of the noise that sampling begins with; the same image gives the same answer.
        options: further ones of `monai.networks.nets.DiffusionModelUNet`.

    Raises:
        ConfigError: for an unknown condition, or counts below 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        condition: str = "sum",
        channels: tuple[int, ...] = (32, 64, 128, 128),
        timesteps: int = 1000,
        schedule: str = "scaled_linear_beta",
        samples: int = 5,
        steps: int = 10,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if condition not in CONDITIONS:
            raise ConfigError(f"The condition {condition!r} is not known: expected {' or '.join(CONDITIONS)}.")
        if min(samples, steps) < 1 or not steps <= timesteps:
            raise ConfigError(
                f"The diffusion got {samples} samples and {steps} of {timesteps} steps: expected at least 1 sample and "
                "1 step, and no more steps than the schedule has."
            )
        self.network = CONDITIONS[condition](in_channels, tuple(channels), **options)
        self.scheduler = DDIMScheduler(timesteps, schedule, prediction_type="sample")
        self.timesteps, self.samples, self.steps, self.seed = timesteps, samples, steps, seed

    def forward(
        self, image: torch.Tensor, noisy: torch.Tensor | None = None, timesteps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits of the mask (B, 1, H, W) for images (B, C, H, W).

        Args:
            image: the condition.
            noisy: x_t (B, 1, H, W) to take the noise from, as training does; None grows masks out of noise.
            timesteps: t of each (B,), with `noisy`.
        """
        if noisy is not None and timesteps is not None:
            logits: torch.Tensor = self.network(noisy, image, timesteps)
            return logits
        return mean_logits(self.ensemble(image))

    def add_noise(self, mask: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return x_t of masks (B, 1, H, W) of 0 and 1."""
        made: torch.Tensor = self.scheduler.add_noise(2.0 * mask - 1.0, noise, timesteps)
        return made

    def ensemble(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of each sample, (N, B, 1, H, W); all images of a batch begin with the same noise."""
        generator = torch.Generator(image.device).manual_seed(self.seed)
        shape = (self.samples, 1, *image.shape[2:])
        noise = torch.randn(shape, generator=generator, device=image.device)
        return torch.stack([self._grown(image, start[None].expand(len(image), -1, -1, -1)) for start in noise])

    def mean_and_spread(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the samples' probabilities, (B, 1, H, W) each: a mask and its doubt."""
        probabilities = self.ensemble(image).sigmoid()
        return probabilities.mean(dim=0), probabilities.std(dim=0, correction=0)

    def _grown(self, image: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        self.scheduler.set_timesteps(self.steps, image.device)
        logits = values
        for step in self.scheduler.timesteps:
            at = step.to(image.device).expand(len(image))
            logits = self.network(values, image, at).float()
            values, _ = self.scheduler.step(torch.tanh(logits / 2), int(step), values)  # 2 sigmoid(logit) - 1
        return logits


class PrepareDiffusion(PrepareBatch):
    """Take image and label out of a batch as `PrepareBatch`, and draw for each a time and the noisy mask of it.

    Args:
        network: a `DiffusionSegmenter`, wrapped by a training on several GPUs or not.
        stages: as for `PrepareBatch`.
        epochs: as for `PrepareBatch`.
    """

    def __init__(self, network: nn.Module, stages: Any = None, epochs: int = 1) -> None:
        super().__init__(stages, epochs)
        bare = getattr(network, "module", network)
        if not isinstance(bare, DiffusionSegmenter):
            raise ConfigError(f"The network is a {type(bare).__name__}: expected a DiffusionSegmenter.")
        self.model = bare

    def __call__(self, batchdata: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        """Return image, label, and `noisy` and `timesteps` for the network."""
        image, label = super().__call__(batchdata, device, non_blocking, **kwargs)
        mask = (label[:, :1] > 0.5).as_subclass(torch.Tensor).to(image.dtype)
        timesteps = torch.randint(0, self.model.timesteps, (len(mask),), device=mask.device)
        noisy = self.model.add_noise(mask, torch.randn_like(mask), timesteps)
        return image, label, (), {"noisy": noisy, "timesteps": timesteps}
