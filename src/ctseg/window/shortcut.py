"""An icon on the desktop that starts the window (freedesktop.org's Desktop Entry Specification 1.5)."""

from __future__ import annotations

import sys
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files import write_beside

NAME = "ctseg.desktop"


def write_shortcut(folder: Path) -> Path:
    """Write `ctseg.desktop` into a folder; it starts the window with the Python that runs now.

    Raises:
        OutputError: the folder is not there or cannot be written.
    """
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder} for the icon; name the desktop's folder, e.g. ~/Desktop")
    lines = (
        "[Desktop Entry]",
        "Type=Application",
        "Version=1.5",
        "Name=ctseg",
        "Comment=Organs on a CT: research use only, not for diagnosis",
        f"Exec={_quoted(sys.executable)} -m ctseg app",
        "Terminal=true",
        "Categories=Science;MedicalSoftware;",
        "",
    )
    path = folder / NAME
    write_beside(path, "\n".join(lines).encode("utf-8"), mode=0o755)  # desktops start only what may be executed
    return path


def _quoted(program: str) -> str:
    """An argument as the specification's section 7 wants it: quoted, then escaped once more as a string value."""
    for letter in ("\\", '"', "`", "$"):
        program = program.replace(letter, "\\" + letter)
    return '"' + program.replace("\\", "\\\\").replace("%", "%%") + '"'
