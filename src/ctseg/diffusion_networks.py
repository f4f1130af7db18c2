"""Networks that see a noisy mask, an image and a time: two encoders summed, or both as channels of one U-Net.

Both are made of MONAI's `DiffusionModelUNet` (residual blocks with an embedding of the time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import nn

from ctseg.errors import ConfigError


def _unet(in_channels: int, channels: Sequence[int], options: dict[str, Any]) -> DiffusionModelUNet:
    usual = {
        "attention_levels": [False] * len(channels),
        "num_res_blocks": 1,
        "norm_num_groups": min(8, *channels),
        "num_head_channels": min(8, channels[-1]),
    }
    return DiffusionModelUNet(
        spatial_dims=2, in_channels=in_channels, out_channels=1, channels=channels, **{**usual, **options}
    )


def _check_size(image: torch.Tensor, levels: int) -> None:
    factor = 2 ** (levels - 1)
    if any(size % factor for size in image.shape[2:]):
        raise ConfigError(
            f"The diffusion network got images of {' x '.join(map(str, image.shape[2:]))}: expected sides that "
            f"{factor} divides; set `patch` so, or take fewer levels."
        )


class TwoEncoders(nn.Module):
    """D(E_I(I, t) + E_x(x_t, t), t): an encoder of the image, one of the noisy mask, and one decoder.

    The embeddings are summed at every level: those that the decoder gets past the bottleneck, and the bottleneck's.

    Args:
        in_channels: of the image.
        channels: of the levels.
        options: further ones of `DiffusionModelUNet`.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.levels = len(channels)
        self.mask = _unet(1, channels, options)  # E_x and D
        self.image = _unet(in_channels, channels, options)  # E_I
        del self.image.up_blocks, self.image.out

    def forward(self, noisy: torch.Tensor, image: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, H, W) for x_t (B, 1, H, W), images (B, C, H, W) and times (B,)."""
        _check_size(image, self.levels)
        skips, bottom = self._encoded(image, timesteps)
        answer: torch.Tensor = self.mask(
            noisy, timesteps, down_block_additional_residuals=skips, mid_block_additional_residual=bottom
        )
        return answer

    def _encoded(self, image: torch.Tensor, timesteps: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """E_I: what each level gives to the decoder, and the bottleneck."""
        net = self.image
        time = net.time_embed(get_timestep_embedding(timesteps, net.block_out_channels[0]).to(image.dtype))
        values = net.conv_in(image)
        skips = [values]
        for block in net.down_blocks:
            values, found = block(hidden_states=values, temb=time, context=None)
            skips += found
        return tuple(skips), net.middle_block(hidden_states=values, temb=time, context=None)


class Concatenated(nn.Module):
    """The simple alternative: image and noisy mask are channels of one U-Net.

    Args:
        in_channels: of the image.
        channels: of the levels.
        options: further ones of `DiffusionModelUNet`.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.levels = len(channels)
        self.both = _unet(1 + in_channels, channels, options)

    def forward(self, noisy: torch.Tensor, image: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, H, W), as `TwoEncoders`."""
        _check_size(image, self.levels)
        answer: torch.Tensor = self.both(torch.cat([noisy, image], dim=1), timesteps)
        return answer
