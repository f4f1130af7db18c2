"""DICOM SEG read back: in every form that viewers store, onto exactly the CT's grid, or refused with a sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers_phantoms import f_phantom, straight_affine, write_nifti
from helpers_seg import EVEN, GRIDS, LABELS, ODD, as_label_map, make_case, padded_to_bytes, save, written_by_dcmqi

from ctseg.cli import main
from ctseg.dicom.seg import read_seg, write_seg
from ctseg.dicom.segframes import frame_stride
from ctseg.errors import GeometryError, InputError
from ctseg.evaluation.measuring import evaluate_masks
from ctseg.reading import read_volume
from ctseg.volume import Volume

pytest.importorskip("highdicom")
DATA = Path(__file__).parents[2] / "shared" / "data" / "dicom_seg"


@pytest.fixture
def case(tmp_path: Path) -> tuple[Volume, np.ndarray, Any]:
    volume, label_map = make_case(tmp_path / "ct")
    return volume, label_map, pydicom.dcmread(write_seg(label_map, volume, None, LABELS, tmp_path / "seg.dcm"))


@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["whole bytes", "odd bits"])
@pytest.mark.parametrize("form", ["padded", "label map", "compressed label map"])
def test_the_forms_of_ohif(tmp_path: Path, shape: tuple[int, int, int], form: str) -> None:
    volume, label_map = make_case(tmp_path / "ct", shape, "oblique")
    seg = pydicom.dcmread(write_seg(label_map, volume, None, LABELS, tmp_path / "seg.dcm"))
    other = padded_to_bytes(seg) if form == "padded" else as_label_map(seg, compressed="compressed" in form)
    path = save(other, tmp_path / "other.dcm")
    assert (path.read_bytes() == (tmp_path / "seg.dcm").read_bytes()) == (form == "padded" and shape == EVEN)
    assert np.array_equal(read_seg(path, volume, LABELS)[0], label_map)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_seg_of_dcmqi_with_its_segments_in_another_order(tmp_path: Path, grid: str) -> None:
    volume, label_map = make_case(tmp_path / "ct", ODD, grid)
    path = written_by_dcmqi(label_map, volume, tmp_path / "ct", tmp_path)
    assert pydicom.dcmread(path).SegmentSequence[0].SegmentLabel == "spleen"
    assert np.array_equal(read_seg(path, volume, LABELS)[0], label_map)
    own, names = read_seg(path, volume)
    assert names == {"spleen": 1, "liver": 2}
    assert np.array_equal(own == 2, label_map == 1)


def test_bits_by_hand() -> None:
    """Three frames of 10 pixels: 30 bits are 4 bytes, padded to whole bytes they are 6."""
    assert frame_stride(4, 10, 3, False, "x") == 10
    assert frame_stride(6, 10, 3, False, "x") == 16
    assert frame_stride(4, 10, 2, False, "x") == 10  # 3 bytes made even, or 4: the standard's form
    assert frame_stride(4, 10, 2, True, "x") == 16
    with pytest.raises(InputError, match="8 bytes of pixels, but 3 frames of 10 pixels take 4"):
        frame_stride(8, 10, 3, False, "x")


def test_frames_without_references_go_by_their_place_and_without_a_place_by_reference(
    case: tuple[Volume, np.ndarray, Any], tmp_path: Path
) -> None:
    volume, label_map, seg = case
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    assert np.array_equal(read_seg(save(seg, tmp_path / "a.dcm"), volume, LABELS)[0], label_map)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    del seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del seg.ReferencedSeriesSequence
    assert np.array_equal(read_seg(save(seg, tmp_path / "b.dcm"), volume, LABELS)[0], label_map)
    seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = []
    with pytest.raises(GeometryError, match="neither where it lies nor on which image"):
        read_seg(save(seg, tmp_path / "c.dcm"), volume, LABELS)


def test_frames_turned_and_cropped_by_whole_pixels(case: tuple[Volume, np.ndarray, Any], tmp_path: Path) -> None:
    """Rows and columns exchanged, columns running the other way, and a border cut off."""
    volume, label_map, seg = case
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    planes = bits[: seg.Rows * seg.Columns * seg.NumberOfFrames].reshape(-1, seg.Rows, seg.Columns)
    turned = planes[:, 2:, ::-1].transpose(0, 2, 1)
    orientation = np.array(volume.slices[0].orientation)
    row, column = orientation[:3], orientation[3:]
    down, across = volume.slices[0].pixel_spacing
    for group in seg.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0]
        corner = np.array(place.ImagePositionPatient, float) + row * across * (seg.Columns - 1) + column * down * 2
        place.ImagePositionPatient = [float(mm) for mm in corner]
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [float(c) for c in (*column, *-row)]
    shared.PixelMeasuresSequence[0].PixelSpacing = [across, down]
    seg.Rows, seg.Columns = turned.shape[1:]
    content = np.packbits(turned.ravel(), bitorder="little").tobytes()
    seg.PixelData = content + b"\0" * (len(content) % 2)
    assert np.array_equal(read_seg(save(seg, tmp_path / "a.dcm"), volume, LABELS)[0], label_map)


def test_a_finer_grid_is_resampled(tmp_path: Path) -> None:
    """Twice as many slices, the first between two of the CT's: every second one lies on a slice of the CT."""
    volume, label_map = make_case(tmp_path / "ct")
    seg = pydicom.dcmread(write_seg(label_map, volume, None, LABELS, tmp_path / "seg.dcm"))
    size, step = seg.Rows * seg.Columns, volume.spacing[2]
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: size * seg.NumberOfFrames]
    frames, groups = [], []
    for plane, group in zip(bits.reshape(-1, size), seg.PerFrameFunctionalGroupsSequence, strict=True):
        for shift in (-0.5, 0.0):
            other = copy.deepcopy(group)
            x, y, z = (float(mm) for mm in group.PlanePositionSequence[0].ImagePositionPatient)
            other.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + shift * step]
            other.DerivationImageSequence = []
            frames.append(plane)
            groups.append(other)
    seg.PerFrameFunctionalGroupsSequence, seg.NumberOfFrames = groups, len(groups)
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = step / 2
    content = np.packbits(np.concatenate(frames), bitorder="little").tobytes()
    seg.PixelData = content + b"\0" * (len(content) % 2)
    back = read_seg(save(seg, tmp_path / "a.dcm"), volume, LABELS)[0]
    assert np.array_equal(back, label_map)


