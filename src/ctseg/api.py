"""Segmentation from other programs: a whole volume or single slices, chosen organs, NumPy or torch out.

The command line and the server run through the same functions. Nothing is read from or written to disk unless a path
is given; arrays that are given are never changed. All functions may be called from several threads, and share loaded
networks when they are given the same `Predictors`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctseg import labelcodes
from ctseg.errors import ConfigError, InputError
from ctseg.images import Placed, as_numpy, orientation_affine, volume_of_array, volume_of_image
from ctseg.organchoice import Selection, select
from ctseg.organmerging import predict_organs
from ctseg.organs import measure_organs
from ctseg.slices import RADIOLOGICAL, axes_of
from ctseg.study import Predictors, Study
from ctseg.volume import Volume

if TYPE_CHECKING:
    import torch

    from ctseg.budget.study import FrugalStudy
    from ctseg.prediction import Prediction

Progress = Callable[[str], None]
Output = Literal["numpy", "torch"]
Codes = str | Path | Mapping[str, int]
THICKNESS_MM = 5.0


@dataclass(frozen=True)
class Segmentation:
    """The answer.

    Attributes:
        mask: uint8 label map with exactly the shape and axis order of the image that was given: (I, J, K) of a file;
            the array's own axes; (K, J, I) of an ITK or SimpleITK image, as their `array_from_image` gives it out.
            0 is background.
        labels: organ -> its value in the mask, in order of priority.
        predictions: with volume, seconds by stage, device, bundle: one of a volume, one for each slice.
    """

    mask: NDArray[np.uint8] | torch.Tensor
    labels: dict[str, int]
    predictions: tuple[Prediction, ...]

    @property
    def prediction(self) -> Prediction:
        """The prediction, that of the first slice where there are several; its label map is (I, J, K)."""
        return self.predictions[0]

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Millilitres of each organ, by the number of its voxels; of all slices together."""
        sums = dict.fromkeys(self.labels, 0.0)
        for one in self.predictions:
            for organ in measure_organs(one.label_map, self.labels, one.volume.source_affine):
                sums[organ.name] += organ.volume_ml
        return sums


def segment_volume(
    image: Any,
    *,
    organs: Sequence[str] | None = None,
    task: str | Path | None = None,
    affine: Any = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    space: Literal["RAS", "LPS"] = "RAS",
    codes: Codes = labelcodes.OWN,
    device: str | None = None,
    output: Output = "numpy",
    predictors: Predictors | None = None,
    progress: Progress | None = None,
    runtime: str | None = None,
    max_ram: int | None = None,
) -> Segmentation:
    """Segment one volume.

    Args:
        image: a path (NIfTI, NRRD, MetaImage, DICOM folder or zip); an image of ITK, SimpleITK or nibabel; a MONAI
            `MetaTensor` of shape (I, J, K) or (1, I, J, K); or an array of NumPy or torch of these shapes. For CT the
            values are Hounsfield units, air near -1000.
        organs: names of labels in order of priority: a voxel that two claim belongs to the first. None takes all
            organs of the task.
        task: a bundle's name or folder. With organs: the bundle to take wherever it has the organ. Without either: the
            only trained one.
        affine: of an array: (4, 4), index of its own axes to mm of `space`, at voxel centres.
        spacing: of an array without affine: mm along its axes.
        orientation: of an array without affine: three letters, where its axes run to ("LPS": to the patient's left,
            back and head). The array of a SimpleITK image of an ordinary axial CT is "SPL".
        space: the world of `affine`: "RAS" as in nibabel and MONAI, "LPS" as in ITK and DICOM.
        codes: values in the mask: "bundle" (the bundle's own; of several bundles 1, 2, ... in the order of the organs
            where their own are not distinct), the name of a preset or a JSON file (`ctseg.labelcodes`), or a mapping.
        device: "auto" (CUDA when there is one; the default), "cpu", "cuda" or "cuda:N".
        output: "numpy" or "torch" (on the CPU).
        predictors: loaded networks, kept warm between calls; they know their device and runtime.
        progress: called with the name of each stage when it begins.
        runtime: what runs the networks: "torch" (the default), "onnx", "openvino" or "auto" (`ctseg.export.runtimes`).
        max_ram: bytes that this process may take at most, with what it holds already (`ctseg.budget.reckoning`); an
            image that is given as a path is then read bit by bit, and never held, where that is needed.

    Returns:
        The mask on exactly the image's grid.

    Raises:
        InputError: not one scalar 3D volume, unreadable, or plainly no CT in Hounsfield units.
        GeometryError: an array without affine or spacing and orientation, or a grid that lies nowhere.
        ConfigError: an unknown organ, code or output.
        BundleError: an unknown or untrained bundle.
        DeviceError, ResourceError: the device is not there; the memory or `max_ram` does not suffice.
    """
    _check_output(output)
    warm = _warm(predictors, device, runtime)
    selection = select(organs, task, warm.root)
    wanted = _codes_of(selection, codes)
    selection.check_ready(warm.find)
    placed: Placed | None = None
    source: Path | Volume
    if isinstance(image, str | Path):
        _check_no_place(affine, spacing, orientation)
        source = Path(image)
    elif isinstance(image, Volume):
        _check_no_place(affine, spacing, orientation)
        source = image
    else:
        placed = volume_of_image(
            image,
            affine=affine,
            spacing=spacing,
            orientation=orientation,
            space=space,
            modality=selection.bundle.modality,
        )
        source = placed.volume
    found = predict_selection(source, selection, warm, progress, max_ram)
    found = labelcodes.recoded(found, wanted)
    mask = found.label_map if placed is None else placed.own(found.label_map)
    return Segmentation(_as_output(mask, output), dict(found.labels), (found,))


