"""What `ctseg doctor` finds out about the machine itself: Python, packages, GPU, memory, disk, bundles, geometry."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ctseg.doctor.findings import NOTE, OK, PROBLEM, Finding
from ctseg.errors import BundleError

_GIB = 1024**3
_NEEDED_MEMORY, _NEEDED_DISK = 4 * _GIB, 5 * _GIB
# Requirements of these are looked at where the package that brings the extra is installed.
_EXTRAS = {"server": "monailabel"}
_SHOWN = ("monai", "torch", "torchvision", "nibabel", "itk", "pytorch-ignite", "monailabel", "highdicom")
Check = tuple[str, Callable[[], Iterable[Finding]]]


def machine_checks() -> list[Check]:
    """Return the checks that need nothing but this machine, in the order in which they are shown."""
    return [
        ("python", _python),
        ("packages", _packages),
        ("known bad pairs", _pairs),
        ("gpu", _gpu),
        ("memory", _memory),
        ("disk", lambda: disk(Path(tempfile.gettempdir()))),
        ("bundles", _bundles),
        ("orthanc", _orthanc),
        ("round trip", _round_trips),
    ]


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield Finding("python", OK, version)
    else:
        yield Finding("python", PROBLEM, version, "make the environment with Python 3.10, 3.11 or 3.12")


def installed_versions() -> dict[str, str]:
    """Return name -> version of every installed package, names in lower case with hyphens."""
    found = ((dist.metadata["Name"], dist.version) for dist in metadata.distributions())
    return {name.lower().replace("_", "-"): version for name, version in found if name}


def _packages() -> Iterator[Finding]:
    versions = installed_versions()
    try:
        required = metadata.requires("ctseg") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", PROBLEM, "ctseg itself is not installed", "run scripts/setup, or pip install -e .")
        return
    wrong = list(unmet(required, versions))
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions)
    yield from wrong
    if not wrong:
        yield Finding("packages", OK, shown)
    if "monailabel" not in versions:
        yield Finding("packages", NOTE, "MONAI Label is not installed", "for a server: scripts/setup server")


def unmet(required: Iterable[str], versions: Mapping[str, str]) -> Iterator[Finding]:
    """Compare requirements (PEP 508) with what is installed.

    Args:
        required: lines such as `numpy<2; extra == "server"`.
        versions: package -> version.
    """
    from packaging.requirements import Requirement

    extras = ["", *(extra for extra, package in _EXTRAS.items() if package in versions)]
    for requirement in map(Requirement, required):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = requirement.name.lower().replace("_", "-")
        wanted = f"{requirement.name}{requirement.specifier}"
        if name not in versions:
            yield Finding("packages", PROBLEM, f"{name} is missing, expected {wanted}", f"pip install '{wanted}'")
        elif not requirement.specifier.contains(versions[name], prereleases=True):
            yield Finding("packages", PROBLEM, f"{name} {versions[name]}, expected {wanted}", f"pip install '{wanted}'")


def _pairs() -> Iterator[Finding]:
    versions = installed_versions()
    found = list(bad_pairs(versions))
    if "monailabel" in versions and not _server_is_whole():
        found.append(
            Finding(
                "known bad pairs",
                PROBLEM,
                "monailabel is half installed: its command or its viewer is missing (uv unpacks its wheel wrongly)",
                f"pip install --no-deps --force-reinstall monailabel=={versions['monailabel']}",
            )
        )
    vision = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False, timeout=120
    )
    if vision.returncode:
        said = (vision.stderr.strip().splitlines() or ["it ends without a word"])[-1]
        found.append(
            Finding(
                "known bad pairs",
                PROBLEM,
                f"torchvision {versions.get('torchvision', '(none)')} cannot be imported with torch "
                f"{versions.get('torch', '(none)')}: {said}",
                "install both from the same place, as constraints.txt pins them: scripts/setup",
            )
        )
    yield from found or [Finding("known bad pairs", OK, "none")]


def bad_pairs(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Say which installed versions are known not to work, alone or together."""
    from packaging.version import Version

    def is_in(name: str, low: str, high: str | None = None) -> bool:
        version = Version(versions[name]) if name in versions else None
        return version is not None and version >= Version(low) and (high is None or version < Version(high))

    rules = [
        (
            is_in("torch", "2.9", "2.10"),
            f"torch {versions.get('torch')}: 3D convolutions in mixed precision are about 4 times slower",
            "pip install 'torch!=2.9.*' with the torchvision that belongs to it",
        ),
        (
            "monailabel" in versions and is_in("pydicom", "3"),
            f"pydicom {versions.get('pydicom')} with monailabel: its pydicom-seg fails at import",
            "pip install 'pydicom>=2.4,<3'",
        ),
        (
            "monailabel" in versions and is_in("numpy", "2"),
            f"numpy {versions.get('numpy')} with monailabel: numpymaxflow and pydicom-seg want numpy 1",
            "pip install 'numpy>=1.26,<2'",
        ),
        (
            "monailabel" in versions and is_in("dicomweb-client", "0.60"),
            f"dicomweb-client {versions.get('dicomweb-client')} with monailabel, which wants an older one",
            "pip install 'dicomweb-client>=0.59,<0.60'",
        ),
    ]
    for applies, found, advice in rules:
        if applies:
            yield Finding("known bad pairs", PROBLEM, found, advice)


