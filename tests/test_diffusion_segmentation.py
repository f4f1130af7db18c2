"""Diffusion segmentation: the noise by hand, summed embeddings, sampling, and that it learns a toy problem."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_folds import InProcess
from PIL import Image
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctseg.diffusion_networks import TwoEncoders
from ctseg.diffusion_pictures import DoubtPictures
from ctseg.diffusion_segmentation import DiffusionSegmenter, PrepareDiffusion
from ctseg.errors import ConfigError
from ctseg.experiments.files import find_experiments
from ctseg.experiments.runs import Plan, run_experiments
from ctseg.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]


def tiny(condition: str = "sum", **options: int) -> DiffusionSegmenter:
    torch.manual_seed(0)
    wanted = {"samples": 3, "steps": 4, "timesteps": 50, **options}
    return DiffusionSegmenter(1, condition, channels=(8, 16), **wanted)


def toy(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright block at a random place, in noise, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, 16, 16)
    for mask, (row, column) in zip(masks, torch.randint(1, 8, (count, 2), generator=generator).tolist(), strict=True):
        mask[0, row : row + 6, column : column + 6] = 1
    return 0.6 * masks + 0.4 * torch.rand(masks.shape, generator=generator), masks


def dice(model: DiffusionSegmenter, image: torch.Tensor, mask: torch.Tensor) -> float:
    with torch.no_grad():
        found = model.eval()(image) > 0
    return float(2 * (found * mask).sum() / (found.sum() + mask.sum()))


@pytest.mark.parametrize("condition", ["sum", "concatenate"])
def test_it_learns_a_toy_problem(condition: str) -> None:
    model = tiny(condition)
    test = toy(8, seed=99)
    before = dice(model, *test)
    prepare = PrepareDiffusion(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(1)
    model.train()
    for step in range(60):
        image, mask = toy(8, step)
        image, label, _, noise = prepare({"image": image, "label": mask})
        loss = binary_cross_entropy_with_logits(model(image, **noise), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = dice(model, *test)
    assert after > 0.8 and after > before + 0.2, (before, after)
    with torch.no_grad():
        mean, spread = model.mean_and_spread(test[0])
    assert mean.shape == spread.shape == test[1].shape
    assert float(spread.min()) >= 0 and 0 < float(spread.max()) <= 0.5


def test_the_noise_is_that_of_the_formula() -> None:
    model = tiny()
    mask = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1)
    noise = torch.full_like(mask, 0.5)
    at = torch.tensor([0, 49])
    kept = torch.cumprod(model.scheduler.alphas, 0)[at].reshape(2, 1, 1, 1)
    expected = kept.sqrt() * torch.tensor([-1.0, 1.0]) + (1 - kept).sqrt() * 0.5
    assert torch.allclose(model.add_noise(mask, noise, at), expected, atol=1e-6)


def test_the_decoder_gets_the_sum_of_the_embeddings() -> None:
    """With an image encoder of zeros the network is the mask's alone."""
    torch.manual_seed(0)
    network = TwoEncoders(1, (8, 16)).eval()
    nn.init.normal_(network.mask.out[-1].conv.weight)  # MONAI begins with zeros
    noisy, image, at = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([3, 40])
    with torch.no_grad():
        both = network(noisy, image, at)
        alone = network.mask(noisy, at)
        assert not torch.allclose(both, alone, atol=1e-3)
        skips, bottom = network._encoded(noisy, at)
        doubled = network.mask(noisy, at, down_block_additional_residuals=skips, mid_block_additional_residual=bottom)
        assert torch.allclose(network(noisy, noisy, at), doubled, atol=1e-5)
        for parameter in network.image.parameters():
            parameter.zero_()
        assert torch.allclose(network(noisy, image, at), alone, atol=1e-5), "what is summed is nothing"


def test_the_same_image_gives_the_same_mask_alone_and_in_a_batch() -> None:
    model = tiny().eval()
    nn.init.normal_(model.network.mask.out[-1].conv.weight)
    image, _ = toy(3, 5)
    with torch.no_grad():
        together, again, alone = model(image), model(image), model(image[1:2])
        samples = model.ensemble(image)
    assert torch.equal(together, again) and torch.allclose(together[1:2], alone, atol=1e-4)
    assert samples.shape == (3, 3, 1, 16, 16) and not torch.allclose(samples[0], samples[1], atol=1e-3)
    assert torch.allclose(together.sigmoid(), samples.sigmoid().mean(dim=0), atol=1e-5)