def segment_slice(
    image: Any,
    *,
    spacing: Sequence[float] | None = None,
    organs: Sequence[str] | None = None,
    task: str | Path | None = None,
    view: str = RADIOLOGICAL,
    thickness: float = THICKNESS_MM,
    codes: Codes = labelcodes.OWN,
    device: str | None = None,
    output: Output = "numpy",
    predictors: Predictors | None = None,
    runtime: str | None = None,
) -> Segmentation:
    """Segment one axial slice, or several that need not belong together.

    Args:
        image: array of NumPy or torch: one slice (H, W) or (1, H, W), or B slices (B, 1, H, W); for CT in Hounsfield
            units.
        spacing: mm along H and along W (DICOM's PixelSpacing has this order).
        organs: as for `segment_volume`.
        task: as for `segment_volume`; bundles that look at slices are made for this, those that look at volumes see a
            volume of one slice.
        view: "radiological": rows (H) run to the patient's back, columns (W) to the left, as on a screen. "array" or
            "array:XY": H and W are the first and second index of a volume's array and run towards X and Y, "array:LP"
            for example; without letters towards R and A, as `ct[:, :, k]` of a NIfTI in RAS.
        thickness: of the slices in mm.
        codes: as for `segment_volume`.
        device: as for `segment_volume`.
        output: as for `segment_volume`.
        predictors: as for `segment_volume`.
        runtime: as for `segment_volume`.

    Returns:
        The mask, of the image's shape. Nothing joins the slices: each is a study of its own, with clean-up in itself.

    Raises:
        CtsegError: as `segment_volume`.
    """
    _check_output(output)
    warm = _warm(predictors, device, runtime)
    selection = select(organs, task, warm.root)
    wanted = _codes_of(selection, codes)
    selection.check_ready(warm.find)
    array, shape = _slices_of(image)
    if spacing is None or len(tuple(spacing)) != 2:
        raise InputError(
            f"the slice comes with the spacing {spacing!r}, but two numbers are needed: mm along its first and second "
            "axis, as in DICOM's PixelSpacing"
        )
    affine = _slice_affine(view, spacing, thickness)
    stack = volume_of_array(array.transpose(1, 2, 0), affine, "the slice", selection.bundle.modality)
    found = []
    for number in range(stack.shape[2]):
        one = dataclasses.replace(stack, array=stack.array[:, :, number : number + 1])
        found.append(labelcodes.recoded(predict_selection(one, selection, warm), wanted))
    mask = np.stack([one.label_map[:, :, 0] for one in found]).reshape(shape)
    return Segmentation(_as_output(mask, output), dict(found[0].labels), tuple(found))


