"""The command line. Heavy packages are imported only where a command needs them, so that help is there at once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import __version__, evaluation_command, importing, preparecommand, serving
from ctseg.errors import BundleError, CtsegError, InputError
from ctseg.meshes import FACES, faces_wanted
from ctseg.outputs import KINDS, USUAL_KINDS, check_folder, file_names, write_outputs
from ctseg.registry import BundleInfo, bundles_root, find_bundles, get_bundle, verify_weights

_EXAMPLES = """examples:
  ctseg segment ct.nii.gz -o out              mask, mesh, preview and report into the folder out
  ctseg segment dicom_folder -o out --output nifti,json
  ctseg segment study.zip -o out --device cuda:1
  ctseg tasks                                 what there is to segment, and how well it is known to work

Research use only: not a medical device, not for diagnosis."""

_OF_SEGMENT = """what is written into OUT:
  mask.nii.gz    label map on exactly the input's grid (nifti)
  segmentation.dcm
                 DICOM SEG on the slices of a DICOM input, with SNOMED CT codes (seg)
  <organ>.stl    surface in mm, LPS, as 3D Slicer takes it (stl)
  <organ>.obj    the same as Wavefront OBJ (obj)
  <organ>.glb    the same in colour, life-size and upright for augmented reality: metres, +Y up (glb);
                 organs.glb holds all organs of a bundle that has several
  preview.png    axial, coronal, sagittal with the contour and the volume in ml (png)
  report.json    volumes, versions, seconds, sha256 of the files (json)

