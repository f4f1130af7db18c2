"""The weights of planes' fusion, learnt on cases that no plane was trained on: what `ctseg join-planes --data` does.

As Perslev et al. (MultiPlanarUNet, MICCAI 2019) fuse views: the planes stay as they are, and a weight for each plane
and class is fitted by cross-entropy on their probabilities. These are taken once, at some voxels of each case, so that
the fit itself takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctseg.datalist import DATALIST, LEDGER, read_cases
from ctseg.errors import InputError
from ctseg.ledger import Ledger
from ctseg.planes.networks import ThreePlanes

SPLIT = "validation"  # on its training cases a network looks better than it is, and the test stays a test
_VOXELS = 20_000  # of each case, of what is labelled and of the rest
_PULL = 1e-4  # towards a third each, for classes that no case has


def learn_weights(
    network: ThreePlanes, train_config: Path, data: Path, device: str, say: Callable[[str], None] = print
) -> torch.Tensor:
    """Return the fitted weights (planes, classes) of a network with the fusion "learned".

    Args:
        network: its planes are trained, and are not changed.
        train_config: train.json of the bundle whose preprocessing the planes are used with.
        data: a data folder whose ledger has validation patients.
        device: where the planes run.
        say: told each case.

    Raises:
        InputError, LedgerError: datalist or ledger cannot be read, or no patient is there to validate.
    """
    cases = _cases(data)
    preprocessing = _preprocessing(train_config, data, device)
    network = network.to(device).eval()
    shares, truths = [], []
    for number, case in enumerate(cases, start=1):
        say(f"case {number} of {len(cases)}: {case['case_id']}")
        item = preprocessing(dict(case))
        image = torch.as_tensor(np.asarray(item["image"], np.float32))[None].to(device)
        truth = torch.as_tensor(np.asarray(item["label"], np.float32)).round().long().flatten()
        chosen = _some(truth)
        with torch.no_grad():
            found = network.shares(image).cpu()[:, 0].flatten(2)
        shares.append(found[..., chosen])
        truths.append(truth[chosen])
    return fit(torch.cat(shares, dim=2), torch.cat(truths))


def fit(shares: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the weights that make the truth most probable.

    Args:
        shares: (planes, classes, n) probabilities.
        truth: (n,) class indices.
    """
    weights = torch.zeros(shares.shape[:2], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        mixed = (shares * weights.softmax(dim=0)[..., None]).sum(dim=0).clamp_min(1e-7)
        # the mixture of each class is of its own weights, so it must be made to sum to 1 again
        loss = torch.nn.functional.nll_loss((mixed / mixed.sum(dim=0)).log().T, truth) + _PULL * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def _some(truth: torch.Tensor) -> torch.Tensor:
    """Places of voxels to learn from: some of what is labelled and some of the rest, evenly spread."""
    chosen = []
    for places in ((truth > 0).nonzero()[:, 0], (truth == 0).nonzero()[:, 0]):
        step = max(1, -(-len(places) // _VOXELS))
        chosen.append(places[::step])
    return torch.cat(chosen)


def _cases(data: Path) -> list[dict[str, Any]]:
    cases = read_cases(data, DATALIST)
    ledger = Ledger(data / LEDGER)
    if any(ledger.split_of(case["patient"]) is None for case in cases):
        ledger.draw(case["patient"] for case in cases)
    chosen = [case for case in cases if ledger.split_of(case["patient"]) == SPLIT]
    if not chosen:
        raise InputError(
            f"none of the {len(cases)} cases in {data} is of a {SPLIT} patient, by whom a fusion is learnt: add some"
        )
    return chosen


def _preprocessing(train_config: Path, data: Path, device: str) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(train_config)
    parser["bundle_root"], parser["dataset_dir"], parser["device"] = str(train_config.parent.parent), str(data), device
    return parser.get_parsed_content("validate#preprocessing")