def _renamed(seg: Any, number: int, name: str, code: str | None = None, scheme: str = "SCT", meaning: str = "?") -> Any:
    item = seg.SegmentSequence[number - 1]
    item.SegmentLabel = name
    if code is not None:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = code, scheme, meaning
    return seg


@pytest.mark.parametrize(
    ("name", "code", "scheme", "meaning"),
    [
        ("Segment 1", "10200004", "SCT", "Liver"),  # any name, the code decides
        ("Leber", "T-62000", "SRT", "Liver"),  # the code of before 2019
        ("Liver ", "85756007", "SCT", "Tissue"),  # OHIF's code for everything, the name decides
        ("liver", "91723000", "SCT", "Anatomical structure"),
    ],
)
def test_a_segment_is_known_by_code_and_name(
    case: tuple[Volume, np.ndarray, Any], tmp_path: Path, name: str, code: str, scheme: str, meaning: str
) -> None:
    volume, label_map, seg = case
    path = save(_renamed(seg, 1, name, code, scheme, meaning), tmp_path / "a.dcm")
    assert np.array_equal(read_seg(path, volume, LABELS)[0], label_map)


@pytest.mark.parametrize(
    ("name", "code", "meaning", "sentence"),
    [
        ("Segment 1", "85756007", "Tissue", "that is none of the known labels: liver"),
        ("kidney", "64033007", "Kidney", "that is none of the known labels"),
        ("liver", "64033007", "Kidney", "that is none of the known labels"),
        ("kidney", "X-00000", "Kidney", "that is none of the known labels"),
        ("liver", "28231008", "Gallbladder", "whose code says gallbladder and whose name says liver"),
    ],
)
def test_a_segment_that_is_not_known_is_refused(
    case: tuple[Volume, np.ndarray, Any], tmp_path: Path, name: str, code: str, meaning: str, sentence: str
) -> None:
    volume, _, seg = case
    scheme = "SRT" if code.startswith("X-") else "SCT"
    with pytest.raises(InputError, match=sentence):
        read_seg(save(_renamed(seg, 1, name, code, scheme, meaning), tmp_path / "a.dcm"), volume, LABELS)


