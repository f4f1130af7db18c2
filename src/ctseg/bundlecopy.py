"""A bundle with other weights, as a folder of its own: what a training of somebody's own hands on to be used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files import PART, file_sha256, sync_folder, write_beside
from ctseg.registry import BundleInfo, get_bundle

_WEIGHTS = "models/model.pt"


def copy_with_weights(
    bundle: BundleInfo, weights: Path, target: Path, version: str, change: str, evidence: str
) -> BundleInfo:
    """Write a complete bundle beside the original, which is not touched.

    The model card is left behind: it tells of other weights.

    Args:
        bundle: what is copied.
        weights: tensors that fit its network.
        target: the new folder; it appears in one step, when it is complete.
        version: of the new bundle.
        change: its line in the changelog.
        evidence: one sentence on what the new weights were measured on.

    Raises:
        OutputError: the folder is there already, or cannot be written.
    """
    if target.exists():
        raise OutputError(f"{target} is there already; name a new folder")
    beside = target.with_name(f".{target.name}{PART}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(bundle.path / "configs", beside / "configs", ignore=shutil.ignore_patterns("monailabel_*"))
        if (bundle.path / "LICENSE").is_file():
            shutil.copyfile(bundle.path / "LICENSE", beside / "LICENSE")
        (beside / "models").mkdir()
        _copy_durably(weights, beside / _WEIGHTS)
        metadata = json.loads((beside / "configs" / "metadata.json").read_text(encoding="utf-8"))
        metadata["version"] = version
        metadata["changelog"] = {version: change, **metadata.get("changelog", {})}
        metadata["ctseg"] |= {
            "weights": {"file": _WEIGHTS, "sha256": file_sha256(beside / _WEIGHTS)},
            "evidence": evidence,
        }
        write_beside(beside / "configs" / "metadata.json", (json.dumps(metadata, indent=4) + "\n").encode())
        beside.rename(target)
        sync_folder(target.parent)
    except (OSError, shutil.Error) as error:  # the second gathers what failed in a tree
        shutil.rmtree(beside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write the bundle {target}: {reason}; check rights and space") from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return get_bundle(target)


def _copy_durably(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    sync_folder(target.parent)
