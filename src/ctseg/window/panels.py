"""The three steps at the side of the page: the image, what is looked for, what is taken home."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from html import escape
from pathlib import Path

from nicegui import events, ui

from ctseg.window.choices import Choices
from ctseg.window.work import PICTURES, VOLUMES

_LARGEST_UPLOAD = 4 << 30
_CARD = "w-full bg-[#161b21] text-[#f2f4f6]"
_GREY = "text-sm text-[#9aa4af]"
_STAGES = {
    "read": "Reading the image",
    "preprocess": "Preparing it for the network",
    "network": "The network is looking",
    "postprocess": "Bringing the mask to the image's own grid",
    "write": "Measuring, and making the files",
}


class ImagePanel:
    """Where an image is dropped or chosen, and what is said of it."""

    def __init__(self, taken: Callable[[events.UploadEventArguments], Awaitable[None]]) -> None:
        """Lay it out.

        Args:
            taken: called with what was dropped.
        """
        with ui.card().classes(_CARD):
            _heading("1  Image")
            self._upload = ui.upload(
                label="Drop an image here",
                auto_upload=True,
                max_file_size=_LARGEST_UPLOAD,
                on_upload=taken,
                on_rejected=lambda: ui.notify("The file is larger than 4 GB", type="negative"),
            )
            self._upload.classes("w-full drop").props("flat bordered")
            with self._upload.add_slot("list"), ui.column().classes("gap-1"):
                ui.label(f"A CT: {VOLUMES}").classes(_GREY)
                ui.label(f"A photograph, an ultrasound picture or a single slice: {PICTURES}").classes(_GREY)
            choose = ui.button("Choose a file", icon="folder_open", color=None)
            choose.classes("w-full text-[#9ccbf5]").props("no-caps outline")
            # In the browser: a file dialog opens only as the direct answer to a click.
            choose.on("click", js_handler=f"() => getElement({self._upload.id}).pickFiles()")
            self._about = ui.label("").classes("text-sm")
            self._about.set_visibility(False)

    def say(self, about: str) -> None:
        """Say what the image is."""
        self._about.set_text(about)
        self._about.set_visibility(bool(about))


class ChoicePanel:
    """What can be looked for on the image, the button that does it, and what goes on meanwhile."""

    def __init__(self, find: Callable[[], Awaitable[None]]) -> None:
        """Lay it out.

        Args:
            find: called when the button is pressed.
        """
        self._boxes: dict[str, ui.checkbox] = {}
        self._one: ui.radio | None = None
        self._stage = ""
        with ui.card().classes(_CARD):
            _heading("2  What to find")
            self._options = ui.column().classes("w-full gap-2")
            with self._options:
                ui.label("Once there is an image, what can be found on it is listed here.").classes(_GREY)
            self._find = ui.button("Find", on_click=find).classes("w-full").props("no-caps")
            self._find.disable()
            with ui.row().classes("items-center gap-3") as self._waiting:
                ui.spinner(size="1.5rem").props("aria-label='working'")
                self._saying = ui.label("").classes("text-sm").props("role=status aria-live=polite")
            self._waiting.set_visibility(False)
        ui.timer(0.3, lambda: self._saying.set_text(self._stage))

    def offer(self, choices: Choices) -> None:
        """List what can be looked for on an image."""
        self._options.clear()
        self._boxes, self._one = {}, None
        proposed = [one.name for one in choices.options if one.proposed]
        with self._options:
            if choices.several:
                for one in choices.options:
                    self._boxes[one.name] = ui.checkbox(one.text, value=one.proposed).props("dense dark")
            elif choices.options:
                texts = {one.name: one.text for one in choices.options}
                self._one = ui.radio(texts, value=next(iter(proposed), None)).props("dense dark")
            if choices.word:
                ui.label(choices.word).classes("text-sm text-[#ffd28a]" if not choices.options else _GREY)
        self._find.set_enabled(bool(choices.options))

    @property
    def chosen(self) -> list[str]:
        """The names of what was chosen."""
        if self._one is not None:
            return [str(self._one.value)] if self._one.value is not None else []
        return [name for name, box in self._boxes.items() if box.value]

    def at(self, stage: str) -> None:
        """Say what goes on; may be called from any thread."""
        self._stage = _STAGES.get(stage, stage)

    def set_busy(self, busy: bool) -> None:
        """Show that work goes on, or that it is over."""
        self._waiting.set_visibility(busy)
        self._find.set_enabled(not busy and bool(self._boxes or self._one))


class FilesPanel:
    """What can be taken home."""

    def __init__(self) -> None:
        """Lay it out, hidden."""
        self._card = ui.card().classes(f"{_CARD} order-last md:order-none")
        self.offer({})

    def offer(self, files: Mapping[str, Path]) -> None:
        """Show a button for each file; none hides the panel."""
        self._card.clear()
        self._card.set_visibility(bool(files))
        with self._card:
            _heading("3  Take home")
            for name, path in files.items():
                button = ui.button(name, icon="download", color=None, on_click=_taking(path))
                button.classes("w-full text-[#9ccbf5]").props("flat dense no-caps align=left")


def _heading(text: str) -> None:
    style = "font-size:1rem;line-height:1.5rem;font-weight:600;margin:0"
    ui.html(f"<h2 style='{style}'>{escape(text)}</h2>", sanitize=False)


def _taking(path: Path) -> Callable[[], None]:
    return lambda: ui.download.file(path)
