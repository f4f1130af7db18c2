"""What `ctseg serve` is going to start: every refusal that can be made before anything runs, and the server's line."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ctseg.errors import InputError, OutputError
from ctseg.loopback import is_loopback
from ctseg.registry import BundleInfo, app_root, find_bundles
from ctseg.serving.orthanc import ServingError, check_dicom, find_orthanc
from ctseg.serving.users import read_token, read_users

FOLDER = ".ctseg"  # in the studies: Orthanc's storage, what is fetched from it, logs
_NIFTI = (".nii.gz", ".nii")
_MADE_BY_MONAI_LABEL = ("bin", "lib", "logs", "model", "__pycache__")


@dataclass(frozen=True)
class Plan:
    """What is going to be served, checked.

    Attributes:
        kind: what the studies are.
        studies: the folder (absolute), or the address.
        data: folder for storage and logs.
        host: where the server listens.
        port: its port.
        models: bundle names with commas between; "" for all.
        device: "auto", "cpu", "cuda" or "cuda:N".
        token_file: file with the token; None for none.
        users: file of the users, their roles and tokens (`ctseg user`); None for none.
    """

    kind: Literal["nifti", "dicom", "address"]
    studies: str
    data: Path
    host: str
    port: int
    models: str
    device: str
    token_file: Path | None
    users: Path | None = None

    @property
    def needs_token(self) -> bool:
        """Whether clients must show a token."""
        return self.token_file is not None or self.users is not None


def checked_plan(
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    models: str = "",
    device: str = "auto",
    token_file: Path | None = None,
    users: Path | None = None,
    data: Path | None = None,
) -> Plan:
    """Check everything that can be checked before anything is started; nothing is written.

    Raises:
        InputError: no such folder, nothing to serve in it, an unknown device or port, a token that is not there.
        ServingError: the port is in use, Orthanc or MONAI Label is not installed.
    """
    if find_spec("monailabel") is None:
        raise ServingError("MONAI Label is not installed; pip install 'ctseg[server]'")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"{device!r} is no device; expected auto, cpu, cuda or cuda:0, cuda:1, ...")
    _check_models(models)
    if users is not None:
        users = users.expanduser().absolute()
        read_users(users)
    token = None if token_file is None and users is not None else _checked_token(host, token_file)
    kind, place = _checked_studies(studies)
    if kind == "dicom":
        find_orthanc()
    _check_port(host, port)
    if data is None:
        data = Path(place) / FOLDER if kind != "address" else _home_of(place)
    return Plan(kind, place, data.expanduser().absolute(), host, port, models, device, token, users)


def _checked_studies(studies: str) -> tuple[Literal["nifti", "dicom", "address"], str]:
    if re.match(r"https?://", studies):
        return "address", studies.rstrip("/")
    folder = Path(studies).expanduser().absolute()
    if not folder.exists():
        raise InputError(f"there is no folder {folder}; name a folder of CTs, or a DICOMweb address (http://...)")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, but a folder of studies is served; name the folder that it is in")
    if any(file.name.lower().endswith(_NIFTI) and not file.name.startswith(".") for file in folder.iterdir()):
        return "nifti", str(folder)
    check_dicom(folder)
    return "dicom", str(folder)


def _check_models(models: str) -> None:
    bundles = [info for info in find_bundles().values() if info.segments and not info.flat]
    # A bundle may name models that join it with others (`part_of` in its metadata).
    known = list(dict.fromkeys([*(info.name for info in bundles), *(m for i in bundles for m in _joined(i))]))
    for name in filter(None, (part.strip() for part in models.split(","))):
        if name not in ("all", *known):
            raise InputError(
                f"there is no model {name!r}; the known ones are: {', '.join(known)}; name them with commas between, "
                "or leave --models out to serve all"
            )


def _joined(info: BundleInfo) -> tuple[str, ...]:
    return tuple(getattr(info, "part_of", ()))


def _home_of(address: str) -> Path:
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return Path.home() / ".local" / "share" / "ctseg" / "serve" / digest


def _checked_token(host: str, file: Path | None) -> Path | None:
    if file is None:
        if not is_loopback(host):
            raise InputError(
                f"on {host} other computers can reach the server, so a token is needed: write a long random word into "
                "a file and name it with --token-file, make users (ctseg user) and name their file with --users, or "
                "leave --host out to serve this computer only"
            )
        return None
    file = file.expanduser().absolute()
    read_token(file)
    return file


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"{port} is no port; expected 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], family[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        raise ServingError(
            f"port {port} on {host} cannot be used ({error.strerror or error}): another server may run there already; "
            "name another with --port"
        ) from error


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def only_one(data: Path) -> Iterator[None]:
    """Hold a folder for one `ctseg serve`: two Orthancs on one storage would damage its index.

    Raises:
        ServingError: another one holds it.
        OutputError: the folder cannot be made or written.
    """
    try:
        if not data.is_dir():
            data.mkdir(parents=True)
            data.chmod(0o700)  # patients' images
        stream = (data / "lock").open("a")
    except OSError as error:
        raise OutputError(
            f"{data} cannot be written ({error.strerror}), but labels and logs are kept in it; name another with --data"
        ) from error
    with stream:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ServingError(
                    f"another ctseg serve already uses {data}; stop it, or name another place with --data"
                ) from error
        yield


def server_command(plan: Plan, address: str | None = None) -> list[str]:
    """Return the line that starts the server, as a user could type it.

    Args:
        plan: what is served.
        address: of the private Orthanc, where there is one.
    """
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(_app_folder(plan.data))]
    command += ["--studies", address or plan.studies, "--host", plan.host, "--port", str(plan.port)]
    conf = {"host": plan.host, "models": plan.models}
    conf["token_file"] = str(plan.token_file) if plan.token_file else ""
    conf["users"] = str(plan.users) if plan.users else ""
    conf["data"] = str(plan.data / "fetched") if plan.kind != "nifti" else ""
    for name, value in conf.items():
        command += ["--conf", name, value] if value else []
    return command


def _app_folder(data: Path) -> Path:
    """The app; where this user may not write into it, a folder of links to its files.

    MONAI Label makes folders of its own inside the app's, and does not start where it cannot: in a container, or when
    somebody else installed it.
    """
    app = app_root()
    if os.access(app, os.W_OK):
        return app
    mirror = data / "app"
    try:
        mirror.mkdir(parents=True, exist_ok=True)
        for old in mirror.iterdir():
            if old.is_symlink():
                old.unlink()
        for part in app.iterdir():
            if part.name not in _MADE_BY_MONAI_LABEL:
                (mirror / part.name).symlink_to(part)
    except OSError as error:
        raise OutputError(f"cannot write into {mirror}: {error.strerror}; name another place with --data") from error
    return mirror
