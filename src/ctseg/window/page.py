"""The page itself: NiceGUI elements that show a `Case` or a `FlatCase` and call `ctseg.window.work`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import events, run, ui

from ctseg.errors import CtsegError
from ctseg.study import Predictors
from ctseg.window.case import Case
from ctseg.window.choices import choices_for
from ctseg.window.flatcase import FlatCase
from ctseg.window.panels import ChoicePanel, FilesPanel, ImagePanel
from ctseg.window.viewer import Viewer
from ctseg.window.work import find, read_case

_WARNING = "Research use only: not a medical device, not for clinical use."
# The uploader's own button has no name and holds another control: ours stands for it. Its figures of sent bytes are
# those of this computer to itself.
_STYLE = """
body{background:#0b0d10}
.drop .q-uploader__header .q-btn, .drop .q-uploader__subtitle{display:none}
"""
_FOR_SCREEN_READERS = """
document.documentElement.lang = "en";
for (const image of document.querySelectorAll(".slice img")) image.alt = "The image";
"""


class Page:
    """What one visitor sees. Long work runs in threads, so the page answers meanwhile."""

    def __init__(self, predictors: Predictors, folder: Path) -> None:
        """Lay the page out.

        Args:
            predictors: loaded networks, shared by all pages, and the folder of their bundles.
            folder: the page's own, which only this user can read.
        """
        self._predictors = predictors
        self._folder = folder
        self._case: Case | FlatCase | None = None
        with ui.header().classes("bg-[#161b21] items-center justify-between py-2 gap-x-6 gap-y-0"):
            style = "font-size:1.25rem;line-height:1.5rem;font-weight:600;margin:0"
            ui.html(f"<h1 style='{style}'>ctseg</h1>", sanitize=False)
            ui.label(_WARNING).classes("text-sm text-[#ffd28a]")
        with ui.element("div").classes("w-full flex flex-col md:flex-row items-start gap-4"):
            # On a narrow screen the steps lie in one column with the picture, what is taken home below it.
            with ui.element("div").classes("contents md:flex md:flex-col md:w-[20rem] shrink-0 gap-4"):
                self._image = ImagePanel(self._uploaded)
                self._choice = ChoicePanel(self._find)
                self._files = FilesPanel()
            with ui.column().classes("w-full md:flex-1 min-w-0"):
                self._viewer = Viewer()

    async def open(self, path: Path) -> None:
        """Show an image; a refused one leaves what is shown."""
        case = await self._long(read_case, path, self._predictors.root)
        if case is None:
            return
        self._case = case
        self._image.say(case.about)
        self._choice.offer(choices_for(case, self._predictors.root))
        self._files.offer({})
        self._viewer.show(case, {})

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        path = self._folder / "image" / f"image{_suffix(event.file.name)}"  # the file's own name may be a patient's
        shutil.rmtree(path.parent, ignore_errors=True)
        await event.file.save(path)
        event.sender.run_method("reset")  # ready for the next
        await self.open(path)

    async def _find(self) -> None:
        case = self._case
        if case is None:
            return
        out = Path(tempfile.mkdtemp(prefix="result-", dir=self._folder))
        results = await self._long(find, case, self._choice.chosen, self._predictors, out, self._choice.at)
        if results is None or self._case is not case:  # another image was dropped meanwhile
            return
        self._case = results.case
        self._files.offer(results.files)
        self._viewer.show(results.case, results.files)

    async def _long(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run something in a thread, and say it while it lasts; None where it was refused, with the reason shown."""
        self._choice.at("read")
        self._choice.set_busy(True)
        try:
            return await run.io_bound(work, *arguments)
        except CtsegError as error:
            close = [{"label": "Close", "color": "white"}]
            sentence = str(error).replace(f"{self._folder / 'image'}/", "")  # nobody knows our folder
            ui.notify(sentence, type="negative", color="red-10", multi_line=True, timeout=0, actions=close)
            return None
        finally:
            self._choice.set_busy(False)


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


def _suffix(name: str) -> str:
    """The ending that says what a file is, ".nii.gz" whole."""
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if [end.lower() for end in suffixes[-2:]] == [".nii", ".gz"] else suffixes[-1:])
