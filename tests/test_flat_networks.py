"""Networks of flat images: shapes at odd sizes, parameter counts worked out by hand, and what tells them apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor

from ctseg.errors import ConfigError, InputError
from ctseg.flat.networks import FLAT_NETWORKS, PRESETS, AnySize
from ctseg.networks import encoder_of, make_flat_network, make_segmenter
from ctseg.optimisers import make_optimiser

SMALL = ["segnet", "unet_unpool", "unet_nearest", "unet_strided"]


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inside: int, outside: int, side: int = 3, norm: bool = True, bias: bool = True) -> int:
    """Parameters of a convolution and of the batch norm behind it."""
    return inside * outside * side**2 + bias * outside + norm * 2 * outside


ENCODER = sum(conv(a, b) + conv(b, b) for a, b in [(3, 16), (16, 32), (32, 64), (64, 128)])
ENDS = conv(128, 128) + conv(16, 1, norm=False)  # bottleneck and head
STEPS = [(128, 64), (64, 32), (32, 16), (16, 16)]  # of the decoder
PLAIN = ENCODER + ENDS + sum(conv(a, b) + conv(b, b) for a, b in STEPS)
BESIDE = ENCODER + ENDS + sum(conv(2 * a, b) + conv(b, b) for a, b in STEPS)
HALVED = sum(conv(size, size, 2) + conv(size, size, 2, norm=False) for size in (16, 32, 64, 128))
U_NET = sum(conv(a, b, bias=False) + conv(b, b, bias=False) for a, b in [(3, 64), (64, 128), (128, 256), (256, 512)])
U_NET += conv(512, 1024, bias=False) + conv(1024, 1024, bias=False) + conv(64, 1, 1, norm=False)
U_NET += sum(conv(2 * b, b, 2, norm=False) + conv(2 * b, b, bias=False) + conv(b, b, bias=False)
             for b in (64, 128, 256, 512))  # fmt: skip
# values repeated: no transposed convolution, and a stage sees all 2b channels beside the encoder's b
REPEATING = U_NET + sum(3 * 3 * b * b - 2 * b * b * 4 - b for b in (64, 128, 256, 512))


@pytest.mark.parametrize(
    ("name", "by_hand", "number"),
    [
        ("segnet", PLAIN, 592_993),
        ("unet_unpool", BESIDE, 692_065),
        ("unet_nearest", BESIDE, 692_065),
        ("unet_strided", BESIDE + HALVED, 867_105),
        ("unet_64_512", U_NET, 31_037_633),
        ("unet_repeating", REPEATING, 31_384_833),
    ],
)
def test_parameters(name: str, by_hand: int, number: int) -> None:
    with torch.device("meta"):  # counts only
        network = make_flat_network(name)
    assert parameters(network) == by_hand == number


def test_parameters_of_the_light_fpn() -> None:
    assert parameters(make_flat_network("fpn_light")) == 1_228_769


@pytest.mark.parametrize("name", [*SMALL, "unet_64_512", "unet_repeating", "fpn_light", "segformer_b0"])
def test_odd_sizes_and_channels(name: str) -> None:
    options: dict[str, Any] = {"filters": [4, 6, 8]} if name in ("unet_64_512", "unet_repeating") else {}
    network = make_flat_network(name, in_channels=1, classes=2, **options).eval()
    with torch.inference_mode():
        for size in ((32, 32), (37, 45), (63, 33)):
            assert network(torch.rand(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize(
    ("name", "architecture", "encoder", "number"),
    [("fpn_resnet152", "fpn", "resnet152", 60_751_809), ("segformer_b0", "segformer", "mit_b0", 3_714_401)],
)
def test_presets_are_networks_of_make_segmenter_with_a_random_start(
    name: str, architecture: str, encoder: str, number: int
) -> None:
    with torch.device("meta" if name == "fpn_resnet152" else "cpu"):
        plain = make_segmenter(architecture, encoder, in_channels=3)
        network = make_flat_network(name)
    assert isinstance(network, AnySize) and type(network.network) is type(plain)
    assert [value.shape for value in network.state_dict().values()] == [
        value.shape for value in plain.state_dict().values()
    ]
    assert encoder_of(network) is network.network.encoder
    assert parameters(network) == number


def test_padding_leaves_a_fitting_size_alone() -> None:
    network = make_flat_network("fpn_light").eval()
    image = torch.rand(1, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network.network(image))
        padded = torch.cat([image[..., :60, :], image[..., 59:60, :].expand(-1, -1, 4, -1)], dim=2)
        torch.testing.assert_close(network(image[..., :60, :]), network.network(padded)[..., :60, :])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns_and_the_network_fits_a_picture(name: str) -> None:
    torch.manual_seed(0)
    network = make_flat_network(name, filters=[4, 8], convolutions=1)
    image = torch.rand(2, 3, 17, 20)
    target = (image.mean(dim=1, keepdim=True) > 0.5).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < 0.75 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.head.parameters())
    without = [key for key, value in network.named_parameters() if value.grad is None]
    assert without == []


def test_unpooling_puts_a_value_where_the_encoders_maximum_was() -> None:
    """One stage whose convolutions do nothing: the maxima stay where they are, all else becomes 0."""
    network = make_flat_network("segnet", in_channels=1, filters=[1], convolutions=1).eval()
    for part in (network.encoder, network.bottleneck, network.decoder, network.head):
        make_identity(part)
    image = torch.zeros(1, 1, 5, 6)
    image[0, 0, 1, 0], image[0, 0, 0, 3], image[0, 0, 2, 5], image[0, 0, 3, 4] = 2.0, 3.0, 5.0, 4.0
    image[0, 0, 4, 1] = 7.0  # the last row of an odd size is in no pair
    expected = image.clone()
    expected[0, 0, 3, 4] = 0  # not the largest of its four
    expected[0, 0, 4, 1] = 0
    with torch.inference_mode():
        torch.testing.assert_close(network(image), expected, atol=1e-3, rtol=1e-3)


def test_nearest_doubling_repeats_a_value() -> None:
    network = make_flat_network("unet_nearest", in_channels=1, filters=[1], convolutions=1).eval()
    for part in (network.encoder, network.bottleneck, network.decoder, network.head):
        make_identity(part)  # the decoder's convolution takes the doubled map and leaves the skip out
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[5.0, 5, 7, 7], [5, 5, 7, 7], [13, 13, 15, 15], [13, 13, 15, 15]])[None, None]
    with torch.inference_mode():
        torch.testing.assert_close(network(image), expected, atol=1e-3, rtol=1e-3)


def make_identity(part: torch.nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data[:, 0, 1, 1] = 1


def test_strided_halving_has_no_maxima_and_reflect_padding_is_everywhere() -> None:
    network = make_flat_network("unet_strided")
    halvings = [[type(layer).__name__ for layer in one] for one in network.encoder.halvings]
    assert halvings == [["Conv2d", "BatchNorm2d"]] * 4
    for name in SMALL:
        made = make_flat_network(name)
        padded = [layer for layer in made.modules() if isinstance(layer, torch.nn.Conv2d) and layer.padding != (0, 0)]
        assert {layer.padding_mode for layer in padded} == {"reflect"} and made.head.kernel_size == (3, 3)


def test_encoder_can_be_frozen_and_learn_at_a_rate_of_its_own() -> None:
    for name in ("unet_unpool", "fpn_light"):
        network = make_flat_network(name, freeze_encoder=True)
        assert not any(parameter.requires_grad for parameter in encoder_of(network).parameters())
        optimiser = make_optimiser("adamw", make_flat_network(name), lr=5e-4, encoder_lr=1e-5)
        assert [group["lr"] for group in optimiser.param_groups] == [1e-5, 5e-4]
    grey = make_flat_network("fpn_light", in_channels=1, first_layer="repeat")
    assert encoder_of(grey) is grey.network.network.encoder


def test_channels_last_and_a_copy_give_the_same() -> None:
    torch.manual_seed(0)
    network = make_flat_network("unet_unpool", filters=[4, 8]).eval()
    image = torch.rand(1, 3, 19, 21)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), other(image.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("name", [*SMALL, "unet_64_512", "unet_repeating"])
def test_half_precision_as_a_training_uses_it(name: str) -> None:
    torch.manual_seed(0)
    network = make_flat_network(name, filters=[4, 8])
    image = torch.rand(2, 3, 21, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(image)
    prediction.float().square().mean().backward()
    assert prediction.dtype == torch.bfloat16 and prediction.shape == (2, 1, 21, 24)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"name": "segnett"}, "'segnett' is not known.*fpn_light.*segnet.*unet_strided"),
        ({"name": "segnet", "filtres": [4]}, "no option filtres: expected one of filters, convolutions"),
        ({"name": "segnet", "up": "nearest"}, "no option up"),
        ({"name": "segnet", "filters": []}, "at least one stage"),
        ({"name": "unet_64_512", "filters": [0.5]}, "whole numbers"),
        ({"name": "fpn_light", "filters": [4]}, "filters"),
    ],
    ids=str,
)
def test_refusals(recipe: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_flat_network(**recipe)


@pytest.mark.parametrize(("name", "smallest"), [("segnet", 32), ("unet_64_512", 16)])
def test_too_small_an_image(name: str, smallest: int) -> None:
    with torch.device("meta"):
        network = make_flat_network(name)
    with pytest.raises(InputError, match=f"10 x 40 pixels: expected at least {smallest} x {smallest}"):
        network(torch.zeros(1, 3, 10, 40, device="meta"))


def test_named_in_a_configuration() -> None:
    """As a bundle's network_def, loss and preprocessing name them."""
    parser = ConfigParser(
        {
            "network_def": {"_target_": "ctseg.networks.make_flat_network", "name": "unet_strided", "filters": [4, 8]},
            "loss": {"_target_": "ctseg.losses.make_loss", "name": "bce_structural", "weight": 0.5},
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "ctseg.transforms.CropSectord", "keys": ["image", "label"], "source_key": "image"},
                    {"_target_": "ctseg.transforms.Diffused", "keys": "image", "kind": "isotropic"},
                ],
            },
        }
    )
    image = torch.zeros(3, 40, 50)
    image[:, 5:35, 8:46] = torch.rand(3, 30, 38) + 0.1
    preprocessing = parser.get_parsed_content("preprocessing")
    item = preprocessing({"image": MetaTensor(image), "label": MetaTensor(torch.ones(1, 40, 50))})
    assert item["image"].shape == (3, 30, 38) and item["label"].shape == (1, 30, 38)
    prediction = parser.get_parsed_content("network_def")(item["image"][None])
    assert parser.get_parsed_content("loss")(prediction, item["label"][None]).isfinite()
    back = preprocessing.inverse(item)  # diffusion moves nothing and does not break the way back
    assert back["image"].shape == (3, 40, 50) and back["label"].sum() == 30 * 38


