"""Networks by name: 2D segmenters with an encoder, classifiers, and MONAI's networks; frozen or pretrained encoders.

A segmenter and a classifier both have the parts `encoder` and a head, so that the encoder can be frozen or learn at a
rate of its own (`ctseg.optimisers`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ctseg.classifiers import Classifier, CutEncoder, load_encoder
from ctseg.errors import ConfigError
from ctseg.flat.networks import FLAT_NETWORKS, PRESETS, AnySize
from ctseg.sentences import look_up, options_of, said_plainly

FIRST_LAYERS = ("adapt", "repeat")
_FAMILIES = ("vgg*", "resnet*", "resnext*", "densenet*", "seresnet*", "seresnext*", "efficientnet*", "convnext*")


class RepeatGrey(nn.Module):
    """A network for three colours that gets a grey image: its one channel is repeated three times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's answer to an image (B, 1, H, W)."""
        return self.network(image.expand(-1, 3, -1, -1))


@said_plainly
def make_segmenter(
    architecture: str,
    encoder: str,
    in_channels: int = 1,
    classes: int = 1,
    depth: int | None = None,
    decoder_channels: Sequence[int] | None = None,
    encoder_weights: str | None = None,
    first_layer: str = "adapt",
    freeze_encoder: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a 2D segmentation network of segmentation-models-pytorch.

    Args:
        architecture: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet, ...
        encoder: one of segmentation-models-pytorch, for example resnet34, or tu-NAME for any of timm.
        in_channels: channels of the image; other organs' masks count.
        classes: logits.
        depth: how often the encoder halves its grid; None takes the architecture's usual number.
        decoder_channels: one number for each halving, where the architecture takes them; None takes the usual ones.
        encoder_weights: pretrained weights by name, for example imagenet, fetched from the hub; None for random ones.
        first_layer: what meets the image: "adapt" fits the encoder's first layer to the channels, "repeat" keeps it for
            three colours and repeats the one grey channel.
        freeze_encoder: keep the encoder as it is, batch norms too; decoder and head learn.
        options: further ones of the architecture.

    Raises:
        ConfigError: for an unknown name, options that do not fit, or weights that cannot be had.
    """
    import segmentation_models_pytorch as smp

    kind = look_up("architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    _check_encoder(encoder)
    known = options_of(kind, ("encoder_name", "encoder_depth", "encoder_weights", "in_channels", "classes"))
    unknown = [option for option in options if option not in known]
    if unknown and not encoder.startswith("tu-"):  # timm's encoders take further ones; the others would swallow them
        raise ConfigError(
            f"The network {architecture} has no option {', '.join(unknown)}: expected depth, {', '.join(known)}."
        )
    usual = inspect.signature(kind).parameters
    if depth is None:
        depth = int(usual["encoder_depth"].default)
    if decoder_channels is None and depth != 5 and isinstance(_default(usual, "decoder_channels"), tuple):
        decoder_channels = _default(usual, "decoder_channels")[-depth:]
    if decoder_channels is not None:
        if not isinstance(decoder_channels, int) and len(decoder_channels) != depth:
            raise ConfigError(
                f"The network {architecture} of depth {depth} got {len(decoder_channels)} decoder_channels: expected "
                f"{depth}, one for each halving; correct one of the two."
            )
        options["decoder_channels"] = decoder_channels
    weights: Any = encoder_weights
    if encoder.startswith("tu-"):
        weights = True if encoder_weights else None

    def build(channels: int) -> nn.Module:
        return kind(
            encoder_name=encoder,
            encoder_depth=depth,
            encoder_weights=weights,
            in_channels=channels,
            classes=classes,
            **options,
        )

    what = f"{architecture} with the encoder {encoder}"
    return _finish(build, what, in_channels, first_layer, encoder_weights, freeze_encoder)


@said_plainly
def make_classifier(
    encoder: str,
    in_channels: int = 1,
    classes: int = 1,
    depth: int | None = None,
    encoder_weights: str | bool | None = None,
    first_layer: str = "adapt",
    freeze_encoder: bool = False,
    encoder_file: str | None = None,
    **options: Any,
) -> nn.Module:
    """Return a classifier of 2D images with an encoder of timm: vgg16_bn, resnet18, resnext50_32x4d, densenet121, ...

    Args:
        encoder: its name in timm; a tag of pretrained weights may follow a dot.
        in_channels: channels of the image.
        classes: logits.
        depth: how often the encoder halves its grid, 4 leaves a ResNet's last stage out, and what it says is normalised
            before the head; None takes the whole encoder as it is.
        encoder_weights: anything but None or false asks for timm's pretrained weights.
        first_layer: as for `make_segmenter`.
        freeze_encoder: keep the encoder as it is, batch norms too; the head learns.
        encoder_file: file of tensors to start the encoder from: the part `encoder.` of another network's weights, for
            example of a segmenter with the same encoder (`tu-NAME`) and depth.
        options: further ones of timm's model, for example drop_rate.

    Raises:
        ConfigError: as `make_segmenter`, or when the file's encoder does not fit.
        BundleError: when the file cannot be read as tensors.
    """
    import timm

    if not timm.is_model(encoder.partition(".")[0]):
        known = timm.list_models(list(_FAMILIES))
        raise ConfigError(_unknown("encoder", encoder, known) + " (and the other models of timm).")

    def build(channels: int) -> nn.Module:
        common = {"pretrained": bool(encoder_weights), "in_chans": channels, **options}
        if depth is None:
            return Classifier(timm.create_model(encoder, num_classes=0, **common), classes)
        made = timm.create_model(encoder, features_only=True, out_indices=(depth - 1,), **common)
        return Classifier(CutEncoder(made), classes, normalise=True)

    network = _finish(build, f"classifier {encoder}", in_channels, first_layer, encoder_weights, freeze_encoder)
    if encoder_file:
        load_encoder(encoder_of(network), encoder_file)
    return network


@said_plainly
def make_flat_network(
    name: str, in_channels: int = 3, classes: int = 1, first_layer: str = "adapt", **options: Any
) -> nn.Module:
    """Return a network for flat images of any size, by name.

    Args:
        name: segnet, unet_unpool, unet_nearest, unet_strided, unet_64_512, unet_repeating (`ctseg.flat.networks`); or a
            network of `make_segmenter` with its options set: fpn_light, fpn_resnet152, segformer_b0.
        in_channels: of the image.
        classes: logits.
        first_layer: as for `make_segmenter`.
        options: `filters` and `convolutions` of the former, those of `make_segmenter` of the latter; freeze_encoder.

    Raises:
        ConfigError: for an unknown name, or options that do not fit.
    """
    kind, fixed = look_up("network", name, {**FLAT_NETWORKS, **{preset: (None, PRESETS[preset]) for preset in PRESETS}})
    if kind is None:
        return AnySize(make_segmenter(**{**fixed, **options}, in_channels=in_channels, classes=classes,
                                      first_layer=first_layer))  # fmt: skip
    frozen = options.pop("freeze_encoder", False)
    known = options_of(kind, ("in_channels", "classes", *fixed, "strided", "up", "skips"))
    if unknown := [option for option in options if option not in known]:
        known = [*known, "freeze_encoder"]
        raise ConfigError(f"The network {name} has no option {', '.join(unknown)}: expected one of {', '.join(known)}.")

    def build(channels: int) -> nn.Module:
        return kind(channels, classes, **fixed, **options)

    return _finish(build, f"network {name}", in_channels, first_layer, None, frozen)


@said_plainly
def make_monai_network(name: str, **options: Any) -> nn.Module:
    """Return one of MONAI's networks, 2D or 3D, by its class name: UNet, SegResNet, DynUNet, SwinUNETR, ...

    Raises:
        ConfigError: for an unknown name, or options that the network does not take.
    """
    from monai.networks import nets

    known = {
        key: value for key, value in vars(nets).items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    if name not in known:
        raise ConfigError(_unknown("network", name, sorted(known)) + ".")
    try:
        return known[name](**options)
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"MONAI's network {name} does not take the options {options}: {error}") from error


def encoder_of(network: nn.Module) -> nn.Module:
    """Return the part of a network that is its encoder.

    Raises:
        ConfigError: when it has none.
    """
    while isinstance(network, (RepeatGrey, AnySize, nn.parallel.DistributedDataParallel)):
        network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network.network
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        parts = ", ".join(name for name, _ in network.named_children())
        raise ConfigError(
            f"The network {type(network).__name__} has no part `encoder` (its parts are {parts}): it cannot be frozen "
            "or learn at a rate of its own; take a network of make_segmenter or make_classifier."
        )
    return encoder


def freeze(part: nn.Module) -> None:
    """Let a part of a network learn nothing more: neither its weights nor the statistics of its normalisation."""
    part.requires_grad_(False)
    part.eval()
    # A trainer calls network.train() at each step, so what is fixed is fixed again before each use.
    part.register_forward_pre_hook(_in_evaluation)


def _in_evaluation(part: nn.Module, inputs: Any) -> None:
    part.eval()


def _finish(build: Any, what: str, in_channels: int, first_layer: str, weights: Any, freeze_encoder: bool) -> nn.Module:
    if first_layer not in FIRST_LAYERS:
        raise ConfigError(f"The first layer {first_layer!r} is not known: expected one of {', '.join(FIRST_LAYERS)}.")
    if first_layer == "repeat" and in_channels != 1:
        raise ConfigError(f"The first layer repeat got {in_channels} channels: expected 1, a grey image; use adapt.")
    network = _build(build, 3 if first_layer == "repeat" else in_channels, what, weights)
    if first_layer == "repeat":
        network = RepeatGrey(network)
    if freeze_encoder:
        freeze(encoder_of(network))
    return network


def _build(build: Any, channels: int, what: str, weights: Any) -> nn.Module:
    try:
        return build(channels)
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:400]
        if weights:
            raise ConfigError(
                f"The pretrained weights {weights!r} of the {what} cannot be had ({type(error).__name__}: {reason}): "
                "expected a way to the hub huggingface.co or the file in its cache (HF_HOME); fetch them on a machine "
                "that has one, or train from random weights with encoder_weights null."
            ) from error
        raise ConfigError(f"The {what} cannot be built: {type(error).__name__}: {reason}") from error


def _default(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    return parameters[name].default if name in parameters else None


def _check_encoder(encoder: str) -> None:
    from segmentation_models_pytorch.encoders import get_encoder_names

    if encoder.startswith("tu-"):
        import timm

        if not timm.is_model(encoder[3:].partition(".")[0]):
            known = timm.list_models(list(_FAMILIES))
            raise ConfigError(
                _unknown("encoder", encoder, [f"tu-{name}" for name in known]) + " (and tu-NAME of timm)."
            )
    elif encoder not in get_encoder_names():
        known = get_encoder_names()
        raise ConfigError(_unknown("encoder", encoder, known) + ", or tu-NAME for any of timm.")


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    near = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"The {what} {name!r} is not known{near}: expected one of {', '.join(known)}"
