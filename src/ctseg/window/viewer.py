"""The picture with its controls, the surfaces beside it and the measures below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nicegui import events, ui

from ctseg.window.case import Case
from ctseg.window.overlays import letters_svg, line_svg
from ctseg.window.scene import show_surfaces
from ctseg.window.shown import Shown

_KEYS = {"ArrowUp": -1, "ArrowDown": 1, "PageUp": -10, "PageDown": 10}
_GREY = "text-sm text-[#9aa4af]"
_HINT = "Click two places on the picture to measure between them."
_KEYS_HINT = " Arrow keys turn the pages."
# The colour of a structure stands before its name.
_NAME_WITH_COLOUR = """
<q-td :props="props"><span aria-hidden="true" :style="{background: props.row.colour}"
  style="display:inline-block;width:.75em;height:.75em;margin-right:.5em;border-radius:2px"
  ></span>{{ props.value }}</q-td>
"""


class Viewer:
    """Shows a `Shown`; what means nothing for it, such as slices of a photograph, is hidden."""

    def __init__(self) -> None:
        """Lay it out, empty."""
        self._case: Shown | None = None
        self._ends: list[tuple[float, float]] = []
        with ui.column().classes("w-full min-h-[50vh] items-center justify-center border border-[#2b333c]") as empty:
            ui.label("The image is shown here.").classes(_GREY)
        self._waits = empty
        with ui.column().classes("w-full gap-3") as self._all:
            with ui.row().classes("w-full items-center gap-6"):
                self._lay_out_controls()
            with ui.element("div").classes("w-full flex flex-col lg:flex-row items-start gap-4"):
                with ui.column().classes("gap-1 w-full min-w-0 lg:flex-1"):
                    self._lay_out_picture()
                self._surfaces = ui.column().classes("w-full min-w-0 lg:flex-1")
            self._table = ui.table(columns=[], rows=[], row_key="organ").classes("w-full").props("dark flat dense")
            self._table.add_slot("body-cell-organ", _NAME_WITH_COLOUR)
        self._all.set_visibility(False)
        ui.keyboard(on_key=self._key, ignore=["input", "select", "button", "textarea"])

    def _lay_out_controls(self) -> None:
        self._plane = ui.toggle([], on_change=self._turn).props("no-caps")
        self._window = ui.select([], label="Window", on_change=self._draw).classes("w-36").props("dark dense")
        with ui.row().classes("items-center gap-3 no-wrap") as self._colour:
            ui.label("Colour").classes("text-sm")
            self._opacity = ui.slider(min=0, max=100, value=40, on_change=self._draw)
            self._opacity.classes("w-40").props("aria-label='Strength of the colours, percent'")

    def _lay_out_picture(self) -> None:
        self._picture = ui.interactive_image(on_mouse=self._clicked, sanitize=False)
        self._picture.classes("slice w-full bg-black")
        with ui.row().classes("w-full items-center gap-3 no-wrap") as self._pages:
            self._slice = ui.slider(min=0, max=1, value=0, on_change=self._leave).props("aria-label='Slice'")
            self._number = ui.label("").classes("text-sm w-24 text-right")
        self._measured = ui.label("").classes(_GREY).props("role=status aria-live=polite")

    @property
    def case(self) -> Shown | None:
        """What is shown."""
        return self._case

    def show(self, case: Shown, files: Mapping[str, Path]) -> None:
        """Show an image, and where there are files, what was found in it, beginning at the slice with the most of it.

        Args:
            case: the image.
            files: what was written, by name; empty before.
        """
        self._case = case
        self._waits.set_visibility(False)
        self._all.set_visibility(True)
        self._plane.set_visibility(len(case.planes) > 1)
        if self._plane.value not in case.planes:
            self._plane.set_options(list(case.planes), value=case.planes[0])
        self._window.set_visibility(bool(case.windows))
        if case.windows and list(case.windows) != self._window.options:
            self._window.set_options(list(case.windows), value=next(iter(case.windows)))
        found = bool(case.rows(case.planes[0], 0))
        self._colour.set_visibility(case.prediction is not None)
        self._table.columns = [
            {"name": one.name, "label": one.label, "field": one.name, "align": "right" if one.right else "left"}
            for one in case.columns
        ]
        self._table.set_visibility(found)
        self._show_surfaces(case, files)
        self._turn()

    def _show_surfaces(self, case: Shown, files: Mapping[str, Path]) -> None:
        self._surfaces.clear()
        self._surfaces.set_visibility(case.turns)
        with self._surfaces:
            if isinstance(case, Case) and files:
                show_surfaces(case, files)
            elif case.turns:
                ui.label("Here the organs turn as surfaces, once they are found.").classes(_GREY)

    def _turn(self) -> None:
        """Another plane or another image."""
        if self._case is None:
            return
        plane, count = str(self._plane.value), self._case.count(str(self._plane.value))
        width, height = self._case.picture_size(plane)
        self._picture.style(f"max-width:calc(68vh * {width / height:.4f})")  # so that it is seen whole
        self._pages.set_visibility(count > 1)
        self._slice.props(f"max={max(count - 1, 1)}")
        best = self._case.best_slice(plane)
        if self._slice.value == best:
            self._leave()
        else:
            self._slice.set_value(best)  # which leaves the old one

    def _leave(self) -> None:
        """Another slice: what was measured on the last one is gone."""
        self._ends = []
        pages = self._case is not None and self._case.count(str(self._plane.value)) > 1
        self._measured.set_text(_HINT + (_KEYS_HINT if pages else ""))
        self._draw()

    def _draw(self) -> None:
        case, plane = self._case, str(self._plane.value)
        if case is None or plane not in case.planes:
            return
        index = min(int(self._slice.value), case.count(plane) - 1)
        window = case.windows.get(str(self._window.value))
        self._picture.set_source(case.picture(plane, index, window=window, opacity=self._opacity.value / 100))
        self._draw_over()
        self._number.set_text(f"{case.number(plane, index)} / {case.count(plane)}")
        colours = {name.replace("_", " "): "rgb({}, {}, {})".format(*rgb) for name, rgb in case.colors.items()}
        rows = case.rows(plane, index)
        self._table.rows = [{**row, "colour": colours.get(row["organ"], "transparent")} for row in rows]

    def _draw_over(self) -> None:
        if self._case is not None:
            plane = str(self._plane.value)
            size = self._case.picture_size(plane)
            self._picture.set_content(letters_svg(self._case.letters(plane), size) + line_svg(self._ends, size))

    def _key(self, event: events.KeyEventArguments) -> None:
        step = _KEYS.get(str(event.key.name), 0)
        if self._case is None or not step or not event.action.keydown:
            return
        last = self._case.count(str(self._plane.value)) - 1
        self._slice.set_value(min(max(int(self._slice.value) + step, 0), last))

    def _clicked(self, event: events.MouseEventArguments) -> None:
        if self._case is None:
            return
        self._ends = [*self._ends, (event.image_x, event.image_y)] if len(self._ends) < 2 else []
        if len(self._ends) == 2:
            self._measured.set_text(self._case.distance(str(self._plane.value), *self._ends))
        else:
            self._measured.set_text("Click the other place." if self._ends else _HINT)
        self._draw_over()