def test_every_name_is_tested_here() -> None:
    assert set(FLAT_NETWORKS) == {*SMALL, "unet_64_512", "unet_repeating"}
    assert set(PRESETS) == {"fpn_light", "fpn_resnet152", "segformer_b0"}


@pytest.mark.parametrize("name", ["unet_unpool", "fpn_light"])
def test_a_slicewise_bundle_trains_with_it(name: str, tiny_dataset: Path, tmp_path: Path, root: Path) -> None:
    """Laid over a bundle of slices, with a loss and a schedule of the flat images: one epoch, and weights are kept."""
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    (tiny_dataset / "flat.json").write_text(json.dumps({**content, "mask_values": {"1": "liver"}}))
    over = {
        "network_def": {"_target_": "ctseg.networks.make_flat_network", "name": name, "in_channels": 1},
        "loss": {"_target_": "ctseg.losses.make_loss", "name": "bce_structural"},
        "epochs": 1, "val_interval": 1, "batch_size": 2, "num_workers": 0, "device": "cpu", "cache_dir": None,
    }  # fmt: skip
    (tmp_path / "over.json").write_text(json.dumps(over))
    train = root / "bundles" / "liver_ct_segmentation" / "configs" / "train.json"
    run = ConfigWorkflow(
        config_file=[str(train), str(tmp_path / "over.json")], workflow_type="train", logging_file=False,
        bundle_root=str(train.parents[1]), dataset_dir=str(tiny_dataset), datalist="flat.json",
        ckpt_dir=str(tmp_path / "run"),
    )  # fmt: skip
    run.initialize()
    run.run()
    assert (tmp_path / "run" / "model.pt").is_file()
