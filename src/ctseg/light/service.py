"""A small web API on exported networks, without PyTorch: an image in, a mask out, or one sentence why not.

`POST /predict/` is that of the MONAI Label app (`docs/server.md`): the same fields, headers and refusals.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import FormData

from ctseg import __version__, labelcodes
from ctseg.errors import BundleError, ConfigError, CtsegError, DeviceError
from ctseg.flat.reading import DICOM, PICTURES
from ctseg.flat.writing import write_flat_mask
from ctseg.light.models import Models
from ctseg.light.page import page
from ctseg.light.predicting import predictor_of, segment
from ctseg.light.requests import VOLUMES, Guard, json_list, refusal_of, refused, stored_file, text_of
from ctseg.organchoice import OrganChoice, choose_organs
from ctseg.outputs.writing import write_mask
from ctseg.prediction import Prediction
from ctseg.registry import BundleInfo

LARGEST_MIB = 1024
MASK, PICTURE = "segmentation.nii.gz", "segmentation.png"
_LIST = 'a JSON list of organs in order of priority, such as ["name of an organ"]'
_VOLUME = "a NIfTI (.nii or .nii.gz)"
_FLAT = f"a picture ({', '.join(PICTURES)}) or a single DICOM image (.dcm)"
_FIELDS = {
    "type": "object",
    "required": ["file", "models"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a NIfTI, or for flat images a picture"},
        "models": {"type": "string", "description": _LIST},
        "task": {"type": "string", "description": "the model to take wherever it has the organ"},
        "codes": {"type": "string", "description": f"values in the mask: {', '.join(labelcodes.presets())}"},
        "device": {"type": "string", "description": "auto or cpu"},
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is not understood; `detail` says why in one sentence"},
    409: {"description": "the model cannot be used"},
    413: {"description": "the image is too large"},
    422: {"description": "the image cannot be used"},
}


async def _form(request: Request) -> AsyncIterator[FormData]:
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise refused(400, f"the request is {kind.partition(';')[0] or 'empty'}: expected multipart/form-data")
    async with request.form(max_files=1, max_fields=20) as form:
        yield form


def make_app(models: Models, largest_mib: int = LARGEST_MIB, token: str | None = None) -> Any:
    """Make the ASGI application.

    Args:
        models: what is served.
        largest_mib: the largest body of a request.
        token: that callers must show, or None.
    """
    private = tempfile.TemporaryDirectory(prefix="ctseg-api-")  # 0700; it goes with the application
    service = _Service(models, Path(private.name))
    app = FastAPI(
        title="ctseg api",
        version=__version__,
        description="Masks by exported networks. Research use only: not a medical device, not for diagnosis.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.private = private
    body = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FIELDS}}}}
    app.get("/", include_in_schema=False)(lambda: page(app.openapi()))
    app.get("/docs", include_in_schema=False)(lambda: page(app.openapi()))
    app.get("/health", summary="Whether it runs")(lambda: {"status": "ok", "models": len(models.bundles())})
    app.get("/models", summary="The models of the folder, with checksums")(models.listed)
    masks = {200: {"content": {"application/gzip": {}, "image/png": {}}, "description": "the mask"}}
    route: dict[str, Any] = {"openapi_extra": body, "responses": {**masks, **_REFUSALS}, "response_class": Response}
    app.post("/predict/", summary="Segment organs of an image", **route)(service.predict)
    app.post("/presence/", summary="Say on which slices organs are", openapi_extra=body, responses=_REFUSALS)(
        service.presence
    )
    app.exception_handler(Exception)(_failed)
    return Guard(app, largest_mib << 20, token)


def _failed(_: Request, error: Exception) -> Response:
    """Answer for a mistake of ours; uvicorn writes it to its log."""
    return Response('{"detail": "the service made an error, which is in its log"}', 500, media_type="application/json")


class _Service:
    """The routes' work; one image at a time, since each needs most of a weak computer."""

    def __init__(self, models: Models, folder: Path) -> None:
        self._models = models
        self._folder = folder
        self._one = threading.Lock()

    def predict(self, form: FormData = Depends(_form), image: str = "", output: str = "") -> Response:  # noqa: B008
        """Segment organs of an uploaded image: a mask on its own grid, or a PNG of its own size."""
        if output not in ("", "nifti", "png"):
            raise refused(400, f"the output {output[:50]!r} is not known: expected nifti, or png for flat images")
        self._check_image(form, image)
        choices = self._choices(form)
        flat = choices[0].bundle.flat
        if output and (output == "png") != flat:
            raise refused(400, f"the output {output} is not that of {choices[0].bundle.name}: leave it out")
        wanted = _checked(lambda: _codes(form, choices))
        endings, what = ((*PICTURES, *DICOM), _FLAT) if flat else (VOLUMES, _VOLUME)
        with stored_file(form, self._folder, endings, what) as path:
            return _checked(lambda: self._mask(path, choices, wanted, flat), path)

    def presence(self, form: FormData = Depends(_form), image: str = "") -> dict[str, Any]:  # noqa: B008
        """Say of each slice of an uploaded image how sure a classifier is that its organs are on it."""
        self._check_image(form, image)
        names = _names(form)
        bundles = self._models.bundles()
        sayers = {name: info for name, info in bundles.items() if info.classifies}
        fitting = [name for name, info in sayers.items() if name in names or set(names) <= set(info.labels)]
        if not fitting:
            asked = ", ".join(names)[:100]
            raise refused(400, f"no classifier says anything about {asked}: there are {_listed(sayers)}")
        flat = sayers[fitting[0]].flat
        endings, what = ((*PICTURES, *DICOM), _FLAT) if flat else (VOLUMES, _VOLUME)
        with stored_file(form, self._folder, endings, what) as path:
            return _checked(lambda: self._table(path, fitting[0]), path)

    def _check_image(self, form: FormData, image: str) -> None:
        if image and form.get("file"):
            raise refused(400, "the request has a file and names an image: send one of the two")
        if image:
            raise refused(404, "there are no studies here to name: send the image in the field file")

    def _choices(self, form: FormData) -> tuple[OrganChoice, ...]:
        organs, task = _names(form), text_of(form, "task")
        bundles = self._models.bundles()
        device = text_of(form, "device")

        def chosen() -> tuple[OrganChoice, ...]:
            if device and not re.fullmatch(r"auto|cpu", device):
                raise DeviceError(f"the device {device[:50]!r} is not known: expected auto or cpu; leave it out")
            if task and task not in bundles:
                raise ConfigError(f"there is no task {task[:100]!r}; the known ones are: {_listed(bundles)}")
            self._say_unusable(organs)
            if (flat := _flat_network(organs, bundles, task)) is not None:
                return tuple(OrganChoice(name, flat, flat.labels[name], flat.labels[name]) for name in organs)
            return choose_organs(organs, bundles, task=bundles[task] if task else None)

        choices: tuple[OrganChoice, ...] = _checked(chosen)
        return choices

    def _say_unusable(self, organs: list[str]) -> None:
        """An organ that only an unusable model has is not unknown: say what is wrong with the model."""
        models = self._models.all().values()
        known = {label for info in self._models.bundles().values() for label in info.labels}
        for model in models:
            reason = model.problem or model.told.get("needs_torch")
            own = [*model.info.labels, model.name]
            if reason and (mine := [name for name in organs if name in own and name not in known]):
                raise BundleError(f"{mine[0]} cannot be segmented: {reason}")

    def _mask(self, path: Path, choices: tuple[OrganChoice, ...], codes: Mapping[str, int], flat: bool) -> Response:
        with self._one:
            volume = self._models.get(choices[0].bundle.name).read(path)
            one = {choice.bundle.path for choice in choices}
            if len(one) == 1 and len(choices) == len(choices[0].bundle.labels):
                found = predictor_of(self._models, volume)(choices[0].bundle)
            else:
                found = segment(self._models, volume, choices)
        found = labelcodes.recoded(found, {name: codes.get(name, code) for name, code in found.labels.items()})
        labels = {choice.name: found.labels[choice.name] for choice in choices}
        return _file(found, labels, flat, self._folder)

    def _table(self, path: Path, name: str) -> dict[str, Any]:
        from ctseg.presence.slices import SliceTable
        from ctseg.presence.table import table_json

        with self._one:
            predictor = self._models.get(name)
            volume, probability, positions, axis = predictor.presence(path)
        threshold = float(predictor.model.told.get("threshold", 0.5))
        labels = tuple(predictor.model.info.labels)
        return {"model": name, **table_json(SliceTable(volume, labels, probability, positions, axis, threshold))}