def test_what_cannot_be() -> None:
    for options, said in (
        ({"condition": "product"}, "'product' is not known"),
        ({"samples": 0}, "0 samples"),
        ({"steps": 51}, "51 of 50"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sides that 2 divides"):
        tiny()(torch.zeros(1, 1, 15, 16))
    with pytest.raises(ConfigError, match="is a Linear: expected a DiffusionSegmenter"):
        PrepareDiffusion(nn.Linear(1, 1))


def test_the_stroke_bundle_trains_it_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = toy(6, 3)
    cases = []
    for number in range(6):
        names = {"image": f"i{number}.png", "label": f"m{number}.png"}
        for pixels, name in ((images[number, 0], names["image"]), (masks[number, 0], names["label"])):
            Image.fromarray((pixels.numpy() * 255).astype(np.uint8)).save(tmp_path / name)
        cases.append({"case_id": f"c{number}", "patient": f"p{number}", **names})
    (tmp_path / "datalist.json").write_text(json.dumps({"mask_values": {"255": "stroke"}, "cases": cases}))
    split = ["train"] * 4 + ["validation", "test"]
    Ledger(tmp_path / "split.csv").assign({f"p{number}": side for number, side in enumerate(split)})
    InProcess(monkeypatch)
    small = {"network_def#channels": [8, 16], "network_def#samples": 2, "network_def#steps": 2, "patch": [16, 16]}
    small |= {"num_workers": 0, "batch_size": 2, "val_interval": 1}
    experiments = find_experiments([ROOT / "configs" / "experiments" / "stroke_ct"], ["stroke_ct/diffusion_sum"])
    plan = Plan(tmp_path, tmp_path / "out", device="cpu", epochs=1, overrides=small)
    (state,) = run_experiments(experiments, plan, lambda text: None)
    assert (state["status"], state["reason"]) == ("finished", "")
    folder = tmp_path / "out" / "stroke_ct" / "diffusion_sum"
    assert "train_loss" in (folder / "history.csv").read_text() and (folder / "evaluation" / "dice.json").is_file()
    (row,) = json.loads((folder / "evaluation" / "doubt" / "doubt.json").read_text())["cases"]
    assert row["case"] == "i4" and 0 <= row["everywhere"] <= 0.5
    with Image.open(folder / "evaluation" / "doubt" / row["picture"]) as picture:
        assert picture.size == (3 * 224 + 2 * 4, 224 + 16)
    assert not (folder / "doubt").exists(), "the training draws none"


def test_doubt_is_the_spread_of_the_samples(tmp_path: Path) -> None:
    class Samples(nn.Module):
        """Two samples that differ in the first column: 0 and 1 there, 1 in the second, 0 elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(1))

        def mean_and_spread(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, spread = torch.zeros(1, 1, *image.shape[2:]), torch.zeros(1, 1, *image.shape[2:])
            mean[..., 0], mean[..., 1], spread[..., 0] = 0.5, 1.0, 0.5
            return mean, spread

    doubt = DoubtPictures(Samples(), tmp_path)
    reference = torch.zeros(1, 8, 4, 1)
    reference[:, :, :2] = 1  # the first column is missed: the samples were at odds there
    doubt.update([(torch.rand(3, 8, 4, 1), reference)])
    assert doubt.compute() == pytest.approx(0.125)
    (row,) = json.loads((tmp_path / "doubt.json").read_text())["cases"]
    assert (row["in_mask"], row["wrong"], row["right"]) == (0.0, 0.5, 0.0)
    with Image.open(tmp_path / "0001.png") as picture:  # image, mean, spread: each 112 x 224, a column of it 28 wide
        row = np.asarray(picture)[100, :, 0].astype(int)
    assert np.abs(row[[116 + 10, 116 + 42, 116 + 100]] - [128, 255, 0]).max() <= 5  # resized
    assert row[[232 + 10, 232 + 100]].tolist() == [255, 0]
    with pytest.raises(ConfigError, match="is a Linear: expected a DiffusionSegmenter"):
        DoubtPictures(nn.Linear(1, 1), tmp_path)
