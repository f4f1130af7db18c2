"""Which steps of a bundle's preprocessing work on the network's device."""

from __future__ import annotations

from monai.transforms import Compose, DeleteItemsd, DivisiblePadd, ScaleIntensityRanged, SpatialPadd

from ctseg import devices
from ctseg.transforms import AddOrgansd, GateSlicesd, ToGridd

# What may follow and takes tensors wherever they are. Heads are turned and cut with NumPy: those bundles put their
# image on its grid on the processor, as ever.
_FOLLOWING = (AddOrgansd, DeleteItemsd, DivisiblePadd, GateSlicesd, ScaleIntensityRanged, SpatialPadd)


def prepare_there(preprocessing: Compose, device: str) -> None:
    """Let a pipeline put its image on its grid on a device, if that is done there and all that follows can be.

    Args:
        preprocessing: of a bundle; its `ToGridd` is told.
        device: of the network.
    """
    if not devices.works_there(device):
        return
    steps = list(preprocessing.transforms)
    for number, step in enumerate(steps):
        if isinstance(step, ToGridd):
            if all(isinstance(later, _FOLLOWING) for later in steps[number + 1 :]):
                step.device = devices.as_device(device)
            return
