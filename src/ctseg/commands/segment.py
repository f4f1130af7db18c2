"""`ctseg segment`: an image in, a folder of results out."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg import labelcodes
from ctseg.budget.reckoning import gib, memory_size, peak_memory
from ctseg.commands import cohort
from ctseg.dependencies import check_dependencies
from ctseg.devices import use_threads
from ctseg.errors import ConfigError, InputError
from ctseg.export.runtimes import RUNTIMES
from ctseg.organchoice import default_task, select
from ctseg.outputs.folder import FLAT_KINDS, KINDS, USUAL_KINDS, check_folder, file_names, write_outputs
from ctseg.outputs.meshes import FACES, faces_wanted
from ctseg.presence.output import PRESENCE_KINDS, presence_names, presence_summary, write_presence
from ctseg.quality import notes as quality_notes
from ctseg.registry import BundleInfo, find_bundles, get_bundle, verify_weights

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
  labels_itksnap.txt, labels.ctbl
                 names and colours of the mask's values for ITK-SNAP (itksnap) and 3D Slicer (slicer)
by a classifier (--task ..._classification), instead of a mask:
  presence.csv   a line a slice: number, height in mm, probability, present 0 or 1 (csv)
  presence.png   the same as a plot beside the body (png)
  report.json    the table, runs and gaps of slices, versions, seconds, sha256 (json)
by a bundle of flat images (photographs, ultrasound, single slices), of an image, a folder of images or a film:
  mask.png       black and white, of the image's own size (mask); of several structures their values as a palette
  preview.png    the image, and the image with the outline (png)
  report.json    pixels, mm2 where the image knows its millimetres, pieces, versions, seconds, sha256 (json)
  images.csv     of several images, each with a folder of its own: a line an image and structure

examples:
  ctseg segment ct.nii.gz -o out
  ctseg segment dicom_folder -o out --output nifti,json
  ctseg segment ct.nii.gz -o out --output glb --faces 50000
  ctseg segment ct.nrrd -o out --task path/to/my/bundle
  ctseg segment FOLDER -o OUT --workers 2        every study below FOLDER, two side by side
  ctseg segment photo.jpg -o out --task skin_lesion_segmentation"""

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


def _threads(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; expected 1 or more, or -1 and below")
    return int(text)


def _kinds(text: str) -> tuple[str, ...]:
    asked = [kind.strip() for kind in text.split(",") if kind.strip()]
    known = tuple(dict.fromkeys((*KINDS, *PRESENCE_KINDS, *FLAT_KINDS)))
    if not asked or (unknown := sorted(set(asked) - set(known))):
        what = f"{', '.join(unknown)} is no kind of output" if asked else "no kind of output is named"
        raise argparse.ArgumentTypeError(f"{what}; expected one or more of {','.join(known)}")
    return tuple(kind for kind in known if kind in asked)


def _wanted_kinds(asked: tuple[str, ...] | None, bundle: BundleInfo) -> tuple[str, ...]:
    """The kinds of output that were asked for, or the usual ones of such a bundle."""
    usual, possible = (PRESENCE_KINDS, PRESENCE_KINDS) if bundle.classifies else (USUAL_KINDS, KINDS)
    if wrong := set(asked or ()) - set(possible):
        raise ConfigError(
            f"bundle {bundle.name} writes no {', '.join(sorted(wrong))}: expected one or more of {','.join(possible)}"
        )
    return asked or usual


def _organs(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("no organ is named; ctseg tasks lists them under labels")
    return names


def add_command(commands: Any) -> None:
    """Add `segment` to the command line's commands."""
    plain = argparse.RawDescriptionHelpFormatter
    bundles = find_bundles()
    default = default_task(bundles)
    segment = commands.add_parser(
        "segment", help="segment an image", description="Segment an image.", epilog=_OF_SEGMENT, formatter_class=plain
    )
    segment.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="NIfTI, NRRD, MetaImage, a DICOM folder or a zip of one; a flat image or a folder of them",
    )
    segment.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    segment.add_argument(
        "--task",
        metavar="NAME",
        help=f"which bundle: {', '.join(bundles) or 'none found'}, or the path of one of your own"
        + (f" (default: {default})" if default else ""),
    )
    segment.add_argument(
        "--organs",
        type=_organs,
        metavar="NAMES",
        help="labels with commas between, each by the bundle that segments it (--task decides where several do); a "
        "voxel that two claim belongs to the one named first",
    )
    segment.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU when it is there)",
    )
    segment.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what runs the network: torch (default), onnx or openvino (after ctseg export), or auto, which takes what "
        "scripts/benchmark_runtimes found to be fastest here",
    )
    segment.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="how many threads the CPU's work may use; -1 leaves one core free (default: all cores)",
    )
    segment.add_argument(
        "--output",
        type=_kinds,
        metavar="KINDS",
        help=f"any of {','.join(KINDS)}, with commas between (default: {','.join(USUAL_KINDS)}); "
        f"of a classifier {','.join(PRESENCE_KINDS)}, of a flat image {','.join(FLAT_KINDS)} (default: all)",
    )
    segment.add_argument(
        "--faces",
        type=faces_wanted,
        default=FACES,
        metavar="N",
        help=f"at most so many faces for each organ's surface; 0 keeps all (default: {FACES})",
    )
    segment.add_argument(
        "--codes",
        default=labelcodes.OWN,
        metavar="SET",
        help=f"the organs' values in the mask: {', '.join(labelcodes.presets())}, or a JSON file of names and values "
        f"(default: {labelcodes.OWN}, the bundle's own)",
    )
    segment.add_argument(
        "--max-ram",
        type=memory_size,
        metavar="SIZE",
        help="take no more memory than this, for example 4G: large images are then worked on in slabs; what cannot be "
        "done within it is refused before it is begun (with --workers: all of them together)",
    )
    segment.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT even when they are not from an earlier run"
    )
    cohort.add_options(segment)
    segment.set_defaults(run=_segment)


