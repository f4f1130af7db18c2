"""A folder of studies: which they are, what they are called, that none stops another, and that a run goes on.

Most runs have a worker without a network (`helpers_cohort`), in real processes; one is of torchrun with a real network.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import CORE, expected_mask, phantom_hu, write_organ_bundles, write_phantom

from ctseg.cohort import pool as cohortpool
from ctseg.cohort import worker as cohortworker
from ctseg.cohort.records import Record, Records, work_key
from ctseg.cohort.running import Cohort, Outcome, duration, progress_line, run_cohort, threads_for_each
from ctseg.cohort.share import Share, parse_share
from ctseg.cohort.studies import CohortStudy, find_sources, name_studies, source_state, study_id
from ctseg.cohort.worker import Settings
from ctseg.devices import spread_device
from ctseg.errors import ConfigError, CtsegError, InputError, OutputError

TESTS = Path(__file__).resolve().parent
SETTINGS = Settings(None, None, "bundle", ("nifti",), None, False, "cpu", 0, 1)
DICOM = b"\0" * 128 + b"DICM"


def put(folder: Path, **files: str | bytes) -> Path:
    """Write files; "__" in a name is a "/", "_nii" at its end the ending .nii.gz."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_nii", ".nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    monkeypatch.setattr(cohortpool, "_WORKER", "helpers_cohort")
    return Cohort(tmp_path / "in", tmp_path / "out", SETTINGS, {"bundle": "1"})


def run(cohort: Cohort) -> tuple[dict[str, Record], list[str], Outcome, list[str]]:
    """Run; return records by source, what was said, the outcome, and which studies were begun."""
    said: list[str] = []
    begun = cohort.out.parent / "begun"
    begun.unlink(missing_ok=True)
    outcome = run_cohort(cohort, said.append)
    names = sorted(begun.read_text().split()) if begun.exists() else []
    return {record.study.relative: record for record in outcome.records}, said, outcome, names


