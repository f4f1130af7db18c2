"""The command line: one sentence and exit code 2 for what a user can mend, and help that needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from helpers_bundles import make_bundle
from helpers_prediction import FakePredictor

import ctseg
from ctseg.cli import main
from ctseg.errors import InputError
from ctseg.organchoice import default_task
from ctseg.registry import find_bundles

HEAVY = ("torch", "monai", "itk", "numpy", "matplotlib", "nibabel")


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One trained bundle, a Predictor without a network, and a current folder with a CT in it."""
    root = tmp_path / "bundles"
    make_bundle(root)
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: root)
    module = types.ModuleType("ctseg.prediction")
    module.Predictor = FakePredictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctseg.prediction", module)
    monkeypatch.setattr(FakePredictor, "made", [])
    monkeypatch.setattr(FakePredictor, "result", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ct.nii.gz").write_bytes(b"the fake predictor does not read it")
    return root


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert main(list(arguments)) == code
    said = capsys.readouterr()
    assert said.out == ""
    sentence = said.err.strip().splitlines()[-1]
    assert sentence.startswith("ctseg: ") and "Traceback" not in said.err
    return sentence


@pytest.mark.usefixtures("bundles")
def test_segment_writes_everything_and_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["segment", "ct.nii.gz", "-o", "out"]) == 0
    assert FakePredictor.made == [("liver_ct_segmentation", "auto")]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["liver.stl", "mask.nii.gz", "preview.png", "report.json"]
    said = capsys.readouterr()
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "liver 4.5 ml" in lines and "spleen not found" in lines
    assert "stage on cpu" in lines and "network 2.0 s" in lines
    assert "note: A made-up note." in lines
    assert "out: mask.nii.gz liver.stl preview.png report.json" in lines
    assert lines[-1].startswith("research only")
    assert [line.split()[1] for line in said.err.splitlines()] == ["loading", "finding", "writing"]
    seconds = json.loads((tmp_path / "out" / "report.json").read_text())["seconds"]
    assert (
        list(seconds)[:5] == ["load", "read", "preprocess", "network", "postprocess"] and list(seconds)[-1] == "total"
    )


@pytest.mark.usefixtures("bundles")
def test_only_the_kinds_asked_for_are_written(tmp_path: Path) -> None:
    assert main(["segment", "ct.nii.gz", "-o", "out", "--output", "json,stl", "--device", "cuda:1"]) == 0
    assert FakePredictor.made[0][1] == "cuda:1"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["liver.stl", "report.json"]


@pytest.mark.usefixtures("bundles")
def test_an_organ_that_the_scan_cuts_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = np.zeros((30, 24, 10), np.uint8)
    cut[5:9, 5:9, 7:] = 1
    monkeypatch.setattr(FakePredictor, "result", cut)
    assert main(["segment", "ct.nii.gz", "-o", "out"]) == 0
    assert "note: liver reaches the edge of the scan (S)" in capsys.readouterr().out


def test_refusals_write_nothing_and_load_nothing(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(bundles, "heart_ct_segmentation", weights=None)
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        (["segment", "nowhere.nii", "-o", "out"], "there is no file or folder nowhere.nii"),
        (
            ["segment", "ct.nii.gz", "-o", "out", "--task", "brain"],
            "the known ones are: heart_ct_segmentation, liver_ct",
        ),
        (
            ["segment", "ct.nii.gz", "-o", "out", "--task", "heart_ct_segmentation"],
            "heart_ct_segmentation is untrained",
        ),
        (["segment", "ct.nii.gz", "-o", "ct.nii.gz"], "it is a file, expected a folder"),
        (["segment", "ct.nii.gz", "-o", "ct.nii.gz/out"], "ct.nii.gz takes no files (Not a directory)"),
    ):
        assert said in _refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before and FakePredictor.made == []


