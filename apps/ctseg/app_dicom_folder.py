"""Where the server keeps what belongs to the studies of a DICOMweb server."""

from __future__ import annotations

from pathlib import Path

from monailabel.config import settings
from monailabel.utils.others.generic import md5_digest


def kept_in(data: str, address: str) -> Path:
    """Return the folder for what belongs to the studies of a server: images, the split ledger, trainings, the audit.

    A folder that was named belongs to these studies, wherever they are reached: the private Orthanc of `ctseg serve`
    has another port each time. Where none was named, each address has its own below MONAI Label's setting
    MONAI_LABEL_DICOMWEB_CACHE_PATH, else below the user's home.
    """
    if data:
        return Path(data).expanduser().resolve()
    cache = (settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip()
    folder = Path(cache or Path.home() / ".local" / "share" / "ctseg" / "dicomweb")
    return folder.expanduser().resolve() / md5_digest(address)
