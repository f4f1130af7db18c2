"""`POST /infer/{model}?output=dicom_seg` with our writer.

MONAI Label's own gives every organ one and the same code unless the client says otherwise, and matches names to values
by the order in which the values occur.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from app_dicom import SeriesOnServer
from app_http import private_folder, refused, sentence_for
from app_studies import remove_upload
from fastapi.responses import FileResponse

from ctseg.dicom.seg import Algorithm, write_seg
from ctseg.errors import CtsegError


def use_our_dicom_seg(app: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Put our answer into MONAI Label's endpoint, for the output `dicom_seg` only.

    Args:
        app: our `MONAILabelApp`.
        entries: the known labels with their codes and colours.
    """
    infer = sys.modules.get("monailabel.endpoints.infer")
    if infer is None:  # a training's process, in which nothing is answered
        return
    stock: Callable[..., Any] = getattr(infer.run_inference, "stock", infer.run_inference)

    def run_inference(
        background_tasks: Any,
        model: str,
        image: str = "",
        session_id: str = "",
        params: str = "{}",
        file: Any = None,
        label: Any = None,
        output: Any = None,
    ) -> Any:
        if str(getattr(output, "value", output)) != "dicom_seg":
            return stock(background_tasks, model, image, session_id, params, file, label, output)
        answer = dicom_seg(app, entries, {**json.loads(params or "{}"), "model": model, "image": image})
        background_tasks.add_task(remove_upload, answer, private_folder())
        return FileResponse(answer, media_type="application/dicom", filename="segmentation.dcm")

    run_inference.stock = stock  # type: ignore[attr-defined]
    infer.run_inference = run_inference  # type: ignore[attr-defined]


def dicom_seg(app: Any, entries: Sequence[dict[str, Any]], request: dict[str, Any]) -> Path:
    """Segment a series and return its mask as a DICOM SEG in the private folder.

    Raises:
        HTTPException: 409 where the studies are no DICOM series; 4xx with one sentence for what the caller can mend.
    """
    store = app.datastore()
    if not isinstance(store, SeriesOnServer):
        raise refused(
            409,
            "DICOM SEG is made of DICOM series, but these studies are a folder of files; ask for the image",
        )
    result = app.infer({**request, "result_extension": ".nii", "result_dtype": "uint8"}, store)
    if not result.get("file"):
        raise refused(400, f"the model {request['model']!r} answers without a mask; ask for json")
    path, params = private_folder() / f"seg-{secrets.token_hex(8)}.dcm", result["params"]
    try:
        volume = store.volume(str(request["image"]))
        label_map = np.asarray(nib.load(result["file"]).dataobj)
        labels = app._infers[request["model"]].info()["labels"]
        known = {str(entry["name"]): entry for entry in entries}
        own = [{**known.get(name, {}), "name": name, "code": value} for name, value in labels.items()]
        bundle = app._bundles.get(request["model"])
        learned = bundle is None or bundle.needs_weights
        algorithm = Algorithm("AUTOMATIC", request["model"], str(params.get("version", "")), learned)
        return write_seg(
            label_map, volume, None, own, path, algorithm, f"{request['model']} {algorithm.version}".strip()
        )
    except CtsegError as error:
        raise refused(*sentence_for(error, path, "the mask")) from error
    finally:
        remove_upload(result["file"], private_folder())
