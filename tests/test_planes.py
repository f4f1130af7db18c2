"""Planes, sides and consensus: places kept, left and right never confused, votes worked out by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers_heads import AFFINE, head, rotation
from helpers_phantoms import f_phantom, oblique_affine, write_nifti
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet
from torch import nn

from ctseg.cli import main
from ctseg.errors import ConfigError, GeometryError
from ctseg.heads.sidednetworks import SidedNetwork
from ctseg.planes.networks import ThreePlanes
from ctseg.planes.voting import consensus
from ctseg.transforms import AddDistanced, StraightenHeadd, ToGridd
from ctseg.transforms.loading import to_tensor
from ctseg.volume import Volume


def tensor(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return to_tensor(Volume(array, affine, affine, Path("head.nii.gz"), "nifti"))


def test_consensus_by_hand() -> None:
    one = np.array([1, 1, 1, 1, 0, 2, 0], np.uint8)
    other = np.array([1, 1, 2, 0, 0, 2, 5], np.uint8)
    third = np.array([1, 2, 3, 0, 7, 0, 5], np.uint8)
    found = consensus([one, other, third])
    assert found.labels.tolist() == [1, 1, 0, 0, 0, 2, 5]
    assert found.counts == {1: 3, 2: 3, 3: 1}
    assert found.lost == 3
    assert consensus([one, other, third], least=3).labels.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert consensus([one, other], least=2).labels.tolist() == [1, 1, 0, 0, 0, 2, 0]


@pytest.mark.parametrize(("count", "least"), [(3, 1), (3, 4), (4, 2), (1, 1)])
def test_a_consensus_that_cannot_be_one_is_refused(count: int, least: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        consensus([np.zeros(3, np.uint8)] * count, least)
    with pytest.raises(ConfigError, match="one shape"):
        consensus([np.zeros(3, np.uint8), np.zeros(4, np.uint8)])
    with pytest.raises(ConfigError, match="whole numbers"):
        consensus([np.full(3, 0.5)] * 3)


def test_the_command_joins_masks_stored_in_other_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array, affine = f_phantom((10, 12, 8)).astype(np.uint8), oblique_affine()
    first = write_nifti(tmp_path / "axial.nii.gz", array, affine)
    turned = nib.load(first).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    second = write_nifti(tmp_path / "coronal.nii.gz", np.asarray(turned.dataobj), turned.affine)
    third = write_nifti(tmp_path / "sagittal.nii.gz", np.zeros_like(array), affine)
    out = tmp_path / "mask.nii.gz"
    assert main(["consensus", str(first), str(second), str(third), "-o", str(out)]) == 0
    assert np.array_equal(np.asarray(nib.load(out).dataobj), array)
    assert "0 voxels labelled by some and given to the background" in capsys.readouterr().out
    assert main(["consensus", str(first), str(second), "-o", str(out)]) == 2
    assert "there already" in capsys.readouterr().err
    other = write_nifti(tmp_path / "other.nii.gz", np.zeros((5, 5, 5), np.uint8), affine)
    assert main(["consensus", str(first), str(other), "-o", str(tmp_path / "x.nii.gz")]) == 2
    assert "does not lie on the grid" in capsys.readouterr().err


def spacing_in(plane: str, affine: np.ndarray) -> tuple[float, ...]:
    """The image's own spacing, the axis across the plane last: nothing is resampled."""
    x, y, z = np.abs(affine.diagonal()[:3])
    return {"axial": (x, y, z), "coronal": (x, z, y), "sagittal": (y, z, x)}[plane]


@pytest.mark.parametrize(("plane", "across"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_a_plane_keeps_every_voxels_place(plane: str, across: int) -> None:
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])  # LPS
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    turned = ToGridd("image", spacing_in(plane, affine), plane=plane)({"image": tensor(array, affine)})["image"]
    assert abs(np.asarray(turned.affine)[across, 2]) == affine.diagonal().__abs__()[across]
    for value in (0, 17, 119):
        before = affine @ [*np.argwhere(array == value)[0], 1]
        after = np.asarray(turned.affine) @ [*np.argwhere(np.asarray(turned[0]) == value)[0], 1]
        assert after == pytest.approx(before)
    with pytest.raises(ConfigError, match="axial, coronal, sagittal"):
        ToGridd("image", (1, 1, 1), plane="XZ")


@pytest.mark.parametrize("angles", [(0, 0, 0), (20, 0, 10), (-20, 20, -5)])
def test_no_side_is_confused_in_a_head_turned_up_to_20_degrees(angles: tuple[float, float, float]) -> None:
    """Labels at least 4 mm off the true mid-plane, from formulas; the side is told by the plane that was found."""
    array, brain = head(*angles)
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(AFFINE, index) - np.array((4.0, 3.0, 2.0))
    right = world @ (rotation(*angles) @ [1, 0, 0])
    truth = np.where(brain & (right < -4), 1, np.where(brain & (right > 4), 2, 0)).astype(np.uint8)
    item = {"image": tensor(array, AFFINE), "label": tensor(truth, AFFINE)}
    item = StraightenHeadd(["image", "label"])(item)
    for plane in ("axial", "coronal", "sagittal"):
        seen = ToGridd(["image", "label"], spacing_in(plane, AFFINE), mode=["bilinear", "nearest"], plane=plane)(item)
        image = AddDistanced("image")(seen)["image"]
        assert image.shape[0] == 2
        label, distance = np.asarray(seen["label"][0]), np.asarray(image[1])
        assert int(((label == 1) & (distance <= 0)).sum() + ((label == 2) & (distance > 0)).sum()) == 0
        assert np.abs(distance).max() < 2  # 1 is 100 mm
    with pytest.raises(GeometryError, match="StraightenHeadd"):
        AddDistanced("image")({"image": tensor(array, AFFINE)})


