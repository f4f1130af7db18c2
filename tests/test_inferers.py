"""Slices are run in batches and only where the organ is; what is run gives the same as running everything."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from ctseg.errors import ConfigError
from ctseg.inferers import SlicewiseInferer, TrainingInferer


class Threshold(torch.nn.Module):
    """A network that finds what is bright, and remembers how many slices it was given."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.seen: list[int] = []

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        self.seen.append(slices.shape[0])
        logit = slices[:, :1].float() - 0.5
        return logit if self.classes == 1 else torch.cat([-logit, logit], dim=1)


def volume(first: int, last: int, count: int = 40) -> torch.Tensor:
    image = torch.zeros(1, 1, 8, 6, count)
    image[..., 2:5, 3, first : last + 1] = 1.0
    return image


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize(("first", "last"), [(0, 39), (0, 3), (13, 29), (17, 19), (36, 39), (39, 39)])
def test_skipping_changes_nothing_that_is_found(first: int, last: int, classes: int) -> None:
    image = volume(first, last)
    found = [SlicewiseInferer(batch_size=5, probe=probe)(image, Threshold(classes)) for probe in (1, 4)]
    masks = [(f[:, -1] > 0) if classes == 1 else f.argmax(1) > 0 for f in found]
    assert torch.equal(masks[0], image[0] > 0.5)
    assert torch.equal(masks[1], masks[0])


def test_only_the_slices_between_empty_probes_are_run() -> None:
    network = Threshold()
    SlicewiseInferer(batch_size=8, probe=4)(volume(13, 22), network)
    # Probes 0, 4 ... 36 and 39 are 11; the organ is seen on 16 and 20, so 13-15, 17-19, 21-23 follow.
    assert sum(network.seen) == 11 + 9
    assert max(network.seen) <= 8


def test_an_organ_between_two_probes_is_not_lost() -> None:
    network = Threshold()
    logits = SlicewiseInferer(probe=4)(volume(17, 19), network)
    assert torch.equal(logits[0] > 0, volume(17, 19)[0] > 0.5)
    assert sum(network.seen) == 40


def test_margin_and_single_slice() -> None:
    network = Threshold()
    SlicewiseInferer(probe=4, margin=2)(volume(13, 22), network)
    assert sum(network.seen) == 11 + 9 + 4 - 0
    single = SlicewiseInferer(probe=4)(volume(0, 0, count=1), Threshold())
    assert single.shape == (1, 1, 8, 6, 1)


def test_the_place_is_kept() -> None:
    affine = torch.diag(torch.tensor([-1.5, -1.5, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(volume(3, 9), affine=affine)
    logits = SlicewiseInferer()(image, Threshold())
    assert isinstance(logits, MetaTensor)
    assert torch.equal(logits.affine, affine)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 0"):
        SlicewiseInferer(batch_size=0)
    with pytest.raises(ConfigError, match=r"expected \(1, C, I, J, S\)"):
        SlicewiseInferer()(torch.zeros(2, 1, 4, 4, 4), Threshold())


def test_training_predicts_in_full_precision() -> None:
    network = torch.nn.Conv2d(1, 1, 3)
    assert TrainingInferer()(torch.zeros(1, 1, 8, 8), network).dtype == torch.float32
