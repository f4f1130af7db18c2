"""`ctseg serve` before and around what it starts: refusals, the lines it starts with, children that end."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_phantoms import f_phantom, straight_affine, write_axial_series, write_nifti

import ctseg
from ctseg.childprocess import Child
from ctseg.cli import main
from ctseg.errors import CtsegError, InputError, OutputError
from ctseg.loopback import is_loopback
from ctseg.serving import orthanc
from ctseg.serving import plan as servingplan
from ctseg.serving import running as servingrun
from ctseg.serving.orthanc import ServingError, dicom_files, find_orthanc
from ctseg.serving.plan import Plan, checked_plan, free_port, only_one, server_command
from ctseg.serving.users import add_user

pytest.importorskip("monailabel", reason="the server's extra is not installed")


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    (tmp_path / "my cts").mkdir()
    write_nifti(tmp_path / "my cts" / "a.nii.gz", f_phantom(), straight_affine())
    return tmp_path / "my cts"


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("LOCALHOST", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("hospital", False), ("x.localhost", False),
     ("127.0.0.1.evil.org", False), ("", False), (None, False)],
)  # fmt: skip
def test_one_answer_on_whose_address_it_is(host: str | None, own: bool) -> None:
    assert is_loopback(host) == own


def test_what_the_studies_are(nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    plan = checked_plan(str(nifti), port=port)
    assert (plan.kind, plan.studies, plan.data) == ("nifti", str(nifti), nifti / ".ctseg")
    plan = checked_plan("http://pacs:8042/dicom-web/", port=port)
    assert (plan.kind, plan.studies) == ("address", "http://pacs:8042/dicom-web")
    assert plan.data.is_relative_to(Path.home())
    write_axial_series(tmp_path / "dicom" / "deep" / "er")
    monkeypatch.setattr(servingplan, "find_orthanc", lambda: ("Orthanc", []))
    plan = checked_plan(str(tmp_path / "dicom"), port=port, data=tmp_path / "kept")
    assert (plan.kind, plan.data) == ("dicom", tmp_path / "kept")
    assert not any((tmp_path / name).exists() for name in ("kept", "dicom/.ctseg", "my cts/.ctseg"))


@pytest.mark.parametrize(
    ("studies", "options", "kind", "sentence"),
    [
        ("nowhere", {}, InputError, "there is no folder .*nowhere; name a folder of CTs"),
        ("my cts/a.nii.gz", {}, InputError, "is a file, but a folder of studies is served"),
        ("empty", {}, InputError, "holds neither NIfTI .* nor DICOM files"),
        (
            "my cts",
            {"models": "bone_ct_segmentation,nothing"},
            InputError,
            "no model 'nothing'; the known ones are: \\w+",
        ),
        ("my cts", {"device": "tpu"}, InputError, "'tpu' is no device"),
        ("my cts", {"port": 0}, InputError, "0 is no port; expected 1 to 65535"),
        ("my cts", {"host": "0.0.0.0"}, InputError, "other computers can reach the server, so a token is needed"),
        ("my cts", {"host": "192.168.1.5"}, InputError, "so a token is needed"),
        ("my cts", {"token_file": "nothing"}, InputError, "cannot be read; name a text file that holds the token"),
        ("my cts", {"token_file": "blank"}, InputError, "is empty; write a long random word into it"),
    ],
)
def test_what_cannot_be_served_is_refused(
    nifti: Path, tmp_path: Path, studies: str, options: dict[str, object], kind: type[Exception], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "blank").write_text(" \n")
    if "token_file" in options:
        options = {"token_file": tmp_path / str(options["token_file"])}
    with pytest.raises(kind, match=sentence):
        checked_plan(str(tmp_path / studies), **{"port": free_port(), **options})  # type: ignore[arg-type]


def test_a_port_in_use_is_refused_with_a_sentence(nifti: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", str(nifti), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be used" in said
    assert "name another with --port" in said
    assert not (nifti / ".ctseg").exists()


def test_a_port_that_was_in_use_a_moment_ago_is_free(nifti: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        answered, _ = other.accept()
        answered.close()  # the server's side closes first: its port waits (TIME_WAIT)
        client.close()
    assert checked_plan(str(nifti), port=port).port == port


def test_without_orthanc_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_axial_series(tmp_path / "dicom")
    monkeypatch.setattr(orthanc.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServingError, match="apt install orthanc orthanc-dicomweb orthanc-gdcm"):
        checked_plan(str(tmp_path / "dicom"), port=free_port())
    monkeypatch.setattr(orthanc.shutil, "which", lambda *_, **__: "/usr/sbin/Orthanc")
    monkeypatch.setattr(orthanc, "_PLUGIN_FOLDERS", (str(tmp_path),))
    with pytest.raises(ServingError, match="Orthanc's DICOMweb plugin is not installed"):
        find_orthanc()


def test_without_monai_label_the_extra_is_named(nifti: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servingplan, "find_spec", lambda name: None)
    with pytest.raises(ServingError, match=r"pip install 'ctseg\[server\]'"):
        checked_plan(str(nifti))


def test_the_line_that_starts_the_server(nifti: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-long-random-word\n")
    port = free_port()
    plan = checked_plan(
        str(nifti),
        host="0.0.0.0",
        port=port,
        models="all,bone_ct_segmentation",
        device="cuda:1",
        token_file=tmp_path / "token",
    )
    command = server_command(plan)
    assert command[:4] == [sys.executable, "-m", "monailabel.main", "start_server"]
    assert command[command.index("--studies") + 1] == str(nifti)
    assert command[command.index("--host") + 1] == "0.0.0.0"
    pairs = [command[index + 1 : index + 3] for index, word in enumerate(command) if word == "--conf"]
    assert pairs == [
        ["host", "0.0.0.0"],
        ["models", "all,bone_ct_segmentation"],
        ["token_file", str(tmp_path / "token")],
    ]
    assert servingrun._visible("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    assert servingrun._visible("cpu") == {"CUDA_VISIBLE_DEVICES": ""}
    assert servingrun._visible("auto") == servingrun._visible("cuda") == {}
    assert servingrun.local_address(plan) == f"http://127.0.0.1:{port}"
    told = servingrun._told(plan, None)
    assert "a-long-random-word" not in told
    assert f":{port}/t/TOKEN (TOKEN is what token holds)" in told
    plan = checked_plan("http://pacs/dicom-web", port=port)
    assert server_command(plan, "http://127.0.0.1:9/dicom-web")[7:8] == ["http://127.0.0.1:9/dicom-web"]
    assert str(plan.data / "fetched") in server_command(plan)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("print('ctseg: the studies are broken'); raise SystemExit(2)", "^the studies are broken$"),
        ("raise ValueError('a trace')", r"the server did not start \(ValueError: a trace\); look into .*server.log"),
        ("", "it said nothing"),
    ],
)
def test_a_server_that_does_not_start_says_why(
    nifti: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    plan = checked_plan(str(nifti), port=free_port())
    monkeypatch.setattr(servingrun, "server_command", lambda *_: [sys.executable, "-c", code])
    with pytest.raises(ServingError, match=sentence):
        servingrun.run(plan)
    with only_one(plan.data):  # given back
        pass


def test_a_server_that_ends_by_itself_is_noticed_and_stops_the_rest(
    nifti: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = checked_plan(str(nifti), port=free_port())
    code = "import time; print('out of memory', flush=True); time.sleep(1)"
    monkeypatch.setattr(servingrun, "server_command", lambda *_: [sys.executable, "-c", code])
    monkeypatch.setattr(servingrun, "_answers", lambda *_: True)
    with pytest.raises(ServingError, match=r"the server ended by itself \(out of memory\)"):
        servingrun.run(plan)
    assert "Ctrl-C" in capsys.readouterr().out


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    with only_one(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        with pytest.raises(ServingError, match="another ctseg serve already uses"), only_one(tmp_path / "data"):
            pass
    with only_one(tmp_path / "data"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), only_one(tmp_path / "file" / "data"):
        pass


def test_hidden_folders_and_other_files_are_not_loaded(tmp_path: Path) -> None:
    write_axial_series(tmp_path / "a")
    write_axial_series(tmp_path / ".ctseg" / "storage")
    (tmp_path / "a" / "notes.txt").write_text("no DICOM")
    assert len(list(dicom_files(tmp_path))) == 10


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _until(condition, seconds: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


_STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", code])
pathlib.Path(sys.argv[1]).write_text(str(grandchild.pid))
print("a word", flush=True)
time.sleep(600)
"""