def _flat_network(organs: list[str], bundles: Mapping[str, BundleInfo], task: str) -> BundleInfo | None:
    """The network for flat images that is meant; None where one for volumes is, or none at all."""
    flat = [info for info in bundles.values() if info.flat and info.segments and (not task or info.name == task)]
    volumes = {label for info in bundles.values() if info.segments and not info.flat for label in info.labels}
    fitting = [info for info in flat if set(organs) <= set(info.labels)]
    if not fitting or len(set(organs)) < len(organs) or (not task and volumes & set(organs)):
        return None
    if len(fitting) > 1:
        named = ", ".join(info.name for info in fitting)
        raise ConfigError(f"{', '.join(organs)} is segmented by several models: name one of {named} as the task")
    return fitting[0]


def _names(form: FormData) -> list[str]:
    organs = json_list(form, "models", _LIST)
    if organs is None or organs == []:
        raise refused(400, f"no organ is named: send the field models, {_LIST}")
    if not isinstance(organs, list) or not all(isinstance(name, str) for name in organs):
        raise refused(400, f"the field models holds {json.dumps(organs)[:100]}: expected {_LIST}")
    return organs


def _codes(form: FormData, choices: tuple[OrganChoice, ...]) -> Mapping[str, int]:
    own = {choice.name: choice.code for choice in choices}
    codes = text_of(form, "codes")
    if not codes:
        return own
    if codes not in labelcodes.presets():  # the library takes a file's path too, which a client has no business with
        raise ConfigError(f"there are no codes {codes[:50]!r}: expected one of {', '.join(labelcodes.presets())}")
    return labelcodes.codes_for(own, codes)


def _checked(work: Callable[[], Any], path: Path = Path("/nowhere")) -> Any:
    try:
        return work()
    except CtsegError as error:
        raise refusal_of(error, path, "the uploaded image") from error


def _file(found: Prediction, labels: Mapping[str, int], flat: bool, folder: Path) -> Response:
    """The mask as a download; the header X-Labels says which value is which organ."""
    name = PICTURE if flat else MASK
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / name
        if flat:
            write_flat_mask(np.asarray(found.label_map)[:, :, 0], labels, path, found.bundle.colors)
        else:
            write_mask(found.label_map, found.volume, path)
        content = path.read_bytes()
    return Response(
        content,
        media_type="image/png" if flat else "application/gzip",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Labels": json.dumps(dict(labels), ensure_ascii=True),
            "X-Runtime": found.runtime,
        },
    )


def _listed(bundles: Mapping[str, Any]) -> str:
    return ", ".join(bundles) or "none"
