"""`ctseg export-images`: captures as uniform PNGs, ready for an annotation service."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ctseg.errors import InputError

_EXAMPLES = """what it writes:
  OUT/images/*.png   8 bits, cropped to the ultrasound sector, black outside it, without any metadata
  OUT/export.json    which capture, frame and part of it each one is; keep it, and give only images/ away

A picture that was burnt into, but has no sector, is refused; --crop 60,0,0,0 takes its margins away, --whole keeps it.

examples:
  ctseg export-images captures -o tooutline
  ctseg export-images films -o tooutline --every 15
  ctseg export-images photographs -o tooutline --no-sector
then, with what the service gave back:
  ctseg prepare FOLDER ...                (docs/data.md)"""


def add_command(commands: Any) -> None:
    """Add `export-images` to the command line's commands."""
    parser = commands.add_parser(
        "export-images",
        help="make captures ready for an annotation service",
        description="Make uniform PNGs of raw captures, with nothing about the patient in file or pixels' metadata.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures, films, DICOM images; sub-folders too")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the pictures")
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument(
        "--every", type=_positive, default=1, metavar="N", help="of films each Nth frame (default: all)"
    )
    frames.add_argument("--frames", type=_numbers, metavar="N,N", help="of films these frames, from 0")
    parser.add_argument(
        "--crop", type=_margins, default=(0, 0, 0, 0), metavar="T,B,L,R", help="pixels to cut away before all else"
    )
    sector = parser.add_mutually_exclusive_group()
    sector.add_argument("--whole", action="store_true", help="keep pictures without a sector as they are")
    sector.add_argument("--no-sector", action="store_true", help="look for no sector: photographs, CT slices")
    parser.add_argument("--grey", action="store_true", help="one channel, the luminance")
    parser.add_argument(
        "--window", type=_window, metavar="LOW,HIGH", help="HU that become black and white (default: 0,80)"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from ctseg.flat.exporting import IMAGES, Picking, export_images

    picking = Picking(
        every=arguments.every,
        frames=arguments.frames,
        crop=arguments.crop,
        whole=arguments.whole,
        sector=not arguments.no_sector,
        grey=arguments.grey,
        window=arguments.window,
    )
    written, refused = export_images(arguments.folder, arguments.out, picking)
    for where, reason in refused.items():
        print(f"refused {where}: {reason}")
    print(f"{len(written)} pictures in {arguments.out / IMAGES}, {len(refused)} captures refused")
    if not written:
        raise InputError(f"no picture could be made of {arguments.folder}: the reasons stand above")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected 1 or more")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} are no frames; expected numbers from 0 with commas between")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _margins(text: str) -> tuple[int, int, int, int]:
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} are no margins; expected pixels at top,bottom,left,right")
    top, bottom, left, right = (int(number) for number in numbers)
    return top, bottom, left, right


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no window; expected LOW,HIGH in HU") from None
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r} is no window; expected the lower value first")
    return low, high