def test_an_unknown_segment_without_a_pixel_and_a_second_piece_do_no_harm(
    case: tuple[Volume, np.ndarray, Any], tmp_path: Path
) -> None:
    volume, label_map, seg = case
    _renamed(seg, 3, "nobody knows", "1")
    assert np.array_equal(read_seg(save(seg, tmp_path / "a.dcm"), volume, LABELS)[0], label_map)
    _renamed(seg, 2, "liver 2", "10200004")
    assert np.array_equal(read_seg(save(seg, tmp_path / "b.dcm"), volume, LABELS)[0], (label_map > 0) * 1)


def test_two_labels_on_one_voxel_are_refused(case: tuple[Volume, np.ndarray, Any], tmp_path: Path) -> None:
    volume, _, seg = case
    groups = seg.PerFrameFunctionalGroupsSequence
    for group in groups[-6:]:  # the spleen's frames, moved onto slices of the liver, keep their pixels
        group.PlanePositionSequence, group.DerivationImageSequence = (
            groups[1].PlanePositionSequence,
            groups[1].DerivationImageSequence,
        )
    size = seg.Rows * seg.Columns * seg.NumberOfFrames
    seg.PixelData = b"\xff" * ((size + 7) // 8) + b"\0" * ((size + 7) // 8 % 2)
    with pytest.raises(InputError, match="1073 voxels in one slice that belong to two labels"):
        read_seg(save(seg, tmp_path / "a.dcm"), volume, LABELS)


def _edit(seg: Any, what: str) -> Any:
    if what == "frame of reference":
        seg.FrameOfReferenceUID = "1.2.3"
    elif what == "series":
        seg.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
        for group in seg.PerFrameFunctionalGroupsSequence:
            group.DerivationImageSequence = []
    elif what == "contradiction":
        place = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
        place.ImagePositionPatient[2] += 10
    elif what == "truncated":
        seg.PixelData = seg.PixelData[:-40]
    elif what == "fractional":
        seg.SegmentationType, seg.BitsAllocated = "FRACTIONAL", 8
    elif what == "elsewhere":
        for group in seg.PerFrameFunctionalGroupsSequence:
            group.PlanePositionSequence[0].ImagePositionPatient[0] += 500
    return seg


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [
        ("frame of reference", GeometryError, "lies in another frame of reference"),
        ("series", InputError, r"does not reference the series .* \(it references 1.2.3\)"),
        ("contradiction", GeometryError, "references slice 3 of its series but lies 10.00 mm from it"),
        ("truncated", InputError, "it is damaged, store it again"),
        ("fractional", InputError, "FRACTIONAL with 8 bits, but a BINARY bitmap or a LABELMAP is read"),
        ("elsewhere", GeometryError, "lies nowhere on its series"),
    ],
)
def test_what_does_not_fit_is_refused(
    case: tuple[Volume, np.ndarray, Any], tmp_path: Path, what: str, kind: type[Exception], sentence: str
) -> None:
    volume, _, seg = case
    with pytest.raises(kind, match=sentence):
        read_seg(save(_edit(seg, what), tmp_path / "a.dcm"), volume, LABELS)


def test_what_is_no_seg_or_no_dicom_is_refused(case: tuple[Volume, np.ndarray, Any], tmp_path: Path) -> None:
    volume, _, _ = case
    with pytest.raises(InputError, match="is no DICOM SEG but CT"):
        read_seg(volume.slices[0].path, volume, LABELS)
    (tmp_path / "a.txt").write_text("no mask")
    with pytest.raises(InputError, match="is no readable DICOM file"):
        read_seg(tmp_path / "a.txt", volume, LABELS)
    nifti = read_volume(write_nifti(tmp_path / "a.nii.gz", f_phantom(), straight_affine()))
    with pytest.raises(InputError, match="is nifti, but a DICOM SEG belongs to a DICOM series"):
        read_seg(tmp_path / "seg.dcm", nifti, LABELS)


