"""Which network is in use: the new one of a training only when it is not worse, and any other that somebody chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app_http import refused
from fastapi import Body, Depends
from fastapi.routing import APIRoute
from monailabel.config import settings

from ctseg.annotation.annotated import DATALIST
from ctseg.annotation.versions import Versions
from ctseg.errors import CtsegError
from ctseg.registry import BundleInfo


def validation_value(bundle: BundleInfo, weights: Path, data: Path, report: Path, device: str) -> float | None:
    """Return the key metric (mean Dice of a segmenter) of weights on the validation cases of a data folder.

    It is the bundle's own `evaluate.json` that runs, so that the figure is the one of the command line.

    Args:
        bundle: whose configurations run.
        weights: tensors that fit its network.
        data: the data folder, with datalist and ledger.
        report: folder for the figures of each case.
        device: "cpu" or "cuda:N".

    Returns:
        The value; None when no validation case has one.
    """
    from monai.bundle import ConfigWorkflow

    flow = ConfigWorkflow(
        config_file=[str(bundle.path / "configs" / f"{name}.json") for name in ("train", "evaluate")],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle.path),
        dataset_dir=str(data),
        datalist=DATALIST,
        split="validation",
        checkpoint=str(weights),
        report_dir=str(report),
        device=device,
        num_workers=0,
    )
    flow.initialize()
    flow.run()
    state = flow.parser.get_parsed_content("validate::evaluator").state
    flow.finalize()
    value = float(state.metrics[state.key_metric_name])
    return value if value == value else None


def told(versions: Versions) -> dict[str, Any]:
    """Return a bundle's versions as JSON: all of them with their figures and verdicts, and which is in use."""
    entries = [{**asdict(one), "verdict": one.verdict} for one in versions.all()]
    return {"current": versions.current().version, "versions": entries}


def version_routes(versions_of: Callable[[str], Versions]) -> list[APIRoute]:
    """Make the routes `GET /versions/{model}` and `POST /versions/{model}`.

    Args:
        versions_of: returns a model's versions, or raises the refusal.
    """
    from monailabel.endpoints.user.auth import RBAC  # heavy, and loaded already where a server runs

    user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))

    def list_versions(model: str, user: Any = user) -> dict[str, Any]:
        """List the networks of a model and say which is in use."""
        return _mended(lambda: told(versions_of(model)))

    def choose_version(model: str, version: str = Body(embed=True), user: Any = admin) -> dict[str, Any]:
        """Take a version into use, from the next request on."""

        def choose() -> dict[str, Any]:
            versions = versions_of(model)
            versions.use(version)
            return told(versions)

        return _mended(choose)

    return [
        APIRoute("/versions/{model}", list_versions, methods=["GET"]),
        APIRoute("/versions/{model}", choose_version, methods=["POST"]),
    ]


def _mended(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return answer()
    except CtsegError as error:
        raise refused(409, str(error)) from error
