"""Exported networks without PyTorch: read, prepare, run, finish. Nothing in here imports torch, MONAI or ITK.

NumPy, SciPy and nibabel do what MONAI's transforms do on the long way; tests hold the two together voxel by voxel.
"""