def test_a_child_and_what_it_started_end_also_when_they_ignore_the_request(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", _STUBBORN, str(tmp_path / "pid")], tmp_path / "log")
    assert _until(lambda: (tmp_path / "pid").exists() and child.said() == "a word")
    grandchild = int((tmp_path / "pid").read_text())
    assert child.code is None
    assert _alive(grandchild)
    child.stop(0.5)
    assert child.code is not None
    assert _until(lambda: not _alive(grandchild))
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom ctseg.childprocess import Child\n"
        "child = Child([sys.executable, '-c', 'import time; time.sleep(600)'], Path(sys.argv[1]) / 'log')\n"
        "(Path(sys.argv[1]) / 'pid').write_text(str(child._process.pid))\ntime.sleep(600)\n"
    )
    source = str(Path(ctseg.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": source}
    ) as parent:
        assert _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        assert _alive(pid)
        parent.kill()
    assert _until(lambda: not _alive(pid))


def test_users_stand_in_for_a_token(tmp_path: Path) -> None:
    studies = tmp_path / "cts"
    studies.mkdir()
    (studies / "a.nii.gz").touch()
    users = tmp_path / "users.json"
    with pytest.raises(InputError, match="--users"):
        checked_plan(str(studies), host="0.0.0.0")
    with pytest.raises(CtsegError, match=re.escape(users.name)):
        checked_plan(str(studies), users=users)
    add_user(users, "anna", "annotator")
    plan = checked_plan(str(studies), users=users)
    assert plan.needs_token and plan.token_file is None
    command = server_command(plan)
    assert command[command.index("users") - 1 :][:3] == ["--conf", "users", str(users)]
    assert not checked_plan(str(studies)).needs_token


def test_an_app_that_somebody_else_installed_is_linked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the answer to the question is made up; a chroot with another user is not."""
    app, data = tmp_path / "app", tmp_path / "data"
    (app / "viewer").mkdir(parents=True)
    (app / "model").mkdir()
    (app / "main.py").write_text("first")
    monkeypatch.setattr(servingplan, "app_root", lambda: app)
    plan = Plan("nifti", str(tmp_path), data, "127.0.0.1", 8000, "", "cpu", None, None)
    assert str(app) in server_command(plan)
    monkeypatch.setattr(servingplan.os, "access", lambda path, mode: path != app)
    for _ in range(2):  # again over what the last run left
        command = server_command(plan)
        assert str(data / "app") in command and str(app) not in command
        assert sorted(path.name for path in (data / "app").iterdir()) == ["main.py", "viewer"]
        assert (data / "app" / "main.py").read_text() == "first"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="--data"):
        server_command(dataclasses.replace(plan, data=blocked))
