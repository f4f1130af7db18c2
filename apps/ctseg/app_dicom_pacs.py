"""The studies' DICOMweb server: asked anew each time, with a timeout, and refused with a sentence when it fails."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from app_http import refused
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

_SECONDS = (10.0, 120.0)  # to connect, and between two pieces of an answer
_SERIES_UID = re.compile(r"[0-9.]{1,64}")


class _Patience(requests.adapters.HTTPAdapter):
    """Every request ends, also where the caller names no timeout (dicomweb_client never does)."""

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or _SECONDS
        return super().send(*args, **kwargs)


def connect(address: str) -> DICOMwebClientX:
    """Make the client for a DICOMweb address, with MONAI Label's own settings (user, password, prefixes)."""
    name, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    if "googleapis.com" in address:
        from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials

        session = create_session_from_gcp_credentials()
    elif name and password:
        session = create_session_from_user_pass(name, password)
    else:
        session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patience())
    client = DICOMwebClientX(
        url=address,
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(retry=False)  # else half a minute passes before anyone hears that it is gone
    return client


def is_series_uid(text: Any) -> bool:
    """Whether a text can be a SeriesInstanceUID, and so the name of a folder."""
    return isinstance(text, str) and bool(_SERIES_UID.fullmatch(text)) and text.strip(".") != ""


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except requests.Timeout as error:
        raise refused(504, "the studies' server takes too long to answer; try again, or look after it") from error
    except requests.RequestException as error:
        logger.warning("The studies' server: %s", type(error).__name__)
        status = getattr(error.response, "status_code", None)
        what = f"answered {status}" if status else "does not answer"
        raise refused(502, f"the studies' server {what}; is it running, and may this server read and store?") from error


class Pacs:
    """What is asked of the server."""

    def __init__(self, client: DICOMwebClientX) -> None:
        self._client = client

    @property
    def address(self) -> str:
        """The address of the DICOMweb services."""
        return str(self._client.base_url)

    def series(self, **filters: str) -> list[Dataset]:
        """Search for series, all pages of the answer."""
        with _answered():
            found = self._client.search_for_series(search_filters=dict(filters), get_remaining=True)
        return [Dataset.from_json(entry) for entry in found]

    def one_series(self, series: str) -> Dataset | None:
        """Return what the server says of one series; None when it has none of this UID."""
        found = self.series(SeriesInstanceUID=series) if is_series_uid(series) else []
        return next((entry for entry in found if str(entry.SeriesInstanceUID) == series), None)

    def instances(self, study: str, series: str) -> list[str]:
        """Return the SOPInstanceUIDs of a series, in order."""
        with _answered():
            found = self._client.search_for_instances(study, series, get_remaining=True)
        return sorted(str(Dataset.from_json(entry).SOPInstanceUID) for entry in found)

    def metadata(self, study: str, series: str) -> list[Dataset]:
        """Return the headers of the instances of a series, without pixels."""
        with _answered():
            found = self._client.retrieve_series_metadata(study, series)
        return [Dataset.from_json(entry, bulk_data_uri_handler=lambda _: b"") for entry in found]

    def fetch(self, study: str, series: str, folder: Path) -> None:
        """Fetch a series into a new folder, all files or none; their names are their SOPInstanceUIDs."""
        beside = folder.with_name(f".{secrets.token_hex(6)}")
        beside.mkdir(parents=True)
        try:
            with _answered():
                # As it is stored there: transcoding is the server's weakest point (Orthanc without GDCM answers 500).
                found = self._client.retrieve_series(study, series, media_types=(("application/dicom", "*"),))
            for instance in found:
                instance.save_as(beside / f"{instance.SOPInstanceUID}.dcm", write_like_original=False)
            shutil.rmtree(folder, ignore_errors=True)
            beside.replace(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def store(self, instance: Dataset) -> None:
        """Store one instance (STOW-RS)."""
        with _answered():
            answer = self._client.store_instances([instance])
        if answer.get("FailedSOPSequence"):
            reason = answer.FailedSOPSequence[0].get("FailureReason", "without a reason")
            raise refused(502, f"the studies' server did not keep the label (reason {reason}); look into its log")


def patient_of(series: Mapping[str, Any] | Dataset) -> str:
    """Return the PatientID of a search result, "" when it is not told."""
    return str(series.get("PatientID", "") or "")