def test_a_real_seg_of_another_program() -> None:
    """dcmqi's example: the liver on three slices, beside the same mask as NRRD."""
    import SimpleITK as sitk

    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    volume = read_volume(DATA)
    back, names = read_seg(DATA / "liver.dcm", volume, LABELS[:1])
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(DATA / "liver_seg.nrrd"))).T
    assert names == {"liver": 1}
    assert np.array_equal(back, theirs > 0)


@pytest.mark.parametrize("grid", ["axial", "oblique", "sagittal"])
def test_evaluate_takes_a_seg_beside_a_mask(tmp_path: Path, grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The SEG lies on the other mask's grid by its frames alone, in whichever order that one stores its axes."""
    volume, label_map = make_case(tmp_path / "ct", ODD, grid)
    (tmp_path / "seg").mkdir()
    (tmp_path / "masks").mkdir()
    seg = write_seg(label_map, volume, None, LABELS, tmp_path / "seg" / "case.dcm")
    numbers = {item.SegmentLabel: int(item.SegmentNumber) for item in pydicom.dcmread(seg).SegmentSequence}
    half = label_map.copy()
    half[: half.shape[0] // 2] = 0
    for name, array in (("whole", label_map), ("half", half)):
        turned = array[:, ::-1].transpose(1, 0, 2)
        flip = np.array([[0, 1, 0, 0], [-1, 0, 0, array.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
        mask = write_nifti(tmp_path / f"{name}.nii.gz", turned, volume.source_affine @ flip)
        drawn = [entry for entry in LABELS if (label_map == entry["code"]).any()]
        labels = {entry["name"]: (entry["code"], numbers[entry["name"]]) for entry in drawn}
        found = evaluate_masks(mask, seg, labels)
        back = evaluate_masks(seg, mask, {key: value[::-1] for key, value in labels.items()})
        for key, (code, _) in labels.items():
            truth, there = label_map == code, array == code
            expected = 2 * (truth & there).sum() / (truth.sum() + there.sum())
            assert found[key]["dice"] == back[key]["dice"] == pytest.approx(expected)
            assert found[key]["voxels_reference"] == truth.sum()
    (tmp_path / "whole.nii.gz").rename(tmp_path / "masks" / "case.nii.gz")
    both = ["evaluate", "--prediction", str(tmp_path / "masks"), "--reference", str(tmp_path / "seg")]
    told = ",".join(f"{name}={code}:{number}" for name, (code, number) in labels.items())
    if grid == "axial":
        assert main([*both, "--labels", told, "-o", str(tmp_path / "out")]) == 0
        assert "case" in (tmp_path / "out" / "cases.csv").read_text()
        assert main(["evaluate", "--prediction", str(seg), "--reference", str(seg), "--labels", "liver=1"]) == 2
        assert "are both DICOM SEG" in capsys.readouterr().err


def test_a_seg_that_lies_elsewhere_than_the_mask(case: tuple[Volume, np.ndarray, Any], tmp_path: Path) -> None:
    volume, label_map, seg = case
    away = volume.source_affine.copy()
    away[:3, 3] += 5000
    mask = write_nifti(tmp_path / "away.nii.gz", label_map, away)
    with pytest.raises(GeometryError, match="lies nowhere on the grid"):
        evaluate_masks(mask, tmp_path / "seg.dcm", {"liver": (1, 1)})
    del seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    path = save(seg, tmp_path / "without.dcm")
    with pytest.raises(GeometryError, match="does not say where it lies"):
        evaluate_masks(mask, path, {"liver": (1, 1)})
    with pytest.raises(InputError, match="is no DICOM SEG but CT"):
        evaluate_masks(mask, next((tmp_path / "ct").glob("*.dcm")), {"liver": (1, 1)})
