"""A 2D network along turned planes: places kept in every view, weights that count, sides that stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage
from torch import nn

from ctseg.errors import ConfigError
from ctseg.heads.sidednetworks import SidedNetwork
from ctseg.planes.turned import VIEWS, TurnedPlanes, _turn


class Grey(nn.Module):
    """Certain of the class that the grey value names; it has no weights."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape))
        chosen = image[:, 0].round().long().clamp(0, self.classes - 1)
        return nn.functional.one_hot(chosen, self.classes).permute(0, 3, 1, 2).float() * 20


def blocks() -> np.ndarray:
    """An asymmetric volume: a block of 1 in a corner and one of 2 elsewhere, all sizes different."""
    volume = np.zeros((21, 26, 17), np.float32)
    volume[2:11, 3:15, 4:10], volume[13:19, 12:23, 7:14] = 1, 2
    return volume


def test_axes_of_the_views() -> None:
    axes = np.array([np.array(axis) / np.linalg.norm(axis) for axis in VIEWS[6]])
    between = np.degrees(np.arccos(np.abs(axes @ axes.T)[~np.eye(6, dtype=bool)]))
    assert between == pytest.approx(63.435, abs=1e-3)
    for axis in [*VIEWS[3], *VIEWS[6], [1, 2, 3]]:
        turn = _turn(axis)
        assert torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64)) and torch.linalg.det(turn) > 0.999
        assert np.allclose(turn[2], np.array(axis) / np.linalg.norm(axis))


@pytest.mark.parametrize("views", [3, 6, [[1, 2, 3]]])
def test_a_voxel_keeps_its_place_in_every_view(views: int | list[list[float]]) -> None:
    volume = blocks()
    network = Grey()
    joined = TurnedPlanes(network, 3, views, divisor=8, slices=5).eval()
    found = joined(torch.tensor(volume)[None, None])
    assert found.shape == (1, 3, *volume.shape)
    labels = found.argmax(1)[0].numpy()
    # what lies two voxels off every border is the same whatever the way; the body's own axes need no interpolation
    edge = np.zeros(volume.shape, bool)
    for value in (0, 1, 2):
        edge |= (volume == value) & ~ndimage.binary_erosion(volume == value, iterations=2, border_value=1)
    wrong = (labels != volume) & ~(edge & (views != 3))
    assert not wrong.any()
    assert all(shape[2] % 8 == shape[3] % 8 == 0 and shape[0] <= 5 for shape in network.seen)


class Says(nn.Module):
    """Says one class everywhere; which, is told by the slices' number of rows."""

    def __init__(self, by_rows: dict[int, int]) -> None:
        super().__init__()
        self.by_rows = by_rows

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer = torch.zeros(len(image), 3, *image.shape[2:])
        answer[:, self.by_rows[image.shape[2]]] = 20.0
        return answer


def test_a_learned_weight_for_each_view_and_class() -> None:
    """Slices of two views, 4 and 6 rows high: one says class 1, the other 2. Undecided, until a weight counts."""
    image = torch.zeros(1, 1, 4, 6, 8)
    joined = TurnedPlanes(Says({4: 1, 6: 2}), 3, [[0, 0, 1], [1, 0, 0]], fusion="learned", divisor=1)
    middle = joined(image).exp()[0, :, 2, 3, 4]
    assert middle.tolist() == pytest.approx([0, 0.5, 0.5], abs=1e-4)
    with torch.no_grad():
        assert joined.weights is not None and joined.weights.shape == (2, 3)
        joined.weights[:, 1] = torch.tensor([np.log(3.0), 0.0])  # of class 1 the first view has 3/4
        joined.weights[:, 2] = torch.tensor([np.log(4.0), 0.0])  # of class 2 the second view has 1/5
    assert joined(image).exp()[0, :, 2, 3, 4].tolist() == pytest.approx([0, 0.75, 0.2], abs=1e-4)
    frozen = TurnedPlanes(nn.Conv2d(1, 3, 3, padding=1), 3, fusion="learned", freeze_network=True)
    assert [name for name, value in frozen.named_parameters() if value.requires_grad] == ["weights"]


def test_views_are_drawn_while_training_only() -> None:
    network = Grey()
    joined = TurnedPlanes(network, 3, 6, divisor=1, slices=999, drawn=2)
    joined.train()(torch.zeros(1, 1, 5, 6, 7))
    assert len(network.seen) == 2
    joined.eval()(torch.zeros(1, 1, 5, 6, 7))
    assert len(network.seen) == 2 + 6


def test_sides_stay_apart_at_the_mid_plane() -> None:
    """The region reaches over the mid-plane; each of its voxels has its own side's label, none another's."""
    image = torch.zeros(1, 2, 12, 12, 12)
    image[:, 0, 2:10, 3:9, 3:9] = 1
    image[:, 1] = torch.arange(5.5, -6, -1).view(12, 1, 1) / 100  # left above 0
    labels = SidedNetwork(TurnedPlanes(Grey(2), 2, 6, divisor=1), 1, "split")(image).argmax(1)[0]
    assert (labels[:6] != 2).all() and (labels[6:] != 1).all()
    assert (labels[3:6, 4:8, 4:8] == 1).all() and (labels[6:9, 4:8, 4:8] == 2).all()


def test_the_experiment_takes_a_step(root: Path) -> None:
    parser = ConfigParser()
    bundle, file = "aspects_ct_segmentation", "aspects_ct/turned_planes.yaml"
    parser.read_config([root / "bundles" / bundle / "configs" / "train.json", root / "configs" / "experiments" / file])
    parser["turned_network#network#features"] = [4] * 6
    network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    value = loss(network(torch.rand(1, 2, 20, 18, 16)), torch.zeros(1, 1, 20, 18, 16))
    value.backward()
    assert value.isfinite() and all(weight.grad is not None for weight in network.parameters())


def test_refusals() -> None:
    for views in (4, [], [[0, 0, 0]], [[1, 2]]):
        with pytest.raises(ConfigError, match="expected 3, 6, or a list of axes"):
            TurnedPlanes(nn.Identity(), 3, views)
    for wrong in ({"fusion": "consensus"}, {"drawn": 7}, {"slices": 0}):
        with pytest.raises(ConfigError, match="mean or learned"):
            TurnedPlanes(nn.Identity(), 3, **wrong)
