"""Organ segmentation: MONAI bundles, a MONAI Label app and a command line on one library."""

__version__ = "0.1.0"