@pytest.mark.usefixtures("bundles")
def test_what_the_prediction_refuses_is_one_line_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FakePredictor, "result", InputError("the file is\nno CT"))
    assert _refused(capsys, "segment", "ct.nii.gz", "-o", "out") == "ctseg: the file is no CT"
    monkeypatch.setattr(FakePredictor, "result", KeyboardInterrupt())
    assert "interrupted" in _refused(capsys, "segment", "ct.nii.gz", "-o", "out", code=130)
    assert not (tmp_path / "out").exists()


def test_the_default_is_the_only_trained_bundle_and_else_asked_for(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(bundles, "a_ct_segmentation", weights=None)
    assert main(["segment", "ct.nii.gz", "-o", "out"]) == 0
    make_bundle(bundles, "b_ct_segmentation")
    capsys.readouterr()
    assert "--task: b_ct_segmentation, liver_ct_segmentation" in _refused(capsys, "segment", "ct.nii.gz", "-o", "new")


def test_a_bundle_with_a_caution_is_not_taken_unasked(bundles: Path) -> None:
    make_bundle(bundles, "a_ct_segmentation", caution="seen to miss organs")
    assert main(["segment", "ct.nii.gz", "-o", "out"]) == 0


def test_of_the_shipped_bundles_one_is_taken_when_none_is_named() -> None:
    shipped = find_bundles()
    default = default_task(shipped)
    assert default is not None and shipped[default].trained and not shipped[default].caution


@pytest.mark.usefixtures("bundles")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--device", "tpu"], "'tpu' is no device; expected auto, cpu, cuda"),
        (["--output", "png,ply"], "ply is no kind of output; expected one or more of nifti,seg,stl,obj,glb,png,json"),
        (["--output", ","], "no kind of output is named"),
        (["--faces", "99"], "'99' is no number of faces; expected 100 or more, or 0 for all"),
        (["--faces", "-5"], "'-5' is no number of faces"),
    ],
)
def test_wrong_options_name_the_right_ones(option: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["segment", "ct.nii.gz", "-o", "out", *option])
    assert said in capsys.readouterr().err


def test_tasks_lists_trained_untrained_and_broken(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(bundles, "heart_ct_segmentation", weights=None)
    (make_bundle(bundles, "broken_ct_segmentation") / "configs" / "metadata.json").write_text("{")
    assert main(["tasks"]) == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line for line in table.splitlines() if not line.startswith(" ")}
    assert "untrained" in rows["heart_ct_segmentation"] and "broken" in rows["broken_ct_segmentation"]
    liver = " ".join(rows["liver_ct_segmentation"].split())
    assert liver == "liver_ct_segmentation 0.3.0 CT liver, spleen trained Apache-2.0 / CC-BY-SA-4.0"
    assert "evidence: Dice 0.5 on 2 made-up patients" in table and "no valid JSON" in table
    assert main(["tasks", "--json"]) == 0
    entries = {entry["task"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["liver_ct_segmentation"]["labels"] == {"liver": 1, "spleen": 3}
    assert [entries[name]["trained"] for name in sorted(entries)] == [False, False, True]


def test_many_labels_are_counted_and_the_table_stays_narrow(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regions = [{"name": f"region_{n:02}", "code": n, "color": [9, n, 9], "snomed": {}} for n in range(1, 21)]
    make_bundle(bundles, "head_ct_segmentation", labels=regions)
    assert main(["tasks"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("head_ct"))
    assert "region_01, region_02, region_03, region_04 and 16 more " in row


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ctseg", "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


def test_no_bundles_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctseg.registry.bundles_root", lambda: Path("/nowhere"))
    assert "there are no bundles" in _refused(capsys, "tasks")
    assert "none in " in _refused(capsys, "segment", "x.nii", "-o", "out")


@pytest.mark.parametrize("arguments", [["tasks"], ["--help"], ["segment", "--help"], ["--version"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from ctseg.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
    expected = ctseg.__version__ if arguments == ["--version"] else "ctseg segment" if arguments == ["--help"] else ""
    assert expected in done.stdout


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctseg", "segment", str(tmp_path / "no.nii"), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("ctseg: ") and not list(tmp_path.iterdir())
