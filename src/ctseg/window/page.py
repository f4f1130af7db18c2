"""The page itself: NiceGUI elements that show a `Case` and call `ctseg.window.work`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from nicegui import events, run, ui

from ctseg.errors import CtsegError
from ctseg.study import Predictors
from ctseg.window.case import PLANE_NAMES, WINDOWS, Case
from ctseg.window.scene import show_surfaces
from ctseg.window.work import Results, find_organs, organs_ready, read_case

_STAGES = {
    "read": "Reading the image",
    "preprocess": "Preparing it for the network",
    "network": "Finding the organs",
    "postprocess": "Bringing the mask to the image's own grid",
    "write": "Making surfaces, report and files",
}
_KEYS = {"ArrowUp": -1, "ArrowDown": 1, "PageUp": -10, "PageDown": 10}
_LARGEST_UPLOAD = 4 << 30
_WARNING = "Research use only: not a medical device, not for clinical use."
# The uploader's own button has no name and holds another control: ours stands for it.
_STYLE = "body{background:#0b0d10} .drop .q-uploader__header .q-btn{display:none}"
_FOR_SCREEN_READERS = """
document.documentElement.lang = "en";
for (const image of document.querySelectorAll(".slice img")) image.alt = "Slice of the image";
"""
_CARD = "w-full bg-[#161b21] text-[#f2f4f6]"
_COLUMNS = (
    ("organ", "Organ", "left"),
    ("volume", "Volume, ml", "right"),
    ("diameter", "Longest axial diameter, mm", "right"),
    ("area", "Area on this slice, cm²", "right"),
    ("note", "Remark", "left"),
)


class Page:
    """What one visitor sees. Long work runs in threads, so the page answers meanwhile."""

    def __init__(self, predictors: Predictors, folder: Path) -> None:
        """Lay the page out.

        Args:
            predictors: loaded networks, shared by all pages.
            folder: the page's own, which only this user can read.
        """
        self._predictors = predictors
        self._folder = folder
        self._case: Case | None = None
        self._results: Results | None = None
        self._ends: list[tuple[float, float]] = []
        self._stage = ""
        self._lay_out()

    # -- The layout ------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        with ui.header().classes("bg-[#161b21] items-center justify-between py-2"):
            ui.html(
                "<h1 style='font-size:1.25rem;line-height:1.5rem;font-weight:600;margin:0'>ctseg</h1>", sanitize=False
            )
            ui.label(_WARNING).classes("text-sm text-[#ffd28a]")
        with ui.row().classes("w-full no-wrap items-start gap-4"):
            with ui.column().classes("w-[20rem] shrink-0 gap-4"):
                self._lay_out_image()
                self._lay_out_organs()
                self._files = ui.card().classes(_CARD)
            with ui.column().classes("grow gap-3 min-w-0"):
                self._lay_out_viewer()
        self._files.set_visibility(False)
        ui.keyboard(on_key=self._key, ignore=["input", "select", "button", "textarea"])
        ui.timer(0.3, self._show_stage)

    def _lay_out_image(self) -> None:
        with ui.card().classes(_CARD):
            _heading("1  Image")
            self._upload = ui.upload(
                label="Drop a CT here",
                auto_upload=True,
                max_file_size=_LARGEST_UPLOAD,
                on_upload=self._uploaded,
                on_rejected=lambda: ui.notify("The file is larger than 4 GB", type="negative"),
            )
            self._upload.classes("w-full drop").props("flat bordered")
            choose = (
                ui.button("Choose a file", icon="folder_open", color=None).classes("w-full").props("no-caps outline")
            )
            choose.classes("text-[#9ccbf5]")
            # In the browser: a file dialog opens only as the direct answer to a click.
            choose.on("click", js_handler=f"() => getElement({self._upload.id}).pickFiles()")
            ui.label(".nii, .nii.gz, .nrrd, .mha, or a zip of a DICOM folder").classes("text-sm text-[#9aa4af]")
            self._about = ui.label("").classes("text-sm")

    def _lay_out_organs(self) -> None:
        ready = organs_ready(self._predictors.root)
        with ui.card().classes(_CARD):
            _heading("2  Organs")
            self._organs = {
                name: ui.checkbox(name.replace("_", " "), value=bool(info.trained)).props("dense dark")
                for name, info in ready.items()
            }
            if not ready:
                ui.label("No bundle here can run: ctseg tasks says why.").classes("text-sm")
            self._find = ui.button("Find organs", on_click=self._segment).classes("w-full").props("no-caps")
            self._find.disable()
            with ui.row().classes("items-center gap-3") as self._waiting:
                ui.spinner(size="1.5rem").props("aria-label='working'")
                self._saying = ui.label("").classes("text-sm").props("role=status aria-live=polite")
            self._waiting.set_visibility(False)

    def _lay_out_viewer(self) -> None:
        with ui.row().classes("w-full items-center gap-6"):
            self._plane = ui.toggle(list(PLANE_NAMES), value=PLANE_NAMES[0], on_change=self._turn).props("no-caps")
            self._window = ui.select(list(WINDOWS), value=next(iter(WINDOWS)), label="Window", on_change=self._draw)
            self._window.classes("w-36").props("dark dense")
            with ui.row().classes("items-center grow gap-3"):
                ui.label("Colour").classes("text-sm")
                self._opacity = ui.slider(min=0, max=100, value=40, on_change=self._draw)
                self._opacity.classes("w-40").props("aria-label='Strength of the organs colours, percent'")
        with ui.row().classes("w-full items-start gap-4 no-wrap"):
            with ui.column().classes("gap-1 w-1/2 min-w-0"):
                self._picture = ui.interactive_image(on_mouse=self._clicked, sanitize=False).classes(
                    "slice w-full bg-black"
                )
                self._picture.style("min-height:18rem")
                with ui.row().classes("w-full items-center gap-3 no-wrap"):
                    self._slice = ui.slider(min=0, max=1, value=0, on_change=self._draw).props("aria-label='Slice'")
                    self._number = ui.label("").classes("text-sm w-24 text-right")
                self._measured = ui.label("Click two places to measure between them; arrow keys turn the pages.")
                self._measured.classes("text-sm text-[#9aa4af]").props("role=status aria-live=polite")
            self._scene_box = ui.column().classes("w-1/2 min-w-0")
            self._empty_scene()
        columns = [{"name": name, "label": label, "field": name, "align": side} for name, label, side in _COLUMNS]
        self._table = ui.table(columns=columns, rows=[], row_key="organ").classes("w-full").props("dark flat dense")
        self._table.set_visibility(False)

    # -- An image ----------------------------------------------------------------------------------------------------

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        path = self._folder / "image" / f"image{_suffix(event.file.name)}"  # the file's own name may be a patient's
        shutil.rmtree(path.parent, ignore_errors=True)
        await event.file.save(path)
        self._upload.reset()
        await self.open(path)

    async def open(self, path: Path) -> None:
        """Show an image; a refused one leaves what is shown."""
        case = await self._long("read", read_case, path)
        if case is None:
            return
        self._results = None
        self._set_case(case)
        sizes = " x ".join(str(size) for size in case.volume.shape)
        spacing = " x ".join(f"{size:.2f}" for size in case.volume.spacing)
        self._about.set_text(f"{sizes} voxels of {spacing} mm. " + " ".join(case.volume.notes))
        self._files.set_visibility(False)
        self._table.set_visibility(False)
        self._empty_scene()

    def _empty_scene(self) -> None:
        self._scene_box.clear()
        with self._scene_box:
            ui.label("Here the organs turn as surfaces, once they are found.").classes("text-sm text-[#9aa4af]")

    def _set_case(self, case: Case) -> None:
        self._case = case
        self._find.set_enabled(bool(self._organs))
        self._turn()

    # -- The organs --------------------------------------------------------------------------------------------------

    async def _segment(self) -> None:
        if self._case is None:
            return
        organs = [name for name, box in self._organs.items() if box.value]
        out = Path(tempfile.mkdtemp(prefix="result-", dir=self._folder))
        results = await self._long("read", find_organs, self._case, organs, self._predictors, out, self._set_stage)
        if results is None:
            return
        self._results = results
        self._set_case(results.case)
        self._show_files(results)
        self._table.set_visibility(True)
        self._scene_box.clear()
        with self._scene_box:
            show_surfaces(results.case, results.files)

    def _show_files(self, results: Results) -> None:
        self._files.clear()
        self._files.set_visibility(True)
        with self._files:
            _heading("3  Take home")
            for name, path in results.files.items():
                button = ui.button(name, icon="download", color=None, on_click=_taking(path))
                button.classes("w-full text-[#9ccbf5]").props("flat dense no-caps align=left")

    # -- The slice ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Another plane or another image: begin at the slice with the most organ."""
        if self._case is None:
            return
        plane = self._plane.value
        self._slice.props(f"max={self._case.count(plane) - 1}")
        self._slice.set_value(self._case.best_slice(plane))
        self._draw()

    def _draw(self) -> None:
        case, plane = self._case, self._plane.value
        if case is None:
            return
        index = min(int(self._slice.value), case.count(plane) - 1)
        image = case.picture(plane, index, window=WINDOWS[self._window.value], opacity=self._opacity.value / 100)
        self._ends = []
        self._picture.set_source(image)
        self._picture.set_content(_letters(case, plane, image.size))
        self._number.set_text(f"{case.number(plane, index)} / {case.count(plane)}")
        self._table.rows = [self._row(case, name, plane, index) for name in case.organs]

    def _row(self, case: Case, name: str, plane: str, index: int) -> dict[str, str]:
        organ = case.organs[name]
        diameter = self._results.diameters.get(name) if self._results else None
        return {
            "organ": name.replace("_", " "),
            "volume": f"{organ.volume_ml:.1f}" if organ.voxels else "-",
            "diameter": f"{diameter:.0f}" if diameter else "-",
            "area": f"{case.area_mm2(name, plane, index) / 100:.1f}",
            "note": _note(organ.voxels, organ.touches_edge),
        }

    def _key(self, event: events.KeyEventArguments) -> None:
        step = _KEYS.get(str(event.key.name), 0)
        if self._case is None or not step or not event.action.keydown:
            return
        self._slice.set_value(min(max(int(self._slice.value) + step, 0), self._case.count(self._plane.value) - 1))

    def _clicked(self, event: events.MouseEventArguments) -> None:
        if self._case is None:
            return
        self._ends = [*self._ends, (event.image_x, event.image_y)] if len(self._ends) < 2 else []
        plane = self._plane.value
        if len(self._ends) == 2:
            length = self._case.distance_mm(plane, *self._ends)
            self._measured.set_text(f"{length:.1f} mm")
        size = self._case.picture_size(plane)
        self._picture.set_content(_letters(self._case, plane, size) + _line(self._ends, max(size)))

    # -- Long work ---------------------------------------------------------------------------------------------------

    def _set_stage(self, stage: str) -> None:
        self._stage = _STAGES.get(stage, stage)

    def _show_stage(self) -> None:
        self._saying.set_text(self._stage)

    async def _long(self, stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run something in a thread, and say it while it lasts; None where it was refused, with the reason shown."""
        self._set_stage(stage)
        self._waiting.set_visibility(True)
        self._find.disable()
        try:
            return await run.io_bound(work, *arguments)
        except CtsegError as error:
            close = [{"label": "Close", "color": "white"}]
            ui.notify(str(error), type="negative", color="red-10", multi_line=True, timeout=0, actions=close)
            return None
        finally:
            self._waiting.set_visibility(False)
            self._find.set_enabled(self._case is not None and bool(self._organs))


async def build_page(predictors: Predictors, private: Path, source: Path | None) -> None:
    """Make the page for one visitor, and remove its files when it is closed.

    Args:
        predictors: loaded networks, shared by all pages.
        private: a folder that only this user can read; the page's own lies in it.
        source: an image to begin with.
    """
    folder = Path(tempfile.mkdtemp(prefix="page-", dir=private))
    ui.context.client.on_delete(lambda: shutil.rmtree(folder, ignore_errors=True))
    ui.dark_mode(True)
    ui.colors(primary="#1f6fb2")  # white on it has a contrast of 5.2
    ui.add_css(_STYLE)
    page = Page(predictors, folder)
    await ui.context.client.connected(timeout=30)
    ui.run_javascript(_FOR_SCREEN_READERS)
    if source is not None:
        await page.open(source)


def _heading(text: str) -> None:
    ui.html(
        f"<h2 style='font-size:1rem;line-height:1.5rem;font-weight:600;margin:0'>{escape(text)}</h2>", sanitize=False
    )


def _suffix(name: str) -> str:
    """The ending that says what a file is, ".nii.gz" whole."""
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if [end.lower() for end in suffixes[-2:]] == [".nii", ".gz"] else suffixes[-1:])


def _taking(path: Path) -> Callable[[], None]:
    return lambda: ui.download.file(path)


def _note(voxels: int, touches_edge: bool) -> str:
    if not voxels:
        return "not found"
    return "reaches the edge of the scan: a lower bound" if touches_edge else ""


def _letters(case: Case, plane: str, size: tuple[int, int]) -> str:
    """The patient's sides at the picture's edges, as SVG in its pixels."""
    width, height = size
    high = 0.04 * max(size)
    left, right, top, bottom = case.letters(plane)
    places = (
        (left, high * 0.5, height / 2),
        (right, width - high * 0.5, height / 2),
        (top, width / 2, high),
        (bottom, width / 2, height - high * 0.3),
    )
    style = f'font-size="{high}" font-family="sans-serif" text-anchor="middle" fill="#f2f4f6"'
    edge = 'stroke="#0b0d10" stroke-width="0.35em" paint-order="stroke" font-weight="bold"'
    return "".join(f'<text x="{x}" y="{y}" {style} {edge}>{letter}</text>' for letter, x, y in places)


def _line(ends: list[tuple[float, float]], longest: int) -> str:
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="{longest / 130}" fill="#ffe066"/>' for x, y in ends)
    if len(ends) < 2:
        return dots
    (x1, y1), (x2, y2) = ends
    return f'{dots}<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#ffe066" stroke-width="{longest / 320}"/>'