def _slices(rng: np.random.Generator, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Sagittal slices (B, 2, 16, 16): a blob whose place and size do not tell the side; 1 left, 2 right."""
    y, z = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    images, labels = [], []
    for number in range(count):
        x = rng.uniform(10, 60) * (1 if number % 2 else -1)
        blob = np.hypot(y - rng.uniform(5, 10), z - rng.uniform(5, 10)) < rng.uniform(2, 4)
        images.append(np.stack([blob + rng.normal(0, 0.1, blob.shape), np.full(blob.shape, x / 100)]))
        labels.append(blob[None] * (1 if x > 0 else 2))
    return torch.tensor(np.array(images), dtype=torch.float32), torch.tensor(np.array(labels))


def _confused(sides: str) -> float:
    """Train on sagittal slices; of the labelled voxels that are found, the share on the wrong side in other slices."""
    torch.manual_seed(0)
    inside, outside = (2 if sides == "channel" else 1), (2 if sides == "split" else 3)
    layers = [nn.Conv2d(inside, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    network = SidedNetwork(nn.Sequential(*layers, nn.Conv2d(8, outside, 1)), 1, sides)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    rng = np.random.default_rng(0)
    for _ in range(150):
        images, labels = _slices(rng)
        loss = nn.functional.cross_entropy(network(images), labels[:, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = _slices(rng, 60)
    answer = network(images).argmax(dim=1, keepdim=True)
    both = (answer > 0) & (labels > 0)
    assert both.sum() > 0.9 * (labels > 0).sum()  # the region itself is found, whatever the side
    return float((answer[both] != labels[both]).float().mean())


def test_a_sagittal_network_confuses_the_sides_unless_it_is_told() -> None:
    """The faulty way guesses, and gets about half wrong; both ways out get none wrong."""
    assert _confused("none") > 0.3
    assert _confused("split") == 0
    assert _confused("channel") == 0


def test_split_gives_each_side_its_own_logits() -> None:
    network = SidedNetwork(nn.Conv2d(1, 3, 1), 2, "split")
    image = torch.rand(1, 2, 4, 4)
    image[:, 1, :2], image[:, 1, 2:] = 0.3, -0.3  # the first rows lie left
    logits, plain = network(image), network.network(image[:, :1])
    assert logits.shape == (1, 5, 4, 4)
    assert torch.equal(logits[:, :1], plain[:, :1])
    assert torch.equal(logits[:, 1:3, :2], plain[:, 1:, :2]) and torch.equal(logits[:, 3:, 2:], plain[:, 1:, 2:])
    assert (logits.softmax(1)[:, 3:, :2] < 1e-6).all() and (logits.softmax(1)[:, 1:3, 2:] < 1e-6).all()
    with pytest.raises(ConfigError, match="split, channel, none"):
        SidedNetwork(nn.Identity(), 2, "left")


class Fixed(nn.Module):
    """A 2D network without weights: the class is the grey value, rounded, plus a shift of its own."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        chosen = (image[:, 0].round().long() + self.shift) % 4
        return nn.functional.one_hot(chosen, 4).permute(0, 3, 1, 2).float() * 10


def test_three_planes_vote_as_the_masks_do() -> None:
    image = torch.randint(0, 4, (1, 2, 5, 6, 7)).float()
    for shifts in ((0, 0, 1), (0, 1, 2), (3, 2, 2)):
        planes = [Fixed(shift) for shift in shifts]
        apart = [((image[:, 0] + shift) % 4).numpy().astype(np.uint8) for shift in shifts]
        joined = ThreePlanes(*planes, classes=4, fusion="consensus", divisor=4, slices=3)
        assert np.array_equal(joined(image).argmax(1).numpy(), consensus(apart).labels)


def test_fusions_of_three_planes() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 6, 10)
    planes = [nn.Conv2d(1, 3, 3, padding=1) for _ in range(3)]
    shares = []
    for network, name in zip(planes, ("axial", "coronal", "sagittal"), strict=True):
        only = ThreePlanes(*planes, classes=3, divisor=2, only=name)
        shares.append(only(image).softmax(1))
        # by hand: each slice of the plane on its own
        across = {"axial": 4, "coronal": 3, "sagittal": 2}[name]
        slices = [network(part) for part in image.unbind(across)]
        assert torch.allclose(only(image), torch.stack(slices, dim=across), atol=1e-5)
    mean = torch.stack(shares).mean(0)
    assert torch.allclose(ThreePlanes(*planes, classes=3, fusion="mean", divisor=2)(image).softmax(1), mean, atol=1e-5)
    learned = ThreePlanes(*planes, classes=3, fusion="learned", divisor=2, freeze_planes=True)
    assert torch.allclose(learned(image).softmax(1), mean, atol=1e-5)
    assert [name for name, value in learned.named_parameters() if value.requires_grad] == ["weights"]
    with torch.no_grad():
        assert learned.weights is not None
        learned.weights[1] = 20.0  # the coronal plane alone
    assert torch.allclose(learned(image).softmax(1), shares[1], atol=1e-4)
    with pytest.raises(ConfigError, match="consensus, mean, learned"):
        ThreePlanes(*planes, classes=3, fusion="vote")


def test_any_network_of_the_library_may_be_a_plane() -> None:
    def small() -> nn.Module:
        return SidedNetwork(BasicUNet(2, 1, 3, features=(4, 4, 4, 4, 4, 4)), 2)

    joined = ThreePlanes(small(), small(), small(), classes=5, fusion="mean")
    assert joined(torch.rand(1, 2, 18, 20, 17)).shape == (1, 5, 18, 20, 17)
