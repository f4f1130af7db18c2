"""The surface models of a label map as files: which there are, what they are called, and writing them.

`ctseg.outputs.surfaces` makes the surfaces, `ctseg.outputs.meshfiles` says what their coordinates are in each format.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.files import mesh_name, write_beside

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ctseg.volume import Volume

MESH_KINDS = ("stl", "obj", "glb")
FACES = 200_000  # of one organ, unless the user says otherwise: what ordinary viewers turn smoothly
FEWEST_FACES = 100
SCENE = "organs.glb"  # every organ of a bundle that has several, in its colour
SPACES = "STL and OBJ: LPS, mm; GLB: m, +X patient's left, +Y superior, +Z anterior"


def mesh_names(kinds: Collection[str], labels: Collection[str]) -> list[str]:
    """Names of the files that `write_meshes` may write for these kinds and labels, in order."""
    names = [mesh_name(label, kind) for kind in MESH_KINDS if kind in kinds for label in labels]
    return names + [SCENE] * ("glb" in kinds and len(labels) > 1)


def faces_wanted(text: str) -> int | None:
    """Read the number of faces off the command line: 0 keeps all.

    Raises:
        ArgumentTypeError: for what is no number, or closes no organ.
    """
    if not text.isdecimal() or 0 < int(text) < FEWEST_FACES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of faces; expected {FEWEST_FACES} or more, or 0 for all"
        )
    return int(text) or None


def write_meshes(
    volume: Volume,
    label_map: NDArray[Any],
    labels: Mapping[str, int],
    folder: Path,
    *,
    kinds: Collection[str] = ("stl",),
    faces: int | None = None,
    colors: Mapping[str, Sequence[int]] | None = None,
) -> list[Path]:
    """Write `<label>.stl`, `.obj` and `.glb` for each label that is found, and `organs.glb` with all of them.

    The same input gives the same bytes.

    Args:
        volume: the study; the surfaces lie where its `source_affine` says.
        label_map: (I, J, K) integers on the volume's grid.
        labels: label name -> value.
        folder: made where missing.
        kinds: any of "stl", "obj", "glb".
        faces: at most so many faces for each label; None keeps all.
        colors: label name -> (r, g, b), 0..255.

    Returns:
        The files written. `organs.glb` is for bundles of several labels; none is written when nothing is found.

    Raises:
        OutputError: a file cannot be written.
        ConfigError: for a number of faces that closes no organ.
    """
    from ctseg.outputs.meshfiles import glb_bytes, obj_bytes, stl_bytes
    from ctseg.outputs.surfaces import surface_of_label

    found = {name: surface_of_label(label_map, volume.source_affine, code, faces) for name, code in labels.items()}
    surfaces = {name: surface for name, surface in found.items() if surface is not None}
    colors = colors or {}
    contents = {}
    for name, surface in surfaces.items():
        if "stl" in kinds:
            contents[mesh_name(name, "stl")] = stl_bytes(*surface)
        if "obj" in kinds:
            contents[mesh_name(name, "obj")] = obj_bytes(name, surface)
        if "glb" in kinds:
            contents[mesh_name(name, "glb")] = glb_bytes({name: surface}, colors)
    if "glb" in kinds and len(labels) > 1 and surfaces:
        contents[SCENE] = glb_bytes(surfaces, colors)
    files = []
    for file in (folder / name for name in mesh_names(kinds, labels) if name in contents):
        write_beside(file, contents[file.name])
        files.append(file)
    return files
