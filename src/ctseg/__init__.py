"""Organ segmentation: MONAI bundles, a MONAI Label app and a command line on one library.

For other programs: `segment_volume`, `segment_slice` and `Predictors` (`ctseg.api`, docs/python.md). They are imported
when first asked for, so that `import ctseg` brings nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctseg.api import Predictors, Segmentation, segment_slice, segment_volume

__version__ = "0.1.0"
__all__ = ["Predictors", "Segmentation", "__version__", "segment_slice", "segment_volume"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ctseg' has no attribute {name!r}")
    from ctseg import api

    return getattr(api, name)
