"""Put bundles, organ codes and the MONAI Label app inside the wheel, as ctseg/share; all else stands in setup.cfg."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LARGEST = 10 * 1024 * 1024  # bytes; larger weights stay behind, their large_files.yml says where they are
OF_A_BUNDLE = ("LICENSE", "large_files.yml", "configs", "docs", "models")
EXPORTED = ("*.onnx*", "*.xml*", "*.bin", "*.ts*", "runtimes.json")  # made here by ctseg export, for this machine
OF_A_SERVER_RUN = {"bin", "lib", "logs", "model"}  # what MONAI Label makes inside the app folder


def shipped_files() -> list[Path]:
    """Every file of bundles/, apps/ and configs/codes that travels, relative to the clone; a new one needs no edit."""
    found = [file for name in OF_A_BUNDLE for file in ROOT.glob(f"bundles/*/{name}")]
    found += [file for name in OF_A_BUNDLE for file in ROOT.glob(f"bundles/*/{name}/**/*")]
    found += ROOT.glob("configs/codes/*.json")
    found += [
        file
        for file in ROOT.glob("apps/ctseg/**/*")
        if file.relative_to(ROOT / "apps" / "ctseg").parts[0] not in OF_A_SERVER_RUN
    ]
    return sorted(
        file.relative_to(ROOT)
        for file in found
        if file.is_file()
        and file.stat().st_size <= LARGEST
        and "__pycache__" not in file.parts
        and not (file.parent.name == "models" and any(file.match(name) for name in EXPORTED))
        and not file.name.startswith((".", "monailabel_"))  # monailabel_train.json is written by a training
    )


class BuildWithShare(build_py):
    """Copies the shipped files beside the modules, unless the installation is an editable one."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib) / "ctseg" / "share"
        if share.exists():
            shutil.rmtree(share)  # build/ is kept between builds: no file of an earlier one may travel
        for file in shipped_files():
            target = share / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)


setup(cmdclass={"build_py": BuildWithShare})
