"""`ctseg serve`: everything that an annotator needs, started in one line and stopped with Ctrl-C."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """examples:
  ctseg serve my_cts                          a folder of NIfTI, or of DICOM (through a private Orthanc)
  ctseg serve http://pacs:8042/dicom-web      a DICOMweb server
  ctseg serve my_cts --port 8010 --models liver_ct_segmentation

Ctrl-C stops everything that was started. What is saved stays: labels of NIfTI in my_cts/labels, those of DICOM
in my_cts/.ctseg (or where --data says), those of a server on that server."""


def add_command(commands: Any) -> None:
    """Add `serve` to the subcommands of `ctseg`."""
    parser = commands.add_parser(
        "serve",
        help="start everything for annotators: server, viewer, DICOM",
        description="Start everything that an annotator needs, and stop it with Ctrl-C.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "studies", metavar="STUDIES", help="a folder of NIfTI, a folder of DICOM, or a DICOMweb address"
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this computer only)")
    parser.add_argument("--port", type=int, default=8000, help="the server's port (default: 8000)")
    parser.add_argument("--models", default="", metavar="NAMES", help="bundles, with commas between (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that clients must show")
    parser.add_argument("--users", type=Path, metavar="FILE", help="file of users with roles (ctseg user makes it)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where a private Orthanc keeps studies and labels, and logs go (default: .ctseg in the studies)",
    )
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from ctseg.serving.plan import checked_plan
    from ctseg.serving.running import run

    plan = checked_plan(
        arguments.studies,
        host=arguments.host,
        port=arguments.port,
        models=arguments.models,
        device=arguments.device,
        token_file=arguments.token_file,
        users=arguments.users,
        data=arguments.data,
    )
    run(plan)
