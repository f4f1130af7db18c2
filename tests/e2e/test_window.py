"""The window in a real browser: a CT and a photograph dropped, something found, seen, measured, taken home."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from helpers_flat import dark_bundle, write_picture
from helpers_phantoms import write_nifti
from helpers_viewer import browser
from PIL import Image

pytest.importorskip("nicegui", reason="nicegui is not installed: scripts/setup app")

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])  # indices to the left, back and head
BOX = (slice(34, 42), slice(10, 16), slice(12, 18))  # left, front, high
PHOTO = (48, 80)
LESION = (slice(8, 20), slice(50, 70))  # up and to the right


@dataclass
class Running:
    """The program, its address with the key, and what it wrote."""

    process: subprocess.Popen[str]
    address: str
    temporary: Path


@pytest.fixture(scope="module")
def running(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("window")
    bundles = folder / "bundles"
    for name in ("skin_lesion_segmentation", "stroke_ct_segmentation"):
        dark_bundle(root / "bundles", name, bundles / name, PHOTO)
    for shipped in (root / "bundles").iterdir():
        if not (bundles / shipped.name).exists():
            (bundles / shipped.name).symlink_to(shipped)
    private = folder / "tmp"
    private.mkdir()
    log = (folder / "log").open("w+")
    # NiceGUI takes a process with pytest's variable for a test of itself.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ctseg", "app", "--no-browser", "--device", "cpu", "--bundles", str(bundles)],
        stderr=log,
        stdout=log,
        text=True,
        cwd=folder,
        env={**inherited, "TMPDIR": str(private)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://\S+", (folder / "log").read_text(encoding="utf-8"))):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.2)
        yield Running(process, found[0], private)
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def page(running: Running) -> Iterator[Any]:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1400, "height": 950}, accept_downloads=True)
        page.set_default_timeout(240_000)
        page.goto(running.address)
        yield page


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of soft tissue in air with one block of bone."""
    values = np.full((48, 40, 24), -1000, np.int16)
    values[4:44, 4:36, :] = 40
    values[BOX] = 700
    return write_nifti(tmp_path_factory.mktemp("ct") / "Doe^Jane_1950.nii.gz", values, AFFINE)


def test_nothing_answers_without_the_key(running: Running) -> None:
    bare = running.address.partition("?")[0]
    for address in (bare, f"{bare}?key=wrong", f"{bare}_nicegui/auto/static/"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address, timeout=30)


def test_from_a_ct_to_a_surface(page: Any, running: Running, ct: Path, tmp_path: Path) -> None:
    assert "not for clinical use" in page.inner_text("header")
    page.set_input_files("input[type=file]", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"no image"})
    refusal = page.locator(".q-notification")  # one sentence, and the page lives on
    refusal.get_by_text("image.txt").wait_for()
    assert "Traceback" not in refusal.inner_text()
    page.get_by_role("button", name="Close").click()
    page.set_input_files("input[type=file]", str(ct))
    page.get_by_text("48 x 40 x 24 voxels of 2.00 x 2.00 x 3.00 mm").wait_for()
    page.get_by_role("checkbox", name="liver").click()
    page.get_by_role("checkbox", name="bone").click()
    page.get_by_role("button", name="Find").click()
    page.get_by_text("Take home").wait_for()

    row = page.locator("tbody tr").inner_text().split("\t")
    voxels = 8 * 6 * 6
    assert row[:2] == ["bone", f"{voxels * 12 / 1000:.1f}"]
    assert row[2] == f"{np.hypot(16, 12):.0f}" and row[3] == f"{8 * 6 * 4 / 100:.1f}"
    _looks_right(page)
    _takes_home(page, tmp_path)
    assert "Doe" not in running.temporary.parent.joinpath("log").read_text(encoding="utf-8")
    assert not [path for path in running.temporary.rglob("*") if "Doe" in path.name]


