"""`ctseg export`: a bundle's network for other runtimes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ctseg.light.described import SUFFIXES

_EXAMPLES = """examples:
  ctseg export liver_ct_segmentation                          models/liver_ct_segmentation.onnx in the bundle,
                                                              for ctseg segment --runtime onnx
  ctseg export liver_ct_segmentation --format openvino
  ctseg export liver_ct_segmentation --output exported        for ctseg api --models exported

Beside the network lies a JSON file with all that running it needs: docs/export.md. A file that does not agree with
PyTorch on random images is not kept."""


def add_command(commands: Any) -> None:
    """Add `export` to the command line's commands."""
    parser = commands.add_parser(
        "export",
        help="write a bundle's network as ONNX, OpenVINO or TorchScript",
        description="Write a bundle's network as ONNX, OpenVINO or TorchScript, checked against PyTorch.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's name, or the path of one of your own")
    parser.add_argument("--format", choices=list(SUFFIXES), default="onnx", help="(default: onnx)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the files (default: the bundle's models folder)"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from ctseg.registry import get_bundle, verify_weights

    bundle = get_bundle(arguments.bundle)
    verify_weights(bundle)
    print(f"ctseg: exporting {bundle.name} {bundle.version}", file=sys.stderr, flush=True)
    from ctseg.export.networks import TOLERANCE, export_bundle

    done = export_bundle(bundle, arguments.format, arguments.output)
    print(
        f"{done.files[0].parent}: {'  '.join(file.name for file in done.files)}\n"
        f"images: batches of any number, sizes {done.sizes}\n"
        f"agrees with PyTorch: largest difference {done.difference:.1e} of the largest output, {TOLERANCE:g} is allowed"
    )
