"""Networks by name: shapes, input channels, the first layer, frozen encoders, and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from monai.networks.nets import SegResNet

from ctseg.errors import BundleError, ConfigError
from ctseg.networks import encoder_of, freeze, make_classifier, make_monai_network, make_segmenter


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("architecture", ["unet", "UnetPlusPlus", "manet", "linknet", "fpn", "pspnet", "pan"])
def test_segmenters_give_a_logit_for_each_pixel(architecture: str) -> None:
    network = make_segmenter(architecture, "mobilenet_v2", in_channels=2, classes=3).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, 128, 128)).shape == (1, 3, 128, 128)


def test_is_the_network_of_segmentation_models_pytorch() -> None:
    theirs = smp.FPN("resnet18", encoder_weights=None, in_channels=1)
    ours = make_segmenter("fpn", "resnet18")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert type(ours) is smp.FPN


def test_depth_four_takes_four_decoder_channels() -> None:
    network = make_segmenter("unet", "resnet18", depth=4, decoder_channels=[32, 16, 8, 4])
    assert network.eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)
    assert make_segmenter("unet", "resnet18", depth=4).segmentation_head[0].in_channels == 16
    with pytest.raises(ConfigError, match="depth 4 got 5 decoder_channels: expected 4"):
        make_segmenter("unet", "resnet18", depth=4, decoder_channels=[256, 128, 64, 32, 16])


@pytest.mark.parametrize("encoder", ["vgg11", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121"])
@pytest.mark.parametrize("channels", [1, 4])
def test_classifiers_take_any_number_of_channels(encoder: str, channels: int) -> None:
    if "vgg" in encoder and channels == 4:
        channels = 2
    network = make_classifier(encoder, in_channels=channels, classes=2).eval()
    with torch.inference_mode():
        assert network(torch.zeros(3, channels, 32, 32)).shape == (3, 2)


def test_grey_three_times_is_the_colour_network_on_a_grey_picture() -> None:
    torch.manual_seed(0)
    network = make_segmenter("unet", "resnet18", first_layer="repeat").eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network.network(image.repeat(1, 3, 1, 1)))
    assert encoder_of(network) is network.network.encoder
    grey = make_segmenter("unet", "resnet18")
    assert parameters(network) - parameters(grey) == 64 * 2 * 7 * 7  # two more input channels of the first layer
    with pytest.raises(ConfigError, match="repeat got 2 channels"):
        make_segmenter("unet", "resnet18", in_channels=2, first_layer="repeat")


def test_an_adapted_first_layer_sums_the_colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """With the 'pretrained' weights of a made-up hub: the grey layer is the sum over the three colours."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = smp.encoders.get_encoder("resnet18").state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda repo, filename, **_: str(tmp_path / filename))
    adapted = make_segmenter("unet", "resnet18", encoder_weights="imagenet")
    torch.testing.assert_close(adapted.encoder.conv1.weight, weights["conv1.weight"].sum(1, keepdim=True))
    repeated = make_segmenter("unet", "resnet18", encoder_weights="imagenet", first_layer="repeat")
    torch.testing.assert_close(repeated.network.encoder.conv1.weight, weights["conv1.weight"])


def test_weights_that_cannot_be_had_are_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no way to the hub")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    with pytest.raises(ConfigError, match=r"'imagenet' of the unet with the encoder resnet18 cannot be had.*no way"):
        make_segmenter("unet", "resnet18", encoder_weights="imagenet")
    with pytest.raises(ConfigError, match=r"imagenet.*Available options are: .*instagram"):
        make_segmenter("fpn", "resnext101_32x16d", encoder_weights="imagenet")
    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ConfigError, match=r"classifier resnet18 cannot be had.*encoder_weights null"):
        make_classifier("resnet18", encoder_weights="imagenet")


def test_a_frozen_encoder_is_in_evaluation_in_training() -> None:
    network = make_segmenter("unet", "resnet18", freeze_encoder=True).train()
    statistics = network.encoder.bn1.running_mean.clone()
    network(torch.rand(2, 1, 32, 32)).sum().backward()
    assert torch.equal(network.encoder.bn1.running_mean, statistics)
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.decoder.parameters())
    assert all(parameter.grad is not None for parameter in network.segmentation_head.parameters())
    assert network.state_dict().keys() == make_segmenter("unet", "resnet18").state_dict().keys()


def test_monais_networks_by_name() -> None:
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "init_filters": 8}
    network = make_monai_network("SegResNet", **options)
    assert isinstance(network, SegResNet)
    with pytest.raises(ConfigError, match="SegResNet has no part `encoder`"):
        freeze(encoder_of(network))
    with pytest.raises(ConfigError, match=r"did you mean SegResNet.*DynUNet.*UNet"):
        make_monai_network("SegResnet")
    with pytest.raises(ConfigError, match="does not take the options"):
        make_monai_network("SegResNet", channels=3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_segmenter("unets", "resnet18"), "'unets' is not known.*fpn.*linknet.*unet"),
        (lambda: make_segmenter("unet", "resnet19"), r"'resnet19' is not known \(did you mean .*resnet18"),
        (lambda: make_segmenter("unet", "tu-resnet19"), "did you mean .*tu-resnet18"),
        (lambda: make_segmenter("unet", "resnet18", first_layer="colour"), "expected one of adapt, repeat"),
        (lambda: make_segmenter("unet", "resnet18", depths=3), "no option depths: expected depth, .*decoder_channels"),
        (lambda: make_classifier("resnet19"), r"'resnet19' is not known \(did you mean .*resnet18"),
    ],
    ids=range(6),
)
def test_refusals(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_classifier_cut_at_a_depth_starts_from_a_segmenters_encoder(tmp_path: Path) -> None:
    """Depth 4 of a ResNet is its third stage: 256 channels on a grid of a sixteenth."""
    segmenter = make_segmenter("unet", "tu-resnet18", depth=4).eval()
    path = tmp_path / "segmenter.pt"
    torch.save(segmenter.state_dict(), path)
    classifier = make_classifier("resnet18", classes=2, depth=4, encoder_file=str(path)).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        features = segmenter.encoder(image)[-1]
        assert features.shape == (2, 256, 4, 4)
        torch.testing.assert_close(classifier.encoder(image), features.mean(dim=(2, 3)))
        assert classifier(image).shape == (2, 2)
    with pytest.raises(ConfigError, match=r"encoder in .*segmenter\.pt does not fit.*encoder_file"):
        make_classifier("resnet18", depth=3, encoder_file=str(path))
    with pytest.raises(BundleError, match="no weights at"):
        make_classifier("resnet18", depth=4, encoder_file=str(tmp_path / "nothing.pt"))
