"""What annotation services export: COCO's JSON, LabelMe's JSON files, YOLO's text files of polygons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.collections.listing import Candidate, Collection, Layout, Refusal, counted
from ctseg.errors import CtsegError, InputError
from ctseg.flat.reading import flat_name, is_flat_path
from ctseg.flat.shapes import Outlines, Shape, runs_of_text

_NAMES = ("data.yaml", "data.yml", "classes.txt", "obj.names")


def list_coco(source: Path, layout: Layout) -> Collection:
    """List the images of COCO's JSON files below a folder; an image without an annotation has an empty mask.

    Raises:
        InputError: no such file.
    """
    files = [(path, content) for path in sorted(source.rglob("*.json")) if (content := _coco(path)) is not None]
    if not files:
        raise InputError(f"{source} holds no COCO file: expected a .json with images, annotations and categories")
    pictures = _pictures(source)
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    for path, content in files:
        names = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        used = {int(one["category_id"]) for one in content["annotations"]}
        table = structures_by(names, layout, used)
        drawn: dict[Any, list[Mapping[str, Any]]] = {}
        for one in content["annotations"]:
            drawn.setdefault(one["image_id"], []).append(one)
        for image in content["images"]:
            name = flat_name(str(image["file_name"]))
            try:
                found = _find(str(image["file_name"]), path.parent, pictures)
                shapes = [shape for one in drawn.get(image["id"], ()) for shape in _coco_shapes(one, table)]
                size = (int(image["height"]), int(image["width"]))
                candidates.append(_candidate(name, found, Outlines(tuple(shapes), size)))
            except (CtsegError, KeyError, ValueError, TypeError) as error:
                refused.append(Refusal(name, _words(error)))
    saw = f"COCO annotations in {counted(len(files), 'file')}, {counted(len(candidates), 'image')}"
    return Collection("coco", saw, tuple(candidates), tuple(refused))


def list_labelme(source: Path, layout: Layout) -> Collection:
    """List the JSON files of LabelMe, each beside its image.

    Raises:
        InputError: no such file.
    """
    files = [(path, content) for path in sorted(source.rglob("*.json")) if (content := _labelme(path)) is not None]
    if not files:
        raise InputError(f"{source} holds no LabelMe file: expected .json files with shapes and imagePath")
    names = {name: name for _, content in files for name in (str(one.get("label")) for one in content["shapes"])}
    table = structures_by(names, layout, set(names))
    pictures = _pictures(source)
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    for path, content in files:
        try:
            image = _find(str(content["imagePath"]).replace("\\", "/"), path.parent, pictures)
            size = content.get("imageHeight"), content.get("imageWidth")
            shapes = tuple(
                Shape(table[str(one["label"])], str(one.get("shape_type", "polygon")), _points(one["points"]))
                for one in content["shapes"]
                if str(one["label"]) in table
            )
            known = (int(size[0]), int(size[1])) if size[0] and size[1] else None
            candidates.append(_candidate(path.stem, image, Outlines(shapes, known)))
        except (CtsegError, KeyError, ValueError, TypeError) as error:
            refused.append(Refusal(path.stem, _words(error)))
    with_json = {candidate.image for candidate in candidates}
    refused += [
        Refusal(flat_name(path), f"{path.name} has no LabelMe file: outline it, or take it away")
        for path in _all(pictures)
        if path not in with_json and not any(path.stem == one.case_id for one in refused)
    ]
    saw = f"LabelMe annotations, {counted(len(candidates), 'image')}"
    return Collection("labelme", saw, tuple(candidates), tuple(refused))


def list_yolo(source: Path, layout: Layout) -> Collection:
    """List images with a text file of polygons each, `images/a.jpg` and `labels/a.txt`; an empty one is an empty mask.

    Raises:
        InputError: no such file.
    """
    texts = {path.stem: path for path in sorted(source.rglob("*.txt")) if _in_labels(path, source)}
    if not texts:
        raise InputError(f"{source} holds no YOLO polygons: expected labels/*.txt beside images/")
    names = _yolo_names(source)
    rows = {name: path.read_text(encoding="utf-8", errors="replace").split("\n") for name, path in texts.items()}
    used = {int(row.split()[0]) for lines in rows.values() for row in lines if re.match(r"\d+\s", row)}
    table = structures_by(names or {number: str(number) for number in used}, layout, used)
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    pictures = _pictures(source)
    for name in sorted({*texts, *(flat_name(path) for path in _all(pictures))}):
        images = [path for path in _all(pictures) if flat_name(path) == name]
        if name not in texts or len(images) != 1:
            what = "labels/ has no text of its name" if name not in texts else f"it has {len(images)} images, not one"
            refused.append(Refusal(name, f"{what}: leave one image and one text of a name"))
            continue
        try:
            shapes = tuple(shape for row in rows[name] if row.strip() for shape in _yolo_shapes(row, table))
            candidates.append(_candidate(name, images[0], Outlines(shapes, None, relative=True)))
        except (CtsegError, ValueError) as error:
            refused.append(Refusal(name, _words(error)))
    return Collection("yolo", f"YOLO polygons, {counted(len(candidates), 'image')}", tuple(candidates), tuple(refused))


def _in_labels(path: Path, source: Path) -> bool:
    """Whether it lies in labels/, or in labels/train/."""
    return any(part.lower().startswith("label") for part in path.relative_to(source).parts[-3:-1])


def structures_by(names: Mapping[Any, str], layout: Layout, used: Iterable[Any]) -> dict[Any, str]:
    """Return class -> structure of the task: by its name, by `--label NAME=NUMBER`, or the only one there is.

    Raises:
        InputError: nothing says which class is a structure of the task.
    """
    wanted = {name.lower(): name for name in layout.structures}
    table = {number: wanted[name.lower()] for number, name in names.items() if name.lower() in wanted}
    table.update({number: name for number, name in layout.values.items() if number in names})
    only = sorted(set(used), key=str)
    if not table and len(only) == 1 and len(layout.structures) == 1:
        table = {only[0]: layout.structures[0]}
    missing = [name for name in layout.structures if name not in table.values()]
    if missing and names:
        known = ", ".join(f"{number} {name}" if str(number) != name else name for number, name in names.items())
        raise InputError(
            f"nothing says which class is {', '.join(missing)} (the classes are {known}): name it so, or say "
            f"--label {missing[0]}=NUMBER"
        )
    return table


def _candidate(name: str, image: Path, drawn: Outlines) -> Candidate:
    return Candidate(name, image, drawn, keys={"flat": True})


def _words(error: BaseException) -> str:
    return (
        str(error) if isinstance(error, CtsegError) else f"its entry cannot be read ({type(error).__name__}: {error})"
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _coco(path: Path) -> dict[str, Any] | None:
    content = _json(path)
    keys = ("images", "annotations", "categories")
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys):
        return content
    return None


def _labelme(path: Path) -> dict[str, Any] | None:
    content = _json(path)
    return content if isinstance(content, dict) and isinstance(content.get("shapes"), list) else None


def _pictures(source: Path) -> dict[str, list[Path]]:
    """File name -> the images of that name below a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*")):
        if is_flat_path(path):
            found.setdefault(path.name, []).append(path)
    return found


