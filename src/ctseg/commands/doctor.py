"""`ctseg doctor`: what of this machine, its packages and its servers works, each as one line with what to do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ctseg.doctor.findings import NOTE, OK, PROBLEM, Finding, examine

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_MARKS = {OK: "ok  ", NOTE: "note", PROBLEM: "BAD "}
_EXAMPLES = """examples:
  ctseg doctor                                    this machine
  ctseg doctor my_cts                             and a folder of studies
  ctseg doctor http://127.0.0.1:8042/dicom-web    or a DICOMweb server
  ctseg doctor my_cts --server http://127.0.0.1:8000    and a MONAI Label server that runs

The exit code is 1 when something is BAD; a note only limits what can be done here."""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine, its packages and servers",
        description="Check packages, GPU, memory, disk, bundles, studies, Orthanc, the viewer, and a round trip.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("studies", nargs="?", metavar="STUDIES", help="a folder of studies or a DICOMweb address")
    parser.add_argument("--server", metavar="URL", help="a MONAI Label server that runs, e.g. http://127.0.0.1:8000")
    parser.add_argument("--token-file", metavar="FILE", help="the token of that server")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    from ctseg.doctor.machine import machine_checks
    from ctseg.doctor.servers import server_checks, studies_checks

    checks = [*machine_checks(), *studies_checks(arguments.studies)]
    checks += server_checks(arguments.server, arguments.token_file)
    findings = []
    for finding in examine(checks):
        findings.append(finding)
        if not arguments.json:
            print(_line(finding), flush=True)
    bad = sum(finding.status == PROBLEM for finding in findings)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(f"\n{_verdict(bad, sum(finding.status == NOTE for finding in findings))}")
    if bad:
        sys.exit(1)


def _line(finding: Finding) -> str:
    advice = f"\n                       -> {finding.advice}" if finding.advice else ""
    return f"{_MARKS[finding.status]}  {finding.name:<17}{finding.found}{advice}"


def _verdict(bad: int, notes: int) -> str:
    if not bad:
        return "Everything works." if not notes else f"It works; {notes} note{'s' * (notes > 1)} above."
    return f"{bad} thing{'s' * (bad > 1)} to mend: see the lines with BAD."
