"""Transforms that MONAI does not have: reading into a true place, labels by name, and the way back to the source."""

from ctseg.transforms.cleaning import CleanUpd
from ctseg.transforms.cores import KeepLargestCored
from ctseg.transforms.diffusion import Diffused
from ctseg.transforms.heads import CropBraind, StraightenHeadd, WindowHeadd
from ctseg.transforms.labels import LoadLabeld, ToLabelMapd
from ctseg.transforms.loading import LoadVolumed
from ctseg.transforms.opening import OpenStudyd
from ctseg.transforms.organs import AddOrgansd, GateSlicesd, SplitOrgansd
from ctseg.transforms.pieces import RemoveSmallPiecesd
from ctseg.transforms.pixels import PixelSpacingd
from ctseg.transforms.presence import RandSlicesd, SavePresenced, ToPresenced, ToProbabilityd
from ctseg.transforms.restoring import RestoreGridd, SaveMaskd
from ctseg.transforms.sectors import CropSectord
from ctseg.transforms.spacing import ToGridd
from ctseg.transforms.turning import ApplyItkTransformd

__all__ = [
    "AddOrgansd",
    "ApplyItkTransformd",
    "CleanUpd",
    "CropBraind",
    "CropSectord",
    "Diffused",
    "GateSlicesd",
    "KeepLargestCored",
    "LoadLabeld",
    "LoadVolumed",
    "OpenStudyd",
    "PixelSpacingd",
    "RandSlicesd",
    "RemoveSmallPiecesd",
    "RestoreGridd",
    "SaveMaskd",
    "SavePresenced",
    "SplitOrgansd",
    "StraightenHeadd",
    "ToGridd",
    "ToLabelMapd",
    "ToPresenced",
    "ToProbabilityd",
    "WindowHeadd",
]
