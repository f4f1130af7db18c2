"""A collection of generated head CTs with labels 1 to 20: the atlas and the template are read, never copied."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import ConfigError, OutputError
from ctseg.files import write_beside
from ctseg.heads.atlas import label_template, read_atlas, read_template
from ctseg.heads.drawing import Limits, draw_ct, draw_head

IMAGES, LABELS, DATASET, TOLD = "images", "labels", "dataset.json", "generated.json"
_GZIP_LEVEL = 4


def generate_heads(
    atlas: str | Path,
    template: str | Path,
    out: str | Path,
    number: int,
    seed: int = 0,
    names: Mapping[str, int] | None = None,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write heads as `images/head_SEED_NNNN.nii.gz` and `labels/` of the same name; the same seed, the same bytes.

    A head depends on the seed and its number alone, so a longer run begins with the heads of a shorter one. The age
    groups of the atlas take turns.

    Args:
        atlas: folder of the ASPECTS atlas (`ctseg.heads.atlas.read_atlas`).
        template: folder of the head template with its tissue maps.
        out: a new or empty folder. It also gets `dataset.json`, by which `ctseg prepare` knows the labels' names, and
            `generated.json`, what was drawn for each head.
        number: how many heads.
        seed: of the random numbers.
        names: label name -> value, for `dataset.json`; None writes none.
        limits: how far heads vary.
        progress: called after each head with its number.

    Returns:
        The images.

    Raises:
        ConfigError: a number below 1 or a seed below 0.
        InputError: atlas or template cannot be used.
        OutputError: `out` holds something, or cannot be written.
    """
    if number < 1 or seed < 0:
        raise ConfigError(f"{number} heads of seed {seed} cannot be made: expected 1 or more, and a seed of 0 or more")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty: name a new folder for the generated heads")
    groups = read_atlas(atlas)
    head_template = read_template(template)
    labelled = {group: label_template(levels, head_template) for group, levels in groups.items()}
    limits = limits or Limits()
    written, told = [], {}
    for count in range(number):
        rng = np.random.default_rng([seed, count])
        head = draw_head(rng, limits)
        group = list(labelled)[count % len(labelled)]
        ct, labels, affine = draw_ct(head, head_template, labelled[group], rng)
        name = f"head_{seed}_{count:04d}"
        for folder, array in ((IMAGES, ct), (LABELS, labels)):
            write_beside(out / folder / f"{name}.nii.gz", _nifti(array, affine))
        written.append(out / IMAGES / f"{name}.nii.gz")
        told[name] = {"group": group, **head.told()}
        if progress is not None:
            progress(count)
    _describe(out, written, names, {"seed": seed, "heads": told})
    return written


def _nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """A compressed NIfTI without time or name in it."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0)


def _describe(out: Path, images: list[Path], names: Mapping[str, int] | None, told: dict[str, Any]) -> None:
    write_beside(out / TOLD, (json.dumps(told, indent=1) + "\n").encode())
    if names is None:
        return
    pairs = [{"image": f"./{IMAGES}/{path.name}", "label": f"./{LABELS}/{path.name}"} for path in images]
    content = {
        "name": "generated heads",
        "labels": {"0": "background", **{str(value): name for name, value in names.items()}},
        "training": pairs,
    }
    write_beside(out / DATASET, (json.dumps(content, indent=1) + "\n").encode())
