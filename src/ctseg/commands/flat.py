"""`ctseg segment` with a flat bundle: one image, a folder of images, or a film, frame by frame."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.errors import ConfigError, CtsegError, InputError
from ctseg.flat.outputs import flat_names, source_entry, wanted_flat_kinds, with_load, write_flat
from ctseg.outputs.folder import check_folder
from ctseg.quality import notes as quality_notes
from ctseg.registry import BundleInfo, verify_weights

if TYPE_CHECKING:
    from ctseg.flat.images import FlatImage
    from ctseg.prediction import Predictor

TABLE = "images.csv"
Job = tuple[Path, int | None, Path]  # an image, a frame of it, the folder of its results


def run(info: BundleInfo, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Do what `ctseg segment` asks of a flat bundle.

    Raises:
        CtsegError: nothing can be begun, the only image cannot be used, or none of several can.
    """
    from ctseg.flat.items import flat_files, flat_volume
    from ctseg.flat.reading import count_frames, read_flat

    if arguments.workers is not None:
        raise ConfigError(f"bundle {info.name} takes a folder of images as it is: leave out --workers")
    source, out = arguments.input, arguments.out
    if not source.exists():
        raise InputError(f"there is no file or folder {source}; name a flat image or a folder of them")
    verify_weights(info)
    kinds = wanted_flat_kinds(arguments.output, info.name) if info.segments else ("json",)
    files = flat_files(source)
    several = source.is_dir() or count_frames(source) > 1
    jobs, refused = _jobs(files, out, several)
    if not several and refused:
        raise InputError(refused[0][1])
    names = [TABLE] if several or info.classifies else flat_names(kinds)
    check_folder(out, source, names, overwrite=arguments.overwrite or several)
    say(f"loading {info.name} {info.version}")
    started = time.perf_counter()
    from ctseg.prediction import Predictor

    predictor = Predictor(info, arguments.device, runtime=arguments.runtime)
    load = time.perf_counter() - started
    rows, done = [], 0
    for image_path, frame, folder in _shown(jobs, several):
        try:
            image = read_flat(image_path, frame)
            if info.classifies:
                rows += _classified(predictor, image)
            else:
                check_folder(folder, image_path, flat_names(kinds), overwrite=arguments.overwrite)
                prediction = with_load(predictor.predict(flat_volume(image)), 0.0 if done else load)
                written, report = write_flat(prediction, image, folder, kinds)
                rows += [_row(image, one) for one in report["structures"]]
            done += 1
        except CtsegError as error:
            if not several:
                raise
            refused.append((image_path.name, str(error)))
    if not done:
        raise InputError(f"none of the {len(refused)} images in {source} could be used; the first: {refused[0][1]}")
    if several or info.classifies:
        _write_table(rows, out / TABLE)
    if several:
        print(f"{done} of {done + len(refused)} images done, {len(refused)} refused; {out / TABLE}")
        for name, reason in refused:
            print(f"  {name}: {reason}")
    elif info.classifies:
        print("\n".join(f"{row['structure']}: probability {row['probability']}, "
                        f"{'present' if row['present'] else 'absent'}" for row in rows))  # fmt: skip
    else:
        print(_summary(report, folder, written))


def _jobs(files: Sequence[Path], out: Path, several: bool) -> tuple[list[Job], list[tuple[str, str]]]:
    """Return what is to be done and what cannot be, by name; each frame is a picture of its own."""
    from ctseg.flat.reading import count_frames, flat_name

    jobs: list[Job] = []
    refused = []
    taken: set[str] = set()
    for path in files:
        name = flat_name(path) if flat_name(path) not in taken else path.name
        taken.add(name)
        try:
            count = count_frames(path)
        except CtsegError as error:
            refused.append((path.name, str(error)))
            continue
        if count == 1:
            jobs.append((path, None, out / name if several else out))
        else:
            jobs += [(path, frame, out / f"{name}_frame{frame + 1:04d}") for frame in range(count)]
    return jobs, refused


def _shown(jobs: Sequence[Job], several: bool) -> Iterator[Job]:
    if not several:
        yield from jobs
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    yield from tqdm(jobs, unit="image", disable=None, file=sys.stderr)


def _classified(predictor: Predictor, image: FlatImage) -> list[dict[str, Any]]:
    from ctseg.flat.items import flat_volume

    _, item, _ = predictor.answer(flat_volume(image))
    threshold = float(predictor.value("threshold"))
    values = item["pred"].float().flatten().tolist()
    return [
        {"image": image.source.name, "frame": image.frame, "structure": name, "probability": round(value, 4),
         "present": int(value >= threshold)}
        for name, value in zip(predictor.bundle.labels, values, strict=True)
    ]  # fmt: skip


def _row(image: FlatImage, one: dict[str, Any]) -> dict[str, Any]:
    source = source_entry(image)
    area = "" if one["area_mm2"] is None else one["area_mm2"]
    return {"image": source["file"], "frame": image.frame, "structure": one["name"], "found": int(one["found"]),
            "pixels": one["pixels"], "share": one["share"], "area_mm2": area, "pieces": one["pieces"]}  # fmt: skip


def _write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from ctseg.files import write_beside

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_beside(path, text.getvalue().encode())


def _summary(report: dict[str, Any], out: Path, files: Sequence[Path]) -> str:
    lines = []
    for one in report["structures"]:
        area = "" if one["area_mm2"] is None else f", {one['area_mm2']:g} mm2"
        what = f"{one['pixels']:,} pixels ({one['share']:.1%} of the image){area}" if one["found"] else "not found"
        lines.append(f"{one['name']}: {what}")
        if one["touches_edge"]:
            lines.append(f"note: {one['name']} reaches the edge of the image: its area is a lower bound")
    lines += quality_notes(report["quality"])
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(f"{out}: {'  '.join(file.name for file in files)}  ({report['seconds']['total']:.1f} s)")
    return "\n".join([*lines, report["intended_use"]])
