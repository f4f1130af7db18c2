"""The ways of other programs, run with a bundle's own weights: what the benchmarks compare with.

Each gets the network, the window and the grid of a slice-wise bundle of one organ, so that what is compared is the way
alone. Each reads a file and writes a file, keeps to its own order of steps and cleans nothing up.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ctseg.errors import ConfigError

if TYPE_CHECKING:
    from ctseg.prediction import Predictor

Seconds = dict[str, float]
NEEDS_NNUNET = "nnunetv2 cannot be imported here: install it beside ctseg (pip install nnunetv2), or leave it out"


class TwoClasses(nn.Module):
    """A network of one organ with a second channel of zeros before it, for those who want softmax: the same answer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2, ...): background, organ."""
        organ = self.network(image)
        return torch.cat([torch.zeros_like(organ), organ], dim=1)


class SliceOfVolume(nn.Module):
    """A network for slices as one for volumes of a single slice, (B, C, I, J, 1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the network says of the slice, with the slice's axis again."""
        answer: torch.Tensor = self.network(image[..., 0])
        return answer[..., None]


def grid_spacing(predictor: Predictor, ct: Path) -> tuple[float, float, float]:
    """Return the spacing in mm of the bundle's own grid for a NIfTI CT, along its axes, left-right first."""
    from ctseg.budget.grid import network_grid
    from ctseg.geometry import clean_affine, spacing_of
    from ctseg.nifti import read_nifti_grid

    shape, affine = read_nifti_grid(ct)
    grid = network_grid(predictor.parts[0], shape, clean_affine(affine))
    if grid is None:
        raise ConfigError(f"bundle {predictor.bundle.name} does not resample first: peers cannot be given its grid")
    return spacing_of(grid.affine)


def by_nnunet(predictor: Predictor, ct: Path, out: Path, *, mirroring: bool) -> Seconds:
    """Segment with nnU-Net's own predictor: its reading, cropping, resampling, tiles, Gaussian, export.

    A "2d" configuration of the bundle's patch and grid; step 0.5; CT normalisation that maps the window onto 0..1; its
    default resampling (third order in, first order back). Its function without further processes is called, so that the
    peak is that of this process.

    Args:
        predictor: a slice-wise bundle of one organ.
        ct: a NIfTI file, stored in LPS order.
        out: the mask, ending in .nii.gz.
        mirroring: average over flips along both axes, as is its default.

    Raises:
        ConfigError: nnunetv2 is not there.
    """
    made = _nnunet(predictor, ct, mirroring)
    seconds: Seconds = {}
    inner, begun = made.predict_logits_from_preprocessed_data, time.perf_counter()

    def timed(data: Any) -> Any:
        seconds["preprocess"], start = time.perf_counter() - begun, time.perf_counter()
        logits = inner(data)
        seconds["network"] = time.perf_counter() - start
        return logits

    made.predict_logits_from_preprocessed_data = timed
    with contextlib.redirect_stdout(io.StringIO()):
        made.predict_from_files_sequential([[str(ct)]], [str(out).removesuffix(".nii.gz")])
    seconds["postprocess"] = time.perf_counter() - begun - sum(seconds.values())
    return seconds


def _nnunet(predictor: Predictor, ct: Path, mirroring: bool) -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it asks for folders that are not needed here
            predicting = import_module("nnunetv2.inference.predict_from_raw_data")
            planning = import_module("nnunetv2.utilities.plans_handling.plans_handler")
    except ImportError as error:
        raise ConfigError(NEEDS_NNUNET) from error
    plans = nnunet_plans(predictor, grid_spacing(predictor, ct))
    network = TwoClasses(copy.deepcopy(predictor.network))
    with contextlib.redirect_stdout(io.StringIO()):
        made = predicting.nnUNetPredictor(
            tile_step_size=0.5, use_mirroring=mirroring, device=torch.device(predictor.device), allow_tqdm=False
        )
        manager = planning.PlansManager(plans)
        configuration = manager.get_configuration("2d")
        made.manual_initialization(
            network, manager, configuration, [network.state_dict()], nnunet_dataset(), "nnUNetTrainer", (0, 1)
        )
    return made


def nnunet_dataset() -> dict[str, Any]:
    """Return the dataset.json of one organ on CT."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def nnunet_plans(predictor: Predictor, spacing: Sequence[float]) -> dict[str, Any]:
    """Return the plans.json of a bundle's patch, window and grid; nnU-Net's defaults for all else.

    Args:
        predictor: the bundle.
        spacing: mm of its grid along I, J, K; nnU-Net counts K first, and I before J as the network does.
    """
    low, high = (float(end) for end in predictor.value("window"))
    ends = {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
    resampling: dict[str, Any] = {}
    for what, order, is_seg in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        given = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{what}_kwargs"] = given
    configuration = {
        "data_identifier": "ctseg_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 8,
        "patch_size": [int(size) for size in predictor.value("patch")],
        "spacing": [spacing[2], spacing[0], spacing[1]],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": True,
        **resampling,
    }
    return {
        "dataset_name": "ctseg",
        "plans_name": "ctseg",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 2, 1],
        "transpose_backward": [0, 2, 1],
        "configurations": {"2d": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": ends},
    }


def by_monailabel(predictor: Predictor, ct: Path, out: Path, restored: Callable[..., Any]) -> Seconds:
    """Segment as the segmentation task of MONAI Label's radiology app does: overlap 0.4, the mask resized at the end.

    Its steps in their order, with the network's own window and orientation in the place of its normalisation.

    Args:
        predictor: a slice-wise bundle of one organ.
        ct: a NIfTI file.
        out: the mask.
        restored: `monailabel.transform.post.Restored`, which this library does not import.
    """
    from monai.transforms import Activationsd, AsDiscreted, Compose, EnsureTyped

    post = Compose(
        [
            EnsureTyped(keys="image", device=torch.device(predictor.device)),
            Activationsd(keys="pred", softmax=True),
            AsDiscreted(keys="pred", argmax=True),
            restored(keys="pred", ref_image="image"),
        ]
    )
    given = {"sw_batch_size": 2, "overlap": 0.4, "padding_mode": "replicate", "mode": "gaussian"}
    return _by_sliding_window(predictor, ct, out, given, lambda _: post)


def by_zoo(predictor: Predictor, ct: Path, out: Path) -> Seconds:
    """Segment as the model zoo's bundles do: overlap 0.25, probabilities brought to the source's grid, then argmax."""
    from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd

    def post(pre: Any) -> Any:
        inverted = Invertd(keys="pred", transform=pre, orig_keys="image", nearest_interp=False, to_tensor=True)
        return Compose([Activationsd(keys="pred", softmax=True), inverted, AsDiscreted(keys="pred", argmax=True)])

    return _by_sliding_window(predictor, ct, out, {"sw_batch_size": 4, "overlap": 0.25}, post)


def _by_sliding_window(
    predictor: Predictor, ct: Path, out: Path, given: Mapping[str, Any], post: Callable[[Any], Any]
) -> Seconds:
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    low, high = (float(end) for end in predictor.value("window"))
    pre = Compose(
        [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="LPS", labels=None),
            Spacingd(keys="image", pixdim=grid_spacing(predictor, ct), mode="bilinear"),
            ScaleIntensityRanged(keys="image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            EnsureTyped(keys="image", device=torch.device(predictor.device)),
        ]
    )
    inferer = SlidingWindowInferer(roi_size=(*(int(size) for size in predictor.value("patch")), 1), **given)
    network = SliceOfVolume(TwoClasses(predictor.network))
    seconds, start = {}, time.perf_counter()
    with torch.inference_mode():
        item = dict(pre({"image": str(ct)}))
        seconds["preprocess"], start = time.perf_counter() - start, time.perf_counter()
        item["pred"] = inferer(item["image"][None], network)[0]
        seconds["network"], start = time.perf_counter() - start, time.perf_counter()
        mask = np.asarray(post(pre)(item)["pred"].cpu() if hasattr(item["pred"], "cpu") else item["pred"])
    seconds["postprocess"], start = time.perf_counter() - start, time.perf_counter()
    _save(mask, ct, out)
    seconds["write"] = time.perf_counter() - start
    return seconds


def _save(mask: np.ndarray, ct: Path, out: Path) -> None:
    import nibabel

    like: Any = nibabel.load(ct)
    nibabel.save(nibabel.Nifti1Image(mask.reshape(like.shape).astype(np.uint8), like.affine), out)
