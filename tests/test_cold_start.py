"""What a command imports before it answers: told by the modules that are there afterwards, never by a clock."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers_organs import CORE, expected_mask, phantom_hu, write_organ_bundles, write_phantom

from ctseg import lean
from ctseg.commands import segment as segmentcommand

HEAVY = {
    "torch", "monai", "numpy", "matplotlib", "itk", "nibabel", "scipy", "skimage", "pydicom", "highdicom", "ignite",
    "torchvision", "pandas", "mlflow", "trimesh", "PIL", "yaml", "tqdm", "fire", "monailabel", "requests", "urllib3",
}  # fmt: skip
_MODULES = "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def modules_after(program: str, environment: dict[str, str]) -> set[str]:
    """Run a program in a child process and return what it had imported at its end."""
    code = f"import json, sys\n{program}\n{_MODULES}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "calls",
    [
        [["--help"], ["segment", "--help"], ["evaluate", "--help"], ["doctor", "--help"], ["serve", "--help"]],
        [["tasks"], ["tasks", "--json"], ["--version"]],
        [
            ["segment", "/nowhere/ct.nii.gz", "-o", "/nowhere/out"],
            ["segment", "/nowhere", "-o", "/no", "--workers", "2"],
        ],
    ],
    ids=["help", "tasks", "refusals"],
)
def test_what_needs_no_image_imports_nothing_heavy(
    calls: list[list[str]], clean_environment: dict[str, str], tmp_path: Path
) -> None:
    program = f"from ctseg.cli import main\nfor call in {calls!r}:\n    try: main(call)\n    except SystemExit: pass"
    assert {name.partition(".")[0] for name in modules_after(program, clean_environment)} & HEAVY == set()


def test_the_first_mask_pays_for_no_tables_plots_or_compiled_itk(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    ct = write_phantom(tmp_path / "ct.nii.gz")
    bundle = write_organ_bundles(tmp_path / "bundles") / "core_ct_segmentation"
    arguments = ["ctseg", "segment", str(ct), "-o", str(tmp_path / "out"), "--task", str(bundle)]
    program = (
        "from ctseg.cli import main\n"
        f"sys.argv = {[*arguments, '--output', 'nifti,json']!r}\n"
        "assert main() == 0\n"
        "there = sorted(sys.modules)\n"
        "import matplotlib.figure\n"  # it is left out while MONAI is imported, and there for the preview
        "sys.modules = dict.fromkeys(there)"
    )
    modules = modules_after(program, clean_environment)
    assert {name.partition(".")[0] for name in modules}.isdisjoint(lean.UNNEEDED)
    assert {"monai", "torch", "nibabel"} <= modules
    # ITK's own front is light; what takes seconds are its compiled parts.
    assert [name for name in modules if name.startswith("itk.") and name.endswith("Python")] == []
    mask = np.asarray(nib.load(tmp_path / "out" / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, expected_mask(phantom_hu(), ("core", CORE)))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert next(iter(report["seconds"])) == "load" and report["seconds"]["load"] > 0.2, "with the imports"


def test_a_program_that_calls_the_command_line_keeps_its_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(lean, "import_monai", lambda: calls.append(1))
    assert segmentcommand._import_monai(argparse.Namespace(own_program=False)) >= 0 and calls == []
    segmentcommand._import_monai(argparse.Namespace(own_program=True))
    assert calls == [1]


def test_packages_are_missing_only_while_monai_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for MONAI that imports what may be missing, and one that fails."""
    for package in ("monai/bundle", "pandas_stand_in"):
        (tmp_path / package).mkdir(parents=True)
    (tmp_path / "monai" / "__init__.py").write_text(
        "try:\n    import sklearn.metrics\n    found = True\nexcept ImportError as error:\n    found = str(error)\n"
        "import pandas_stand_in\n"
    )
    (tmp_path / "pandas_stand_in" / "__init__.py").write_text("")
    (tmp_path / "monai" / "bundle" / "__init__.py").write_text("raise ValueError('a fault of its own')")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("monai", "sklearn", "pandas_stand_in")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    with pytest.raises(ValueError, match="a fault of its own"):
        lean.import_monai()
    assert sys.meta_path == before
    spec: ModuleSpec | None = find_spec("matplotlib")
    assert spec is not None
    (tmp_path / "monai" / "bundle" / "__init__.py").write_text("")
    lean.import_monai()
    import monai

    assert monai.found == "No module named 'sklearn': left out, since no mask needs it" and sys.meta_path == before
    for name in [name for name in sys.modules if name.partition(".")[0] in ("monai", "pandas_stand_in")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_benchmark_adds_up_imports_by_package(root: Path) -> None:
    script = root / "scripts" / "benchmark_cold_start"
    from importlib.machinery import SourceFileLoader
    from types import ModuleType

    module = ModuleType("benchmark_cold_start")
    module.__file__ = str(script)
    SourceFileLoader("benchmark_cold_start", str(script)).exec_module(module)
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1500 |       1500 |     a.b\n"
        "import time:       500 |       2000 |   a\n"
        "a line that the program prints itself\n"
        "import time:      3000 |       5000 | c.d\n"
    )
    assert module.by_package(text) == {"c": 0.003, "a": 0.002}
