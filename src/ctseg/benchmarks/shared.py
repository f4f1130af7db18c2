"""What the benchmarks share: cases, the naive way of the reference system, agreement of masks, what the machine can do.

The naive way runs a network slice by slice, one forward pass each in float32: a slice is windowed, resized to the
network's pixel size (or kept at the scanner's, "full"), and its probabilities are resized back and thresholded there.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

    from ctseg.prediction import Predictor
    from ctseg.volume import Volume

LONG = (512, 512, 300)
_DIVISOR = 16


def longer(ct: Path, out: Path, shape: Sequence[int] = LONG) -> Path:
    """Write the same patient in so many voxels, so in other spacings, and return the file.

    Args:
        ct: a NIfTI CT.
        out: the new NIfTI file.
        shape: its size (I, J, K).
    """
    import nibabel
    from scipy.ndimage import zoom

    image: Any = nibabel.load(ct)
    factors = np.array(shape) / image.shape
    voxels = zoom(np.asarray(image.dataobj, dtype=np.float32), factors, order=1, grid_mode=True, mode="nearest")
    affine = image.affine @ np.diag([*(1 / factors), 1])
    affine[:3, 3] = image.affine[:3, 3] + image.affine[:3, :3] @ ((1 / factors - 1) / 2)
    nibabel.save(nibabel.Nifti1Image(np.round(voxels).astype(np.int16), affine), out)
    return out


def noisy_body(ct: Path, out: Path, shape: Sequence[int], noise: float = 10.0) -> Path:
    """Write the same patient in so many voxels, each taken from the nearest of the CT's, with noise upon it.

    Plane by plane, so that a body larger than the memory can be made.

    Args:
        ct: a NIfTI CT.
        out: the new NIfTI file.
        shape: its size (I, J, K).
        noise: standard deviation in HU; the same each time.
    """
    import gzip

    import nibabel

    image: Any = nibabel.load(ct)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    factors = np.array(shape) / image.shape
    affine = image.affine @ np.diag([*(1 / factors), 1])
    affine[:3, 3] = image.affine[:3, 3] + image.affine[:3, :3] @ ((1 / factors - 1) / 2)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    i, j, k = (
        np.minimum((np.arange(n) / f).astype(int), s - 1) for n, f, s in zip(shape, factors, voxels.shape, strict=True)
    )
    rng = np.random.default_rng(0)
    with gzip.open(out, "wb", 1) if out.name.endswith(".gz") else out.open("wb") as stream:
        stream.write(header.binaryblock + b"\0" * 4)
        for plane in k:
            noisy = voxels[:, :, plane][np.ix_(i, j)]
            noisy = noisy + rng.standard_normal(noisy.shape, dtype=np.float32) * noise
            stream.write(noisy.round().clip(-1024, 3071).astype("<i2").tobytes(order="F"))
    return out


def in_lps(ct: Path, out: Path) -> Path:
    """Write the same NIfTI CT with its axes stored to the left, back and head, as networks look at it."""
    import nibabel

    image: Any = nibabel.load(ct)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("LPS")
    )
    nibabel.save(image.as_reoriented(turn), out)
    return out


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks of one shape; 1 for two empty ones."""
    total = int(one.sum()) + int(other.sum())
    return float(2 * (one & other).sum() / total) if total else 1.0


def dice_where_present(mask: NDArray[np.bool_], reference: NDArray[np.bool_], axis: int = 2) -> float:
    """Return the Dice of two masks, pooled over the slices along `axis` on which the reference has the organ."""
    here = reference.any(axis=tuple(other for other in range(3) if other != axis))
    return dice(np.compress(here, mask, axis=axis), np.compress(here, reference, axis=axis))


def machine() -> str:
    """Return versions and processor in one line."""
    import torch

    from ctseg import __version__
    from ctseg.inferers import cpu_has_bfloat16

    half = "bfloat16" if cpu_has_bfloat16() else "no bfloat16"
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"ctseg {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads, {capability}, {half}"
    )


