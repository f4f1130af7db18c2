"""`ctseg serve` for real: one line starts everything, Ctrl-C ends it without leftovers, labels are there next time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from helpers_seg import make_case
from helpers_server import free_port, server_environment, write_phantom_ct

from ctseg.dicom.seg import read_seg

pytest.importorskip("monailabel", reason="the server's extra is not installed")
from helpers_orthanc import need_orthanc

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the client imports cgi
    from monailabel.client import MONAILabelClient

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc"),
]

MODEL = "bone_ct_segmentation"  # a rule without weights
BONE = [{"name": "bone", "code": 1, "snomed": {"value": "272673000", "meaning": "Bone"}}]


def leftovers(mark: str) -> list[str]:
    """Command lines of the processes that name a folder of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in line:
                found.append(line)
    return found


def gone(mark: str) -> bool:
    """Wait until no such process is left."""
    end = time.monotonic() + 120
    while leftovers(mark) and time.monotonic() < end:
        time.sleep(0.2)
    return leftovers(mark) == []


class Served:
    """A running `ctseg serve`."""

    def __init__(self, studies: Path, work: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "ctseg", "serve", str(studies), "--port", str(self.port), *options]
        self.log = work / "said.txt"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, "--models", MODEL],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=server_environment(work),
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> None:
        """Wait for the lines that tell where everything is; the server answers from then on."""
        end = time.monotonic() + 400
        while "Ctrl-C" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.2)

    def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=300)


@contextmanager
def serving(studies: Path, work: Path, *options: str) -> Iterator[Served]:
    served = Served(studies, work, *options)
    try:
        served.wait()
        yield served
    finally:
        if served.process.poll() is None:
            served.process.terminate()
            served.process.wait(timeout=300)


def test_a_dicom_folder_its_labels_and_the_next_day(tmp_path: Path) -> None:
    need_orthanc()
    studies = tmp_path / "my studies"
    volume, _ = make_case(studies / "one")
    series = str(volume.series_uid)
    with serving(studies, tmp_path) as served:
        assert f"{served.url}/ohif/" in served.said or f"{served.url}/viewer/" in served.said
        assert f"3D Slicer    MONAI Label server: {served.url}" in served.said
        assert "1 CT series, in a private Orthanc" in served.said
        client = MONAILabelClient(served.url, tmpdir=str(tmp_path))
        assert client.next_sample("first", {})["id"] == series
        mask, params = client.infer(MODEL, series, {"device": "cpu"})
        found = np.asarray(nib.load(mask).dataobj)
        assert found.any()
        request = urllib.request.Request(f"{served.url}/infer/{MODEL}?image={series}&output=dicom_seg", method="POST")
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert answer.headers["content-type"] == "application/dicom"
            (tmp_path / "seg.dcm").write_bytes(answer.read())
        assert np.array_equal(read_seg(tmp_path / "seg.dcm", volume, BONE)[0], found)
        code = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
        assert (code.CodeValue, code.CodeMeaning) == ("272673000", "Bone")
        # Through this MONAI Label's own /ohif/ sees the studies.
        assert len(requests.get(f"{served.url}/proxy/dicom/qido/studies", timeout=60).json()) == 1
        client.save_label(series, mask, "final", {"label_info": params["label_names"]})
        assert client.next_sample("first", {}) == {}
        assert client.datastore()["objects"][series]["labels"]
        assert len(leftovers(str(studies))) >= 2  # ours, Orthanc
        assert served.stop(signal.SIGTERM) == 0
    assert "Traceback" not in served.said
    assert gone(str(tmp_path)), leftovers(str(tmp_path))
    with pytest.raises(OSError, match=r"refused|Connection"):
        urllib.request.urlopen(f"{served.url}/info/", timeout=5)
    assert not (studies / ".ctseg" / "orthanc" / "orthanc.json").exists()

    second, _ = make_case(studies / "two")
    with serving(studies, tmp_path) as served:
        client = MONAILabelClient(served.url, tmpdir=str(tmp_path))
        assert client.next_sample("first", {})["id"] == second.series_uid
        label = client.download_label(series, "final")
        assert np.array_equal(np.asarray(nib.load(label).dataobj), found)
        other = subprocess.run(
            [sys.executable, "-m", "ctseg", "serve", str(studies), "--port", str(free_port())],
            capture_output=True,
            text=True,
            timeout=300,
            env=server_environment(tmp_path),
            check=False,
        )
        assert other.returncode == 2
        assert "another ctseg serve already uses" in other.stderr
        served.process.kill()  # no chance to clean up: what it started ends all the same
        served.process.wait(timeout=60)
        assert gone(str(tmp_path)), leftovers(str(tmp_path))


def test_a_nifti_folder(tmp_path: Path) -> None:
    studies = tmp_path / "cts"
    studies.mkdir()
    write_phantom_ct(studies / "case1.nii.gz", (72, 60, 8))
    with serving(studies, tmp_path, "--device", "cpu") as served:
        with urllib.request.urlopen(f"{served.url}/info/", timeout=60) as answer:
            assert list(json.load(answer)["models"]) == [MODEL]
        assert "shows DICOM only" in served.said
        assert re.search(rf"labels +{studies}/labels", served.said)
        assert served.stop(signal.SIGINT) == 0
    assert "stopped" in served.said
    assert gone(str(tmp_path)), leftovers(str(tmp_path))
