"""`ctseg export-images`: what leaves for an annotation service, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ctseg.cli import main
from ctseg.errors import InputError, OutputError
from ctseg.flat.exporting import Picking, export_images

RECTANGLE = (slice(30, 110), slice(40, 150))  # the sector of the captures below: rows, columns


def capture(seed: int = 0, text: bool = True) -> np.ndarray:
    """A black screen of 130 x 200 with a speckled rectangle, and letters in the corner."""
    picture = np.zeros((130, 200), np.uint8)
    shape = (80, 110)
    picture[RECTANGLE] = np.random.default_rng(seed).integers(60, 200, shape)
    if text:
        picture[4:12, 5:60:4] = 255
    return picture


def write_dicom(path: Path, frames: np.ndarray, name: str, number: str) -> None:
    """An ultrasound image or film (frames, rows, columns)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = UltrasoundMultiFrameImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.PatientName, image.PatientID, image.Modality = name, number, "US"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.NumberOfFrames, image.Rows, image.Columns = frames.shape
    image.PixelData = frames.astype(np.uint8).tobytes()
    image.is_little_endian, image.is_implicit_VR = True, False
    image.save_as(path, write_like_original=False)


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    folder = tmp_path / "captures"
    (folder / "room1").mkdir(parents=True)
    about = PngImagePlugin.PngInfo()
    about.add_text("Patient", "Doe, Jane")
    Image.fromarray(capture()).save(folder / "room1" / "a.png", pnginfo=about)
    film = np.stack([capture(seed) for seed in range(5)])
    write_dicom(folder / "Doe_Jane_7.dcm", film, "Doe^Jane", "P-123")
    write_dicom(folder / "scan.dcm", film[:1], "Roe^Rick", "P-124")
    return folder


def listed(out: Path) -> dict[str, dict[str, Any]]:
    return {one["image"]: one for one in json.loads((out / "export.json").read_text(encoding="utf-8"))["images"]}


def test_sector_only_and_nothing_of_the_patient(captures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written, refused = export_images(captures, out, Picking(every=2))
    assert not refused
    names = sorted(one.image for one in written)
    assert [name for name in names if not name.startswith("image_")] == ["room1_a.png", "scan.png"]
    film = [name for name in names if name.startswith("image_")]
    assert [name.rpartition("_")[2] for name in film] == ["f000.png", "f002.png", "f004.png"]
    about = listed(out)
    for number, name in enumerate(film):
        with Image.open(out / "images" / name) as picture:
            assert picture.info == {} and picture.mode == "L"
            pixels = np.asarray(picture)
        first_row, end_row, first_column, end_column = about[name]["box"]
        assert abs(first_row - 30) <= 1 and abs(end_row - 110) <= 1
        assert abs(first_column - 40) <= 1 and abs(end_column - 150) <= 1
        part = capture(2 * number, text=False)[first_row:end_row, first_column:end_column]
        assert pixels.shape == part.shape and (pixels != part).mean() < 0.02  # the hull's rim
    everything = b"".join(path.read_bytes() for path in (out / "images").iterdir())
    assert b"Doe" not in everything and b"Roe" not in everything


def test_no_sector_is_refused_or_kept(captures: Path, tmp_path: Path) -> None:
    for file in captures.rglob("*.*"):
        file.unlink()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(captures / "black.png")
    written, refused = export_images(captures, tmp_path / "a", Picking())
    assert not written and "--whole" in refused["black.png"]
    written, refused = export_images(captures, tmp_path / "b", Picking(whole=True))
    assert [one.image for one in written] == ["black.png"] and not refused


def test_colours_margins_and_luminance(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    photograph = np.random.default_rng(1).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(folder / "mole.bmp")
    plain = Picking(sector=False, crop=(1, 2, 3, 4))
    export_images(folder, tmp_path / "colour", plain)
    assert (np.asarray(Image.open(tmp_path / "colour/images/mole.png")) == photograph[1:10, 3:6]).all()
    export_images(folder, tmp_path / "grey", Picking(sector=False, grey=True))
    expected = photograph.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(np.asarray(Image.open(tmp_path / "grey/images/mole.png")) - expected).max() <= 0.51
    _, refused = export_images(folder, tmp_path / "none", Picking(sector=False, crop=(6, 6, 0, 0)))
    assert "leave nothing of 12 x 10" in refused["mole.bmp"]


def test_one_bad_capture_stops_nothing(captures: Path, tmp_path: Path) -> None:
    (captures / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    Image.fromarray(capture()).save(captures / "room1_a.jpg")
    written, refused = export_images(captures, tmp_path / "out", Picking(frames=(1, 7)))
    assert sorted(refused) == ["Doe_Jane_7.dcm", "room1_a.jpg", "torn.png"]
    assert "it has the frames 0 to 4, but 7 was asked for" in refused["Doe_Jane_7.dcm"]
    assert {one.image for one in written} == {"room1_a.png", "scan.png"}


def test_refusals(captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="is no folder"):
        export_images(tmp_path / "none", tmp_path / "out", Picking())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no capture"):
        export_images(tmp_path / "empty", tmp_path / "out", Picking())
    out = captures / "out"  # inside: never taken for captures
    assert main(["export-images", str(captures), "-o", str(out), "--frames", "3"]) in (0, None)
    assert "3 pictures in" in capsys.readouterr().out
    with pytest.raises(OutputError, match="nothing outlined is lost"):
        export_images(captures, out, Picking())
    for wrong in (["--every", "0"], ["--frames", "a"], ["--crop", "1,2"], ["--window", "80,0"]):
        with pytest.raises(SystemExit):
            main(["export-images", str(captures), "-o", str(tmp_path / "x"), *wrong])
