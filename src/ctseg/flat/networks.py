"""Four small 2D networks with 16-32-64-128 filters that differ in how they shrink and grow, and U-Net 64-512.

No library has them. All have the parts `encoder`, `bottleneck`, `decoder` and `head`, take images (B, C, H, W) of any
size from a smallest one on, and return logits (B, classes, H, W). `ctseg.networks.make_flat_network` makes them by
name.

Sources: SegNet: Badrinarayanan et al. (arXiv:1511.00561), whose decoder puts each value back where the encoder's
maximum was; U-Net: Ronneberger et al. (arXiv:1505.04597).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ctseg.errors import ConfigError, InputError
from ctseg.flat.halvings import Maxima, Nearest, Strided, Transposed, Unpool


def _convolutions(inside: int, outside: int, count: int, reflect: bool = True) -> nn.Sequential:
    """3x3 convolutions that keep the size, each with batch norm and ReLU; zero-padded ones have no bias."""
    layers: list[nn.Module] = []
    for number in range(count):
        padding: dict[str, Any] = {"padding_mode": "reflect"} if reflect else {"bias": False}
        layers += [
            nn.Conv2d(outside if number else inside, outside, 3, padding=1, **padding),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _Encoder(nn.Module):
    """Stages of convolutions, each followed by a halving: by maxima, or by a 2x2 convolution with batch norm."""

    def __init__(self, channels: int, filters: Sequence[int], count: int, strided: bool, reflect: bool = True) -> None:
        super().__init__()
        sizes = [channels, *filters]
        self.stages = nn.ModuleList(
            _convolutions(inside, outside, count, reflect) for inside, outside in itertools.pairwise(sizes)
        )
        self.halvings = nn.ModuleList(Strided(size) if strided else Maxima() for size in filters)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return the smallest map, the map of each stage before its halving, and where each stage's maxima were."""
        maps: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        values = image
        for stage, halving in zip(self.stages, self.halvings):  # noqa: B905
            values = stage(values)
            maps.append(values)
            values, place = halving(values)
            places.append(place)
        return values, maps, places


