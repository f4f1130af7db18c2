"""The studies' DICOMweb server as the viewer's page sees it: same origin, known addresses only, with a timeout."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any

import requests
from app_dicom_pacs import connect
from app_http import refused
from app_viewer_multipart import joined

_SECONDS = (5.0, 60.0)  # to connect, and between two bytes
_UID = r"[0-9][0-9.]{0,63}"
_QUERY = re.compile(
    rf"(studies|series|instances|studies/{_UID}/(series|instances)|studies/{_UID}/series/{_UID}/instances)"
)
_RETRIEVE = re.compile(
    rf"studies/{_UID}(/series/{_UID}(/instances/{_UID}(/frames/[0-9]+(,[0-9]+)*)?)?)?"
    r"(/metadata|/rendered|/thumbnail|/bulk/[0-9a-f/]+)?"
)
_FAILED = re.compile(rb'"00081198"\s*:\s*\{[^{}]*"Value"\s*:\s*\[\s*\{')  # FailedSOPSequence with an item (PS3.18, I.2)
_MODALITY, _STUDY, _SERIES = "00080060", "0020000D", "0020000E"
_REMEMBERED = 4096


class StudiesProxy:
    """A DICOMweb server, e.g. Orthanc; safe to share between threads.

    Args:
        address: its root, such as `http://127.0.0.1:8042/dicom-web`; user, password and prefixes are MONAI Label's
            settings.
    """

    def __init__(self, address: str) -> None:
        client = connect(address.rstrip("/"))
        self.address = str(client.base_url)
        self._session = client._session
        prefixes = {"qido": client.qido_url_prefix, "wado": client.wado_url_prefix, "stow": client.stow_url_prefix}
        self._prefixes = {kind: f"/{prefix.strip('/')}" for kind, prefix in prefixes.items() if prefix}
        self._modalities: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str, query: str = "", accept: str = "application/dicom+json") -> requests.Response:
        """Ask for an address below the root.

        Args:
            path: a QIDO-RS or WADO-RS path (PS3.18, 10.4 and 10.6) without a leading slash.
            query: what follows the question mark.
            accept: the media types wanted.

        Raises:
            HTTPException: 404 for another path, 502 when the server does not answer, 504 when it is too slow.
        """
        kind = "qido" if _QUERY.fullmatch(path) else "wado"
        if kind == "wado" and not _RETRIEVE.fullmatch(path):
            raise refused(404, "this is no DICOMweb address that the viewer needs")
        url = f"{self.address}{self._prefixes.get(kind, '')}/{path}"
        return self._send("GET", f"{url}?{query}" if query else url, headers={"Accept": accept})

    def store(self, instance: bytes) -> None:
        """Store one DICOM file (STOW-RS).

        Raises:
            HTTPException: 502 when it is not taken or the server does not answer.
        """
        body, kind = joined([instance], "application/dicom")
        answer = self._send(
            "POST",
            f"{self.address}{self._prefixes.get('stow', '')}/studies",
            data=body,
            headers={"Content-Type": kind, "Accept": "application/dicom+json"},
        )
        if not answer.ok or _FAILED.search(answer.content):
            raise refused(502, f"the studies' server did not take the label (it answered {answer.status_code})")

    def json(self, path: str, query: str = "") -> list[dict[str, Any]]:
        """Return the DICOM JSON of a search or of metadata; an empty list for 204 and 404."""
        answer = self.get(path, query)
        if answer.status_code in (204, 404):
            return []
        if not answer.ok:
            raise refused(502, f"the studies' server answered {answer.status_code} to a search")
        found: list[dict[str, Any]] = answer.json()
        return found

    def modality(self, study: str, series: str) -> str:
        """Return a series' modality, "" when there is no such series; asked for once."""
        with self._lock:
            if series in self._modalities:
                return self._modalities[series]
        found = self.json(f"studies/{study}/series", f"SeriesInstanceUID={series}&includefield=Modality")
        modality = str(first(found[0], _MODALITY) or "") if found else ""
        if modality:
            with self._lock:
                self._modalities[series] = modality
                if len(self._modalities) > _REMEMBERED:
                    self._modalities.popitem(last=False)
        return modality

    def study_of(self, series: str) -> str:
        """Return the UID of a series' study.

        Raises:
            HTTPException: 404 when there is no such series.
        """
        found = self.json("series", f"SeriesInstanceUID={series}&includefield=StudyInstanceUID")
        study = next((str(first(one, _STUDY)) for one in found if first(one, _SERIES) == series), "")
        if not study:
            raise refused(404, "there is no such series on the studies' server; was it deleted? open the study again")
        return study

    def _send(self, method: str, url: str, **more: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=_SECONDS, allow_redirects=False, **more)
        except requests.Timeout as error:
            raise refused(504, "the studies' server takes too long to answer; try again, or look after it") from error
        except requests.RequestException as error:
            raise refused(502, "the studies' server does not answer; is it running?") from error


def first(element: Mapping[str, Any], tag: str) -> Any:
    """Return the first value of a DICOM JSON attribute, None when it is absent or empty."""
    values = element.get(tag, {}).get("Value") or [None]
    return values[0]
