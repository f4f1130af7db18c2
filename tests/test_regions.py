"""A coarse look finds where to run, leaves out what is cleaned away in any case, and never cuts the organ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from test_inferers import Threshold, volume

from ctseg.errors import ConfigError
from ctseg.inferers import SlicewiseInferer
from ctseg.regions import Found, Region
from ctseg.transforms import ToGridd


def _masks(stack: torch.Tensor, indices: list[int]) -> dict[int, torch.Tensor]:
    return {index: stack[..., index][None] for index in indices}


def test_small_pieces_far_away_do_not_count() -> None:
    organ = torch.zeros(64, 48, 9, dtype=torch.bool)
    organ[9:30, 12:31, 2:5] = True  # cells 2 to 7 and 3 to 7, on slices 2 to 4: 6 * 5 * 3 = 90 cells
    organ[40:44, 40:44, 8] = True  # one cell
    looked = _masks(organ, list(range(9)))
    assert Region(share=0.1).find(looked) == Found((2, 3, 4), (8, 32), (12, 32))
    assert Region(share=0.0).find(looked) == Found((2, 3, 4, 8), (8, 44), (12, 44))
    assert Region(share=0.01).find(looked).slices == (2, 3, 4, 8)  # 1 of 90 is above
    assert Region(share=0.1).find(_masks(torch.zeros(8, 8, 3, dtype=torch.bool), [0, 1, 2])) == Found()


def test_each_class_has_a_largest_piece_of_its_own() -> None:
    both = torch.zeros(2, 32, 32, dtype=torch.bool)
    both[0, :24, :24], both[1, 28:32, 28:32] = True, True
    assert Region(share=0.5).find({4: both}) == Found((4,), (0, 32), (0, 32))


def test_the_box_has_sides_for_the_network_and_stays_on_the_slice() -> None:
    found = Found((1,), (40, 60), (0, 20))
    assert Region(margin_px=10, divisor=16).box(found, (128, 96)) == (slice(26, 74), slice(0, 32))
    assert Region(margin_px=None).box(found, (128, 96)) == (slice(0, 128), slice(0, 96))
    assert Region(margin_px=100, divisor=16).box(found, (130, 96)) == (slice(0, 130), slice(0, 96))
    with pytest.raises(ConfigError, match="share 2"):
        Region(share=2)


@pytest.mark.parametrize("margin", [0, 1, 4])
@pytest.mark.parametrize("classes", [1, 2])
def test_an_organ_that_grows_between_the_probes_is_not_cut(margin: int, classes: int) -> None:
    """An organ seen small on the probes and much larger between them: such slices are run again, whole."""
    image = torch.zeros(1, 1, 48, 40, 33)
    for k in range(6, 27):
        reach = 4 if k % 4 == 0 else 18
        image[0, 0, 24 - reach : 24 + reach, 20 - min(reach, 12) : 22, k] = 1.0
    network = Threshold(classes)
    region = {"share": 0.1, "margin_px": margin, "divisor": 4}
    logits = SlicewiseInferer(batch_size=3, probe=4, region=region)(image, network)
    found = (logits[:, -1] > 0) if classes == 1 else logits.argmax(1) > 0
    assert torch.equal(found, image[0] > 0.5)


def test_a_box_gives_what_whole_slices_give_and_runs_less() -> None:
    image = volume(13, 22)
    seen: list[tuple[int, ...]] = []
    network = Threshold()
    network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    region = {"margin_px": 1, "divisor": 2}
    found = SlicewiseInferer(probe=4, region=region)(image.repeat(1, 1, 4, 4, 1), network) > 0
    tiled = image.repeat(1, 1, 4, 4, 1) > 0.5
    assert torch.equal(found, tiled)
    single = torch.zeros(1, 1, 64, 64, 40)
    single[..., 30:40, 10:20, 13:23] = 1
    seen.clear()
    logits = SlicewiseInferer(probe=4, region=region)(single, network)
    assert torch.equal(logits > 0, single > 0.5)
    assert {shape[2:] for shape in seen} == {(64, 64), (14, 14)}


def test_a_far_spot_costs_no_slices_where_small_pieces_do_not_count() -> None:
    image = torch.zeros(1, 1, 40, 40, 60)
    image[..., 8:32, 8:32, 20:31] = 1
    image[..., 2, 2, 52] = 1
    counted = []
    for share in (0.0, 0.1):
        network = Threshold()
        logits = SlicewiseInferer(probe=4, region={"share": share})(image, network)
        assert torch.equal(logits[..., 16:36] > 0, image[..., 16:36] > 0.5)
        counted.append(sum(network.seen))
    # Probes 0, 4 ... 56 and 59 are 16. Without the spot 16 to 32 is run: 17 slices, of which 5 are probes.
    assert counted == [16 + 30, 16 + 12]


def test_the_region_never_cuts_an_organ_of_the_cases_at_hand(shared_data: Path) -> None:
    """A network that answers with the drawn label itself: the region's slices and box must hold all of it."""
    import nibabel

    for name, codes in (("abdomen_ct/seg.nii.gz", (4, 5)), ("chest_ct/seg_totalseg_3mm.nii.gz", (5,))):
        image = nibabel.load(shared_data / name)
        labels = np.asarray(image.dataobj)
        for code in codes:
            mask = MetaTensor(torch.from_numpy((labels == code).astype(np.float32))[None], affine=image.affine)
            grid = ToGridd("m", [3.0, 3.0, 3.0], mode="nearest")({"m": mask})["m"].as_tensor()[None]
            region = {"share": 0.1, "margin_px": 8, "divisor": 4}
            found = SlicewiseInferer(probe=4, margin=1, region=region)(grid, Threshold()) > 0
            assert int((found != (grid > 0.5)).sum()) == 0, (name, code)
