"""Organs of an uploaded CT in one answer: `POST /predict/` as a mask or surfaces, `POST /surfaces/` of a finished mask.

The handlers are plain functions, which run in threads: the server answers others meanwhile.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app_http import private_folder, refused, sentence_for
from app_infer import wanted_device
from app_networks import Networks
from app_organs import selection_of
from app_studies import checked_tag, locate_image
from app_uploads import multipart, stored_file
from fastapi import Depends, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from starlette.datastructures import FormData

from ctseg.annotation.annotated import named_values
from ctseg.errors import ConfigError, CtsegError, InputError
from ctseg.light.requests import json_list
from ctseg.outputs.meshes import FACES, FEWEST_FACES, MESH_KINDS, SCENE, write_meshes
from ctseg.registry import BundleInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctseg.volume import Volume

MASK = "segmentation.nii.gz"
CONTENT_TYPES = {
    ".gz": "application/gzip",
    ".stl": "model/stl",
    ".obj": "model/obj",
    ".glb": "model/gltf-binary",
    ".zip": "application/zip",
}
OUTPUTS = ("nifti", *MESH_KINDS)
_LIST = 'a JSON list of organs in order of priority, such as ["name of an organ"]'
_MOST_LABELS = 255


def predict_routes(app: Any, networks: Networks) -> list[APIRoute]:
    """Make the routes.

    Args:
        app: our `MONAILabelApp`, with `located(image)` and `datastore()`.
        networks: what segments.
    """
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    fields = Depends(multipart)

    def predict_organs(
        form: Any = fields,
        image: str = "",
        output: str = "nifti",
        faces: str = str(FACES),
        each: bool = False,
        user: Any = user_role,
    ) -> Response:
        """Segment an uploaded CT, or one of the studies (`image`)."""
        wanted, most = _wanted_output(output), _wanted_faces(faces)
        organs = json_list(form, "models", _LIST)
        if organs is None or organs == []:
            raise refused(400, f"no organ is named: send the field models, {_LIST}")
        with stored_file(form) as upload:
            path = _source(app, upload, image)
            name = image or "the uploaded image"
            return _answered(lambda: _segmented(networks, path, organs, form, wanted, most, each), path, name)

    def surfaces_of_mask(
        form: Any = fields,
        image: str = "",
        tag: str = "final",
        output: str = "glb",
        faces: str = str(FACES),
        each: bool = False,
        user: Any = user_role,
    ) -> Response:
        """Make surfaces of an uploaded label map, or of a label of the studies (`image` and `tag`)."""
        wanted, most = _wanted_output(output, MESH_KINDS), _wanted_faces(faces)
        told = json_list(form, "labels", 'a JSON object of names and values, such as {"name of an organ": 1}')
        with stored_file(form) as upload:
            path, saved = _mask(app, upload, image, tag)
            name = image or "the uploaded mask"
            return _answered(lambda: _meshed(networks, path, told or saved, wanted, most, each), path, name)

    return [
        APIRoute("/predict/", predict_organs, methods=["POST"], summary="Segment organs of a CT", tags=["ctseg"]),
        APIRoute("/surfaces/", surfaces_of_mask, methods=["POST"], summary="Surfaces of a mask", tags=["ctseg"]),
    ]


def _answered(work: Callable[[], Response], path: Path, name: str) -> Response:
    try:
        return work()
    except CtsegError as error:
        raise refused(*sentence_for(error, path, name)) from error


def _wanted_output(output: str, known: Sequence[str] = OUTPUTS) -> str:
    if output not in known:
        raise refused(400, f"the output {output[:50]!r} is not known: expected one of {', '.join(known)}")
    return output


def _wanted_faces(faces: str) -> int | None:
    if not faces.isdecimal() or 0 < int(faces) < FEWEST_FACES:
        raise refused(400, f"{faces[:50]!r} is no number of faces: expected {FEWEST_FACES} or more, or 0 for all")
    return int(faces) or None


def _source(app: Any, upload: Path | None, image: str) -> Path:
    if upload is not None and image:
        raise refused(400, "the request has a file and names an image: send one of the two")
    if upload is not None:
        return upload
    if not image:
        raise refused(400, "there is no file: send the field file with a CT as NIfTI (.nii or .nii.gz)")
    path, _ = locate_image(image, app.datastore(), [])
    return path


def _mask(app: Any, upload: Path | None, image: str, tag: str) -> tuple[Path, Any]:
    """Return the file of an uploaded mask or of a saved label, and what was saved about its values."""
    if upload is not None and image:
        raise refused(400, "the request has a file and names an image: send one of the two")
    if upload is not None:
        return upload, None
    if not image:
        raise refused(400, "there is no mask: send the field file with a label map as NIfTI, or name image and tag")
    store, tag = app.datastore(), checked_tag(tag)
    locate_image(image, store, [])
    uri = store.get_label_uri(image, tag)
    if not uri or not Path(uri).is_file():
        raise refused(404, f"the image {image!r} has no label {tag!r}; save one first, or name another tag")
    told = store.get_label_info(image, tag) or {}
    params = told.get("params")
    return Path(uri), told.get("label_info") or (params.get("label_names") if isinstance(params, dict) else None)


def _segmented(
    networks: Networks, path: Path, organs: Any, form: FormData, output: str, faces: int | None, each: bool
) -> Response:
    if not isinstance(organs, list) or not all(isinstance(name, str) for name in organs):
        raise ConfigError(f"the field models holds {json.dumps(organs)[:100]}: expected {_LIST}")
    bundles = networks.bundles()
    selection = selection_of(organs, bundles, _text(form, "task"))
    codes = _text(form, "codes")
    if codes:
        from ctseg.labelcodes import codes_for, presets

        if codes not in presets():  # the library takes a file's path too, which a client has no business with
            raise ConfigError(f"there are no codes {codes[:50]!r}: expected one of {', '.join(presets())}")
        wanted = codes_for(selection.labels, codes)
    prediction = networks.segment(path, selection, wanted_device(_text(form, "device")))
    if codes:
        from ctseg.labelcodes import recoded

        prediction = recoded(prediction, wanted)
    labels = dict(prediction.labels)
    if output != "nifti":
        return _surfaces(prediction.volume, prediction.label_map, labels, output, faces, each, prediction.bundle.colors)
    from ctseg.outputs.writing import write_mask

    with tempfile.TemporaryDirectory(prefix="answer-", dir=private_folder()) as folder:
        content = write_mask(prediction.label_map, prediction.volume, Path(folder) / MASK).read_bytes()
    return _file(MASK, content, labels)


def _meshed(networks: Networks, path: Path, told: Any, output: str, faces: int | None, each: bool) -> Response:
    import numpy as np

    from ctseg.reading import read_volume

    volume = read_volume(path, modality="label")
    present = [int(value) for value in np.unique(volume.array) if value]
    whole = volume.array.dtype.kind in "iu" or bool((volume.array == np.rint(volume.array)).all())
    if not whole or any(not 0 < value <= _MOST_LABELS for value in present):
        raise InputError(f"{path} is no label map: expected whole numbers from 0 to {_MOST_LABELS}; send the mask")
    organs = {name: code for info in networks.bundles().values() for name, code in info.labels.items()}
    named = named_values(told, organs) or {}
    labels = {named.get(value, f"label_{value}"): value for value in present}
    if len(labels) < len(present):
        raise InputError("two values of the mask have one name in labels: expected a name for each value")
    return _surfaces(
        volume, volume.array.astype(np.uint8), labels, output, faces, each, _colors(networks.bundles().values())
    )


def _colors(bundles: Any) -> dict[str, tuple[int, int, int]]:
    infos: list[BundleInfo] = list(bundles)
    return {name: color for info in infos for name, color in info.colors.items()}


def _surfaces(
    volume: Volume,
    label_map: NDArray[np.uint8],
    labels: Mapping[str, int],
    output: str,
    faces: int | None,
    each: bool,
    colors: Mapping[str, Sequence[int]],
) -> Response:
    """One file: the scene of all organs, the only organ, or a zip with a file for each."""
    with tempfile.TemporaryDirectory(prefix="answer-", dir=private_folder()) as folder:
        files = write_meshes(volume, label_map, labels, Path(folder), kinds=(output,), faces=faces, colors=colors)
        contents = {file.name: file.read_bytes() for file in files}
    if not contents:
        raise InputError(f"none of {', '.join(labels) or 'the labels'} is in the image, so there is no surface of it")
    scene = contents.pop(SCENE, None)
    if scene is not None and not each:
        return _file(SCENE, scene, labels)
    if len(labels) == 1:
        (only,) = contents.items()
        return _file(*only, labels)
    return _file("surfaces.zip", _zipped(contents), labels)


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    """The same files give the same bytes: every entry has the same date."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _file(name: str, content: bytes, labels: Mapping[str, int]) -> Response:
    """An answer as a download; the header X-Labels says which value is which organ."""
    ascii_name = name.encode("ascii", "replace").decode().replace("?", "_").replace('"', "_")
    return Response(
        content,
        media_type=CONTENT_TYPES[Path(name).suffix],
        headers={
            "Content-Disposition": f'attachment; filename="{ascii_name}"',
            "X-Labels": json.dumps(dict(labels), ensure_ascii=True),
        },
    )


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""
