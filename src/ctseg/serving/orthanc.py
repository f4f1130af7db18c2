"""A private Orthanc: a DICOM folder as DICOMweb studies, on loopback, with a password that only this run knows."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ctseg.childprocess import Child
from ctseg.dicom.files import may_be_dicom
from ctseg.errors import CtsegError, InputError, ResourceError
from ctseg.files import write_beside

PACKAGES = "orthanc orthanc-dicomweb orthanc-gdcm"
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
_DICOMWEB, _GDCM = "libOrthancDicomWeb.so", "libOrthancGdcm.so"
_STARTS_WITHIN, _STOPS_WITHIN = 60.0, 60.0  # seconds
_LOADED = "loaded.json"
_USER = "ctseg"


class ServingError(CtsegError):
    """Something that is served together did not start, or ended by itself."""


def find_orthanc() -> tuple[str, list[str]]:
    """Return the program and its plugins.

    Raises:
        ServingError: it is not installed, with the packages that bring it.
    """
    program = shutil.which(
        "Orthanc", path=os.pathsep.join((os.defpath, "/usr/sbin", "/usr/local/sbin", "/usr/local/bin"))
    )
    plugins = [
        next((str(file) for folder in _PLUGIN_FOLDERS if (file := Path(folder) / name).is_file()), "")
        for name in (_DICOMWEB, _GDCM)
    ]
    if program is None or not plugins[0]:
        missing = "Orthanc" if program is None else "Orthanc's DICOMweb plugin"
        raise ServingError(
            f"{missing} is not installed, and a folder of DICOM is served through it: apt install {PACKAGES}, "
            "or convert the studies to NIfTI, or name the address of a DICOMweb server"
        )
    return program, [plugin for plugin in plugins if plugin]


def dicom_files(folder: Path) -> Iterator[Path]:
    """Give the files of a folder and its sub-folders that may be DICOM; hidden folders are passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place) / name
            if may_be_dicom(file):
                yield file


class PrivateOrthanc:
    """An Orthanc with its own storage; labels that are stored in it stay there for the next start.

    Attributes:
        address: of its DICOMweb services.
        user: name for HTTP's basic authentication.
        password: for it, drawn at each start.
    """

    def __init__(self, folder: Path, port: int) -> None:
        """Start it and wait until it answers.

        Args:
            folder: for storage, index, configuration and log; made when missing, private.
            port: a free port on loopback.

        Raises:
            ServingError: not installed, or it did not start.
        """
        program, plugins = find_orthanc()
        storage = folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.user, self.password = _USER, secrets.token_urlsafe(24)
        self._root, self._folder = f"http://127.0.0.1:{port}", folder
        self.address = f"{self._root}/dicom-web"
        config = folder / "orthanc.json"
        content = _configuration(storage, port, plugins, {self.user: self.password})
        config.touch(mode=0o600)
        config.write_text(json.dumps(content, indent=2), encoding="utf-8")
        self.process = Child([program, str(config)], folder / "orthanc.log")
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def load(self, studies: Path, progress: Callable[[int, int], None] | None = None) -> tuple[int, int]:
        """Load the DICOM files of a folder that are new since last time.

        Args:
            studies: the folder.
            progress: called with how many of how many files are done.

        Returns:
            How many files were loaded now, and how many it did not take (no images: DICOMDIR, damaged ones).

        Raises:
            ResourceError: the disk has no room for copies of them.
            ServingError: it stopped answering.
        """
        known = self._known()
        fresh = [(file, stamp) for file in dicom_files(studies) if known.get(str(file)) != (stamp := _stamp(file))]
        size = sum(file.stat().st_size for file, _ in fresh)
        if size * 1.1 > shutil.disk_usage(self._folder).free:
            raise ResourceError(
                f"the studies in {studies} take {size / 1e9:.1f} GB and are copied to {self._folder}, which has only "
                f"{shutil.disk_usage(self._folder).free / 1e9:.1f} GB free; make room, or name a place with --data"
            )
        refused = 0
        try:
            for number, (file, stamp) in enumerate(fresh, start=1):
                refused += not self._take(file)
                known[str(file)] = stamp
                if progress is not None:
                    progress(number, len(fresh))
        finally:
            write_beside(self._folder / _LOADED, json.dumps(known).encode())
        return len(fresh) - refused, refused

    def series(self, modality: str) -> int:
        """Return how many series of a modality it holds."""
        query = json.dumps({"Level": "Series", "Query": {"Modality": modality}}).encode()
        found: Sequence[str] = json.loads(self._ask("/tools/find", query))
        return len(found)

    def stop(self) -> None:
        """End it in order, so that its index is written."""
        self.process.stop(_STOPS_WITHIN)
        (self._folder / "orthanc.json").unlink(missing_ok=True)  # holds the password of a run that is over

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads((self._folder / _LOADED).read_text(encoding="utf-8"))
            return {str(name): str(stamp) for name, stamp in known.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _take(self, file: Path) -> bool:
        try:
            self._ask("/instances", file.read_bytes())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (400, 404, 415):
                return False
            raise ServingError(f"Orthanc answered {error.code} to {file}; look into {self.process.log}") from error
        except OSError as error:
            raise ServingError(
                f"{file} could not be handed to Orthanc ({error}); look into {self.process.log}"
            ) from error
        return True

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self._root}{path}", data=body)
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        with contextlib.closing(urllib.request.urlopen(request, timeout=120)) as answer:
            content: bytes = answer.read()
            return content

    def _wait(self) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                self._ask("/system")
                return
            except (urllib.error.URLError, OSError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if self.process.code is not None or time.monotonic() > deadline:
                    raise ServingError(
                        f"Orthanc did not start ({self.process.said() or 'it said nothing'}); "
                        f"look into {self.process.log}"
                    ) from error
            time.sleep(0.1)


def _stamp(file: Path) -> str:
    state = file.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def _configuration(storage: Path, port: int, plugins: Sequence[str], users: dict[str, str]) -> dict[str, object]:
    return {
        "Name": "ctseg",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],  # known to newer ones; the next line holds for all
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": users,
        "DicomServerEnabled": False,
        "OverwriteInstances": False,
        "SaveJobs": False,
        "StableAge": 1,
        "Plugins": list(plugins),
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"},
    }


def check_dicom(folder: Path) -> None:
    """Refuse a folder without any DICOM file.

    Raises:
        InputError: with what to do.
    """
    if next(dicom_files(folder), None) is None:
        raise InputError(
            f"{folder} holds neither NIfTI (.nii.gz, .nii) nor DICOM files; name a folder with studies, or the address "
            "of a DICOMweb server (http://.../dicom-web)"
        )
