"""Names and colours of a mask's values, as ITK-SNAP and 3D Slicer load them beside the mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files import write_beside

Color = tuple[int, int, int]

ITKSNAP, SLICER = "itksnap", "slicer"
FILES = {ITKSNAP: "labels_itksnap.txt", SLICER: "labels.ctbl"}

_SNAP_HEAD = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""


def itksnap_text(labels: Mapping[str, int], colors: Mapping[str, Color]) -> str:
    """Return a label description for ITK-SNAP (Segmentation > Import Label Descriptions).

    Args:
        labels: name -> value in the mask; background is added.
        colors: name -> (r, g, b) 0..255; a name without one gets one of ours.

    Raises:
        OutputError: a name holds a quotation mark or a line break, which the format cannot hold.
    """
    lines = [f'{0:5d}{0:6d}{0:5d}{0:5d}{0:9d}{0:3d}{0:3d}    "Clear Label"']
    for name, value, (red, green, blue) in _entries(labels, colors):
        lines.append(f'{value:5d}{red:6d}{green:5d}{blue:5d}{1:9d}{1:3d}{1:3d}    "{name}"')
    return _SNAP_HEAD + "\n".join(lines) + "\n"


def slicer_text(labels: Mapping[str, int], colors: Mapping[str, Color]) -> str:
    """Return a colour table for 3D Slicer (.ctbl); it shows an underscore of the file as a space.

    Args and Raises: as `itksnap_text`.
    """
    entries = _entries(labels, colors)
    lines = ["# Color table file", f"# {len(entries) + 1} values", "0 background 0 0 0 0"]
    lines += [
        f"{value} {'_'.join(name.split())} {red} {green} {blue} 255" for name, value, (red, green, blue) in entries
    ]
    return "\n".join(lines) + "\n"


def write_label_file(kind: str, labels: Mapping[str, int], colors: Mapping[str, Color], folder: Path) -> Path:
    """Write the file of a kind ("itksnap" or "slicer") into a folder and return its path.

    Raises:
        OutputError: a name that the format cannot hold, or a folder that cannot be written.
    """
    text = itksnap_text(labels, colors) if kind == ITKSNAP else slicer_text(labels, colors)
    write_beside(folder / FILES[kind], text.encode())
    return folder / FILES[kind]


def _entries(labels: Mapping[str, int], colors: Mapping[str, Color]) -> list[tuple[str, int, Color]]:
    """Name, value and colour in order of value."""
    from ctseg.prepare.sample_pictures import COLORS  # late: it brings nibabel

    found = []
    for number, (name, value) in enumerate(sorted(labels.items(), key=lambda pair: pair[1])):
        if any(character in name for character in '"\n\r\t') or not name.strip():
            raise OutputError(
                f"the label {name!r} cannot stand in a label file; expected a name without quotation marks"
            )
        found.append((name, value, colors.get(name, COLORS[number % len(COLORS)])))
    return found