examples:
  ctseg segment ct.nii.gz -o out
  ctseg segment dicom_folder -o out --output nifti,json
  ctseg segment ct.nii.gz -o out --output glb --faces 50000
  ctseg segment ct.nrrd -o out --task path/to/my/bundle"""

_STAGES = {
    "read": "reading the image",
    "preprocess": "preparing it for the network",
    "network": "finding the organs",
    "postprocess": "bringing the mask to the image's own grid",
}


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; expected auto, cpu, cuda or cuda:0, cuda:1, ...")
    return text


def _kinds(text: str) -> tuple[str, ...]:
    asked = [kind.strip() for kind in text.split(",") if kind.strip()]
    if not asked or (unknown := sorted(set(asked) - set(KINDS))):
        what = f"{', '.join(unknown)} is no kind of output" if asked else "no kind of output is named"
        raise argparse.ArgumentTypeError(f"{what}; expected one or more of {','.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


def _default_task(bundles: Mapping[str, BundleInfo]) -> str | None:
    """The segmentation bundle to take when none is named: the only trained one, or the only one; else None."""
    segmenting = [info for info in bundles.values() if info.segments]
    choice = [info.name for info in segmenting if info.trained] or [info.name for info in segmenting]
    return choice[0] if len(choice) == 1 else None


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ctseg", description="Segment organs on CT.", epilog=_EXAMPLES, formatter_class=plain
    )
    parser.add_argument("--version", action="version", version=f"ctseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    bundles = find_bundles()
    default = _default_task(bundles)
    segment = commands.add_parser(
        "segment", help="segment an image", description="Segment an image.", epilog=_OF_SEGMENT, formatter_class=plain
    )
    segment.add_argument(
        "input", type=Path, metavar="INPUT", help="NIfTI, NRRD, MetaImage, a DICOM folder, or a zip of one"
    )
    segment.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    segment.add_argument(
        "--task",
        metavar="NAME",
        help=f"which bundle: {', '.join(bundles) or 'none found'}, or the path of one of your own"
        + (f" (default: {default})" if default else ""),
    )
    segment.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU when it is there)",
    )
    segment.add_argument(
        "--output",
        type=_kinds,
        default=USUAL_KINDS,
        metavar="KINDS",
        help=f"any of {','.join(KINDS)}, with commas between (default: {','.join(USUAL_KINDS)})",
    )
    segment.add_argument(
        "--faces",
        type=faces_wanted,
        default=FACES,
        metavar="N",
        help=f"at most so many faces for each organ's surface; 0 keeps all (default: {FACES})",
    )
    segment.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT even when they are not from an earlier run"
    )
    segment.set_defaults(run=_segment)

    tasks = commands.add_parser(
        "tasks",
        help="list the bundles",
        description="List every bundle: labels, modality, trained or not, evidence, licence.",
    )
    tasks.add_argument("--json", action="store_true", help="as JSON")
    tasks.set_defaults(run=_tasks)
    evaluation_command.add_command(commands)
    preparecommand.add_command(commands)
    importing.add_command(commands)
    serving.add_command(commands)
    return parser


def _say(text: str) -> None:
    print(f"ctseg: {text}", file=sys.stderr, flush=True)


def _chosen_bundle(task: str | None) -> BundleInfo:
    if task is not None:
        return get_bundle(task)
    bundles = find_bundles()
    default = _default_task(bundles)
    if default is None:
        trained = [info.name for info in bundles.values() if info.trained and info.segments]
        listed = ", ".join(trained or bundles) or f"none in {bundles_root()}"
        raise BundleError(f"it is not clear which bundle to run; name one with --task: {listed}")
    return bundles[default]


def _segment(arguments: argparse.Namespace) -> None:
    source: Path = arguments.input
    out: Path = arguments.out
    bundle = _chosen_bundle(arguments.task)
    if not source.exists():
        raise InputError(f"there is no file or folder {source}; name a NIfTI, NRRD, MetaImage, DICOM folder or zip")
    if not bundle.segments:
        raise BundleError(f"bundle {bundle.name} makes no mask; ctseg tasks lists the ones that segment")
    verify_weights(bundle)
    check_folder(out, source, file_names(arguments.output, bundle.labels), overwrite=arguments.overwrite)

    _say(f"loading {bundle.name} {bundle.version}")
    started = time.perf_counter()
    from ctseg.prediction import Predictor  # brings torch and MONAI: seconds, so after every cheap refusal

    predictor = Predictor(bundle, arguments.device)
    load = time.perf_counter() - started
    prediction = predictor.predict(source, progress=lambda stage: _say(_STAGES.get(stage, stage)))
    prediction = dataclasses.replace(prediction, seconds={"load": load, **prediction.seconds})
    _say(f"writing {', '.join(arguments.output)}")
    files, report = write_outputs(prediction, out, arguments.output, faces=arguments.faces)
    print(_summary(report, out, files))


def _summary(report: Mapping[str, Any], out: Path, files: Sequence[Path]) -> str:
    """The small table at the end of a run."""
    organs, seconds = report["organs"], report["seconds"]
    names = [str(organ["name"]) for organ in organs]
    volumes = [f"{organ['volume_ml']:.1f} ml" if organ["found"] else "not found" for organ in organs]
    stages = [(stage, f"{value:.1f} s") for stage, value in seconds.items()]
    left = max(map(len, ["organ", *names, *seconds]))
    right = max(len(text) for text in ["volume", *volumes, *(text for _, text in stages)])
    rows = [
        ("organ", "volume"),
        *zip(names, volumes, strict=True),
        ("", ""),
        ("stage", f"on {report['device']}"),
        *stages,
    ]
    lines = ["", *(f"  {name:<{left}}  {text:>{right}}".rstrip() for name, text in rows), ""]
    for organ in organs:
        if organ["touches_edge"]:
            edges = ", ".join(organ["edges_touched"])
            lines.append(f"note: {organ['name']} reaches the edge of the scan ({edges}): its volume is a lower bound")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"{out}: {'  '.join(file.name for file in files)}", report["intended_use"]]
    return "\n".join(lines)


def _task_entry(info: BundleInfo) -> dict[str, Any]:
    return {
        "task": info.name,
        "version": info.version,
        "description": info.description,
        "labels": info.labels,
        "modality": info.modality,
        "kind": info.kind,
        "status": info.status,
        "trained": info.trained,
        "evidence": info.problem or info.evidence,
        "licence": info.licence,
    }


def _tasks(arguments: argparse.Namespace) -> None:
    bundles = find_bundles()
    entries = [_task_entry(info) for info in bundles.values()]
    if arguments.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    if not entries:
        raise BundleError(f"there are no bundles in {bundles_root()}; make them with scripts/build_bundles")
    rows = [("task", "version", "modality", "labels", "status", "licence of code / weights")]
    for entry in entries:
        labels = ", ".join(entry["labels"]) or "-"
        licence = " / ".join(entry["licence"].get(part, "-") for part in ("code", "weights"))
        rows.append(
            (entry["task"], entry["version"] or "-", entry["modality"] or "-", labels, entry["status"], licence)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
        if number:
            print(
                f"    {'problem' if entries[number - 1]['status'] == 'broken' else 'evidence'}: "
                f"{entries[number - 1]['evidence']}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what a user can mend, 130 when interrupted.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except CtsegError as error:
        _say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