def _server_is_whole() -> bool:
    """Whether MONAI Label's command and its viewer are there; one installer leaves its data files out."""
    spec = importlib.util.find_spec("monailabel")
    package = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    command = Path(sys.executable).parent / "monailabel"
    return command.is_file() and (package / "endpoints" / "static" / "ohif" / "index.html").is_file()


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("gpu", NOTE, "none that PyTorch sees", "segmenting runs on the CPU; training needs a CUDA GPU")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("gpu", OK, f"cuda:{index} {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")


def memory() -> tuple[int, int]:
    """Return bytes of memory, available and total, as Linux counts them; 0, 0 where it cannot be told."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return 0, 0
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2}
    return sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)


def _memory() -> Iterator[Finding]:
    available, total = memory()
    found = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available, {os.cpu_count()} processors"
    if not total:
        yield Finding("memory", NOTE, "cannot be told on this system")
    elif available < _NEEDED_MEMORY:
        yield Finding("memory", NOTE, found, "close other programs: a CT of 512x512x300 needs about 2 GiB")
    else:
        yield Finding("memory", OK, found)


def disk(folder: Path) -> Iterator[Finding]:
    """Say how much room a folder's disk has, and whether files can be made in it."""
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:.1f} GiB free at {folder}"
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ctseg-"):
            pass
    except OSError as error:
        yield Finding(
            "disk", PROBLEM, f"{folder} takes no files ({error.strerror})", "give this user the right to write"
        )
        return
    if free < _NEEDED_DISK:
        yield Finding("disk", NOTE, found, "make room: results, labels and networks are written there")
    else:
        yield Finding("disk", OK, found)


def _bundles() -> Iterator[Finding]:
    from ctseg.registry import bundles_root, find_bundles, verify_weights

    bundles = find_bundles()
    if not bundles:
        yield Finding("bundles", PROBLEM, f"none in {bundles_root()}", "scripts/build_bundles, or install ctseg again")
    for info in bundles.values():
        try:
            verify_weights(info)
        except BundleError as error:
            if info.ready:  # weights that are there, and are not the ones named
                yield Finding("bundle", PROBLEM, " ".join(str(error).split()))
                continue
        broken = bool(info.problem) or info.status == "weights missing"
        status = PROBLEM if broken else OK if info.ready else NOTE
        advice = "" if info.ready else f"see {info.path / 'docs' / 'README.md'}"
        yield Finding("bundle", status, f"{info.name}: {info.problem or info.status}", advice)


def _orthanc() -> Iterator[Finding]:
    plugins = Path("/usr/share/orthanc/plugins")
    program = shutil.which("Orthanc")
    advice = "for ctseg serve on a folder of DICOM: apt install orthanc orthanc-dicomweb orthanc-gdcm"
    if program is None:
        yield Finding("orthanc", NOTE, "not installed", advice)
        return
    wanted = {"DICOMweb": "libOrthancDicomWeb.so", "JPEG 2000 (gdcm)": "libOrthancGdcm.so"}
    missing = [what for what, file in wanted.items() if not any(plugins.glob(f"{file}*"))]
    if missing:
        yield Finding("orthanc", NOTE, f"{program}, without its plugin for {' and '.join(missing)}", advice)
    else:
        yield Finding("orthanc", OK, f"{program} with DICOMweb and JPEG 2000")


def _round_trips() -> Iterator[Finding]:
    from ctseg.doctor.geometry import round_trips

    yield from round_trips()
