"""The running of `ctseg serve`: children started in order, waited for, watched, and ended in order."""

from __future__ import annotations

import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ctseg.childprocess import Child
from ctseg.serving.orthanc import PrivateOrthanc, ServingError
from ctseg.serving.plan import Plan, free_port, only_one, server_command

_STARTS_WITHIN, _STOPS_WITHIN = 300.0, 15.0  # seconds; MONAI imports slowly the first time
_LOG = "server.log"


class Stopped(Exception):
    """Somebody asked us to stop."""


def run(plan: Plan) -> None:
    """Start everything, say where it is, and wait until somebody stops it.

    Raises:
        ServingError: something did not start, or ended by itself.
        InputError, OutputError, ResourceError: the studies or the folder for data cannot be used.
    """
    try:
        with _stopped_by_signals(), ExitStack() as stack:
            stack.enter_context(only_one(plan.data))
            orthanc = _orthanc(plan, stack) if plan.kind == "dicom" else None
            server = _server(plan, orthanc, stack)
            print(_told(plan, orthanc), flush=True)
            _watch(server, orthanc)
    except Stopped:
        print("ctseg: stopped", file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn the first signal to stop into `Stopped`; further ones are ignored, so that nothing is left half ended."""
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _orthanc(plan: Plan, stack: ExitStack) -> PrivateOrthanc:
    _say("starting Orthanc")
    orthanc = PrivateOrthanc(plan.data / "orthanc", free_port())
    stack.callback(orthanc.stop)
    shown = 0.0

    def progress(done: int, of: int) -> None:
        nonlocal shown
        if done == of or time.monotonic() - shown > 5:
            shown = time.monotonic()
            _say(f"loading the studies: {done} of {of} files")

    _, refused = orthanc.load(Path(plan.studies), progress)
    if refused:
        _say(f"{refused} files were no DICOM images and were passed over")
    if not orthanc.series("CT"):
        raise ServingError(f"{plan.studies} holds no CT series that Orthanc takes; name a folder of CT studies")
    return orthanc


def _server(plan: Plan, orthanc: PrivateOrthanc | None, stack: ExitStack) -> Child:
    _say("starting the server")
    environment = {
        "PYTHONUNBUFFERED": "1",
        # Trainings are started with whatever `python` comes first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        **_visible(plan.device),
    }
    if orthanc is not None:
        environment |= {
            "MONAI_LABEL_DICOMWEB_USERNAME": orthanc.user,
            "MONAI_LABEL_DICOMWEB_PASSWORD": orthanc.password,
        }
    command = server_command(plan, orthanc.address if orthanc else None)
    server = Child(command, plan.data / _LOG, environment)
    stack.callback(server.stop, _STOPS_WITHIN)
    deadline = time.monotonic() + _STARTS_WITHIN
    while not _answers(local_address(plan)):
        if server.code is not None:
            said = server.said()
            raise ServingError(
                said.removeprefix("ctseg: ")
                if said.startswith("ctseg: ")
                else f"the server did not start ({said or 'it said nothing'}); look into {server.log}"
            )
        if time.monotonic() > deadline:
            raise ServingError(f"the server did not answer within {_STARTS_WITHIN:g} s; look into {server.log}")
        time.sleep(0.25)
    return server


def _watch(server: Child, orthanc: PrivateOrthanc | None) -> None:
    while True:
        for name, child in (("the server", server), ("Orthanc", orthanc.process if orthanc else None)):
            if child is not None and child.code is not None:
                raise ServingError(
                    f"{name} ended by itself ({child.said() or 'it said nothing'}); look into {child.log}"
                )
        time.sleep(0.5)


def _visible(device: str) -> dict[str, str]:
    """What makes a child see only the GPU that was asked for; a server's clients choose among what it sees."""
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    number = device.partition(":")[2]
    return {"CUDA_VISIBLE_DEVICES": number} if number else {}


def local_address(plan: Plan, outside: bool = False) -> str:
    """Return the server's address as seen from this computer, or as another one would call it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "localhost": "127.0.0.1"}.get(plan.host, plan.host)
    if outside and plan.host in ("0.0.0.0", "::"):
        import socket

        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{plan.port}"


def _answers(address: str, path: str = "/info/") -> bool:
    """Whether something answers; a refusal for want of a token is an answer too."""
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code in (401, 403)
    except OSError:
        return False


def _told(plan: Plan, orthanc: PrivateOrthanc | None) -> str:
    """What an annotator must know, in a few lines."""
    address = local_address(plan, outside=True)
    holder = f"what {plan.token_file.name} holds" if plan.token_file else "the user's own"
    token = f"/t/TOKEN (TOKEN is {holder})" if plan.needs_token else ""
    prefix = "/t/TOKEN" if plan.needs_token else ""
    lines = [f"ctseg: serving {plan.studies}"]
    if plan.kind == "nifti":
        lines.append("  OHIF         shows DICOM only; use 3D Slicer for these NIfTI files")
    else:
        viewer = "viewer" if _viewer_is_there(plan) else "ohif"
        lines.append(f"  OHIF         {address}{prefix}/{viewer}/")
    lines.append(f"  3D Slicer    MONAI Label server: {address}{token}")
    kept = {
        "nifti": f"{plan.studies}/labels",
        "dicom": f"{plan.data}/orthanc, as DICOM SEG",
        "address": "on that server, as DICOM SEG",
    }[plan.kind]
    lines += [f"  labels       {kept}", f"  log          {plan.data / _LOG}"]
    if orthanc is not None:
        lines.append(f"  studies      {orthanc.series('CT')} CT series, in a private Orthanc")
    return "\n".join([*lines, "  stop         Ctrl-C"])


def _viewer_is_there(plan: Plan) -> bool:
    token = f"/t/{plan.token_file.read_text(encoding='utf-8').split()[0]}" if plan.token_file else ""
    try:
        with urllib.request.urlopen(f"{local_address(plan)}{token}/viewer/", timeout=10) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code in (401, 403) and plan.users is not None  # it cannot be asked without somebody's token
    except OSError:
        return False


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)