def say(text: str) -> None:
    """Say a line to who waits: on the error stream, since the output is for programs."""
    print(f"ctseg: {text}", file=sys.stderr, flush=True)


def _segment(arguments: argparse.Namespace) -> None:
    source: Path = arguments.input
    out: Path = arguments.out
    if arguments.task is not None and arguments.organs is None and (chosen := get_bundle(arguments.task)).flat:
        from ctseg.commands import flat

        flat.run(chosen, arguments, say)
        return
    if cohort.is_asked_for(arguments):
        _segment_many(arguments)
        return
    if arguments.task is not None and arguments.organs is None and (info := get_bundle(arguments.task)).classifies:
        _classify(info, arguments)
        return
    selection = select(arguments.organs, arguments.task)
    _check_source(source)
    labelcodes.codes_for(selection.labels, arguments.codes)
    selection.check_ready()
    kinds = _wanted_kinds(arguments.output, selection.bundle)
    check_folder(out, source, file_names(kinds, selection.labels), overwrite=arguments.overwrite)

    say(f"loading {', '.join(f'{info.name} {info.version}' for info in selection.bundles)}")
    imported = _import_monai(arguments)  # seconds, so after every cheap refusal
    use_threads(arguments.threads)
    from ctseg.api import segment_volume

    prediction = segment_volume(
        source,
        organs=arguments.organs,
        task=arguments.task,
        codes=arguments.codes,
        device=arguments.device,
        runtime=arguments.runtime,
        progress=lambda stage: say(_STAGES.get(stage, stage)),
        max_ram=arguments.max_ram,
    ).prediction
    prediction = dataclasses.replace(prediction, seconds=_with_load(prediction.seconds, imported))
    say(f"writing {', '.join(kinds)}")
    files, report = write_outputs(prediction, out, kinds, faces=arguments.faces)
    if arguments.max_ram is not None:
        say(f"the most memory that was taken: {gib(peak_memory())} of {gib(arguments.max_ram)}")
    print(_summary(report, out, files))


def _segment_many(arguments: argparse.Namespace) -> None:
    """Every study below a folder: see `ctseg.cohort.running`."""
    if arguments.threads is not None:
        raise ConfigError("--threads is for one study: over a folder the workers share the cores; choose --workers")
    if arguments.task is not None and arguments.organs is None and (info := get_bundle(arguments.task)).classifies:
        _check_makes_masks(info, arguments)
        cohort.run(arguments, (info,), _wanted_kinds(arguments.output, info), say)
        return
    selection = select(arguments.organs, arguments.task)
    selection.check_ready()
    labelcodes.codes_for(selection.labels, arguments.codes)
    cohort.run(arguments, selection.bundles, _wanted_kinds(arguments.output, selection.bundle), say)


def _import_monai(arguments: argparse.Namespace) -> float:
    """Import torch and MONAI, and return the seconds; only what a mask needs of it where this program is all there is.

    A program that calls `ctseg.cli.main` has a MONAI of its own to keep whole.
    """
    started = time.perf_counter()
    if arguments.own_program:
        from ctseg.lean import import_monai

        import_monai()
    return time.perf_counter() - started


def _with_load(seconds: Mapping[str, float], imported: float) -> dict[str, float]:
    return {**seconds, "load": seconds.get("load", 0.0) + imported}


def _check_source(source: Path) -> None:
    if not source.exists():
        raise InputError(f"there is no file or folder {source}; name a NIfTI, NRRD, MetaImage, DICOM folder or zip")


def _check_makes_masks(bundle: BundleInfo, arguments: argparse.Namespace) -> None:
    if arguments.max_ram is not None:
        raise ConfigError(f"--max-ram is for tasks that make a mask, but {bundle.name} is a classifier; leave it out")


def _classify(bundle: BundleInfo, arguments: argparse.Namespace) -> None:
    _check_makes_masks(bundle, arguments)
    _check_source(arguments.input)
    verify_weights(bundle)
    check_dependencies(bundle)
    kinds = _wanted_kinds(arguments.output, bundle)
    check_folder(arguments.out, arguments.input, presence_names(kinds), overwrite=arguments.overwrite)

    say(f"loading {bundle.name} {bundle.version}")
    started = time.perf_counter()
    _import_monai(arguments)
    use_threads(arguments.threads)
    from ctseg.presence.slices import PresencePredictor

    predictor = PresencePredictor(bundle, arguments.device, runtime=arguments.runtime)
    load = time.perf_counter() - started
    stages = {**_STAGES, "postprocess": "turning it into a table"}
    found = predictor.predict(arguments.input, progress=lambda stage: say(stages.get(stage, stage)))
    found = dataclasses.replace(found, seconds={"load": load, **found.seconds})
    say(f"writing {', '.join(kinds)}")
    files, report = write_presence(found, arguments.out, kinds)
    print(presence_summary(report, arguments.out, files))


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
    lines += quality_notes(report.get("quality"))
    for organ in organs:
        if organ["touches_edge"]:
            edges = ", ".join(organ["edges_touched"])
            lines.append(f"note: {organ['name']} reaches the edge of the scan ({edges}): its volume is a lower bound")
    several = report.get("bundles", [])
    for ran in several or [report]:
        if slices := ran["slices"]:
            chosen = f", chosen by {slices['gate']}" if slices["gate"] else ""
            of = f" of {ran['name']}" if several else ""
            lines.append(f"slices run{of}: {slices['run']} of {slices['of']}{chosen}")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"{out}: {'  '.join(file.name for file in files)}", report["intended_use"]]
    return "\n".join(lines)
