"""Answers of ours in the place of MONAI Label's, where its own would mix patients, leave files behind or fail."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from app_audit import caller
from app_http import refused
from app_threads import check_object
from fastapi.routing import APIRoute
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from ctseg.files import file_sha256

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
_ALGORITHMS = ("sha256", "sha512", "sha1", "md5")


def own_routes(app: Any) -> list[APIRoute]:
    """Make the routes.

    Args:
        app: our `MONAILabelApp`.
    """
    from monailabel.endpoints import activelearning

    def next_sample(strategy: str, params: dict[str, Any] | None = None) -> Any:
        """Offer a case under a name that only these voxels have.

        3D Slicer keeps what it downloads under `name`, and takes a file that is at `path` on its own machine: two
        patients whose files have the same name would be mixed. So the name holds the content's sha256, `checksum` lets
        3D Slicer check what it kept, and no path is told.
        """
        check_object("params", params)
        sample: dict[str, Any] = dict(activelearning.sample(strategy, params, caller.get()))
        if not sample:
            return {}
        sample.pop("path", None)
        file = Path(app.datastore().get_image_uri(sample["id"]))
        if file.is_file():
            digest = content_sha256(file)
            extension = next((one for one in _EXTENSIONS if file.name.endswith(one)), file.suffix)
            series = str(sample.get("SeriesInstanceUID") or sample["id"])
            sample |= {"name": f"{series}-{digest[:16]}{extension}", "checksum": f"SHA256:{digest}"}
        return sample

    def dataset(limit_cases: int | None = None) -> Response:
        """Send the labelled cases as a zip, which is removed when it is sent."""
        archive = Path(app.datastore().get_dataset_archive(limit_cases))
        return FileResponse(
            archive, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(archive.unlink)
        )

    def check_image(image: str, check_sum: str | None = None) -> Response:
        """Say whether an image is there, and is the one that the caller knows: `check_sum` is `SHA256:...`."""
        file = Path(app.datastore().get_image_uri(image) or "/nowhere")
        if not file.is_file():
            raise refused(404, f"there is no image {image[:200]!r} in the studies")
        if check_sum and not _fits(file, check_sum):
            raise refused(404, f"the image {image[:200]!r} is another one: its checksum differs")
        return Response()

    return [
        APIRoute("/activelearning/{strategy}", next_sample, methods=["POST"]),
        APIRoute("/datastore/dataset", dataset, methods=["GET"], response_model=None),
        APIRoute("/datastore/image", check_image, methods=["HEAD"], response_model=None),
    ]


def content_sha256(file: Path) -> str:
    """Return the sha256 of a file; a file that has not changed is read once."""
    stat = file.stat()
    return _sha256_of_state(str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=4096)
def _sha256_of_state(file: str, mtime_ns: int, size: int, inode: int) -> str:
    return file_sha256(Path(file))


def _fits(file: Path, check_sum: str) -> bool:
    algorithm, _, digest = check_sum.rpartition(":")
    algorithm = (algorithm or "sha256").lower().replace("-", "")
    if algorithm not in _ALGORITHMS:
        raise refused(400, f"check_sum begins with {algorithm[:20]!r}, expected one of {', '.join(_ALGORITHMS)}")
    if algorithm == "sha256":
        return content_sha256(file) == digest.lower()
    with file.open("rb") as stream:
        found = hashlib.new(algorithm, usedforsecurity=False)
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest() == digest.lower()
