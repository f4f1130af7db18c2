"""The organs as surfaces that turn: the STL files of the result in a three.js scene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nicegui import app, ui

from ctseg.files import mesh_name
from ctseg.window.case import Case

_MM = 0.01  # the scene's camera sees from 0.1 to 1000 of its units


def show_surfaces(case: Case, files: Mapping[str, Path]) -> None:
    """Fill the current element with a scene that is turned with the mouse, and a switch for each organ.

    The files are LPS in mm: x to the patient's left, z to the head. Seen from the front, the patient's left is at the
    right of the picture, as on the slices.
    """
    found = {name: files[mesh_name(name)] for name in case.organs if mesh_name(name) in files}
    if not found:
        ui.label("No organ was found, so there is no surface.").classes("text-sm")
        return
    centre, radius = _middle(case)
    with ui.scene(width=520, height=420, grid=False, background_color="#0b0d10") as scene:
        scene.classes("w-full").props("role=img aria-label='Surfaces of the organs, drag to turn them'")
        solids = {}
        for name, path in found.items():
            url = app.add_static_file(local_file=path)
            red, green, blue = case.colors[name]
            solid = scene.stl(url).scale(_MM).material(f"#{red:02x}{green:02x}{blue:02x}", opacity=1.0)
            solids[name] = solid.move(*(-_MM * value for value in centre))
        scene.move_camera(x=0, y=-1.9 * radius * _MM, z=0.4 * radius * _MM, look_at_x=0, look_at_y=0, look_at_z=0)
    with ui.row().classes("gap-4"):
        for name, solid in solids.items():
            ui.checkbox(name.replace("_", " "), value=True, on_change=lambda e, s=solid: s.visible(e.value)).props(
                "dense dark"
            )
        ui.label("Drag to turn, wheel to come nearer.").classes("text-sm text-[#9aa4af]")


def _middle(case: Case) -> tuple[tuple[float, float, float], float]:
    """Middle of the organs' boxes in LPS mm, and half the diagonal round them."""
    import numpy as np

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.volume.source_affine
    corners = [
        lps @ [*(organ.box[axis][end] for axis, end in enumerate(ends)), 1.0]
        for organ in case.organs.values()
        if organ.box is not None
        for ends in np.ndindex(2, 2, 2)
    ]
    low, high = np.min(corners, axis=0)[:3], np.max(corners, axis=0)[:3]
    x, y, z = (low + high) / 2
    return (float(x), float(y), float(z)), float(np.linalg.norm(high - low)) / 2