def predict_selection(
    source: str | Path | Volume,
    selection: Selection,
    predictors: Predictors,
    progress: Progress | None = None,
    max_ram: int | None = None,
) -> Prediction:
    """Run what was selected on one study: the one way of the command line, the server and this module.

    Returns:
        The prediction; its seconds begin with "load", what loading the networks took (0 where they were warm).
    """
    started = time.perf_counter()
    for bundle in selection.bundles:
        predictors.segmenter(bundle)
    load = time.perf_counter() - started
    study = _opened(source, selection, predictors, max_ram)
    told: set[str] = set()

    def tell(stage: str) -> None:
        if progress is not None and not (stage == "read" and stage in told):  # several bundles share one reading
            progress(stage)
        told.add(stage)

    if selection.choices:
        found = predict_organs(selection.choices, lambda bundle: study.prediction(bundle, tell))
    else:
        found = study.prediction(selection.bundle, tell)
    return dataclasses.replace(found, seconds={"load": load, **found.seconds})


def _opened(
    source: str | Path | Volume, selection: Selection, predictors: Predictors, max_ram: int | None
) -> Study | FrugalStudy:
    modality = selection.bundle.modality
    if max_ram is None:
        return Study(source, predictors, modality=modality)
    from ctseg.budget.study import FrugalStudy

    # Each bundle's mask, each organ's while they are merged, the merged one; and one in other codes.
    masks = 2 + (len(selection.bundles) + len(selection.choices) if selection.choices else 0)
    return FrugalStudy(source, selection.bundles, predictors, modality, max_ram, masks)


def _slice_affine(view: str, spacing: Sequence[float], thickness: float) -> NDArray[np.float64]:
    axes = "PL" if view == RADIOLOGICAL else axes_of(view)  # of the array (H, W): rows run to the back
    return orientation_affine(f"{axes}S", (*spacing, thickness), "the slice")


def _slices_of(image: Any) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Return (B, H, W) and the image's own shape."""
    if not isinstance(image, np.ndarray) and not hasattr(image, "detach"):
        raise InputError(f"a {type(image).__name__} is no slice: give an array of NumPy or torch")
    array = as_numpy(image)
    shown = " x ".join(str(size) for size in array.shape)
    channels = array.shape[-3] if array.ndim in (3, 4) else 1
    if array.ndim not in (2, 3, 4) or channels != 1 or not array.size:
        raise InputError(
            f"the slice has the shape {shown}, but H x W, 1 x H x W, or B x 1 x H x W for several is needed"
        )
    return array.reshape(-1, *array.shape[-2:]), array.shape


def _warm(predictors: Predictors | None, device: str | None, runtime: str | None = None) -> Predictors:
    if predictors is None:
        return Predictors(device or "auto", runtime=runtime or "torch")
    if runtime is not None and runtime != predictors.runtime:
        raise ConfigError(
            f"the runtime {runtime!r} is asked for, but the loaded networks run in {predictors.runtime!r}: "
            "leave one of the two out"
        )
    if device is not None and device != predictors.device:
        raise ConfigError(
            f"the device {device!r} is asked for, but the loaded networks are on {predictors.device!r}: "
            "leave one of the two out"
        )
    return predictors


def _codes_of(selection: Selection, codes: Codes) -> dict[str, int]:
    if not isinstance(codes, Mapping):
        return labelcodes.codes_for(selection.labels, codes)
    missing = [name for name in selection.labels if name not in codes]
    if missing:
        raise ConfigError(f"the codes have none for {', '.join(missing)}: expected one for each organ asked for")
    wanted = {name: codes[name] for name in selection.labels}
    labelcodes.check_codes(wanted, "the codes asked for")
    return wanted


def _check_output(output: str) -> None:
    if output not in ("numpy", "torch"):
        raise ConfigError(f"the output {output!r} is not known: expected numpy or torch")


def _check_no_place(affine: Any, spacing: Any, orientation: Any) -> None:
    if any(given is not None for given in (affine, spacing, orientation)):
        raise ConfigError("a file has a place of its own: leave affine, spacing and orientation out")


def _as_output(mask: NDArray[np.uint8], output: Output) -> NDArray[np.uint8] | torch.Tensor:
    if output == "numpy":
        return mask
    import torch

    return torch.from_numpy(np.ascontiguousarray(mask))
