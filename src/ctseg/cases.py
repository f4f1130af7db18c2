"""Names of cases and the endings of image files."""

from __future__ import annotations

from pathlib import Path

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip")
SLICE_ENDINGS = (".png", ".npy")
PICTURE_ENDINGS = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def is_volume_path(path: Path) -> bool:
    """Whether a path is named like a volume that can be read (a DICOM folder is not told by its name)."""
    return path.is_file() and path.name.lower().endswith(VOLUME_ENDINGS)


def case_name(source: str | Path) -> str:
    """Return the name of a case: its file's or folder's name without the endings of image files."""
    name = Path(source).name
    for ending in VOLUME_ENDINGS + SLICE_ENDINGS + PICTURE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
