"""The reference system's 24 experiments: each builds its network and takes one step as its configuration says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from ctseg.building import load_yaml
from ctseg.organslices import KeepOrganSlicesd
from ctseg.training import Monitor, SaveBest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "configs" / "experiments"
TRAIN = ROOT / "bundles" / "liver_ct_segmentation" / "configs" / "train.json"

# Copied by hand from the reference system's tables: network, loss, optimiser, first and last learning rate (with the
# steps worked out), epochs, window, their figure.
TABLE: dict[str, tuple[Any, ...]] = {
    "liver_ct_presence/vgg16_focal_sgd": ("vgg16", "focal", "SGD", 1e-3, 1e-3, 15, None, 0.9212),
    "liver_ct_presence/resnet18_bce67_adam": ("resnet18", "bce", "Adam", 3e-3, 3e-3, 15, None, 0.9405),
    "liver_ct_presence/resnet18_focal_adam": ("resnet18", "focal", "Adam", 1e-3, 1e-3, 15, None, 0.9276),
    "liver_ct_presence/resnet18_bce_sgd": ("resnet18", "bce", "SGD", 1e-3, 1e-3, 15, None, 0.933),
    "gallbladder_ct_presence/resnext50_focal_adam":
        ("resnext50_32x4d", "focal", "Adam", 1e-4, 1e-4, 30, [-100, 200], 0.9237),
    "gallbladder_ct_presence/resnext50_bce_adam_step5":
        ("resnext50_32x4d", "bce", "Adam", 1e-3, 1e-3 / 5**4, 25, [-100, 200], 0.912),
    "gallbladder_ct_presence/densenet121_focal_adam_step5":
        ("densenet121", "focal", "Adam", 1e-3, 1e-3 / 5**3, 20, [-150, 220], 0.8208),
    "gallbladder_ct_presence/resnet34_bce_adam": ("resnet34", "bce", "Adam", 1e-4, 1e-4, 30, [-150, 220], 0.8035),
    "gallbladder_ct_presence/resnet18_grey3_bce_adam":
        ("resnet18", "bce", "Adam", 1e-4, 1e-4, 17, [-1024, 3071], 0.8521),
    "liver_ct/fpn_resnet34_focal_progressive": ("resnet34", "focal", "Adam", 1e-3, 5e-5, 48, [-200, 350], 0.9707),
    "liver_ct/unet_vgg19_focal": ("vgg19", "focal", "Adam", 1e-3, 1e-3, 20, [-200, 200], 0.8237),
    "liver_ct/fpn_vgg19_focal": ("vgg19", "focal", "Adam", 3e-3, 3e-3, 20, [-200, 200], 0.913),
    "liver_ct/unet_resnext101_32x8d_bce": ("resnext101_32x8d", "bce", "Adam", 1e-3, 1e-3, 25, [-200, 200], 0.95),
    "liver_ct/unet_resnet18_bce_sgd": ("resnet18", "bce", "SGD", 5e-4, 5e-4, 15, [-1024, 3071], 0.9334),
    "gallbladder_ct/unet_resnext101_32x16d_depth4_focal":
        ("resnext101_32x16d", "focal", "SGD", 1e-3, 1e-3, 20, [-100, 200], 0.8551),
    "gallbladder_ct/unet_resnext101_32x16d_dice_focal":
        ("resnext101_32x16d", "dice_focal", "Adam", 1e-3, 1e-6, 27, [-100, 200], 0.8707),
    "gallbladder_ct/unet_resnext101_32x16d_focal":
        ("resnext101_32x16d", "focal", "Adam", 3e-3, 3e-5, 20, [-100, 200], 0.8488),
    "gallbladder_ct/fpn_se_resnet50_dice_focal":
        ("se_resnet50", "dice_focal", "Adam", 1e-3, 1e-3 / 5**3, 19, [-100, 200], 0.8481),
    "gallbladder_ct/fpn_resnext101_32x16d_bce":
        ("resnext101_32x16d", "bce", "SGD", 1e-3, 1e-3, 20, [-150, 220], 0.794),
    "gallbladder_ct/fpn_resnext101_32x16d_grey3_bce":
        ("resnext101_32x16d", "bce", "Adam", 1e-3, 1e-4, 15, [-150, 220], 0.8513),
    "gallbladder_ct/fpn_resnet34_focal": ("resnet34", "focal", "Adam", 3e-3, 3e-3, 15, [-150, 220], 0.8264),
    "gallbladder_ct/linknet_se_resnext101_32x4d_focal":
        ("se_resnext101_32x4d", "focal", "Adam", 1e-3, 1e-3 / 5**6, 32, [-150, 220], 0.8514),
    "gallbladder_ct/unet_vgg19_bn_frozen_grey3_bce":
        ("vgg19_bn", "bce", "SGD", 1e-3, 1e-5, 30, [-100, 200], 0.86),
    "gallbladder_ct/unet_resnet101_bce": ("resnet101", "bce", "Adam", 1e-3, 1e-3, 15, [-150, 220], 0.7996),
}  # fmt: skip
WITH_LIVER_MASK = {
    "unet_resnext101_32x16d_depth4_focal", "unet_resnext101_32x16d_dice_focal", "unet_resnext101_32x16d_focal",
    "fpn_se_resnet50_dice_focal",
}  # fmt: skip


def train_of(name: str) -> Path:
    """The train.json of the bundle that an experiment is for: that of its task where there is one."""
    task = ROOT / "configs" / "tasks" / f"{name.partition('/')[0]}.yaml"
    return ROOT / "bundles" / load_yaml(task)["bundle"] / "configs" / "train.json" if task.is_file() else TRAIN


def parser_of(name: str) -> ConfigParser:
    """The experiment laid over its bundle, as on the command line, without data and without a hub."""
    parser = ConfigParser()
    parser.read_config([str(train_of(name)), str(EXPERIMENTS / f"{name}.yaml")])
    parser["device"] = "cpu"
    parser["train"]["dataloader"] = "$[None, None]"  # two iterations an epoch
    if "encoder_weights" in parser["network_def"]:
        parser["network_def"]["encoder_weights"] = None
    return parser


def test_there_are_24() -> None:
    found = {path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in EXPERIMENTS.rglob("*.yaml")}
    found = {name for name in found if name.startswith(("liver", "gallbladder"))}  # of the reference system A
    assert found == set(TABLE)
    assert len(found) == 24


@pytest.mark.parametrize("name", sorted(TABLE))
def test_says_what_the_table_says_and_takes_a_step(name: str) -> None:
    encoder, loss, optimiser, first, last, epochs, window, figure = TABLE[name]
    parser = parser_of(name)
    theirs = parser["experiment"]["theirs"]
    assert theirs.get("f1", theirs.get("iou")) == figure
    assert (parser["network_def"]["encoder"], parser["loss"]["name"], parser["epochs"]) == (encoder, loss, epochs)
    if window is not None:
        assert parser["window"] == window
    if not name.partition("/")[0].endswith("presence"):
        assert parser["network_def"]["architecture"] == Path(name).name.partition("_")[0]
    if name.startswith("gallbladder_ct/"):
        assert parser["input_organs"] == (["liver"] if Path(name).name in WITH_LIVER_MASK else [])

    network = parser.get_parsed_content("network")
    made = parser.get_parsed_content("optimizer")
    schedule = parser.get_parsed_content("lr_scheduler")
    assert type(made).__name__ == optimiser
    assert made.param_groups[-1]["lr"] == pytest.approx(first)

    torch.manual_seed(0)
    channels = 2 if Path(name).name in WITH_LIVER_MASK else 1
    logits = network.train()(torch.rand(2, channels, 32, 32))
    assert logits.shape == ((2, 1) if name.partition("/")[0].endswith("presence") else (2, 1, 32, 32))
    before = [parameter.detach().flatten()[:64].clone() for parameter in network.parameters()]
    loss_function = parser["train"]["trainer"]["loss_function"]
    made_loss = parser.get_parsed_content("train::trainer::loss_function" if loss_function != "@loss" else "loss")
    value = made_loss(logits, torch.randint(0, 2, logits.shape))
    value.backward()
    made.step()
    assert value.isfinite()
    moved = [not torch.equal(b, p.flatten()[:64]) for b, p in zip(before, network.parameters(), strict=True)]
    learning = [parameter.requires_grad for parameter in network.parameters()]
    if "depth" not in parser["network_def"]:  # an encoder cut at depth 4 keeps the rest, unused
        assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    # timm starts residual branches at 0, so a good half of a ResNet moves from the second step on only.
    assert moved[-1] and sum(moved) > 0.25 * sum(learning)
    assert not any(m for m, learns in zip(moved, learning, strict=True) if not learns)

    for _ in range(2 * epochs - 1):
        schedule.step()
    assert made.param_groups[-1]["lr"] == pytest.approx(last)


def test_what_the_rows_say_beyond_names() -> None:
    def of(name: str) -> ConfigParser:
        return parser_of(name)

    assert of("liver_ct_presence/resnet18_bce67_adam")["loss"]["b"] == 0.67
    for name in ("resnext50_focal_adam", "resnext50_bce_adam_step5"):
        assert of(f"gallbladder_ct_presence/{name}")["loss"]["label_smoothing"] == 0.2
    depth4 = of("gallbladder_ct/unet_resnext101_32x16d_depth4_focal")
    assert depth4["loss"]["weight"] == 0.8 and "alpha" not in depth4["loss"]
    assert depth4["network_def"]["depth"] == len(depth4["network_def"]["decoder_channels"]) == 4
    for name in ("unet_resnext101_32x16d_dice_focal", "fpn_se_resnet50_dice_focal"):
        assert of(f"gallbladder_ct/{name}")["loss"]["lambda_focal"] == 0.8
    for name in TABLE:
        loss = of(name)["loss"]
        assert loss.get("gamma", 2.0) == 2.0 and ("focal" in loss["name"]) == ("gamma" in loss), name
    frozen = of("gallbladder_ct/unet_vgg19_bn_frozen_grey3_bce")["network_def"]
    assert frozen["freeze_encoder"] is True and frozen["first_layer"] == "repeat"
    own = of("gallbladder_ct/fpn_resnext101_32x16d_grey3_bce")
    groups = [(group["name"], group["lr"]) for group in own.get_parsed_content("optimizer").param_groups]
    assert groups == [("encoder", 1e-5), ("rest", 1e-3)]
    schedule = own.get_parsed_content("lr_scheduler")
    for _ in range(20):
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([1e-5, 1e-4])


def experiment(name: str, tiny_dataset: Path, folder: Path, task: str = "liver_ct", **overrides: Any) -> ConfigWorkflow:
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    values = {"1": "liver", "4": "gallbladder"}
    (tiny_dataset / "liver.json").write_text(json.dumps({**content, "mask_values": values}))
    options = {
        "dataset_dir": str(tiny_dataset), "datalist": "liver.json", "device": "cpu", "batch_size": 2,
        "num_workers": 0, "ckpt_dir": str(folder), "spacing": [4.0, 4.0, 5.0], "patch": [64, 64],
    }  # fmt: skip
    files = [str(train_of(f"{task}/{name}")), str(EXPERIMENTS / task / f"{name}.yaml")]
    return ConfigWorkflow(files, workflow_type="train", logging_file=False, **{**options, **overrides})


def test_a_liver_experiment_trains_through_its_sizes_in_one_run(tiny_dataset: Path, tmp_path: Path) -> None:
    stages = [{"epochs": 2, "size": [32, 32], "lr": 1e-3}, {"epochs": 1, "size": [64, 64], "lr": 1e-4}]
    run = experiment("fpn_resnet34_focal_progressive", tiny_dataset, tmp_path, epochs=3, stages=stages, val_interval=3)
    run.initialize()
    trainer = run.parser.get_parsed_content("train::trainer")
    seen = []
    network = run.parser.get_parsed_content("network_def")
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    rates = []
    optimiser = run.parser.get_parsed_content("optimizer")
    optimiser.register_step_pre_hook(lambda made, *_: rates.append(made.param_groups[0]["lr"]))
    run.run()
    length = trainer.state.epoch_length
    assert seen[: 3 * length] == [(32, 32)] * 2 * length + [(64, 64)] * length
    assert rates == pytest.approx([1e-3] * 2 * length + [1e-4] * length)
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize(
    ("name", "channels"), [("fpn_se_resnet50_dice_focal", 2), ("fpn_resnet34_focal", 1)], ids=["with liver", "without"]
)
def test_a_gallbladder_experiment_trains_with_and_without_the_livers_mask(
    name: str, channels: int, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = experiment(name, tiny_dataset, tmp_path, "gallbladder_ct", epochs=1)
    run.parser["network_def"]["encoder"] = "resnet18"  # the rest is the experiment's; its own is too slow for a test
    run.initialize()
    seen = []
    network = run.parser.get_parsed_content("network_def")
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    run.run()
    assert set(seen) == {channels}
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize("name", [name for name in sorted(TABLE) if "resnet18" in name and "_presence/" in name])
def test_a_presence_experiment_trains_and_follows_its_metric(name: str, tiny_dataset: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    organ = name.partition("_")[0]
    (tiny_dataset / f"{organ}.json").write_text(json.dumps({**content, "mask_values": {"1": organ}}))
    options = {
        "dataset_dir": str(tiny_dataset), "datalist": f"{organ}.json", "device": "cpu", "batch_size": 2, "epochs": 1,
        "num_workers": 0, "ckpt_dir": str(tmp_path), "spacing": [4.0, 4.0], "patch": [32, 32], "monitor": "val_recall",
        "slices_per_case": 2, "network_def#encoder_weights": None,
    }  # fmt: skip
    files = [str(train_of(name)), str(EXPERIMENTS / f"{name}.yaml")]
    run = ConfigWorkflow(files, workflow_type="train", logging_file=False, **options)
    run.run()
    assert (tmp_path / "model.pt").is_file()
    evaluator = run.parser.get_parsed_content("validate::evaluator")
    assert set(evaluator.state.metrics) == {"val_f1", "val_recall", "val_precision", "val_accuracy"}
    (monitor,) = [step for step in run.parser.get_parsed_content("train::handlers") if isinstance(step, Monitor)]
    assert monitor.metric == "val_recall"


def test_the_switches_reach_their_places(tiny_dataset: Path, tmp_path: Path) -> None:
    run = experiment("unet_resnet18_bce_sgd", tiny_dataset, tmp_path, early_stop=2, only_with_organ=True)
    run.initialize()
    (keep,) = [
        step for step in run.parser.get_parsed_content("train::dataset").transform.transforms
        if isinstance(step, KeepOrganSlicesd)
    ]  # fmt: skip
    assert keep.enabled
    (monitor,) = [step for step in run.parser.get_parsed_content("train::handlers") if isinstance(step, Monitor)]
    assert (monitor.metric, monitor.patience) == ("val_mean_iou", 2)
    (saver,) = [step for step in run.parser.get_parsed_content("validate::handlers") if isinstance(step, SaveBest)]
    assert saver.metric == "val_mean_iou"


def test_training_and_inference_share_window_spacing_and_size() -> None:
    train, inference = (json.loads(TRAIN.with_name(f"{name}.json").read_text()) for name in ("train", "inference"))
    for key in ("window", "spacing", "patch", "divisor", "network_def"):
        assert train[key] == inference[key]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--loss#name=dise", "ctseg: The loss 'dise' is not known: expected one of bce"),
        ("--monitor=f1", "ctseg: The metric 'f1' is not known: expected one of val_mean_dice, val_mean_iou"),
    ],
)
def test_an_unknown_name_is_one_sentence_on_the_command_line(
    option: str, said: str, tiny_dataset: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    content = json.loads((tiny_dataset / "datalist.json").read_text())
    (tiny_dataset / "liver.json").write_text(json.dumps({**content, "mask_values": {"1": "liver"}}))
    files = [str(TRAIN), str(EXPERIMENTS / "liver_ct" / "unet_resnet18_bce_sgd.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), "--device", "cpu", option]
    command += ["--dataset_dir", str(tiny_dataset), "--datalist", "liver.json", "--num_workers", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
