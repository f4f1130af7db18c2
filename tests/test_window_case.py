"""The window's pictures, measures, key and icon, without a page."""

from __future__ import annotations

import asyncio
import configparser
import dataclasses
import shlex
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from ctseg.cli import main
from ctseg.errors import ConfigError, GeometryError, InputError, OutputError
from ctseg.volume import Volume
from ctseg.window.case import Case
from ctseg.window.choices import organs_ready
from ctseg.window.shortcut import write_shortcut
from ctseg.window.work import find, find_organs

# Indices run to the patient's right, front and head; 2 x 3 x 4 mm.
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
SHAPE = (20, 16, 10)


def phantom(code: str = "RAS", found: bool = True) -> Case:
    """A bright box right, front and high in the patient, 5 x 4 x 3 voxels of one organ, stored with axes to `code`."""
    values = np.full(SHAPE, -1000, np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    values[12:17, 9:13, 5:8] = 60
    mask[12:17, 9:13, 5:8] = 7
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(code))
    )
    values, mask = (nib.orientations.apply_orientation(array, turn) for array in (values, mask))
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    volume = Volume(values, affine, affine, Path("phantom.nii.gz"), "nifti")
    bundle = SimpleNamespace(colors={"box": (200, 100, 50)})
    prediction = SimpleNamespace(label_map=mask, labels={"box": 7, "other": 9}, bundle=bundle, volume=volume)
    return Case(volume, prediction if found else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL", "IPR"])
def test_pictures_are_radiological_however_the_file_is_stored(code: str) -> None:
    """RAS indices grow to the right hand... of the file: x to the patient's right is image left."""
    case = phantom(code)
    # The phantom's x grows to the patient's right, so its box at 12..16 of 20 lies right: image left. y grows to the
    # front: up. z grows to the head.
    assert case.spacing == (2.0, 3.0, 4.0)
    assert case.letters("Axial") == ("R", "L", "A", "P")
    index = case.best_slice("Axial")
    assert index == SHAPE[2] - 1 - 7  # the first of the organ's slices from the head
    picture = np.asarray(case.picture("Axial", index, opacity=0))
    assert picture.shape == (24, 20, 3)  # 48 mm by 40 mm in squares of 2 mm
    bright = np.argwhere(picture[..., 0] > 127)
    assert bright[:, 1].mean() == pytest.approx(20 - 1 - 14)  # columns 3..7: image left
    assert bright[:, 0].mean() == pytest.approx((16 - 11) * 1.5 - 0.5)  # middle of rows 3..6 of 16, each 1.5 squares


def test_colour_lies_on_the_organ() -> None:
    case = phantom()
    plain = np.asarray(case.picture("Coronal", 4, opacity=0)).astype(int)
    half = np.asarray(case.picture("Coronal", 4, opacity=0.5)).astype(int)
    changed = np.argwhere((plain != half).any(axis=2))
    assert case.pixel_mm("Coronal") == 2.0
    # 10 slices of 4 mm are 20 rows; the organ's, 2..4 from the head, are rows 4..9; columns 3..7 as above.
    assert (changed.min(axis=0) == [4, 3]).all() and (changed.max(axis=0) == [9, 7]).all()
    color = np.array(case.colors["box"])
    assert np.abs(half[6, 5] - (plain[6, 5] + color) / 2).max() <= 1
    hidden = np.asarray(case.picture("Coronal", 4, opacity=0.5, shown=[]))
    assert (hidden == plain).all()


def test_measures() -> None:
    case = phantom("SAL")
    assert case.organs["box"].volume_ml == pytest.approx(5 * 4 * 3 * 24 / 1000)
    assert case.area_mm2("box", "Axial", 3) == pytest.approx(5 * 4 * 6)
    assert case.area_mm2("box", "Axial", 0) == 0
    assert case.area_mm2("box", "Sagittal", 5) == pytest.approx(4 * 3 * 12)
    assert case.diameters_mm == {"box": pytest.approx(np.hypot(10, 12))}  # corner to corner; "other" is not there
    assert case.distance("Axial", (1, 1), (4, 5)) == "10.0 mm"
    box, other = case.rows("Axial", 3)
    assert box == {"organ": "box", "volume": "1.4", "diameter": "16", "area": "1.2", "note": ""}
    assert other == {"organ": "other", "volume": "-", "diameter": "-", "area": "0.0", "note": "not found"}
    assert {column.name for column in case.columns} == set(box)


@pytest.mark.parametrize(("code", "number"), [("RAS", 8), ("RAI", 3)])
def test_slices_have_the_numbers_of_the_file(code: str, number: int) -> None:
    """Third from the head of ten: the file counts from the feet, or from the head."""
    assert phantom(code).number("Axial", 2) == number


def test_before_anything_is_found() -> None:
    case = phantom(found=False)
    assert case.best_slice("Axial") == 5 and case.organs == {} and case.rows("Axial", 0) == []
    assert case.area_mm2("box", "Axial", 0) == 0
    assert case.picture("Axial", 0).size == case.picture_size("Axial") == (20, 24)


def test_large_images_are_shown_smaller() -> None:
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    volume = Volume(np.zeros((2000, 8, 4), np.int16), affine, affine, Path("x"), "nifti")
    assert max(Case(volume).picture_size("Axial")) == 768


def test_mask_of_another_grid_is_refused() -> None:
    case = phantom()
    wrong = SimpleNamespace(label_map=np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(GeometryError, match="expected the same grid"):
        dataclasses.replace(case, prediction=wrong)


def test_organs_and_refusals(tmp_path: Path) -> None:
    assert set(organs_ready()) >= {"liver", "bone"}
    assert organs_ready(tmp_path) == {}
    nothing: Any = SimpleNamespace()
    with pytest.raises(InputError, match="no organ is chosen"):
        find_organs(phantom(), [], nothing, tmp_path)
    with pytest.raises(InputError, match="nothing is chosen"):
        find(phantom(), [], nothing, tmp_path)


def test_icon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "executable", '/opt/a "b" 100%/python')
    path = write_shortcut(tmp_path)
    entry = configparser.RawConfigParser()
    entry.optionxform = str  # type: ignore[assignment,method-assign]
    entry.read_string(path.read_text(encoding="utf-8"))
    line = entry["Desktop Entry"]["Exec"].replace("\\\\", "\\").replace("%%", "%")
    assert shlex.split(line) == ['/opt/a "b" 100%/python', "-m", "ctseg", "app"]
    assert path.stat().st_mode & stat.S_IXUSR
    assert main(["app", "--shortcut", str(tmp_path)]) in (0, None)
    assert "ctseg.desktop" in capsys.readouterr().out
    with pytest.raises(OutputError, match="name the desktop's folder"):
        write_shortcut(tmp_path / "none")


def test_refusals_before_anything_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("nicegui", reason="nicegui is not installed: scripts/setup app")
    import socket

    from ctseg.window.run import run_window

    with pytest.raises(InputError, match="there is no file or folder"):
        run_window(tmp_path / "none.nii")
    with pytest.raises(ConfigError, match="name a folder of bundles"):
        run_window(None, bundles=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="is taken"):
            run_window(None, port=taken.getsockname()[1])


class _Sent(list[dict[str, Any]]):
    async def __call__(self, message: dict[str, Any]) -> None:
        self.append(message)


def _ask(kind: str, query: bytes = b"", cookie: str = "") -> tuple[_Sent, list[str]]:
    from ctseg.window.run import KeyGate

    reached: list[str] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    sent = _Sent()
    headers = [(b"cookie", cookie.encode())] if cookie else []
    scope = {"type": kind, "query_string": query, "headers": headers}
    asyncio.run(KeyGate(inside, "s3cret")(scope, None, sent))
    return sent, reached


def test_key() -> None:
    sent, reached = _ask("http")
    assert sent[0]["status"] == 403 and not reached
    assert _ask("http", b"key=s3cre")[0][0]["status"] == 403
    sent, reached = _ask("http", b"key=s3cret")
    assert sent[0]["status"] == 303 and not reached
    assert dict(sent[0]["headers"])[b"set-cookie"] == b"ctseg_window=s3cret; Path=/; HttpOnly; SameSite=Strict"
    for kind in ("http", "websocket"):
        assert _ask(kind, cookie="ctseg_window=s3cret") == ([], [kind])
        assert not _ask(kind, cookie="ctseg_window=other")[1]
    assert _ask("websocket", b"key=s3cret")[0] == [{"type": "websocket.close", "code": 1008}]