class _Decoder(nn.Module):
    """The encoder's stages backwards: a doubling to the size of the encoder's map, then convolutions.

    Args:
        filters: of the encoder.
        count: convolutions a stage.
        up: "unpool" (values go back to where the maxima were, zeros elsewhere), "nearest" or "transposed".
        skips: put the encoder's map beside the doubled one.
    """

    def __init__(self, filters: Sequence[int], count: int, up: str, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        inside = list(reversed(filters))
        outside = [*inside[1:], inside[-1]]
        make = {"unpool": lambda _: Unpool(), "nearest": lambda _: Nearest(), "transposed": Transposed}[up]
        self.doublings = nn.ModuleList(make(size) for size in inside)
        self.stages = nn.ModuleList(
            _convolutions(2 * before if skips else before, after, count)
            for before, after in zip(inside, outside, strict=True)
        )

    def forward(self, values: torch.Tensor, maps: list[torch.Tensor], places: list[torch.Tensor]) -> torch.Tensor:
        """Return the map of the image's size."""
        for number, (doubling, stage) in enumerate(zip(self.doublings, self.stages)):  # noqa: B905
            beside = maps[-1 - number]
            # of an odd size the halving forgot the last row, the doubling gives it back
            values = doubling(values, places[-1 - number], [beside.shape[-2], beside.shape[-1]])
            values = stage(torch.cat([values, beside], dim=1) if self.skips else values)
        return values


class _ResizingDecoder(nn.Module):
    """Doublings beside the encoder's maps, odd sizes resized.

    Args:
        filters: of the encoder.
        up: "transposed" (convolutions that halve the channels) or "nearest" (values repeated, all channels kept).
    """

    def __init__(self, filters: Sequence[int], up: str) -> None:
        super().__init__()
        outside = list(reversed(filters))
        pairs = list(zip([2 * outside[0], *outside[:-1]], outside, strict=True))
        if up == "transposed":
            self.doublings = nn.ModuleList(nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in pairs)
            sizes = [2 * after for after in outside]
        else:
            self.doublings = nn.ModuleList(nn.Upsample(scale_factor=2.0) for _ in pairs)
            sizes = [before + after for before, after in pairs]
        self.stages = nn.ModuleList(
            _convolutions(size, after, 2, reflect=False) for size, after in zip(sizes, outside, strict=True)
        )

    def forward(self, values: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the map of the image's size."""
        for number, (doubling, stage) in enumerate(zip(self.doublings, self.stages)):  # noqa: B905
            beside = maps[-1 - number]
            values = doubling(values)
            if values.shape != beside.shape:
                size = [beside.shape[-2], beside.shape[-1]]
                values = functional.interpolate(values, size, mode="bilinear", align_corners=False)
            values = stage(torch.cat([beside, values], dim=1))
        return values


class SmallNetwork(nn.Module):
    """A network of 16-32-64-128 filters with reflect padding and a last 3x3 convolution without activation.

    Args:
        in_channels: of the image.
        classes: logits.
        filters: of each stage of the encoder; the image is halved after each.
        convolutions: 3x3 ones a stage.
        strided: halve by a 2x2 convolution with batch norm instead of by maxima.
        up: "unpool", "nearest" or "transposed".
        skips: the decoder sees the encoder's maps.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        filters: Sequence[int] = (16, 32, 64, 128),
        convolutions: int = 2,
        *,
        strided: bool = False,
        up: str = "unpool",
        skips: bool = True,
    ) -> None:
        super().__init__()
        _check(in_channels, classes, filters, convolutions)
        self.encoder = _Encoder(in_channels, filters, convolutions, strided)
        self.bottleneck = _convolutions(filters[-1], filters[-1], 1)
        self.decoder = _Decoder(filters, convolutions, up, skips)
        self.head = nn.Conv2d(filters[0], classes, 3, padding=1, padding_mode="reflect")
        self.smallest = 2 ** (len(filters) + 1)  # reflect padding needs two pixels in the bottleneck

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, H, W) of an image (B, C, H, W).

        Raises:
            InputError: for an image that is too small to be halved so often.
        """
        if not torch.jit.is_scripting():
            _check_size(image, self.smallest)
        values, maps, places = self.encoder(image)
        return self.head(self.decoder(self.bottleneck(values), maps, places))


class ResizingUNet(nn.Module):
    """U-Net of 64-128-256-512 filters with a bottleneck of 1024; 31,037,633 parameters for 3 channels and 1 class.

    Each stage has two 3x3 convolutions without bias, with batch norm and zero padding; the decoder doubles by
    transposed convolutions and, where the halving met an odd size, resizes the doubled map to the encoder's (bilinear).
    With `up` "nearest" it repeats values instead and keeps all channels: with filters 32 to 512, one channel and 20
    classes that has 31,448,756 parameters, the "31.5 million" of reference system B.

    Args:
        in_channels: of the image.
        classes: logits.
        filters: of each stage; the bottleneck has twice the last.
        dropout: share of values set to 0 once, before the bottleneck.
        up: "transposed" or "nearest".

    Raises:
        ConfigError: numbers that are no sizes, or a dropout that is no share below 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        filters: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.0,
        up: str = "transposed",
    ) -> None:
        super().__init__()
        _check(in_channels, classes, filters, 2)
        if not 0 <= dropout < 1:
            raise ConfigError(f"The network got dropout {dropout}: expected a share of 0 or more and below 1.")
        self.dropout = dropout
        self.encoder = _Encoder(in_channels, filters, 2, strided=False, reflect=False)
        self.bottleneck = _convolutions(filters[-1], 2 * filters[-1], 2, reflect=False)
        self.decoder = _ResizingDecoder(filters, up)
        self.head = nn.Conv2d(filters[0], classes, 1)
        self.smallest = 2 ** len(filters)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, H, W) of an image (B, C, H, W).

        Raises:
            InputError: for an image that is too small to be halved so often.
        """
        if not torch.jit.is_scripting():
            _check_size(image, self.smallest)
        values, maps, _ = self.encoder(image)
        values = functional.dropout(values, self.dropout, self.training)
        return self.head(self.decoder(self.bottleneck(values), maps))


class AnySize(nn.Module):
    """A network that takes only multiples of a size, for images of any: padded at the far edges, the answer cropped.

    Args:
        network: (B, C, H, W) to (B, classes, H, W).
        multiple: of which H and W must be.
    """

    def __init__(self, network: nn.Module, multiple: int = 32) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's answer, of the image's size; the padding repeats the last row and column."""
        height, width = image.shape[-2], image.shape[-1]
        right, below = -width % self.multiple, -height % self.multiple
        if right or below:
            image = functional.pad(image, [0, right, 0, below], mode="replicate")
        return self.network(image)[..., :height, :width]


def _check(in_channels: int, classes: int, filters: Sequence[int], convolutions: int) -> None:
    numbers = [in_channels, classes, convolutions, *filters]
    if not filters or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in numbers):
        raise ConfigError(
            f"The network got in_channels {in_channels}, classes {classes}, filters {list(filters)} and {convolutions} "
            "convolutions a stage: expected whole numbers of 1 or more, and at least one stage."
        )


def _check_size(image: torch.Tensor, smallest: int) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < smallest:
        raise InputError(
            f"The network got an image of {height} x {width} pixels: expected at least {smallest} x {smallest}, since "
            "it is halved again and again; resize or pad it."
        )


# name -> (class, what is fixed)
FLAT_NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "segnet": (SmallNetwork, {"up": "unpool", "skips": False}),
    "unet_unpool": (SmallNetwork, {"up": "unpool"}),
    "unet_nearest": (SmallNetwork, {"up": "nearest"}),
    "unet_strided": (SmallNetwork, {"up": "transposed", "strided": True}),
    "unet_64_512": (ResizingUNet, {"up": "transposed"}),
    "unet_repeating": (ResizingUNet, {"up": "nearest"}),
}
# name -> arguments of `ctseg.networks.make_segmenter`
PRESETS: dict[str, dict[str, Any]] = {
    "fpn_light": {
        "architecture": "fpn", "encoder": "tu-mobilenetv3_small_100",
        "decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64,
    },  # not fewer: its 32 groups of normalisation would be single channels, which lose their mean
    "fpn_resnet152": {"architecture": "fpn", "encoder": "resnet152"},
    "segformer_b0": {"architecture": "segformer", "encoder": "mit_b0"},
}  # fmt: skip