def test_what_a_study_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(
        tmp_path / "in", a_nii="", p1__ct_nii="", p1__notes="text", p2__series__1=DICOM, p2__series__mask_nii="",
        p2__series__deep__2=DICOM, cd__DICOMDIR=DICOM, cd__IMAGES__1=DICOM, out__a__mask_nii="",
    )  # fmt: skip
    for name in ("b.NRRD", "c.mhd", "c.raw", "d.zip", ".hidden.nii", "e.png", "f.json"):
        (folder / name).touch()
    put(folder / ".cache", x_nii="")
    (folder / "back").symlink_to(folder, target_is_directory=True)
    assert find_sources(folder, folder / "out") == [
        "a.nii.gz", "b.NRRD", "c.mhd", "cd/IMAGES", "d.zip", "p1/ct.nii.gz", "p2/series",
    ]  # fmt: skip
    assert find_sources(folder, folder / "out", "*/ct.nii.gz") == ["p1/ct.nii.gz"]
    assert find_sources(folder / "p2" / "series", folder / "out") == ["."]
    with pytest.raises(InputError, match="holds 7 studies, but none that matches 'x\\*'"):
        find_sources(folder, folder / "out", "x*")
    with pytest.raises(InputError, match="holds no study; expected NIfTI"):
        find_sources(folder / ".cache" / "..", folder / ".cache" / "..")
    monkeypatch.setattr(Path, "iterdir", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(InputError, match="cannot be looked into: Permission denied; check its rights"):
        find_sources(folder, folder / "out")
    monkeypatch.undo()
    with pytest.raises(InputError, match="there is no folder"):
        find_sources(folder / "a.nii.gz", folder)


def test_names_are_unique_and_last(tmp_path: Path) -> None:
    first = name_studies(tmp_path, ["a.nii.gz", "p/ct.nii.gz"], {})
    assert [study.name for study in first] == ["a", "p__ct"]
    earlier = {study.relative: study.name for study in first}
    later = name_studies(tmp_path, ["A.nrrd", "a.nii.gz", "b.mha", "b.nii", "p/ct.nii.gz", "p__ct.zip"], earlier)
    assert [study.name for study in later] == [
        f"A-{study_id('A.nrrd')}", "a", f"b-{study_id('b.mha')}", f"b-{study_id('b.nii')}", "p__ct",
        f"p__ct-{study_id('p__ct.zip')}",
    ]  # fmt: skip
    assert len({study.id for study in later}) == 6 and later[4].source == tmp_path / "p" / "ct.nii.gz"
    # sha256("a.nii.gz") by coreutils
    assert first[0].id == "d1f94ec9c6b2"
    by_id = name_studies(tmp_path, ["a.nii.gz", "b.nii"], {"b.nii": "b"}, by_id=True)
    assert [study.name for study in by_id] == ["d1f94ec9c6b2", "b"]
    long = name_studies(tmp_path, [f"{'x' * 200}/{'y' * 200}.nii", "manifest.csv.nii"], {})
    assert len(long[0].name) < 60 and long[0].name.endswith(long[0].id) and long[1].name.startswith("manifest.csv-")
    (tmp_path / "one.case").mkdir()
    assert [s.name for s in name_studies(tmp_path / "one.case", ["."], {})] == ["one.case"]


def test_a_key_tells_changed_studies_and_options(tmp_path: Path) -> None:
    put(tmp_path, c_nii="1", d__1="x", d__2="y")
    (tmp_path / "e.mhd").write_text("header")
    (tmp_path / "e.raw").write_text("data")
    (tmp_path / "else.raw").write_text("another's")
    assert [entry[:2] for entry in source_state(tmp_path / "e.mhd")] == [["e.mhd", 6], ["e.raw", 4]]
    studies = name_studies(tmp_path, ["c.nii.gz", "d", "e.mhd", "gone.nii"], {})
    before = [work_key(study, {"a": [1]}) for study in studies]
    assert before == [work_key(study, {"a": (1,)}) for study in studies] and len(set(before)) == 4
    assert all(work_key(study, {"a": [2]}) != key for study, key in zip(studies, before, strict=True))
    for name in ("c.nii.gz", "d/2", "e.raw"):
        os.utime(tmp_path / name, ns=(0, 1))
    assert [work_key(study, {"a": [1]}) == key for study, key in zip(studies, before, strict=True)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_shares_threads_devices_and_time() -> None:
    items = list("abcdefg")
    shares = [parse_share(f"{part}/3") for part in (1, 2, 3)]
    assert [share.of(items) for share in shares if share] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert parse_share("torchrun") is None and Share().of(items) == items and Share().worst(1) == 1
    for wrong in ("0/2", "3/2", "1", "half", "1/0"):
        with pytest.raises(ConfigError, match=r"expected torchrun, or a part such as 1/4"):
            parse_share(wrong)
    assert [threads_for_each(n, 8) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert [spread_device("auto", slot, 2) for slot in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [spread_device(name, 3, 2) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]
    assert [spread_device(name, 3, 0) for name in ("auto", "cuda")] == ["auto", "cuda"]
    assert [duration(s) for s in (5, 89, 90, 3600, 3 * 3600 + 20 * 60)] == [
        "5 s", "89 s", "2 min", "60 min", "3 h 20 min",
    ]  # fmt: skip
    record = Record(CohortStudy("f00d", "doe_john", Path("doe_john.nii"), "doe_john.nii"), "finished", seconds=2.04)
    # 3 done in 30 s: 10 s each, 9 remain
    assert progress_line(record, 3, 12, 30.0) == "3 of 12, about 2 min left: study f00d finished in 2.0 s"
    failed = replace(record, status="failed", reason="no CT")
    assert progress_line(failed, 12, 12, 30.0) == "12 of 12: study f00d failed in 2.0 s: no CT"


def test_one_bad_study_stops_no_other_and_the_run_goes_on(cohort: Cohort) -> None:
    put(cohort.folder, a_nii="ok", b_nii="bad", c_nii="bug", d_nii="kill", e_nii="ok", doe_john_nii="bad")
    records, said, outcome, begun = run(replace(cohort, workers=2))
    assert len(begun) == 6 and not outcome.all_well and not outcome.interrupted
    status = {path: record.status for path, record in records.items()}
    assert [path for path, one in status.items() if one == "finished"] == ["a.nii.gz", "e.nii.gz"]
    assert set(status.values()) == {"finished", "failed"}
    bad, bug = records["b.nii.gz"], records["c.nii.gz"]
    assert bad.reason == f"{bad.study.id} is no image; give {bad.study.id} again"
    assert "did not foresee (KeyError: 'spacing')" in bug.reason and 'raise KeyError("spacing")' in bug.traceback
    assert "worker was killed, most likely because memory ran out" in records["d.nii.gz"].reason
    assert said[0] == "6 studies, 6 to do" and len(said) == 7 and "about" not in said[-1]
    assert not any("john" in line or str(cohort.folder) in line for line in said)
    assert sorted(path.name for path in cohort.out.iterdir()) == [".cohort", "a", "e", "manifest.csv", "manifest.json"]
    mask = (cohort.out / "a" / "mask.nii.gz").read_text().split()
    assert mask[:2] == ["ok", "cpu"] and mask[2] in "01" and int(mask[3]) == threads_for_each(2)

    (cohort.folder / "b.nii.gz").write_text("better")
    (cohort.folder / "e.nii.gz").write_text("changed")
    put(cohort.folder, z_nii="ok")
    records, said, outcome, begun = run(cohort)
    assert said[0] == "7 studies, 1 finished before, 6 to do"
    assert begun == [f"{name}.nii.gz" for name in ("b", "c", "d", "doe_john", "e", "z")]
    assert outcome.count("finished") == 4 and records["b.nii.gz"].reason == ""
    assert records["e.nii.gz"].organs == {"core": None}


def test_what_is_done_again_and_what_is_not(cohort: Cohort) -> None:
    put(cohort.folder, a_nii="ok", p__b_nii="ok")
    assert run(cohort)[2].all_well
    records, said, outcome, begun = run(replace(cohort, workers=3, settings=replace(cohort.settings, device="auto")))
    assert begun == [] and outcome.all_well and said == ["2 studies, 2 finished before, 0 to do"]
    (cohort.out / "a" / "mask.nii.gz").write_text("corrected by hand: stays")
    (cohort.out / "p__b" / "mask.nii.gz").unlink()
    assert run(cohort)[3] == ["b.nii.gz"]
    assert (cohort.out / "a" / "mask.nii.gz").read_text().startswith("corrected")
    assert run(replace(cohort, made_with={"bundle": "2"}))[3] == ["a.nii.gz", "b.nii.gz"]
    (cohort.out / ".cohort" / f"{records['a.nii.gz'].study.id}.json").write_text('{"half')
    assert run(replace(cohort, made_with={"bundle": "2"}, only="a*"))[3] == ["a.nii.gz"]


def test_the_manifest_in_both_forms(cohort: Cohort) -> None:
    put(cohort.folder, a_nii="ok", b_nii="bad, very", c_nii="small")
    records = run(cohort)[0]
    rows = list(csv.DictReader((cohort.out / "manifest.csv").read_text().splitlines()))
    assert [(row["name"], row["status"], row["core_ml"]) for row in rows] == [
        ("a", "finished", "1.5"), ("b", "failed", ""), ("c", "finished", ""),
    ]  # fmt: skip
    assert [row["source"] for row in rows] == list(records) and rows[1]["reason"] == records["b.nii.gz"].reason
    content = json.loads((cohort.out / "manifest.json").read_text())
    assert content["counts"] == {"finished": 2, "failed": 1, "waiting": 0}
    assert [one["organs"] for one in content["studies"]] == [{"core": 1.5}, {}, {"core": None}]
    assert all(one["seconds"] >= 0 and one["id"] == study_id(one["source"]) for one in content["studies"])


def test_a_study_that_another_run_has_in_hand_is_left_to_it(cohort: Cohort) -> None:
    put(cohort.folder, a_nii="ok", b_nii="ok")
    held = name_studies(cohort.folder, ["a.nii.gz"], {})[0]
    with Records(cohort.out).claimed(held) as ours:
        assert ours
        records, _, outcome, begun = run(cohort)
    assert begun == ["b.nii.gz"] and not outcome.all_well and records["a.nii.gz"].status == "waiting"
    assert run(replace(cohort, share=Share(1, 2)))[3] == [] and run(replace(cohort, share=Share(0, 2)))[3] == [
        "a.nii.gz"
    ]


def test_what_is_wrong_for_every_study_is_said_once(cohort: Cohort) -> None:
    put(cohort.folder, a_nii="ok", b_nii="ok")
    with pytest.raises(CtsegError, match="the bundle is broken for every study"):
        run(replace(cohort, workers=2, settings=replace(cohort.settings, codes="broken")))
    with pytest.raises(ConfigError, match="0 workers can do nothing"):
        run(replace(cohort, workers=0))
    with pytest.raises(OutputError, match="it is the input itself"):
        run(replace(cohort, out=cohort.folder))
    assert not (cohort.out.parent / "begun").exists()


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    put(tmp_path / "in", a_nii="ok", b_nii="hang", c_nii="ok")
    program = (
        # A shell lets its background jobs ignore Ctrl-C, and their children with them.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from ctseg.cohort import pool; pool._WORKER = 'helpers_cohort'; from ctseg.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "segment", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command += ["--workers", "1", "--task", "bone_ct_segmentation"]
    environment = {**clean_environment, "PYTHONPATH": f"{clean_environment['PYTHONPATH']}{os.pathsep}{TESTS}"}
    for how, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        half = tmp_path / "out" / "b" / ".ctseg-half"
        for _ in range(600):
            if half.exists():
                break
            time.sleep(0.05)
        assert half.exists()
        process.send_signal(how)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == code, said
        assert "Traceback" not in said
        assert "interrupted: 1 of 3 studies finished, 0 failed, 2 not done; what is finished stays" in said
        content = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert content["counts"] == {"finished": 1, "failed": 0, "waiting": 2}
        assert not (tmp_path / "out" / "b").exists() and (tmp_path / "out" / "a" / "mask.nii.gz").is_file()
    (tmp_path / "in" / "b.nii.gz").write_text("bad")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "2 of 3 studies finished, 1 failed; see" in done.stderr
    (tmp_path / "in" / "b.nii.gz").write_text("ok")
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode == 0


def test_options_of_cohorts_without_workers_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from ctseg.cli import main

    arguments = ["segment", str(tmp_path), "-o", str(tmp_path / "out"), "--task", "bone_ct_segmentation"]
    for option in (["--share", "1/2"], ["--only", "*"], ["--names", "id"]):
        assert main([*arguments, *option]) == 2
        assert f"{option[0]} is for many studies; add --workers N" in capsys.readouterr().err
    assert main([*arguments, "--workers", "1", "--share", "torchrun"]) == 2
    assert "is for processes that torchrun starts" in capsys.readouterr().err
    assert main([*arguments, "--workers", "1"]) == 2
    assert "holds no study" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_worker_with_a_classifier_writes_its_table_and_survives_what_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from helpers_cascade import bright, give_weights, write_task  # brings the whole of MONAI: a worker would not

    write_phantom(tmp_path / "a.nii.gz")
    bundle = write_task(tmp_path, "second_ct_presence", network=bright(by_slice=True))
    give_weights(bundle)
    settings = replace(SETTINGS, task=str(bundle), kinds=("csv", "json"), threads=torch.get_num_threads())
    worker = cohortworker.CohortWorker(settings)
    told = cohortworker.answer(worker, tmp_path / "a.nii.gz", tmp_path / "out" / "a")
    assert told["status"] == "finished" and told["files"] == ["presence.csv", "report.json"] and told["organs"] == {}
    assert len((tmp_path / "out" / "a" / "presence.csv").read_text().splitlines()) == 13, "a head and twelve slices"
    told = cohortworker.answer(worker, tmp_path / "none.nii.gz", tmp_path / "out" / "none")
    assert told["status"] == "failed" and "does not exist" in told["reason"] and "unforeseen" not in told
    monkeypatch.setattr(worker.predictors, "classifier", lambda _: None)
    told = cohortworker.answer(worker, tmp_path / "a.nii.gz", tmp_path / "out" / "a")
    assert told["status"] == "failed" and "did not foresee (AttributeError" in told["reason"] and told["unforeseen"]


def test_two_processes_of_torchrun_share_a_cohort(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    """Three phantoms and one that is no image, with a network of one convolution: masks are known by hand."""
    folder = put(tmp_path / "in", bad_nii="no image")
    for number in range(3):
        write_phantom(folder / f"{number}.nii.gz", seed=number)
    bundle = write_organ_bundles(tmp_path / "bundles") / "core_ct_segmentation"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "ctseg", "segment", str(folder), "-o", str(tmp_path / "out"), "--task", str(bundle)]
    command += ["--workers", "1", "--share", "torchrun", "--output", "nifti,json"]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0, "one study failed"
    assert "src/ctseg/" not in done.stderr, "no traceback of ours; torchrun shows its own when a process fails"
    assert done.stderr.count("4 studies, of which 2 are this share's, 2 to do") == 2, done.stderr
    for number in range(3):
        image = nib.load(tmp_path / "out" / str(number) / "mask.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected_mask(phantom_hu(number), ("core", CORE)))
    rows = list(csv.DictReader((tmp_path / "out" / "manifest.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed"]
    # a voxel is 1.5 x 1.5 x 3 mm
    volumes = [float((expected_mask(phantom_hu(n), ("core", 1)).sum()) * 6.75e-3) for n in range(3)]
    assert [float(row["core_ml"]) for row in rows[:3]] == pytest.approx(volumes, abs=1e-3)
