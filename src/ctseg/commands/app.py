"""`ctseg app`: the window for a doctor, started with one command."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ctseg.errors import ConfigError

_ABOUT = """a page opens in the browser: drop a CT (.nii, .nii.gz, .nrrd, .mha, or a zip of a DICOM folder), choose
organs, look at them slice by slice and as surfaces that turn, measure, and take mask, report, STL and GLB home. Or drop
a flat image (a photograph, an ultrasound picture, a single slice: .png, .jpg, .bmp, .tif, or one .dcm): no bundle for
them comes with weights, so train one, or name a folder of trained ones with --bundles.

It listens on this computer only, and answers only the browser that has the address with its key. What is dropped into
it stays on this computer, in a private folder that is removed when the page is closed or the program ends.

examples:
  ctseg app                       opens the page
  ctseg app ct.nii.gz             with this image
  ctseg app --bundles my_bundles  with bundles of your own
  ctseg app --shortcut ~/Desktop  leaves an icon there that starts it with a double click (Linux desktops)"""


def add_command(commands: Any) -> None:
    """Add `app` to the command line's commands."""
    parser = commands.add_parser(
        "app",
        help="a window in the browser for those who use no terminal",
        description="Open the window in the browser; Ctrl-C ends it.",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", nargs="?", type=Path, metavar="INPUT", help="an image to begin with")
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="folder of the bundles (default: the shipped ones)")
    parser.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.add_argument(
        "--shortcut", type=Path, metavar="FOLDER", help="write an icon that starts the window into FOLDER, and end"
    )
    parser.set_defaults(run=_app)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected a number from 0 to 65535")
    return int(text)


def _app(arguments: argparse.Namespace) -> None:
    if arguments.shortcut is not None:
        from ctseg.window.shortcut import write_shortcut

        print(f"{write_shortcut(arguments.shortcut)}: a double click starts the window")
        return
    if find_spec("nicegui") is None:
        raise ConfigError(
            "the window needs the package nicegui, which is not installed: scripts/setup app brings it in, or "
            "pip install 'ctseg[app]'"
        )
    from ctseg.window.run import run_window

    run_window(
        arguments.input,
        port=arguments.port,
        device=arguments.device,
        browser=not arguments.no_browser,
        bundles=arguments.bundles,
    )