def _looks_right(page: Any) -> None:
    """The bone's colour lies left and front in the patient, so right and up in the picture; a surface is drawn."""
    page.get_by_role("slider", name="Strength").locator("[tabindex='0']").focus()
    for _ in range(10):
        page.keyboard.press("Control+ArrowRight")  # ten steps at once
    page.wait_for_timeout(1000)
    picture = np.asarray(Image.open(io.BytesIO(page.locator(".slice").screenshot())).convert("RGB"))
    colored = np.argwhere(np.ptp(picture.astype(int), axis=2) > 20)
    rows, columns = colored.mean(axis=0) / picture.shape[:2]
    assert columns == pytest.approx((38 / 48), abs=0.03) and rows == pytest.approx(13 / 40, abs=0.03)
    for _ in range(60):
        scene = np.asarray(Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB")).astype(int)
        solid = (scene.max(axis=2) > 60).mean()
        if solid > 0.02:
            break
        page.wait_for_timeout(500)
    assert solid > 0.02, "no surface is drawn"


def _takes_home(page: Any, folder: Path) -> None:
    for name in ("mask.nii.gz", "bone.stl", "bone.glb", "report.json", "everything.zip"):
        with page.expect_download() as coming:
            page.get_by_role("button", name=name).click()
        coming.value.save_as(folder / name)
    mask = nib.load(folder / "mask.nii.gz")
    expected = np.zeros((48, 40, 24), bool)
    expected[BOX] = True
    assert (np.asarray(mask.dataobj) > 0).tolist() == expected.tolist() and np.array_equal(mask.affine, AFFINE)
    assert json.loads((folder / "report.json").read_text())["organs"][0]["name"] == "bone"
    assert (folder / "bone.glb").read_bytes()[:4] == b"glTF"


def test_keyboard_and_accessibility(page: Any) -> None:
    number = page.get_by_text(re.compile(r"^\d+ / 24$"))
    before = int(number.inner_text().split(" / ")[0])
    page.locator("h1").click()
    page.keyboard.press("ArrowDown")  # one slice towards the feet: the file counts from the feet
    page.get_by_text(f"{before - 1} / 24").wait_for()
    page.get_by_role("slider", name="Slice").locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text(f"{before} / 24").wait_for()
    _is_accessible(page)


def _is_accessible(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def test_from_a_photograph_to_a_mask(page: Any, running: Running, tmp_path: Path) -> None:
    inside = np.zeros(PHOTO, bool)
    inside[LESION] = True
    page.set_input_files("input[type=file]", str(write_picture(tmp_path / "Doe_Jane.png", inside)))
    page.get_by_text("80 x 48 pixels, in colours. The file does not say how large a pixel is").wait_for()
    page.get_by_text("Malignant tumor of prostate cannot be looked for yet: no weights come with it").wait_for()
    for name in ("Axial", "mask.nii.gz"):
        assert not page.get_by_role("button", name=name).is_visible()
    assert not page.get_by_role("slider", name="Slice").is_visible() and page.locator("canvas").count() == 0
    assert not page.get_by_label("Window").is_visible()

    page.get_by_role("radio", name="Stroke (CT slice)").click()
    page.get_by_role("button", name="Find").click()
    page.locator(".q-notification").get_by_text(
        "pixels are coloured, and stroke is looked for on a CT slice"
    ).wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("radio", name="Skin lesion (photograph)").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Find").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Take home").wait_for()
    # 12 rows by 20 columns; from corner to corner; of 48 by 80.
    row = page.locator("tbody tr").inner_text().split("\t")
    assert row[:4] == ["lesion", "240", f"{np.hypot(12, 20):.1f}", "6.2"]
    _lies_on_the_lesion(page)
    _measures_between_clicks(page)
    for name in ("mask.png", "preview.png", "report.json", "everything.zip"):
        with page.expect_download() as coming:
            page.get_by_role("button", name=name).click()
        coming.value.save_as(tmp_path / name)
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == 255 * inside).all()
    assert json.loads((tmp_path / "report.json").read_text())["structures"][0]["pixels"] == 240
    _is_accessible(page)
    page.set_viewport_size({"width": 390, "height": 844})  # a telephone: nothing hangs over the edge
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not [path for path in running.temporary.rglob("*") if "Doe" in path.name]


def _lies_on_the_lesion(page: Any) -> None:
    page.get_by_role("slider", name="Strength").locator("[tabindex='0']").focus()
    for _ in range(10):
        page.keyboard.press("Control+ArrowRight")  # ten steps at once
    page.wait_for_timeout(1000)
    picture = np.asarray(Image.open(io.BytesIO(page.locator(".slice").screenshot())).convert("RGB")).astype(int)
    green = np.argwhere(picture[..., 1] > picture[..., 0] + 40)  # the colour of a lesion; skin is red
    scale = np.array(picture.shape[:2]) / PHOTO
    # Half a pixel of the photograph: the browser smooths it.
    assert (green.min(axis=0) / scale).tolist() == pytest.approx([8, 50], abs=0.7)
    assert (green.max(axis=0) / scale).tolist() == pytest.approx([20, 70], abs=0.7)


def _measures_between_clicks(page: Any) -> None:
    shown = page.locator(".slice")
    box = shown.bounding_box()
    for x, y in ((10, 40), (50, 10)):
        shown.click(position={"x": x / 80 * box["width"], "y": y / 48 * box["height"]})
    said = page.get_by_text(re.compile(r"^[\d.]+ pixels$"))
    said.wait_for()
    assert float(said.inner_text().split()[0]) == pytest.approx(50.0, abs=0.5)


def test_ends_and_leaves_nothing(page: Any, running: Running) -> None:
    page.close()
    running.process.send_signal(signal.SIGINT)
    running.process.wait(60)
    assert not list(running.temporary.glob("ctseg-window-*"))
