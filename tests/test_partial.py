"""Labels in which not every organ was drawn: by hand on single voxels, and through loading, batching and the loss."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_phantoms import straight_affine, write_nifti
from monai.data import DataLoader, Dataset, MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import Compose

from ctseg.errors import ConfigError
from ctseg.metrics import PatientOverlap
from ctseg.partial import PartialLoss, annotated_flags, marginal_logits, with_flags
from ctseg.training import PrepareBatch
from ctseg.transforms import LoadLabeld, LoadVolumed

ORGANS = ["liver", "spleen"]


class _CrossEntropy(torch.nn.Module):
    def forward(self, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(prediction, label[:, 0].long())


class _Probabilities(torch.nn.Module):
    def forward(self, prediction: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return prediction.softmax(1)


def test_an_organ_not_annotated_is_part_of_the_background() -> None:
    # e^logit = 1, 3, 4, so p = .125, .375, .5; without the spleen's annotation p(background) = .125 + .5
    logits = torch.tensor([0.0, math.log(3), math.log(4)]).view(1, 3, 1, 1)
    probabilities = marginal_logits(logits, torch.tensor([[1.0, 0.0]])).softmax(1).flatten()
    torch.testing.assert_close(probabilities, torch.tensor([0.625, 0.375, 0.0]))
    assert marginal_logits(logits, torch.ones(1, 2)) is logits


def test_each_image_of_a_batch_has_its_own_flags() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    merged = marginal_logits(logits, torch.tensor([[1.0, 1.0], [0.0, 1.0]])).softmax(1)
    plain = logits.softmax(1)
    torch.testing.assert_close(merged[0], plain[0])
    torch.testing.assert_close(merged[1, 0], plain[1, 0] + plain[1, 1])
    torch.testing.assert_close(merged[1, 2], plain[1, 2])


def test_background_pushes_the_unknown_organ_nowhere_against_the_background() -> None:
    """-log(p0 + p2): its gradient is p - q, where q is the share of each within the merged background."""
    logits = torch.tensor([0.2, -0.4, 1.1]).view(1, 3, 1).requires_grad_()
    label = with_flags(torch.zeros(1, 1, 1), {"annotated": torch.tensor([[1.0, 0.0]])})
    PartialLoss(_CrossEntropy())(logits, label).backward()
    p = logits.detach().softmax(1).flatten()
    q = torch.stack([p[0], torch.tensor(0.0), p[2]]) / (p[0] + p[2])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.flatten(), p - q)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_case_without_any_annotation_teaches_nothing(channels: int) -> None:
    logits = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = with_flags(torch.zeros(1, 1, 4, 4), {"annotated": torch.zeros(1, max(channels - 1, 1))})
    options = {"sigmoid": True} if channels == 1 else {"softmax": True, "to_onehot_y": True}
    PartialLoss(DiceCELoss(**options))(logits, label).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-6


def test_a_complete_label_has_the_plain_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 3, (1, 1, 4, 4), generator=torch.Generator().manual_seed(1)).float()
    plain = DiceCELoss(softmax=True, to_onehot_y=True)
    assert PartialLoss(plain)(logits, label) == plain(logits, label)
    assert PartialLoss(plain)(logits, with_flags(label, {"annotated": torch.ones(1, 2)})) == plain(logits, label)


@pytest.mark.parametrize(("logits", "flags"), [((2, 3, 4), (2, 3)), ((2, 3, 4), (1, 2)), ((2, 1, 4), (2, 2))])
def test_flags_that_do_not_fit_are_refused(logits: tuple[int, ...], flags: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a flag for each"):
        marginal_logits(torch.zeros(logits), torch.zeros(flags))


def test_a_name_that_is_no_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="gallbladder was not annotated, but the task knows liver, spleen"):
        annotated_flags(ORGANS, ["gallbladder"])


@pytest.mark.parametrize("size", [None, [6, 6]])
def test_the_datalist_s_words_reach_the_loss(tmp_path: Path, size: list[int] | None) -> None:
    array = np.zeros((8, 8, 1), np.uint8)
    array[2:5, 2:5] = 1
    image = write_nifti(tmp_path / "ct.nii.gz", array.astype(np.int16) * 960 - 900, straight_affine())
    label = write_nifti(tmp_path / "label.nii.gz", array, straight_affine())
    cases = [{"image": str(image), "label": str(label), "patient": "a"}]
    cases += [{**cases[0], "patient": "b", "not_annotated": ["spleen"]}]
    load = Compose([LoadVolumed(keys="image", modality="CT"), LoadLabeld(keys="label", labels=ORGANS)])
    loaded = DataLoader(Dataset(json.loads(json.dumps(cases)), load), batch_size=2, num_workers=0)
    batch = next(iter(loaded))
    batch["image"], batch["label"] = batch["image"][..., 0].float(), batch["label"][..., 0]
    stages = None if size is None else [{"epochs": 1, "size": size, "lr": 0.1}]
    _, prepared = PrepareBatch(stages, 1)(batch, "cpu")
    assert prepared.annotated.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    by_hand = torch.zeros(2, 3, *prepared.shape[2:])
    seen = PartialLoss(_Probabilities())(by_hand, prepared)
    assert float(seen[0, 2].min()) == pytest.approx(1 / 3) and float(seen[1, 2].max()) == 0


def test_what_was_not_annotated_is_not_counted() -> None:
    prediction = torch.tensor([[1, 2, 2, 0]])
    complete = MetaTensor(torch.tensor([[1, 2, 0, 0]]), meta={"patient": "a", "not_annotated": ""})
    partial = MetaTensor(torch.tensor([[1, 0, 0, 0]]), meta={"patient": "b", "not_annotated": "spleen"})
    metric = PatientOverlap(ORGANS)
    metric.update([(prediction, complete), (prediction, partial)])
    table = metric.per_patient()
    assert table["a"] == {"liver": 1.0, "spleen": pytest.approx(2 / 3)}
    assert table["b"] == {"liver": 1.0, "spleen": None}