def _all(pictures: Mapping[str, Sequence[Path]]) -> list[Path]:
    return [path for paths in pictures.values() for path in paths]


def _find(name: str, beside: Path, pictures: Mapping[str, Sequence[Path]]) -> Path:
    """Return the file that an annotation means: at the path it gives, else the only one of that name."""
    if (beside / name).is_file():
        return beside / name
    found = pictures.get(Path(name).name, ())
    if len(found) != 1:
        raise InputError(f"there are {len(found)} images called {Path(name).name}, one was expected: leave one of them")
    return found[0]


def _points(points: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in points)


def _coco_shapes(entry: Mapping[str, Any], table: Mapping[int, str]) -> list[Shape]:
    structure, drawn = table.get(int(entry["category_id"])), entry.get("segmentation")
    if structure is None:
        return []
    if isinstance(drawn, Mapping):
        counts = drawn["counts"]
        runs = runs_of_text(counts) if isinstance(counts, str) else tuple(int(run) for run in counts)
        return [Shape(structure, "runs", runs=runs)]
    if not drawn:
        raise InputError(f"an annotation of {structure} has no outline, perhaps only a box: outline it")
    return [Shape(structure, "polygon", _points(list(zip(one[::2], one[1::2], strict=True)))) for one in drawn]


def _yolo_shapes(row: str, table: Mapping[int, str]) -> list[Shape]:
    number, *values = row.split()
    if int(number) not in table:
        return []
    if len(values) == 4:
        raise InputError("its text holds a box (four numbers), not an outline: export polygons (YOLO segmentation)")
    numbers = [float(value) for value in values]
    points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if len(points) < 3 or min(numbers) < -0.01 or max(numbers) > 1.01:
        raise InputError("its text holds no polygon: expected a class and shares of width and height, 0 to 1")
    return [Shape(table[int(number)], "polygon", points)]


def _yolo_names(source: Path) -> dict[int, str]:
    for path in (folder / name for folder in (source, source.parent) for name in _NAMES):
        if not path.is_file():
            continue
        if path.suffix in (".txt", ".names"):
            return dict(
                enumerate(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            )
        import yaml

        names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names", {})
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in pairs}
    return {}