class NaiveNetwork:
    """A bundle's network, run on one slice at a time.

    Args:
        predictor: the bundle, loaded.
        image: the study, (1, I, J, K) in LPS, which says the size of a pixel.
        full: keep the scanner's pixels instead of the network's.
    """

    def __init__(self, predictor: Predictor, image: MetaTensor, full: bool = False) -> None:
        window, pixel = predictor.value("window"), predictor.value("spacing")
        self.network: Any = predictor.network
        self.low, self.high = float(window[0]), float(window[1])
        size = [int(n) for n in image.shape[1:3]]
        spacing = image.affine[:3, :3].norm(dim=0)[:2]
        scaled = [round(n * float(s) / p) for n, s, p in zip(size, spacing, pixel, strict=False)]
        self.size, self.wanted = size, size if full else scaled

    def prepared(self, hounsfield: torch.Tensor, masks: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Return (1, 1 + masks, I', J') for a slice (I, J) in HU and other organs' masks of the same size."""
        import torch
        from torch.nn.functional import interpolate, pad

        grey = ((hounsfield[None, None].float() - self.low) / (self.high - self.low)).clip(0, 1)
        grey = interpolate(grey, size=self.wanted, mode="bilinear", align_corners=False)
        others = [interpolate(mask[None, None].float(), size=self.wanted, mode="nearest") for mask in masks]
        height, width = self.wanted
        return pad(torch.cat([grey, *others], dim=1), (0, -width % _DIVISOR, 0, -height % _DIVISOR))

    def mask(self, hounsfield: torch.Tensor, masks: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Return the mask (I, J), bool, of a slice."""
        from torch.nn.functional import interpolate

        found = self.network(self.prepared(hounsfield, masks)).sigmoid()[..., : self.wanted[0], : self.wanted[1]]
        return interpolate(found, size=self.size, mode="bilinear", align_corners=False)[0, 0] > 0.5

    def answer(self, hounsfield: torch.Tensor) -> float:
        """Return a classifier's probability for a slice."""
        return float(self.network(self.prepared(hounsfield)).sigmoid().max())


def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """Return the largest connected piece of a mask (1, I, J, K), as the reference system kept it."""
    import torch
    from monai.transforms import KeepLargestConnectedComponent

    kept: Any = KeepLargestConnectedComponent(connectivity=1)(mask)
    return torch.as_tensor(kept)


def naive_segmentation(
    predictor: Predictor, ct: Path, full: bool = False
) -> tuple[Volume, NDArray[np.uint8], dict[str, float]]:
    """Segment a CT as the reference system did: slice by slice, every slice, the largest component kept.

    Args:
        predictor: a bundle of one organ.
        ct: any file that ctseg reads.
        full: as for `NaiveNetwork`.

    Returns:
        The CT, the mask on its grid, and seconds by stage: read, network (with its resizing), postprocess.
    """
    import torch
    from monai.transforms import Orientation

    from ctseg.reading import read_volume
    from ctseg.transforms.loading import to_tensor

    seconds, start = {}, time.perf_counter()
    volume = read_volume(ct)
    seconds["read"], start = time.perf_counter() - start, time.perf_counter()
    turn = Orientation(axcodes="LPS", labels=None)
    image: Any = turn(to_tensor(volume))
    network = NaiveNetwork(predictor, image, full)
    mask = torch.zeros(image.shape, dtype=torch.uint8)
    with torch.inference_mode():
        for k in range(image.shape[-1]):
            mask[0, ..., k] = network.mask(image[0, ..., k].as_tensor())
    seconds["network"], start = time.perf_counter() - start, time.perf_counter()
    image.set_array(largest_component(mask))
    back: Any = turn.inverse(image)
    seconds["postprocess"] = time.perf_counter() - start
    return volume, np.asarray(back[0]).astype(np.uint8), seconds


def operations(network: Any, shape: Sequence[int], device: str = "cpu") -> float:
    """Return the floating-point operations of a forward pass on an input (B, C, ...), as PyTorch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(tuple(shape), device=device))
    return float(counter.get_total_flops())


def measured_rate(device: str = "cpu", half: bool | None = None, seconds: float = 1.5) -> float:
    """Return the most operations per second that this machine reached now, in large products and convolutions.

    Args:
        device: "cpu" or a GPU.
        half: in bfloat16; None: where the networks run so.
        seconds: how long each is tried.
    """
    import torch
    from torch.nn.functional import conv2d

    from ctseg.inferers import cpu_has_bfloat16

    half = (device != "cpu" or cpu_has_bfloat16()) if half is None else half
    kind = torch.bfloat16 if half else torch.float32
    a = torch.randn(1024, 1024, device=device, dtype=kind)
    image = torch.randn(8, 64, 128, 128, device=device, dtype=kind).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(64, 64, 3, 3, device=device, dtype=kind).contiguous(memory_format=torch.channels_last)
    best = 0.0
    with torch.inference_mode():
        for work, count in (
            (lambda: a @ a, 2 * 1024**3),
            (lambda: conv2d(image, kernel), 2 * 8 * 126**2 * 64 * 64 * 9),
        ):
            work()
            runs, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                work()
                if device != "cpu":
                    torch.cuda.synchronize()
                runs += 1
            best = max(best, runs * count / spent)
    return best
