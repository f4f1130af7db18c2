"""A private Orthanc with small CTs in it, and a client that speaks to it past the server under test."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from helpers_server import free_port

from ctseg.serving.orthanc import PACKAGES, PrivateOrthanc, ServingError, find_orthanc


def need_orthanc() -> None:
    """Skip where Orthanc is not installed."""
    try:
        find_orthanc()
    except ServingError:
        pytest.skip(f"Orthanc is not here; Debian: {PACKAGES}")


@contextmanager
def running_orthanc(folder: Path) -> Iterator[PrivateOrthanc]:
    """Start one on a free port with its own storage, and shut it down in order."""
    need_orthanc()
    orthanc = PrivateOrthanc(folder, free_port())
    try:
        yield orthanc
    finally:
        orthanc.stop()
        assert orthanc.process.code == 0
        shutil.rmtree(folder, ignore_errors=True)


def emptied(orthanc: PrivateOrthanc) -> PrivateOrthanc:
    """Remove all that it holds."""
    with requests.Session() as session:
        session.auth = (orthanc.user, orthanc.password)
        root = orthanc.address.removesuffix("/dicom-web")
        for patient in session.get(f"{root}/patients", timeout=60).json():
            session.delete(f"{root}/patients/{patient}", timeout=60).raise_for_status()
    return orthanc


def client_of(orthanc: PrivateOrthanc) -> Any:
    """A DICOMweb client of its own."""
    from dicomweb_client import DICOMwebClient
    from dicomweb_client.session_utils import create_session_from_user_pass

    session = create_session_from_user_pass(orthanc.user, orthanc.password)
    return DICOMwebClient(url=orthanc.address, session=session)


def segs_of(orthanc: PrivateOrthanc) -> list[pydicom.Dataset]:
    """Every SEG that it holds, oldest first."""
    client = client_of(orthanc)
    found = []
    for entry in client.search_for_series(search_filters={"Modality": "SEG"}):
        series = pydicom.Dataset.from_json(entry)
        found += client.retrieve_series(str(series.StudyInstanceUID), str(series.SeriesInstanceUID))
    return sorted(found, key=lambda seg: (seg.ContentDate, seg.ContentTime))


def store(orthanc: PrivateOrthanc, file: Path) -> None:
    """Store one file."""
    client_of(orthanc).store_instances([pydicom.dcmread(io.BytesIO(file.read_bytes()))])
