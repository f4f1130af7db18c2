"""Which bundles the server offers: all that segment or classify, or those that `--conf models a,b` names."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ctseg.errors import BundleError
from ctseg.registry import BundleInfo, bundles_root, find_bundles

logger = logging.getLogger(__name__)


def choose_bundles(conf: Mapping[str, str]) -> dict[str, BundleInfo]:
    """Find the bundles to serve.

    Args:
        conf: the pairs of `--conf`. `models`: names with commas between, or "all" (the default). `bundles`: a folder
            of bundles to use in place of those that ship with ctseg. Other keys are MONAI Label's, or nobody's.

    Raises:
        BundleError: an unknown or broken bundle was named, or there is nothing to serve.
    """
    root = Path(conf["bundles"]).resolve() if str(conf.get("bundles") or "").strip() else bundles_root()
    found = find_bundles(root)
    usable = {name: info for name, info in found.items() if (info.segments or info.classifies) and not info.flat}
    for name in found.keys() - usable.keys():
        what = "looks at flat images, which MONAI Label does not serve" if found[name].flat else (
            "answers with something else than a mask or a table"
        )  # fmt: skip
        logger.warning("Not served: %s", found[name].problem or f"bundle {name} {what}")
    if not usable:
        raise BundleError(
            f"there is no bundle to serve in {root}: expected folders with configs/metadata.json; "
            "install ctseg again, or name another folder with --conf bundles FOLDER"
        )
    names = _names(conf)
    if not names:
        return usable
    parts = {name: [info.name for info in usable.values() if name in info.part_of] for name in names}
    names = [part for name in names for part in (parts[name] if name not in usable and parts[name] else [name])]
    for name in names:
        if name not in usable:
            reason = found[name].problem if name in found else ""
            raise BundleError(
                reason
                or f"there is no model {name!r}; the known ones are: {', '.join(usable)}; "
                "name them with commas between (--conf models a,b), or leave --conf models out to serve all"
            )
    return {name: usable[name] for name in dict.fromkeys(names)}


def offers(conf: Mapping[str, str], name: str) -> bool:
    """Whether a model of several bundles is offered: `--conf models` names it, or everything."""
    names = _names(conf)
    return not names or name in names


def _names(conf: Mapping[str, str]) -> list[str]:
    """The models that `--conf models` names; empty for all."""
    names = [name for part in str(conf.get("models") or "all").split(",") if (name := part.strip())]
    return [] if "all" in names else names


def stop_start(sentence: str) -> NoReturn:
    """End the process with one sentence: any exception here would reach the user inside uvicorn's traceback."""
    sys.stdout.flush()
    print(f"ctseg: {sentence}", file=sys.stderr, flush=True)
    os._exit(2)
