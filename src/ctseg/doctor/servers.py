"""What `ctseg doctor` finds out about a studies folder, a DICOMweb server, and a MONAI Label server that runs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctseg.doctor.findings import NOTE, OK, PROBLEM, Finding
from ctseg.doctor.machine import Check, disk
from ctseg.errors import InputError

_SECONDS = 5.0
_STRANGER = "http://stranger.example"
_IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


def studies_checks(studies: str | None) -> list[Check]:
    """Return the checks of a studies folder or a DICOMweb address; none for None."""
    if studies is None:
        return []
    if studies.startswith(("http://", "https://")):
        return [("dicomweb", lambda: _dicomweb(studies.rstrip("/")))]
    return [("studies", lambda: _folder(Path(studies)))]


def server_checks(server: str | None, token_file: str | None) -> list[Check]:
    """Return the checks of a MONAI Label server; none for None.

    Raises:
        InputError: the token's file cannot be read.
    """
    if server is None:
        return []
    token = None
    if token_file is not None:
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(f"the token file {token_file} cannot be read ({error.strerror}); name another") from error
    address = server.rstrip("/")
    return [
        ("server", lambda: _info(address, token)),
        ("viewer", lambda: _viewers(address, token)),
        ("cors", lambda: _cors(address, token)),
    ]


def _folder(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        yield Finding("studies", PROBLEM, f"{folder} is no folder", "name the folder that holds the CTs")
        return
    files = [path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder)]
    images = [path for path in files if path.name.lower().endswith(_IMAGES) and "labels" not in path.parts]
    dicom = [path for path in files if path.suffix.lower() == ".dcm" or (not path.suffix and _is_dicom(path))]
    found = f"{folder}: {len(images)} images and {len(dicom)} DICOM files"
    advice = "put NIfTI, NRRD or DICOM files there" if not images and not dicom else ""
    yield Finding("studies", NOTE if advice else OK, found, advice)
    yield from disk(folder)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def ask(address: str, token: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """GET an address; return status, headers in lower case and at most a megabyte of the body.

    Raises:
        InputError: nobody answers there.
    """
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read(1 << 20)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"nobody answers at {address} ({reason}); start it, or correct the address") from error


def _dicomweb(address: str) -> Iterator[Finding]:
    status, _, body = ask(f"{address}/studies?limit=1", Accept="application/dicom+json")
    if status not in (200, 204) or not _is_list(body):
        # With a password it may well work: the server gets it from its environment, this command does not ask for it.
        state = NOTE if status in (401, 403) else PROBLEM
        yield Finding(
            "dicomweb", state, f"{address} answers {status} to a search for studies", _dicomweb_advice(status)
        )
        return
    yield Finding("dicomweb", OK, f"{address} answers a search for studies")
    yield from _orthanc_there(address)


def _is_list(body: bytes) -> bool:
    try:
        return not body or isinstance(json.loads(body), list)
    except ValueError:
        return False


def _dicomweb_advice(status: int) -> str:
    if status in (401, 403):
        return "it wants a user and password: MONAI Label takes them from MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD"
    return "expected the root of DICOMweb; for Orthanc http://HOST:8042/dicom-web, with its DICOMweb plugin"


def _orthanc_there(address: str) -> Iterator[Finding]:
    """An Orthanc says more about itself at its own root; another server just does not have these pages."""
    root = address.rpartition("/")[0]
    try:
        status, _, body = ask(f"{root}/plugins")
        plugins = json.loads(body) if status == 200 else None
        system: dict[str, Any] = json.loads(ask(f"{root}/system")[2]) if plugins is not None else {}
    except (InputError, ValueError):
        return
    if not isinstance(plugins, list):
        return
    version = system.get("Version", "of unknown version")
    if any("gdcm" in str(plugin) for plugin in plugins):
        yield Finding("orthanc", OK, f"{version} with {', '.join(sorted(map(str, plugins)))}")
    else:
        yield Finding(
            "orthanc",
            NOTE,
            f"{version} without gdcm: JPEG 2000 CTs are listed, but cannot be fetched",
            "apt install orthanc-gdcm, or name its plugin in Orthanc's configuration",
        )


def _info(address: str, token: str | None) -> Iterator[Finding]:
    status, _, body = ask(f"{address}/info/", token)
    if status in (401, 403):
        yield Finding("server", PROBLEM, f"{address} wants a token ({status})", "give it with --token-file")
        return
    try:
        info = json.loads(body)
        models = sorted(info["models"])
    except (ValueError, KeyError, TypeError):
        yield Finding(
            "server", PROBLEM, f"{address}/info/ answers {status}, and not as MONAI Label", "correct --server"
        )
        return
    yield Finding("server", OK, f"{info.get('name', 'MONAI Label')} {info.get('version', '')}: {', '.join(models)}")


def _viewers(address: str, token: str | None) -> Iterator[Finding]:
    status, _, body = ask(f"{address}/viewer/", token)
    if status == 200 and b"<html" in body.lower():
        yield Finding("viewer", OK, f"the annotation page is served at {address}/viewer/")
    else:
        yield Finding(
            "viewer", NOTE, "the annotation page is not set up", "scripts/setup_viewer, then start the server anew"
        )
    status, _, body = ask(f"{address}/ohif/", token)
    if status == 200 and b"<html" in body.lower():
        yield Finding("ohif", OK, f"MONAI Label's own OHIF is served at {address}/ohif/")
    else:
        yield Finding(
            "ohif", PROBLEM, f"{address}/ohif/ answers {status}", "install monailabel again: scripts/setup server"
        )


def _cors(address: str, token: str | None) -> Iterator[Finding]:
    _, headers, _ = ask(f"{address}/info/", token, Origin=_STRANGER)
    allowed = headers.get("access-control-allow-origin", "")
    if allowed in ("*", _STRANGER):
        found = f"pages of any origin may read answers (Access-Control-Allow-Origin: {allowed})"
        yield Finding(
            "cors", PROBLEM, found, "start the server with --app apps/ctseg, and name origins in its settings"
        )
    else:
        yield Finding("cors", OK, "a stranger's page cannot read answers")
